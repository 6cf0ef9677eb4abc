//! Looks things up on the host before anything is made, so that what can fail fails early: users, mount
//! sources, devices, profiles. Blocks.

use std::{
    fs::{self, File},
    io::Read,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Component, Path, PathBuf},
};

use podhold_proto::cri;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::propagation;
use crate::{
    error::{Error, Result},
    spec::{self, mounts::HostMount, user::Accounts},
};

/// Largest passwd or group file of an image that is read, in bytes.
const LARGEST_ACCOUNTS: u64 = 4 << 20;
/// Largest seccomp profile, in bytes.
const LARGEST_PROFILE: u64 = 4 << 20;
/// A new id: 64 hexadecimal digits from the kernel's random numbers.
pub(super) fn random_id() -> Result<String> {
    let mut bytes = [0u8; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(Error::doing("random numbers"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A directory that only root can enter, with its parents.
pub(super) fn private_dir(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(Error::doing(format!("making {}", path.display())))
}

/// A directory that everybody can enter, with its parents.
pub(super) fn public_dir(path: &Path) -> Result<()> {
    make_public(path).map_err(Error::doing(format!("making {}", path.display())))
}

/// As [`public_dir`]. Where the directory is there nothing is written: the file system may be frozen.
pub(super) fn make_public(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

/// The image's passwd and group files. A missing file is empty; links are followed beneath the root.
pub(super) fn accounts(rootfs: &Path) -> Result<Accounts> {
    let root = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::doing(format!("opening {}", rootfs.display())))?;
    let read = |name: &str| -> Result<String> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let place =
            match rustix::fs::openat2(&root, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Ok(place) => File::from(place),
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(String::new()),
                Err(error) => return Err(Error::failed(format!("looking up the image's /{name}"), &error)),
            };
        // Looked at before it is opened: the image may hold a device, and opening one does things.
        if !place.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Err(Error::Precondition(format!("the image's /{name} is not a file")));
        }
        let mut bytes = Vec::new();
        File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))
            .and_then(|file| file.take(LARGEST_ACCOUNTS).read_to_end(&mut bytes))
            .map_err(Error::doing(format!("reading the image's /{name}")))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Accounts { passwd: read("etc/passwd")?, group: read("etc/group")? })
}

/// Refuses an image in which a link stands for a directory that the kernel's own file systems are mounted
/// on. libcontainer makes links in `/dev` by its path before the root is changed: it would follow one to the
/// host.
pub(super) fn check_system_directories(rootfs: &Path) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, flags, Mode::empty())
        .map_err(Error::doing(format!("opening {}", rootfs.display())))?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    for name in ["dev", "proc", "sys"] {
        match rustix::fs::openat2(&root, name, flags, Mode::empty(), resolve) {
            Ok(_) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => {
                let reason = format!("the image's /{name} is not a directory ({error}); use another image");
                return Err(Error::Precondition(reason));
            }
        }
    }
    Ok(())
}

/// Makes the working directory beneath the container's root where it is missing, as runc does. Links in
/// it are followed beneath the root. `owner` is root of a pod with users of its own.
pub(super) fn make_working_dir(rootfs: &Path, dir: &str, owner: Option<(u32, u32)>) -> Result<()> {
    let refuse = |reason: String| Error::unusable("working_dir", format!("{dir:?} {reason}"));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, flags, Mode::empty())
        .map_err(Error::doing(format!("opening {}", rootfs.display())))?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let look = |path: &Path| rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve);
    let mut made = PathBuf::from("/");
    let mut above = look(&made).map_err(|error| refuse(format!("cannot be looked up: {error}")))?;
    for part in Path::new(dir).components().filter(|part| matches!(part, Component::Normal(_))) {
        made.push(part);
        above = match look(&made) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&above, part.as_os_str(), Mode::from_raw_mode(0o755))
                    .map_err(|error| refuse(format!("cannot be made in the image: {error}")))?;
                let new = look(&made).map_err(|error| refuse(format!("cannot be looked up: {error}")))?;
                if let Some((uid, gid)) = owner {
                    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
                    let flags = rustix::fs::AtFlags::EMPTY_PATH;
                    rustix::fs::chownat(&new, "", Some(uid), Some(gid), flags)
                        .map_err(|error| refuse(format!("cannot be given to the pod's root: {error}")))?;
                }
                new
            }
            Err(error) => return Err(refuse(format!("is not a directory in the image: {error}"))),
        };
    }
    Ok(())
}

/// The sources of the mounts: links resolved, missing directories made.
pub(super) fn mounts(requested: &[cri::Mount]) -> Result<Vec<HostMount>> {
    let look_up = |(index, mount): (usize, &cri::Mount)| {
        if spec::mounts::image(mount).is_some() {
            // Found out when the image is mounted.
            let source = PathBuf::new();
            return Ok(HostMount { target: mount.container_path.clone(), source, request: mount.clone() });
        }
        let source = Path::new(&mount.host_path);
        let field = || format!("mounts[{index}].host_path");
        if fs::symlink_metadata(source).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(source).map_err(|error| {
                Error::unusable(
                    field(),
                    format!("{} is missing and cannot be made: {error}", source.display()),
                )
            })?;
        }
        let source: PathBuf = fs::canonicalize(source).map_err(|error| {
            Error::invalid(field(), format!("{} cannot be looked up: {error}", source.display()))
        })?;
        propagation::check(index, mount, &source)?;
        Ok(HostMount { target: mount.container_path.clone(), source, request: mount.clone() })
    };
    requested.iter().enumerate().map(look_up).collect()
}

/// A seccomp profile of the node.
pub(super) fn read_profile(path: &str) -> Result<String> {
    let field = "linux.security_context.seccomp.localhost_ref";
    if !Path::new(path).is_absolute() {
        return Err(Error::invalid(field, format!("{path:?} is not an absolute path")));
    }
    let mut text = String::new();
    // A FIFO in its place would have us wait for a writer.
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
    opened
        .and_then(|file| match file.metadata()?.is_file() {
            true => file.take(LARGEST_PROFILE).read_to_string(&mut text),
            false => Err(std::io::Error::other("is not a file")),
        })
        .map_err(|error| Error::invalid(field, format!("{path} cannot be read: {error}")))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_in_the_place_of_passwd_is_not_opened() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let passwd = root.path().join("etc/passwd");
        rustix::fs::symlink("/dev/null", &passwd).unwrap();
        assert_eq!(accounts(root.path()).unwrap().passwd, "", "links are followed beneath the root");
        fs::remove_file(&passwd).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &passwd, Mode::from_raw_mode(0o600)).unwrap();
        // Opened for reading, it would wait for a writer for ever.
        assert!(accounts(root.path()).is_err());
        fs::remove_file(&passwd).unwrap();
        fs::write(&passwd, "web:x:1:1::/:/bin/sh\n").unwrap();
        assert!(accounts(root.path()).unwrap().passwd.starts_with("web:"));
    }

    #[test]
    fn a_missing_working_directory_is_made_beneath_the_root() {
        let root = tempfile::tempdir().unwrap();
        rustix::fs::symlink("/../..", root.path().join("out")).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        make_working_dir(root.path(), "/a/b", None).unwrap();
        make_working_dir(root.path(), "/out/c", None).unwrap();
        assert!(root.path().join("a/b").is_dir() && root.path().join("c").is_dir());
        assert!(make_working_dir(root.path(), "/file", None).is_err());
    }
}
