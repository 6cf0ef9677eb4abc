//! `podhold doctor`.

use std::process::ExitCode;

use podhold_sandbox::Layout;

use super::{Failure, Settings, here};
use crate::{
    config::{Config, KindName},
    doctor::{self, Finding, Verdict},
    output,
    runtime::Runtime,
    standalone,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
    /// First remove what pods that are gone have left: mounts, cgroups, network namespaces, addresses, bridges; and
    /// pods whose podhold run was killed (those that --keep keeps are stopped)
    #[arg(long)]
    fix: bool,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn main(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut settings = arguments.settings.clone();
    settings.log_level.get_or_insert_with(|| "warn".to_owned());
    let config = settings.load()?;
    let beside = of_run(&settings, &config);
    super::start_logging(&config.log_level)?;
    let findings = super::threads::plain()?.block_on(async {
        if arguments.fix {
            super::require_root()?;
            fix(&config, beside.as_ref()).await?;
        }
        Ok::<_, Failure>(doctor::examine(&config, beside.as_ref()).await)
    })?;
    let fit = doctor::is_fit(&findings);
    let text = if arguments.json {
        let answer = serde_json::json!({ "fit": fit, "findings": findings });
        format!("{}\n", serde_json::to_string_pretty(&answer)?)
    } else {
        let end = if fit { "pods can run here\n" } else { "pods cannot run here: mend what is BROKEN\n" };
        findings.iter().map(line).chain([end.to_owned()]).collect()
    };
    output::this(format_args!("{text}"))?;
    Ok(if fit { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The directories of `podhold run`, unless others than the usual ones are named.
fn of_run(settings: &Settings, config: &Config) -> Option<Config> {
    if settings.run_dir.is_some() || settings.state_dir.is_some() {
        return None;
    }
    let mut beside = here::alone(config.clone());
    (beside.run_dir, beside.state_dir) = (here::RUN_DIR.into(), here::STATE_DIR.into());
    if beside.network.kind == KindName::Usual {
        beside.network.kind = KindName::Auto;
    }
    Some(beside)
}

/// Removes what is nobody's in the directories that nobody has, and what is left of networks. Those of a
/// `podhold run` that is under way are left alone; a daemon that has the others is a failure, told at the end.
async fn fix(config: &Config, beside: Option<&Config>) -> Result<(), Failure> {
    let swept = sweep(config, beside).await;
    if let Some(beside) = beside.filter(|beside| beside.state_dir.exists())
        && let Err(Failure(reason)) = sweep(beside, Some(config)).await
    {
        output::note(format_args!("{reason}"));
    }
    let removed = tokio::task::spawn_blocking(doctor::remove_networks).await?;
    swept?;
    Ok(removed?)
}

async fn sweep(config: &Config, other: Option<&Config>) -> Result<(), Failure> {
    let others = other.map(|other| Layout::new(&other.run_dir, &other.state_dir));
    let runtime = Runtime::open(config.clone()).await?;
    // Pods first: what is nobody's once they are gone is swept with the rest.
    let ended = standalone::end_forgotten(&runtime).await;
    let swept = runtime.sweep(others.as_slice()).await;
    standalone::remove_directories(&runtime);
    runtime.close().await;
    Ok(ended.and(swept)?)
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
