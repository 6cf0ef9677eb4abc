//! `podhold doctor`.

use std::process::ExitCode;

use super::{Failure, Settings};
use crate::{
    doctor::{self, Finding, Verdict},
    output,
    runtime::Runtime,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
    /// First remove what pods that are gone have left: mounts, cgroups, network namespaces, addresses
    #[arg(long)]
    fix: bool,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut settings = arguments.settings.clone();
    settings.log_level.get_or_insert_with(|| "warn".to_owned());
    let config = settings.load()?;
    super::start_logging(&config.log_level)?;
    let findings = super::threads::plain()?.block_on(async {
        if arguments.fix {
            super::require_root()?;
            let runtime = Runtime::open(config.clone()).await?;
            runtime.sweep().await?;
            runtime.close().await;
        }
        Ok::<_, Failure>(doctor::examine(&config).await)
    })?;
    let fit = doctor::is_fit(&findings);
    let text = if arguments.json {
        let answer = serde_json::json!({ "fit": fit, "findings": findings });
        format!("{}\n", serde_json::to_string_pretty(&answer)?)
    } else {
        findings.iter().map(line).collect()
    };
    output::this(format_args!("{text}"))?;
    Ok(if fit { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn line(finding: &Finding) -> String {
    let Finding { check, verdict, found, cost, mend } = finding;
    match verdict {
        Verdict::Works => format!("works     {check}: {found}\n"),
        Verdict::Degraded => {
            format!("degraded  {check}: {found}\n          costs: {cost}\n          mend: {mend}\n")
        }
        Verdict::Broken => {
            format!("BROKEN    {check}: {found}\n          costs: {cost}\n          mend: {mend}\n")
        }
    }
}
