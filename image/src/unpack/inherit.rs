//! Directories that a layer uses without describing them look as they do in the layers below.
//!
//! Each layer is unpacked by itself, perhaps before the layers below it are there, so this is done when
//! the layer is about to count.

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    fs::{Gid, Mode, OFlags, Timespec, Timestamps, Uid},
    io::Errno,
};

use super::beneath::open_directory;

/// Gives each directory of `implicit` beneath `layer` the owner, mode and times it has in the first of
/// `lowers` (the nearest layer first) that has it as a directory. Directories new with this layer stay as
/// they are: root's, mode 0755.
pub(crate) fn inherit_directories(
    layer: &OwnedFd,
    implicit: &[Vec<u8>],
    lowers: &[OwnedFd],
) -> Result<(), Errno> {
    for name in implicit {
        for lower in lowers {
            let found = match open_directory(lower.as_fd(), name, OFlags::RDONLY) {
                Ok(found) => rustix::fs::fstat(found)?,
                Err(Errno::NOENT) => continue,
                // A file, link or whiteout there ends what lies below it.
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(error) => return Err(error),
            };
            let directory = open_directory(layer.as_fd(), name, OFlags::RDONLY)?;
            let (uid, gid) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
            rustix::fs::fchown(&directory, Some(uid), Some(gid))?;
            rustix::fs::fchmod(&directory, Mode::from_raw_mode(found.st_mode))?;
            rustix::fs::futimens(
                &directory,
                &Timestamps {
                    last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
                    last_modification: Timespec { tv_sec: found.st_mtime, tv_nsec: found.st_mtime_nsec as _ },
                },
            )?;
            break;
        }
    }
    Ok(())
}
