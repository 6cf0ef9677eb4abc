//! The last steps before a workload runs, the same for a container's init and for an exec: the
//! environment, the search in PATH, exec, and words for what cannot be executed.
//!
//! Runs inside the container, as its user.

use std::{
    ffi::CString,
    fs::{self, OpenOptions},
    io::Read,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
};

use nix::errno::Errno;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A larger passwd file is read up to here.
const MAX_PASSWD: u64 = 1 << 20;

/// The environment as given, in its order, with `HOME` of the user added when it is missing.
pub(super) fn environment(given: &[String], uid: u32) -> Vec<String> {
    let mut env = given.to_vec();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", home(uid).unwrap_or_else(|| "/".into())));
    }
    env
}

fn home(uid: u32) -> Option<String> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/etc/passwd").ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(MAX_PASSWD).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let line = text.lines().find(|line| line.split(':').nth(2) == Some(&uid.to_string()))?;
    line.split(':').nth(5).filter(|home| home.starts_with('/')).map(str::to_owned)
}

/// Whether a file of that name can be found and executed; the words of the refusal otherwise.
pub(super) fn check(program: &str, env: &[String]) -> Result<(), String> {
    let mut refusal = missing(program);
    for candidate in candidates(program, env) {
        match fs::metadata(&candidate) {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => return Ok(()),
            Ok(found) if found.is_dir() => refusal = words(program, "is a directory"),
            Ok(_) => refusal = words(program, "permission denied"),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                refusal = words(program, "permission denied");
            }
            Err(_) => {}
        }
    }
    Err(refusal)
}

/// Executes the program; returns only when that fails, with the words of the refusal.
pub(super) fn execute(args: &[String], env: &[String]) -> String {
    let Some(program) = args.first() else { return "process.args is empty: name a program".into() };
    let terminated = |list: &[String]| -> Result<Vec<CString>, _> {
        list.iter().map(|text| CString::new(text.as_bytes())).collect()
    };
    let (Ok(arguments), Ok(environment)) = (terminated(args), terminated(env)) else {
        return words(program, "a NUL in its arguments or environment");
    };
    let mut refusal = missing(program);
    for candidate in candidates(program, env) {
        let Ok(path) = CString::new(candidate) else { continue };
        let Err(errno) = nix::unistd::execve(&path, &arguments, &environment);
        match errno {
            Errno::ENOENT | Errno::ENOTDIR if !program.contains('/') => {}
            // As execvp(3): a later directory may have one that can be executed.
            Errno::EACCES if !program.contains('/') => refusal = words(program, "permission denied"),
            errno => return words(program, &errno.desc().to_lowercase()),
        }
    }
    refusal
}

fn candidates(program: &str, env: &[String]) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    if program.is_empty() {
        return Vec::new();
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let beneath = |directory: &str| match directory {
        "" => format!("./{program}"),
        directory => format!("{directory}/{program}"),
    };
    path.split(':').map(beneath).collect()
}

fn missing(program: &str) -> String {
    let reason = if program.contains('/') {
        "no such file or directory"
    } else {
        "executable file not found in $PATH"
    };
    words(program, reason)
}

fn words(program: &str, reason: &str) -> String {
    format!("exec: {program:?}: {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_executed_is_refused_in_words() {
        let env = ["PATH=/nowhere:/bin".to_owned()];
        assert_eq!(check("sh", &env), Ok(()));
        for (program, expected) in [
            ("nosuch", "exec: \"nosuch\": executable file not found in $PATH"),
            ("/nosuch", "exec: \"/nosuch\": no such file or directory"),
            ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
            ("/etc", "exec: \"/etc\": is a directory"),
            ("", "exec: \"\": executable file not found in $PATH"),
        ] {
            assert_eq!(check(program, &env), Err(expected.to_owned()));
        }
        assert_eq!(execute(&["nosuch".into()], &env), "exec: \"nosuch\": executable file not found in $PATH");
        assert_eq!(execute(&["/etc/passwd".into()], &env), "exec: \"/etc/passwd\": permission denied");
    }

    #[test]
    fn the_environment_keeps_its_order_and_gets_a_home() {
        let given = ["B=1".to_owned(), "A=2".into(), "B=3".into()];
        assert_eq!(environment(&given, 0), ["B=1", "A=2", "B=3", "HOME=/root"]);
        assert_eq!(environment(&["HOME=/x".to_owned()], 0), ["HOME=/x"]);
        assert_eq!(environment(&[], 54321), ["HOME=/"]);
    }
}
