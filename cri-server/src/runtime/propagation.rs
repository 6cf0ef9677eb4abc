//! Whether what is mounted beneath a host path can be propagated as a mount asks for. Blocks.

use std::{fs, path::Path};

use podhold_proto::cri::{self, MountPropagation};
use rustix::fs::{AtFlags, CWD, StatxFlags};

use crate::error::{Error, Result};

/// Refuses a mount whose source lies on a mount that propagates nothing: it would be a mount that looks as
/// asked for and never shows anything. `source` has no symbolic link in it.
pub(super) fn check(index: usize, mount: &cri::Mount, source: &Path) -> Result<()> {
    let (name, kinds): (_, &[&str]) = match mount.propagation() {
        MountPropagation::PropagationPrivate => return Ok(()),
        MountPropagation::PropagationHostToContainer => ("HOST_TO_CONTAINER", &["shared:", "master:"]),
        MountPropagation::PropagationBidirectional => ("BIDIRECTIONAL", &["shared:"]),
    };
    let looking_up = || format!("looking up the mount of {}", source.display());
    // Without SYNC the file system itself is not asked, which may hang.
    let found = rustix::fs::statx(CWD, source, AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID)
        .map_err(Error::doing(looking_up()))?;
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(Error::doing(looking_up()))?;
    match propagation_of(&table, found.stx_mnt_id) {
        Some((_, fields)) if fields.iter().any(|field| kinds.iter().any(|kind| field.starts_with(kind))) => {
            Ok(())
        }
        Some((point, _)) => Err(Error::Precondition(format!(
            "mounts[{index}].propagation: {name} needs a source on a shared mount, and {} lies on {point}, \
             which is not; run mount --make-rshared {point} on the node",
            source.display()
        ))),
        None => Err(Error::Precondition(format!(
            "mounts[{index}].propagation: the mount of {} was taken away meanwhile",
            source.display()
        ))),
    }
}

/// The mount point and the optional fields of a mount (proc_pid_mountinfo(5)).
fn propagation_of(table: &str, id: u64) -> Option<(&str, Vec<&str>)> {
    let line =
        table.lines().find(|line| line.split(' ').next().and_then(|id| id.parse().ok()) == Some(id))?;
    let mut fields = line.split(' ').skip(4);
    let point = fields.next()?;
    Some((point, fields.skip(1).take_while(|field| *field != "-").collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounts_propagation_is_found_by_its_number() {
        let table = "22 1 0:20 / / rw - ext4 /dev/sda rw\n\
                     31 22 0:27 / /mnt rw,nosuid shared:7 master:3 - tmpfs shared:x rw\n";
        assert_eq!(propagation_of(table, 22), Some(("/", Vec::new())));
        assert_eq!(propagation_of(table, 31), Some(("/mnt", vec!["shared:7", "master:3"])));
        assert_eq!(propagation_of(table, 3), None);
    }
}
