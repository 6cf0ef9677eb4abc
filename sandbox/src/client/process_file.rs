//! Which process a shim is, on disk: `PID START`, where START is the time of its start in clock ticks since
//! boot, so that the next process with this number is never taken for it. Blocks.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// How long a killed shim may take to end.
const END: Duration = Duration::from_secs(5);

/// Says at `path` which process the shim is.
pub(super) fn write(path: &Path, pid: u32) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    writeln!(options.open(path)?, "{pid} {}", start_of(pid)?)
}

/// The number of the process that `path` names, whether it is still there or not.
pub(super) fn pid(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.split(' ').next()?.parse().ok()
}

/// Kills the process that `path` names. True when it has ended, or had before; false when it does not end.
pub(super) fn kill(path: &Path) -> io::Result<bool> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        text => text?,
    };
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, format!("{}: {text:?}", path.display()));
    let (pid, start) = text.trim_end().split_once(' ').ok_or_else(invalid)?;
    let pid: u32 = pid.parse().map_err(|_| invalid())?;
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(invalid)?;
    let process = match pidfd_open(raw, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        process => process?,
    };
    // Looked at while it is held: its number cannot pass to another meanwhile.
    if start_of(pid).map_or(true, |now| now.to_string() != start) {
        return Ok(true);
    }
    match pidfd_send_signal(&process, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    let limit = Timespec { tv_sec: END.as_secs().cast_signed(), tv_nsec: 0 };
    Ok(poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit))? > 0)
}

/// Field `starttime` of `/proc/PID/stat` (proc_pid_stat(5)).
fn start_of(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before it may hold blanks and parentheses.
    let after = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19)?.parse().ok());
    after.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat: {stat:?}")))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_the_process_that_was_written_down_is_killed() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("shim.pid");
        assert!(kill(&path).unwrap(), "nobody was written down");
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(&path, format!("{} 1\n", child.id())).unwrap();
        assert!(kill(&path).unwrap());
        assert!(child.try_wait().unwrap().is_none(), "another process with its number lives");
        write(&path, child.id()).unwrap();
        assert!(kill(&path).unwrap());
        assert!(!child.wait().unwrap().success());
        assert!(kill(&path).unwrap(), "it has ended before");
        fs::write(&path, "nobody\n").unwrap();
        assert!(kill(&path).is_err());
    }
}
