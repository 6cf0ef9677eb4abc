//! Looks up the host's devices for a container. Blocks.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Component, Path, PathBuf},
};

use oci_spec::runtime::LinuxDeviceType;
use podhold_proto::cri;

use crate::{
    error::{Error, Result},
    spec::devices::HostDevice,
};

/// Most entries of directories that are looked at for one device of a request.
const MOST_ENTRIES: usize = 16_384;
/// How deep a directory of devices may be.
const DEEPEST: usize = 16;

/// The devices of the request. A directory stands for all devices in it.
pub(super) fn asked(requested: &[cri::Device]) -> Result<Vec<HostDevice>> {
    let mut found: Vec<HostDevice> = Vec::new();
    for (index, device) in requested.iter().enumerate() {
        let field = |name: &str| format!("devices[{index}].{name}");
        let access =
            access(&device.permissions).map_err(|reason| Error::invalid(field("permissions"), reason))?;
        let target = target(&device.container_path)
            .map_err(|reason| Error::invalid(field("container_path"), reason))?;
        if !Path::new(&device.host_path).is_absolute() || device.host_path.contains('\0') {
            let reason = format!("{:?} is not an absolute path", short(&device.host_path));
            return Err(Error::invalid(field("host_path"), reason));
        }
        let look_up = || -> io::Result<Vec<HostDevice>> {
            let source = fs::canonicalize(&device.host_path)?;
            collect(source, target, &access)
        };
        let of_path = look_up().map_err(|error| {
            Error::invalid(field("host_path"), format!("{:?}: {error}", short(&device.host_path)))
        })?;
        if of_path.is_empty() {
            let reason = format!("{:?} is not a device and holds none", short(&device.host_path));
            return Err(Error::invalid(field("host_path"), reason));
        }
        if let Some(twice) = of_path.iter().find(|new| found.iter().any(|old| old.target == new.target)) {
            let reason = format!("{:?} is given twice", twice.target);
            return Err(Error::invalid(field("container_path"), reason));
        }
        found.extend(of_path);
    }
    Ok(found)
}

/// Every device of the host, for a privileged container.
pub(super) fn all() -> Result<Vec<HostDevice>> {
    let mut found = collect("/dev".into(), "/dev".into(), "rwm").map_err(Error::doing("looking up /dev"))?;
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

/// Some of `rwm`, each once.
fn access(permissions: &str) -> std::result::Result<String, String> {
    if permissions.is_empty() || !permissions.bytes().all(|b| matches!(b, b'r' | b'w' | b'm')) {
        return Err(format!("{:?} is not made of the letters r, w and m", short(permissions)));
    }
    Ok("rwm".chars().filter(|letter| permissions.contains(*letter)).collect())
}

/// A path in the container without double slashes and dots.
fn target(path: &str) -> std::result::Result<String, String> {
    let plain = !Path::new(path).components().any(|part| part == Component::ParentDir);
    let fits = path.len() < 4000 && path.split('/').all(|part| part.len() <= 255);
    if !Path::new(path).is_absolute() || !plain || !fits || path.contains('\0') {
        return Err(format!("{:?} is not an absolute path without '..'", short(path)));
    }
    let clean: PathBuf = Path::new(path).components().collect();
    if ["/", "/dev", "/proc", "/sys"].iter().any(|taken| clean == Path::new(taken))
        || clean.starts_with("/proc")
        || clean.starts_with("/sys")
    {
        return Err(format!("{path:?} is the container's own; name a path such as /dev/x"));
    }
    Ok(clean.to_string_lossy().into_owned())
}

/// The beginning of a text that may be long, for a message.
fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

/// The device at `source`, or all devices beneath it. Links in a directory are left out: they would name a
/// device twice, or lead out of the directory.
fn collect(source: PathBuf, target: String, access: &str) -> io::Result<Vec<HostDevice>> {
    let mut found = Vec::new();
    let mut looked_at = 0;
    let mut rest = vec![(source, target, 0)];
    while let Some((source, target, depth)) = rest.pop() {
        let metadata = fs::symlink_metadata(&source)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            for entry in fs::read_dir(&source)? {
                let entry = entry?;
                looked_at += 1;
                if looked_at > MOST_ENTRIES || depth >= DEEPEST {
                    return Err(io::Error::other("is too large for a directory of devices"));
                }
                let kind = entry.file_type()?;
                if kind.is_dir() || kind.is_char_device() || kind.is_block_device() {
                    let target = format!("{target}/{}", entry.file_name().to_string_lossy());
                    rest.push((entry.path(), target, depth + 1));
                }
            }
            continue;
        }
        let kind = match (kind.is_char_device(), kind.is_block_device()) {
            (true, _) => LinuxDeviceType::C,
            (_, true) => LinuxDeviceType::B,
            _ => continue,
        };
        let number = metadata.rdev();
        found.push(HostDevice {
            target,
            source,
            kind,
            number: (rustix::fs::major(number).into(), rustix::fs::minor(number).into()),
            owner: (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
            access: access.to_owned(),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(host: &str, container: &str, permissions: &str) -> cri::Device {
        cri::Device {
            host_path: host.into(),
            container_path: container.into(),
            permissions: permissions.into(),
        }
    }

    #[test]
    fn a_bad_device_is_named_by_its_field() {
        let long = format!("/dev/{}", "x".repeat(5000));
        for (field, bad) in [
            ("permissions", device("/dev/null", "/dev/a", "")),
            ("permissions", device("/dev/null", "/dev/a", "rwx")),
            ("container_path", device("/dev/null", "dev/a", "r")),
            ("container_path", device("/dev/null", "/dev/../etc/a", "r")),
            ("container_path", device("/dev/null", "/dev//", "r")),
            ("container_path", device("/dev/null", "/proc/1", "r")),
            ("container_path", device("/dev/null", &long, "r")),
            ("container_path", device("/dev/null", "/dev/good", "r")),
            ("host_path", device("dev/null", "/dev/a", "r")),
            ("host_path", device("/dev/nosuch", "/dev/a", "r")),
            ("host_path", device("/etc/passwd", "/dev/a", "r")),
            ("host_path", device("/", "/dev/a", "r")),
            ("host_path", device(&long, "/dev/a", "r")),
        ] {
            let all = [device("/dev/null", "/dev/good", "rwm"), bad];
            let message = asked(&all).unwrap_err().to_string();
            assert!(message.starts_with(&format!("devices[1].{field}: ")), "{message}");
            assert!(message.len() < 400, "{} bytes", message.len());
        }
    }

    #[test]
    fn a_device_behind_a_link_is_what_the_link_leads_to() {
        let place = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", place.path().join("link")).unwrap();
        let host = place.path().join("link").display().to_string();
        let found = asked(&[device(&host, "/custom//null", "wwr")]).unwrap();
        assert_eq!((found[0].target.as_str(), found[0].access.as_str()), ("/custom/null", "rw"));
        assert_eq!((found[0].source.as_path(), found[0].number), (Path::new("/dev/null"), (1, 3)));
    }
}
