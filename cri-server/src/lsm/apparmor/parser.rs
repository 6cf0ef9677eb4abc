//! The machine's `apparmor_parser`: the only one that can make a policy for the kernel out of a text.
//!
//! Invariant: it is waited for within bounds, and ended with whoever waits. Knows no profile.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::timeout,
};

const PROGRAM: &str = "apparmor_parser";
/// Where it is installed, whatever the search path of the daemon.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"];
/// Most that is read of what it says, in bytes.
const LARGEST_WORDS: u64 = 2048;

/// The program, if it is installed.
pub(super) fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(DIRECTORIES.map(PathBuf::from));
    directories.filter(|directory| directory.is_absolute()).map(|at| at.join(PROGRAM)).find(|at| at.is_file())
}

/// Gives the kernel the profiles of a text, in place of those of the same names. The error says what the program
/// has said.
pub(super) async fn load(program: &Path, text: &str, patience: Duration) -> Result<(), String> {
    let shown = program.display();
    match timeout(patience, run(program, text)).await {
        Ok(ended) => ended.map_err(|reason| format!("{shown}: {reason}")),
        Err(_late) => Err(format!("{shown} has not ended after {} s and was killed", patience.as_secs())),
    }
}

async fn run(program: &Path, text: &str) -> Result<(), String> {
    let told = |error: io::Error| error.to_string();
    // Replace; neither read nor write its cache, which is not ours; no words about features it does without.
    let mut child = Command::new(program)
        .args(["--skip-cache", "--replace", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(told)?;
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stderr.take()) else {
        return Err("its streams are not connected".to_owned());
    };
    // Who ends before it has read everything says why on the other stream.
    let written = input.write_all(text.as_bytes()).await;
    drop(input);
    let mut said = Vec::new();
    output.take(LARGEST_WORDS).read_to_end(&mut said).await.map_err(told)?;
    let status = child.wait().await.map_err(told)?;
    if status.success() {
        return written.map_err(told);
    }
    let said = String::from_utf8_lossy(&said);
    let words: Vec<&str> = said.split_whitespace().collect();
    Err(format!("{status}: {}", words.join(" ")))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

    use super::*;

    /// A program of this script, in a directory of its own.
    fn program(script: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(PROGRAM);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        (directory, path)
    }

    #[tokio::test]
    async fn it_is_given_the_text_and_what_it_says_is_told() {
        let (directory, path) = program("cat > \"$0\".text");
        load(&path, "profile x {}", Duration::from_secs(60)).await.unwrap();
        let given = fs::read_to_string(directory.path().join("apparmor_parser.text")).unwrap();
        assert_eq!(given, "profile x {}");

        let (_directory, path) = program("echo 'line 3:\n syntax' >&2; exit 7");
        let refusal = load(&path, "profile", Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(refusal, format!("{}: exit status: 7: line 3: syntax", path.display()));

        let refusal = load(Path::new("/nowhere/parser"), "", Duration::from_secs(60)).await.unwrap_err();
        assert!(refusal.starts_with("/nowhere/parser: No such file"), "{refusal}");
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed() {
        let (directory, path) = program("echo $$ > \"$0\".pid; exec sleep 1000");
        let begun = Instant::now();
        let refusal = load(&path, "profile x {}", Duration::from_secs(3)).await.unwrap_err();
        assert!(refusal.ends_with("has not ended after 3 s and was killed"), "{refusal}");
        assert!(begun.elapsed() < Duration::from_secs(500));
        // On a machine so slow that it had not begun in time, nothing is left to be looked at.
        let Ok(pid) = fs::read_to_string(directory.path().join("apparmor_parser.pid")) else { return };
        let status = fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap_or_default();
        let asleep = status.contains("State:\tS") && status.contains("Name:\tsleep");
        assert!(!asleep, "it lives: {status}");
    }
}
