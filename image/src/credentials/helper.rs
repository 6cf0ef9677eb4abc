//! Credential helpers: programs `docker-credential-NAME` that keep secrets (docker-credential-helpers).
//!
//! Invariant: a helper runs in a process group of its own, which is killed when its time is over, when it
//! writes too much, and when nobody waits for it any more; one that outlives its daemon is ended by the next one
//! (`leftover`). Of its output nothing but credentials is used: not even an error is passed on, for it may hold
//! secrets.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

use super::{
    Credentials,
    leftover::{self, Mark, Marks},
};

/// How long a helper may take.
const LIMIT: Duration = Duration::from_secs(15);
/// Longest answer, in bytes.
const MAX_ANSWER: u64 = 64 << 10;
/// What a helper says when it knows nothing about a server.
const NOT_FOUND: &str = "credentials not found";
/// The user name that stands for "the secret is an identity token".
const TOKEN: &str = "<token>";

/// Asks the helper `name` for the credentials for `server`.
pub(super) async fn get(
    marks: &Arc<Marks>,
    dirs: &[PathBuf],
    name: &str,
    server: &str,
) -> Result<Option<Credentials>, String> {
    get_within(marks, dirs, name, server, LIMIT).await
}

pub(super) async fn get_within(
    marks: &Arc<Marks>,
    dirs: &[PathBuf],
    name: &str,
    server: &str,
    limit: Duration,
) -> Result<Option<Credentials>, String> {
    let program = find(dirs, name)?;
    let shown = program.display();
    let mut command = Command::new(&program);
    command.arg("get").env_clear().current_dir("/").process_group(0).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Ok(path) = std::env::join_paths(dirs) {
        command.env("PATH", path);
    }
    command.env("HOME", std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    // A process has the priority of the thread that makes it, and the workers' is raised.
    let marks = Arc::clone(marks);
    let start = move || {
        let mark = marks.mark();
        command.env(leftover::VARIABLE, mark.path());
        command.spawn().map(|child| Running { child, _mark: mark })
    };
    let started = tokio::task::spawn_blocking(start).await.map_err(|_| "the pull was given up".to_owned())?;
    let mut running = started.map_err(|error| format!("{shown} cannot be started: {error}"))?;
    let talk = tokio::time::timeout(limit, running.talk(server)).await;
    let (success, answer) = talk
        .map_err(|_| format!("{shown} does not answer within {} s; run it by hand", limit.as_secs()))?
        .map_err(|error| format!("{shown}: its answer cannot be read: {error}"))?;
    if answer.len() as u64 > MAX_ANSWER {
        return Err(format!("{shown} answers more than {} KiB", MAX_ANSWER >> 10));
    }
    if !success {
        let unknown = String::from_utf8_lossy(&answer).contains(NOT_FOUND);
        let mend = format!("run `echo {server} | {shown} get` as root to see why");
        return if unknown { Ok(None) } else { Err(format!("{shown} fails; {mend}")) };
    }
    read_answer(&answer).ok_or_else(|| format!("{shown} does not answer with Username and Secret in JSON"))
}

/// The helper's program. Its name comes from a file and must not lead elsewhere.
fn find(dirs: &[PathBuf], name: &str) -> Result<PathBuf, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 100 || !name.bytes().all(plain) {
        return Err("the name of its credential helper may hold letters, digits, '-', '_' and '.'".to_owned());
    }
    let file = format!("docker-credential-{name}");
    let runnable = |path: &PathBuf| {
        Path::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    dirs.iter().map(|dir| dir.join(&file)).find(runnable).ok_or_else(|| {
        let list: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        format!("there is no program {file} in {}", list.join(", "))
    })
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

/// Reads a helper's answer; `Some(None)` is an empty one, `None` something else.
pub(crate) fn read_answer(bytes: &[u8]) -> Option<Option<Credentials>> {
    // serde takes a list for a struct as well.
    let object = Some(bytes).filter(|bytes| bytes.trim_ascii_start().starts_with(b"{"))?;
    let Answer { username, secret } = serde_json::from_slice(object).ok()?;
    Some(match (username.as_str(), secret.as_str()) {
        ("", _) | (TOKEN, "") => None,
        (TOKEN, _) => Some(Credentials::IdentityToken(secret)),
        _ => Some(Credentials::Basic { username, password: secret }),
    })
}

/// A helper at work.
struct Running {
    child: Child,
    _mark: Mark,
}

impl Running {
    /// Whether it succeeded, and what it wrote: at most one byte more than is allowed.
    async fn talk(&mut self, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
        let stdin = self.child.stdin.take();
        let stdout = self.child.stdout.take();
        if let Some(mut stdin) = stdin {
            // One that does not read it may know the answer all the same.
            let _ignored = stdin.write_all(server.as_bytes()).await;
        }
        let mut answer = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(MAX_ANSWER + 1).read_to_end(&mut answer).await?;
        }
        if answer.len() as u64 > MAX_ANSWER {
            return Ok((false, answer));
        }
        Ok((self.child.wait().await?.success(), answer))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Not yet reaped: the id is still its own.
        let group = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(group) = group {
            let _gone = kill_process_group(group, Signal::KILL);
        }
    }
}
