//! Image volumes: images that a container sees, read-only, beneath some path of its own.
//!
//! Each is a view of the image's layers, mounted in the bundle at the mount's index in the request and held
//! as a snapshot `CONTAINER.INDEX`. Everything derives from the container's id, so that the one teardown
//! finds it, whatever of it there is. Blocks.

use std::{
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use podhold_image::{IdMap, Image, Snapshots};
use podhold_sandbox::{ContainerId, Layout, PodId};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::prepare;
use crate::error::{Error, Result};

/// An image volume of a request.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Index of its mount in the request.
    pub(super) index: usize,
    /// Its image.
    pub(super) image: Arc<Image>,
    /// Directory in the image to show; empty is its root.
    pub(super) sub_path: String,
}

/// Where the volumes of one container go.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) layout: &'a Layout,
    pub(super) snapshots: &'a dyn Snapshots,
    pub(super) pod: &'a PodId,
    pub(super) container: &'a ContainerId,
}

/// The container a snapshot of a volume belongs to.
pub(super) fn owner(key: &str) -> Option<ContainerId> {
    let (container, index) = key.split_once('.')?;
    let _: usize = index.parse().ok()?;
    ContainerId::parse(container).ok()
}

impl Place<'_> {
    /// Mounts a volume, for a pod with users of its own as they see it; answers the directory on the host
    /// that the container sees.
    pub(super) fn mount(&self, wanted: &Wanted, users: Option<&IdMap>) -> Result<PathBuf> {
        let index = wanted.index.to_string();
        let target = self.layout.volumes(self.pod, self.container).join(&index);
        prepare::private_dir(&target)?;
        self.snapshots
            .view(&self.key(&index), &wanted.image, &target, users)
            .map_err(|error| Error::snapshot(&format!("image volume mounts[{index}]"), error))?;
        match wanted.sub_path.as_str() {
            "" => Ok(target),
            sub_path => beneath(&target, sub_path).map_err(|reason| {
                let image = &wanted.image.id;
                let field = format!("mounts[{index}].image_sub_path");
                Error::invalid(field, format!("{sub_path:?} {reason} in image {image}"))
            }),
        }
    }

    /// Unmounts all volumes in the bundle, and tells their indices.
    pub(super) fn unmount(&self) -> Result<Vec<usize>> {
        let directory = self.layout.volumes(self.pod, self.container);
        let names = super::recover::names(&directory)?;
        for name in &names {
            self.snapshots.unmount(&directory.join(name)).map_err(Error::doing("image volume"))?;
        }
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Forgets the volumes with these indices: those that were in the bundle, and what the record says of
    /// those whose bundle a reboot has swept away.
    pub(super) fn forget(&self, indices: impl IntoIterator<Item = usize>) -> Result<()> {
        for index in indices {
            let key = self.key(&index.to_string());
            self.snapshots.remove(&key).map_err(Error::doing("image volume"))?;
        }
        Ok(())
    }

    fn key(&self, index: &str) -> String {
        format!("{}.{index}", self.container)
    }
}

/// The directory `sub_path` of a mounted image. Links are followed as a process with the image as its root
/// would follow them; the image cannot change, so the path stays what it is.
fn beneath(root: &Path, sub_path: &str) -> std::result::Result<PathBuf, String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = rustix::fs::open(root, flags, Mode::empty()).map_err(|error| error.to_string())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let found = rustix::fs::openat2(&open, sub_path, flags, Mode::empty(), resolve);
    let found = found.map_err(|error| match error {
        rustix::io::Errno::NOENT => "does not exist".to_owned(),
        rustix::io::Errno::NOTDIR => "is not a directory".to_owned(),
        other => format!("cannot be looked up ({other})"),
    })?;
    std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_path_stays_in_the_image_whatever_its_links_say() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("image");
        std::fs::create_dir_all(root.join("data/deep")).unwrap();
        std::fs::create_dir(place.path().join("outside")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        for (name, to) in [("up", "../../outside"), ("absolute", "/data"), ("host", "/proc/self/root/etc")] {
            std::os::unix::fs::symlink(to, root.join(name)).unwrap();
        }
        assert_eq!(beneath(&root, "data/deep").unwrap(), root.join("data/deep"));
        assert_eq!(beneath(&root, "absolute/deep").unwrap(), root.join("data/deep"));
        for bad in ["up", "host", "nosuch"] {
            assert_eq!(beneath(&root, bad).unwrap_err(), "does not exist", "{bad}");
        }
        assert_eq!(beneath(&root, "file").unwrap_err(), "is not a directory");
    }

    #[test]
    fn a_volumes_snapshot_names_its_container() {
        assert_eq!(owner("abc.0"), Some(ContainerId::parse("abc").unwrap()));
        for other in ["abc", "abc.", "abc.x", ".0", "a/b.0"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
