//! Makes the volumes of a pod on the host, and removes them. Blocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, lchown, symlink},
    path::Path,
};

use rustix::mount::MountFlags;

use super::{Source, Volumes, files::File, host_path, mounted};
use crate::error::{Error, Result};

/// The directory with the contents, and the link that leads to it: one rename changes all files at once.
const CONTENTS: &str = "..contents";
const DATA: &str = "..data";
/// What the group of the pod may do beyond the mode of what it is given.
const GROUP_FILE: u32 = 0o440;
const GROUP_DIRECTORY: u32 = 0o2550;

impl Volumes {
    /// Makes all of them.
    pub(in crate::standalone) fn make(&self) -> Result<()> {
        for volume in self.iter() {
            let doing = |path: &Path| Error::doing(format!("{}: making {}", volume.field, path.display()));
            match &volume.source {
                Source::Empty { path, memory } => {
                    directory(path, 0o777).map_err(doing(path))?;
                    if let Some(size) = memory {
                        tmpfs(path, *size).map_err(doing(path))?;
                    }
                    if let Some(group) = self.group {
                        lchown(path, None, Some(group)).map_err(doing(path))?;
                        mode(path, 0o2777).map_err(doing(path))?;
                    }
                }
                Source::Files { path, files } => write(path, files, self.group).map_err(doing(path))?,
                Source::Host { path, kind } => host_path::make(path, *kind, &volume.field)?,
                Source::Image { .. } => {}
            }
        }
        Ok(())
    }
}

/// Unmounts everything beneath a directory, then removes it. Success when it is not there.
pub(in crate::standalone) fn remove(directory: &Path) -> Result<()> {
    let failed = || Error::doing(format!("removing {}", directory.display()));
    let Ok(directory) = fs::canonicalize(directory) else { return Ok(()) };
    mounted::detach(&directory)
        .map_err(Error::doing(format!("unmounting what is beneath {}", directory.display())))?;
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed()(error)),
        _ => Ok(()),
    }
}

/// A directory with exactly this mode; its parents are root's.
fn directory(path: &Path, bits: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    fs::DirBuilder::new().recursive(true).mode(bits).create(path)?;
    mode(path, bits)
}

fn mode(path: &Path, bits: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(bits))
}

fn tmpfs(path: &Path, size: i64) -> io::Result<()> {
    let limit = if size > 0 { format!(",size={size}") } else { String::new() };
    let options = CString::new(format!("mode=0777{limit}")).expect("no NUL in a number");
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("podhold", path, "tmpfs", flags, Some(options.as_c_str()))?;
    Ok(())
}

/// Writes files as a kubelet does: in a directory of their own, behind one link.
fn write(path: &Path, files: &BTreeMap<String, File>, group: Option<u32>) -> io::Result<()> {
    directory(path, 0o755)?;
    let contents = path.join(CONTENTS);
    directory(&contents, 0o755)?;
    for (name, file) in files {
        let target = contents.join(name);
        if let Some(parent) = target.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        let mut open = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
        open.write_all(&file.content)?;
        mode(&target, file.mode)?;
    }
    symlink(CONTENTS, path.join(DATA))?;
    let first = |name: &String| name.split('/').next().map(str::to_owned);
    for name in files.keys().filter_map(first).collect::<BTreeSet<_>>() {
        symlink(Path::new(DATA).join(&name), path.join(&name))?;
    }
    match group {
        Some(group) => give(path, group),
        None => Ok(()),
    }
}

/// Gives everything beneath to a group.
fn give(path: &Path, group: u32) -> io::Result<()> {
    let what = fs::symlink_metadata(path)?;
    lchown(path, None, Some(group))?;
    if what.is_dir() {
        mode(path, what.permissions().mode() & 0o777 | GROUP_DIRECTORY)?;
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), group)?;
        }
    } else if what.is_file() {
        mode(path, what.permissions().mode() & 0o777 | GROUP_FILE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn files_are_behind_one_link_and_have_their_modes() {
        let place = tempfile::tempdir().unwrap();
        let volume = place.path().join("v");
        let file = |content: &str, mode| File { content: content.into(), mode };
        let files = BTreeMap::from([
            ("a".to_owned(), file("1", 0o400)),
            ("deep/b".to_owned(), file("2", 0o644)),
            ("deep/c".to_owned(), file("3", 0o777)),
        ]);
        write(&volume, &files, None).unwrap();
        for (name, content, mode) in [("a", "1", 0o400), ("deep/b", "2", 0o644), ("deep/c", "3", 0o777)] {
            let path = volume.join(name);
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode, "{name}");
        }
        assert_eq!(fs::read_link(volume.join("deep")).unwrap(), Path::new("..data/deep"));
        let group = rustix::process::getegid().as_raw();
        give(&volume, group).unwrap();
        assert_eq!(fs::metadata(volume.join("a")).unwrap().mode() & 0o7777, 0o440);
        assert_eq!(fs::metadata(volume.join("deep")).unwrap().mode() & 0o7777, 0o2755);
    }

    #[test]
    fn what_is_not_there_is_removed_and_links_are_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let (outside, inside) = (place.path().join("outside"), place.path().join("inside"));
        fs::create_dir_all(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        symlink(&outside, inside.join("link")).unwrap();
        remove(&inside).unwrap();
        assert!(outside.join("kept").exists() && !inside.exists());
        remove(&inside).unwrap();
    }
}
