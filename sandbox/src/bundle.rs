//! OCI bundles of containers: a directory with `config.json` and a place for the root filesystem.
//!
//! Does not mount anything; removes nothing that lies on another filesystem.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use oci_spec::runtime::Spec;
use serde::de::DeserializeOwned;

use crate::{
    ContainerId, Layout, PodId,
    record::{self, RecordError},
    seccomp,
};

/// The largest `config.json` that is read, in bytes.
const LARGEST_CONFIG: u64 = 32 << 20;

/// The name of the seccomp profile's program, compiled; beside `config.json`.
pub(crate) const SECCOMP_PROGRAM: &str = "seccomp.bpf";

/// Why a bundle could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file operation failed.
    #[error("bundle {}: {operation}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was attempted.
        operation: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The spec cannot be written as JSON.
    #[error("bundle {}: config.json: {source}", path.display())]
    Spec {
        /// The bundle.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The seccomp profile cannot be made into a program.
    #[error("bundle {}: {reason}", path.display())]
    Seccomp {
        /// The bundle.
        path: PathBuf,
        /// What is wrong with the profile.
        reason: String,
    },
    /// Something is still mounted in it.
    #[error("bundle {}: {} is a mount point; unmount it first", path.display(), mounted.display())]
    Mounted {
        /// The bundle.
        path: PathBuf,
        /// The mount point.
        mounted: PathBuf,
    },
}

/// Makes the bundle directory (0700) with `config.json`, an empty `rootfs`, and the seccomp profile ready
/// for the kernel. What an earlier attempt left is replaced, a root filesystem that is mounted already is
/// kept. A profile that cannot be compiled is [`BundleError::Seccomp`], and nothing is written then.
pub fn create(layout: &Layout, pod: &PodId, container: &ContainerId, spec: &Spec) -> Result<(), BundleError> {
    let path = layout.bundle(pod, container);
    let json = serde_json::to_vec(spec).map_err(|source| BundleError::Spec { path: path.clone(), source })?;
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let program = profile.map_or(Ok(None), seccomp::program);
    let program = program.map_err(|reason| BundleError::Seccomp { path: path.clone(), reason })?;
    make_directory(&path, true)?;
    make_directory(&layout.rootfs(pod, container), false)?;
    match program {
        Some(program) => replace_file(&path.join(SECCOMP_PROGRAM), &program)?,
        None => remove_file(&path.join(SECCOMP_PROGRAM))?,
    }
    replace_file(&path.join("config.json"), &json)
}

/// Reads `config.json`, as what `T` takes of it. What somebody else may have written is refused.
pub fn config<T: DeserializeOwned>(bundle: &Path) -> Result<T, RecordError> {
    let path = bundle.join("config.json");
    let bytes = record::read_bytes(&path, LARGEST_CONFIG)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| RecordError::Invalid { path, reason: format!("it cannot be understood: {error}") })
}

/// Removes the bundle; success when there is none. The caller has unmounted `rootfs`: a directory on
/// another filesystem is refused, and nothing beneath it is touched.
pub fn remove(layout: &Layout, pod: &PodId, container: &ContainerId) -> Result<(), BundleError> {
    let path = layout.bundle(pod, container);
    let device = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(BundleError::Io { path, operation: "stat", source }),
        Ok(found) => found.dev(),
    };
    let rootfs = layout.rootfs(pod, container);
    if fs::symlink_metadata(&rootfs).is_ok_and(|found| found.dev() != device) || is_mounted(&rootfs) {
        return Err(BundleError::Mounted { path, mounted: rootfs });
    }
    // An empty directory is all that may be left of the root filesystem: rmdir never descends.
    match fs::remove_dir(&rootfs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            return Err(BundleError::Mounted { path, mounted: rootfs });
        }
        Err(source) => return Err(BundleError::Io { path: rootfs, operation: "remove", source }),
        Ok(()) => {}
    }
    fs::remove_dir_all(&path).map_err(|source| BundleError::Io { path, operation: "remove", source })
}

/// Whether something is mounted on `path`, also from the same filesystem.
fn is_mounted(path: &Path) -> bool {
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    let found = rustix::fs::statx(rustix::fs::CWD, path, flags, rustix::fs::StatxFlags::empty());
    found.is_ok_and(|found| found.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT))
}

fn make_directory(path: &Path, parents: bool) -> Result<(), BundleError> {
    match fs::DirBuilder::new().mode(0o700).recursive(parents).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(|source| BundleError::Io { path: path.to_owned(), operation: "create", source }),
    }
}

fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
    remove_file(path)?;
    let failed = |operation| move |source| BundleError::Io { path: path.to_owned(), operation, source };
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(failed("create"))?;
    io::Write::write_all(&mut file, bytes).map_err(failed("write"))
}

fn remove_file(path: &Path) -> Result<(), BundleError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(BundleError::Io { path: path.to_owned(), operation: "remove", source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_bundle_is_for_root_alone_and_is_never_removed_through_a_mount() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("run"), dir.path().join("state"));
        let (pod, container) = (PodId::parse("p").unwrap(), ContainerId::parse("c").unwrap());
        create(&layout, &pod, &container, &Spec::default()).unwrap();
        create(&layout, &pod, &container, &Spec::default()).unwrap();
        let bundle = layout.bundle(&pod, &container);
        assert_eq!(fs::metadata(&bundle).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(Spec::load(bundle.join("config.json")).is_ok());

        let foreign = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]}"#;
        let mut spec = Spec::default();
        spec.linux_mut().as_mut().unwrap().set_seccomp(Some(serde_json::from_str(foreign).unwrap()));
        let refused = create(&layout, &pod, &container, &spec);
        assert!(matches!(refused, Err(BundleError::Seccomp { .. })), "{refused:?}");

        if rustix::process::geteuid().is_root() {
            let rootfs = layout.rootfs(&pod, &container);
            let precious = dir.path().join("precious");
            fs::create_dir(&precious).unwrap();
            fs::write(precious.join("file"), "x").unwrap();
            rustix::mount::mount_bind(&precious, &rootfs).unwrap();
            let refused = remove(&layout, &pod, &container);
            rustix::mount::unmount(&rootfs, rustix::mount::UnmountFlags::DETACH).unwrap();
            assert!(matches!(refused, Err(BundleError::Mounted { .. })), "{refused:?}");
            assert!(precious.join("file").exists());
        } else {
            println!("SKIPPED: the part with a mount needs root");
        }
        remove(&layout, &pod, &container).unwrap();
        remove(&layout, &pod, &container).unwrap();
        assert!(!bundle.exists());
    }
}
