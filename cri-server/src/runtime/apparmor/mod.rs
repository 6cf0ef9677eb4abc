//! Podhold's own AppArmor profile: loaded when a daemon starts, by the machine's `apparmor_parser`.
//!
//! Invariant: a profile of this name that somebody has loaded stays as it is. Does not decide who is confined by it.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};
use tracing::{info, warn};

/// The profile's name.
pub(super) const NAME: &str = "podhold-default";
const PROFILE: &str = include_str!("profile");
/// Says whether AppArmor is at work (kernel module parameter).
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// Names of the loaded profiles, one per line, each with its mode in parentheses (apparmorfs).
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
/// Most that is read of the list of profiles, in bytes.
const LARGEST_LIST: u64 = 4 << 20;
/// Where distributions have the parser.
const PARSERS: [&str; 4] = [
    "/usr/sbin/apparmor_parser",
    "/sbin/apparmor_parser",
    "/usr/bin/apparmor_parser",
    "/usr/local/sbin/apparmor_parser",
];
/// How long the parser may take: half a second, and much longer on a machine that has just booted.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether the kernel has AppArmor at work.
pub(super) fn is_enabled() -> bool {
    fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y'))
}

/// Whether a profile of this name is loaded.
pub(super) fn is_loaded(name: &str) -> bool {
    let mut list = String::new();
    let read = fs::File::open(LOADED).and_then(|file| file.take(LARGEST_LIST).read_to_string(&mut list));
    read.is_ok() && list.lines().any(|line| line.rsplit_once(" (").is_some_and(|(known, _)| known == name))
}

/// Loads the profile where AppArmor is at work and nobody has. What goes wrong is logged: pods that ask for the
/// profile are refused then, with the mend.
pub(super) async fn load() {
    if !is_enabled() || is_loaded(NAME) {
        return;
    }
    let Some(parser) = PARSERS.iter().map(PathBuf::from).find(|parser| parser.exists()) else {
        warn!(
            profile = NAME,
            "AppArmor is at work and apparmor_parser is not installed: the profile is not loaded"
        );
        return;
    };
    match timeout(PATIENCE, parse(&parser)).await {
        Ok(Ok(())) => info!(profile = NAME, "AppArmor profile loaded"),
        Ok(Err(reason)) => warn!(profile = NAME, reason, "AppArmor profile not loaded"),
        Err(_late) => warn!(profile = NAME, "AppArmor profile not loaded: apparmor_parser takes too long"),
    }
}

async fn parse(parser: &Path) -> Result<(), String> {
    let mut child = Command::new(parser)
        .args(["--replace", "--skip-cache", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{}: {error}", parser.display()))?;
    let mut input = child.stdin.take().ok_or("no standard input")?;
    let written = input.write_all(PROFILE.as_bytes()).await;
    drop(input);
    let output = child.wait_with_output().await.map_err(|error| error.to_string())?;
    if output.status.success() {
        return written.map_err(|error| error.to_string());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {}", output.status, said.trim().chars().take(500).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_has_the_name_that_containers_are_given() {
        assert!(PROFILE.lines().any(|line| line.starts_with(&format!("profile {NAME} "))));
    }
}
