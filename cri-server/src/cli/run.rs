//! `podhold run POD.yaml`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use super::{Failure, Settings, here};
use crate::{
    config::KindName,
    descriptors,
    error::{Error, chain},
    output,
    standalone::{self, Manifest, Options, Policy, PullWhen},
};

/// Exit code of a manifest that cannot be run.
const BAD_MANIFEST: u8 = 2;

/// What the exit codes mean, for `--help`.
pub(super) const EXIT_CODES: &str = "\
Exit codes: that of the first container in the manifest that failed for good, or 0; 124 when the time was over
(--timeout, activeDeadlineSeconds); 129, 130, 143 when it was told to end (hangup, Ctrl-C, SIGTERM); 141 when
nobody reads its output; 2 for a manifest that cannot be run; 3 for what this host, or a registry, could not do.";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// File with one Pod (core v1), or one Deployment, DaemonSet, StatefulSet, ReplicaSet, Job or CronJob of whose
    /// template one pod is run now, and the ConfigMaps and Secrets it uses; YAML or JSON; `-` is standard input
    #[arg(value_name = "POD.yaml")]
    manifest: PathBuf,
    /// In place of the manifest's restartPolicy
    #[arg(long, value_name = "POLICY")]
    restart_policy: Option<Policy>,
    /// Wait before the second restart of a container; it doubles up to 5m
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    restart_backoff: Duration,
    /// End the pod after this time, such as 90s, 5m or 1h, with exit code 124
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    /// When images are pulled, in place of the containers' imagePullPolicy
    #[arg(long, value_name = "WHEN")]
    pull: Option<PullWhen>,
    /// Print how the pod ended as JSON; what containers say goes to standard error
    #[arg(long)]
    json: bool,
    /// Write how the pod ended to a file, as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Stop the pod at its end and do not remove it: podhold logs and rm find it
    #[arg(long)]
    keep: bool,
    /// Print the CRI requests as JSON and run nothing; values of secrets are shown where the requests have them.
    /// Needs no root
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    settings: Settings,
}

/// A time with its unit: `500ms`, `90s`, `5m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 500ms, 90s, 5m or 1h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let factor = match &text[digits..] {
        "ms" => return Ok(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    let seconds = number.checked_mul(factor).filter(|seconds| *seconds <= 365 * 24 * 3600);
    seconds.map(Duration::from_secs).ok_or_else(|| format!("{text:?} is longer than a year"))
}

pub(super) fn main(arguments: Arguments) -> Result<ExitCode, Failure> {
    let manifest = match Manifest::read(&arguments.manifest) {
        Ok(manifest) => manifest,
        Err(error) => return Ok(Failure(chain(&error)).tell(BAD_MANIFEST)),
    };
    Ok(run(arguments, &manifest).unwrap_or_else(|(failure, code)| failure.tell(code)))
}

/// How long the last words wait for a reader of standard error.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Says what has failed; a reader that takes nothing does not keep the command from ending.
fn tell(failures: Vec<Error>) {
    let (done, said) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for failure in failures {
            output::note(format_args!("{}", chain(&failure)));
        }
        let _heard = done.send(());
    });
    let _said_or_late = said.recv_timeout(LAST_WORDS);
}

fn run(arguments: Arguments, manifest: &Manifest) -> Result<ExitCode, (Failure, u8)> {
    let host = |failure: Failure| (failure, standalone::HOST);
    let mut settings = arguments.settings.clone();
    settings.log_level.get_or_insert_with(|| "warn".to_owned());
    settings.run_dir.get_or_insert_with(|| here::RUN_DIR.into());
    settings.state_dir.get_or_insert_with(|| here::STATE_DIR.into());
    let mut config = settings.load().map_err(Failure::from).map_err(host)?;
    if config.network.kind == KindName::Usual {
        config.network.kind = KindName::Auto;
    }
    let options = Options {
        restart_policy: arguments.restart_policy,
        restart_backoff: Some(arguments.restart_backoff),
        timeout: arguments.timeout,
        pull: arguments.pull,
        json: arguments.json,
        junit: arguments.junit,
        keep: arguments.keep,
    };
    let refused = |error| (Failure(chain(&error)), BAD_MANIFEST);
    if arguments.dry_run {
        let requests = standalone::dry_run(manifest, &config, &options).map_err(refused)?;
        let printed = output::line(format_args!("{requests}"));
        return printed.map(|()| ExitCode::SUCCESS).map_err(|unwritten| (unwritten.into(), 1));
    }
    standalone::check(manifest, &config, &options).map_err(refused)?;
    super::start_logging(&config.log_level).map_err(host)?;
    super::require_root().map_err(host)?;
    descriptors::raise();
    let threads = super::threads::plain().map_err(host)?;
    let result = threads.block_on(async {
        let here = here::open(config).await.map_err(host)?;
        here.runtime.load_profile();
        let result = standalone::run(manifest, &here.runtime, &options).await;
        here.close().await;
        result.map_err(refused)
    });
    // What hangs on the host is left behind.
    threads.shutdown_background();
    let finished = result?;
    tell(finished.failures);
    Ok(ExitCode::from(finished.code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit() {
        for (text, expected) in [
            ("500ms", Some(Duration::from_millis(500))),
            ("90s", Some(Duration::from_secs(90))),
            ("5m", Some(Duration::from_secs(300))),
            ("2h", Some(Duration::from_secs(7200))),
            ("5", None),
            ("m", None),
            ("-1s", None),
            ("99999999h", None),
        ] {
            assert_eq!(duration(text).ok(), expected, "{text}");
        }
    }
}
