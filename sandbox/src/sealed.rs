//! Programs in sealed memory files: nobody can change what runs, not even through `/proc/PID/exe`
//! (CVE-2019-5736).

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    io::Errno,
};

/// How often sealing is tried again while the kernel is at work on the pages, for 150 ms each.
const PATIENCE: u32 = 20;

/// Copies a program into a new sealed memory file.
pub(crate) fn program(name: &str, source: &mut impl Read) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know EXEC, and need none.
    let fd = memfd_create(name, flags | MemfdFlags::EXEC).or_else(|_| memfd_create(name, flags))?;
    let mut file = File::from(fd);
    io::copy(source, &mut file)?;
    file.flush()?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    // The kernel may be moving its pages at the moment. It waits for that itself, each time a while.
    let mut sealed = fcntl_add_seals(&file, seals);
    for _again in 0..PATIENCE {
        if sealed != Err(Errno::BUSY) {
            break;
        }
        sealed = fcntl_add_seals(&file, seals);
    }
    sealed?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_sealed_program_cannot_be_written_by_any_way() {
        let fd = program("test", &mut &b"#!/bin/true"[..]).unwrap();
        let mut file = File::from(fd);
        assert!(file.write_all(b"x").is_err());
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let reopened = std::fs::OpenOptions::new().write(true).open(path);
        assert!(reopened.and_then(|mut file| file.write_all(b"x")).is_err());
    }
}
