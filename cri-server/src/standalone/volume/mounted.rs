//! What is mounted beneath a directory of ours, and its end. Blocks, but never on what is mounted.
//!
//! Invariant: nothing is unmounted anywhere else. A mount that is a peer of one elsewhere (`shared:` in the mount
//! table) hands every unmount on to it, also that of what lies on it; so it is made private first.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use rustix::{
    io::Errno,
    mount::{MountPropagationFlags, UnmountFlags},
};

/// One mount of this process's namespace.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    point: PathBuf,
    /// Its peer group.
    group: Option<String>,
}

/// Unmounts everything at a path and beneath it, wherever it came from. Success when there is nothing.
pub(super) fn detach(path: &Path) -> io::Result<()> {
    // The last part is not followed: what hangs there would hang us.
    let Some((parent, name)) = path.parent().zip(path.file_name()) else { return Ok(()) };
    let path = match fs::canonicalize(parent) {
        Ok(parent) => parent.join(name),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut before = usize::MAX;
    loop {
        let table = table(&fs::read_to_string("/proc/self/mountinfo")?);
        let (ours, others): (Vec<_>, Vec<_>) =
            table.into_iter().partition(|mount| mount.point.starts_with(&path));
        // The outermost goes first and takes along what is on it.
        let Some(first) = ours.iter().min_by_key(|mount| mount.point.components().count()) else {
            return Ok(());
        };
        let elsewhere: HashSet<&String> = others.iter().filter_map(|mount| mount.group.as_ref()).collect();
        if ours.iter().any(|mount| mount.group.as_ref().is_some_and(|group| elsewhere.contains(group))) {
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change(&first.point, private)?;
        }
        let failed = match rustix::mount::unmount(&first.point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        {
            Ok(()) => continue,
            // Somebody else was faster, or something is mounted over all of it.
            Err(Errno::INVAL | Errno::NOENT) if ours.len() < before => {
                before = ours.len();
                continue;
            }
            Err(error) => io::Error::from(error),
        };
        return Err(io::Error::new(failed.kind(), format!("{}: {failed}", first.point.display())));
    }
}

/// The mounts of a mount table (proc_pid_mountinfo(5)).
fn table(text: &str) -> Vec<Mounted> {
    let mount = |line: &str| {
        let mut fields = line.split(' ');
        let point = unescaped(fields.nth(4)?);
        let group =
            fields.skip(1).take_while(|field| *field != "-").find_map(|field| field.strip_prefix("shared:"));
        Some(Mounted { point, group: group.map(str::to_owned) })
    };
    text.lines().filter_map(mount).collect()
}

/// A path of the mount table: blanks and the like are octal there.
fn unescaped(text: &str) -> PathBuf {
    let mut path = text.to_owned();
    for (escaped, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        path = path.replace(escaped, plain);
    }
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read_with_blanks_and_peer_groups() {
        let text = "25 1 8:1 / / rw,relatime shared:7 master:2 - ext4 /dev/sda1 rw\n\
                    26 25 0:5 /x /a\\040b\\134c rw - tmpfs none rw\n";
        let mount = |point: &str, group: Option<&str>| Mounted {
            point: point.into(),
            group: group.map(str::to_owned),
        };
        assert_eq!(table(text), [mount("/", Some("7")), mount("/a b\\c", None)]);
    }
}
