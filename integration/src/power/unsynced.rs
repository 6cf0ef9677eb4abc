//! Runs a program whose syncs do nothing: to see that the power cuts find what is lost then.

use std::{io, os::unix::process::CommandExt, process::Command};

use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};

/// The system calls that make something last.
pub const SYNCS: [&str; 6] = ["fsync", "fdatasync", "syncfs", "sync", "sync_file_range", "msync"];

/// Becomes the program `words`, in which the calls `without` succeed and do nothing. Answers only when it fails.
pub fn become_program(words: &[String], without: &[String]) -> io::Error {
    let filtered = || -> Result<(), libseccomp::error::SeccompError> {
        let mut filter = ScmpFilterContext::new(ScmpAction::Allow)?;
        filter.set_ctl_nnp(false)?;
        for name in without {
            filter.add_rule(ScmpAction::Errno(0), ScmpSyscall::from_name(name)?)?;
        }
        filter.load()
    };
    let Some((program, arguments)) = words.split_first() else { return io::ErrorKind::InvalidInput.into() };
    match filtered() {
        Ok(()) => Command::new(program).args(arguments).exec(),
        Err(error) => io::Error::other(error),
    }
}
