//! Looks things up on the host before anything is made, so that what can fail fails early: users, mount
//! sources, devices, profiles. Blocks.

use std::{
    fs::{self, File},
    io::Read,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt},
    },
    path::{Component, Path, PathBuf},
};

use oci_spec::runtime::LinuxDeviceType;
use podhold_proto::cri;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::{
    error::{Error, Result},
    spec::{devices::HostDevice, mounts::HostMount, user::Accounts},
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
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(Error::doing(format!("making {}", path.display())))
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

/// Makes the working directory beneath the container's root where it is missing, as runc does. Links in
/// it are followed beneath the root.
pub(super) fn make_working_dir(rootfs: &Path, dir: &str) -> Result<()> {
    let refuse = |reason: String| Error::invalid("working_dir", format!("{dir:?} {reason}"));
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
                look(&made).map_err(|error| refuse(format!("cannot be looked up: {error}")))?
            }
            Err(error) => return Err(refuse(format!("is not a directory in the image: {error}"))),
        };
    }
    Ok(())
}

/// The sources of the mounts: links resolved, missing directories made.
pub(super) fn mounts(requested: &[cri::Mount]) -> Result<Vec<HostMount>> {
    let look_up = |(index, mount): (usize, &cri::Mount)| {
        let source = Path::new(&mount.host_path);
        let field = || format!("mounts[{index}].host_path");
        if fs::symlink_metadata(source).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(source).map_err(|error| {
                Error::invalid(
                    field(),
                    format!("{} is missing and cannot be made: {error}", source.display()),
                )
            })?;
        }
        let source: PathBuf = fs::canonicalize(source).map_err(|error| {
            Error::invalid(field(), format!("{} cannot be looked up: {error}", source.display()))
        })?;
        Ok(HostMount { target: mount.container_path.clone(), source, request: mount.clone() })
    };
    requested.iter().enumerate().map(look_up).collect()
}

/// The devices of the request. A directory stands for all devices in it.
pub(super) fn devices(requested: &[cri::Device]) -> Result<Vec<HostDevice>> {
    let mut found = Vec::new();
    for (index, device) in requested.iter().enumerate() {
        let field = |name: &str| format!("devices[{index}].{name}");
        let access = &device.permissions;
        if access.is_empty() || !access.bytes().all(|b| matches!(b, b'r' | b'w' | b'm')) {
            let reason = format!("{access:?} is not made of the letters r, w and m");
            return Err(Error::invalid(field("permissions"), reason));
        }
        if !Path::new(&device.container_path).is_absolute() || device.container_path.contains("..") {
            let reason = format!("{:?} is not an absolute path", device.container_path);
            return Err(Error::invalid(field("container_path"), reason));
        }
        let before = found.len();
        collect(Path::new(&device.host_path), &device.container_path, access, &mut found).map_err(
            |error| Error::invalid(field("host_path"), format!("{:?}: {error}", device.host_path)),
        )?;
        if found.len() == before {
            let reason = format!("{:?} is not a device and holds none", device.host_path);
            return Err(Error::invalid(field("host_path"), reason));
        }
    }
    Ok(found)
}

/// Every device of the host, for a privileged container.
pub(super) fn all_devices() -> Result<Vec<HostDevice>> {
    let mut found = Vec::new();
    collect(Path::new("/dev"), "/dev", "rwm", &mut found).map_err(Error::doing("looking up /dev"))?;
    // These are made for every container, with its own terminal behind them.
    let own =
        ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/console"];
    let mounted = ["/dev/pts/", "/dev/shm/", "/dev/mqueue/"];
    found.retain(|device| {
        let target = device.target.as_str();
        !own.contains(&target) && target != "/dev/ptmx" && !mounted.iter().any(|dir| target.starts_with(dir))
    });
    Ok(found)
}

fn collect(source: &Path, target: &str, access: &str, found: &mut Vec<HostDevice>) -> std::io::Result<()> {
    let metadata = fs::metadata(source)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            // A link would name a device twice, or lead out of the directory.
            let kind = entry.file_type()?;
            if kind.is_dir() || kind.is_char_device() || kind.is_block_device() {
                let target = format!("{target}/{}", entry.file_name().to_string_lossy());
                collect(&entry.path(), &target, access, found)?;
            }
        }
        return Ok(());
    }
    let kind = match (kind.is_char_device(), kind.is_block_device()) {
        (true, _) => LinuxDeviceType::C,
        (_, true) => LinuxDeviceType::B,
        _ => return Ok(()),
    };
    let number = metadata.rdev();
    found.push(HostDevice {
        target: target.to_owned(),
        kind,
        number: (rustix::fs::major(number).into(), rustix::fs::minor(number).into()),
        owner: (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
        access: access.to_owned(),
    });
    Ok(())
}

/// A seccomp profile of the node.
pub(super) fn read_profile(path: &str) -> Result<String> {
    let field = "linux.security_context.seccomp.localhost_ref";
    if !Path::new(path).is_absolute() {
        return Err(Error::invalid(field, format!("{path:?} is not an absolute path")));
    }
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST_PROFILE).read_to_string(&mut text))
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
        make_working_dir(root.path(), "/a/b").unwrap();
        make_working_dir(root.path(), "/out/c").unwrap();
        assert!(root.path().join("a/b").is_dir() && root.path().join("c").is_dir());
        assert!(make_working_dir(root.path(), "/file").is_err());
    }
}
