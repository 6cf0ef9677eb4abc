//! Snapshots as overlayfs mounts.
//!
//! ```text
//! snapshots/KEY/snapshot.json   which layers lie below
//! snapshots/KEY/fs              the writable layer
//! snapshots/KEY/work            overlayfs's own
//! ```
//! Layers are given to the kernel one by one (`lowerdir+`, Linux 6.8), so their number is bounded by the
//! kernel's 500 and not by the page a mount(2) option string must fit in. Older kernels get mount(2) with
//! short names through /proc/self/fd.
//!
//! What a container writes is not synced: a container does not outlive the power loss that would tear it.
//! The record is, so that after one a snapshot that is there still keeps its layers.

use std::{
    collections::HashMap,
    fs,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::DirBuilderExt, fs::MetadataExt, fs::PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags},
};

use super::{
    IdMap, SnapshotError, Snapshots, check_key,
    measure::{self, measure},
    shifted,
};
use crate::{
    digest::ChainId,
    error::ImageError,
    store::{
        Image, Usage,
        layers::{Layer, Layers, Lease},
        record,
        trash::Trash,
    },
};

#[derive(serde::Serialize, serde::Deserialize)]
struct SnapshotRecord {
    version: u32,
    image: String,
    /// The lowest first.
    layers: Vec<ChainId>,
}

/// The overlayfs snapshots of an image store.
pub(crate) struct Overlay {
    root: PathBuf,
    dir: PathBuf,
    /// Stands below a writable layer when the image has no layers.
    empty: PathBuf,
    layers: Arc<Layers>,
    trash: Arc<Trash>,
    held: Mutex<HashMap<String, Held>>,
    next: AtomicU64,
}

struct Held {
    layers: Vec<ChainId>,
    _lease: Lease,
}

impl Overlay {
    /// Reads which snapshots there are in `root`; half-made ones go to the trash. Blocks.
    pub(crate) fn open(
        root: &Path,
        layers: Arc<Layers>,
        trash: Arc<Trash>,
    ) -> Result<(Self, Vec<(PathBuf, String)>), ImageError> {
        let dir = root.join("snapshots");
        let mut held = HashMap::new();
        let mut damaged = Vec::new();
        let mut whole = true;
        for path in record::children(&dir)? {
            let key = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if check_key(&key).is_err() {
                let taken = trash.take_if_writable(&path);
                taken.map_err(ImageError::io(format!("throw away {}", path.display())))?;
                continue;
            }
            let read = record::check_directory(&path)
                .and_then(|()| record::read::<SnapshotRecord>(&path.join("snapshot.json")));
            let layers_of = match read {
                Ok(record) if record.version == 1 => Ok(record.layers),
                Ok(record) => Err(record::another_version(record.version)),
                Err(reason) => Err(reason),
            };
            let layers_of = match layers_of {
                Ok(layers) => layers,
                Err(reason) => {
                    damaged.push((path, format!("snapshot can only be removed: {reason}")));
                    whole = false;
                    // Whichever of them a container has mounted by it.
                    layers.all()
                }
            };
            whole &= layers_of.iter().all(|chain| layers.get(chain).is_some());
            let lease = layers.lease_mounted(layers_of.clone());
            held.insert(key, Held { layers: layers_of, _lease: lease });
        }
        if whole {
            layers.discard_unreadable()?;
        }
        let overlay = Self {
            root: root.to_owned(),
            dir,
            empty: root.join("empty"),
            layers,
            trash,
            held: Mutex::new(held),
            next: AtomicU64::new(0),
        };
        Ok((overlay, damaged))
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.held.lock().expect("no panics under this lock")
    }

    /// The layers below snapshot `key`, nearest first.
    fn lowers(&self, key: &str, image: &str, chain: &[ChainId]) -> Result<Vec<Layer>, SnapshotError> {
        let find = |chain: &ChainId| {
            self.layers.get(chain).ok_or_else(|| SnapshotError::MissingLayer {
                key: key.to_owned(),
                image: image.to_owned(),
                layer: chain.to_string(),
            })
        };
        chain.iter().rev().map(find).collect()
    }

    /// Makes the directories of a new snapshot, and holds its layers.
    fn make(&self, key: &str, image: &Image, ids: Option<&IdMap>) -> Result<(), SnapshotError> {
        let lease = self.layers.lease_mounted(image.layers.clone());
        let lowers = self.lowers(key, &image.id, &image.layers)?;
        // A name no key can have, so that a half-made snapshot is known for one.
        let temporary = self.dir.join(format!(".{}", self.next.fetch_add(1, Ordering::Relaxed)));
        let place = self.dir.join(key);
        let failed = SnapshotError::io(format!("make {}", place.display()));
        let record = SnapshotRecord { version: 1, image: image.id.clone(), layers: image.layers.clone() };
        let make = || -> std::io::Result<()> {
            let mut builder = fs::DirBuilder::new();
            // Of an earlier process, which could not be thrown away at the start.
            self.trash.discard(&temporary)?;
            builder.mode(0o700).create(&temporary)?;
            builder.create(temporary.join("work"))?;
            builder.create(temporary.join("fs"))?;
            like_root(&temporary.join("fs"), &lowers, ids)?;
            // Not synced: it comes into sight with its directory, and no container outlives a power loss.
            record::write_unsynced(&temporary.join("snapshot.json"), &record)?;
            fs::rename(&temporary, &place)
        };
        if let Err(error) = make() {
            let _ = self.trash.discard(&temporary);
            return Err(failed(error));
        }
        self.held().insert(key.to_owned(), Held { layers: image.layers.clone(), _lease: lease });
        Ok(())
    }

    /// Makes the snapshot if it is new. The layers to mount at `target`, nearest first; `None` when it is
    /// mounted there.
    fn to_mount(
        &self,
        key: &str,
        image: &Image,
        ids: Option<&IdMap>,
        target: &Path,
    ) -> Result<Option<Vec<Layer>>, SnapshotError> {
        if !self.held().contains_key(key) {
            self.make(key, image, ids)?;
        }
        let chain = self.held().get(key).map(|held| held.layers.clone()).unwrap_or_default();
        if is_mount_point(target)? {
            return match is_mounted_from(target, &self.dir.join(key).join("fs"))? {
                true => Ok(None),
                false => {
                    let target = target.display().to_string();
                    Err(SnapshotError::Occupied { key: key.to_owned(), target })
                }
            };
        }
        self.lowers(key, &image.id, &chain).map(Some)
    }
}

/// What an overlay is made of.
pub(super) struct Stack<'a> {
    pub(super) key: &'a str,
    /// The layers, the nearest first.
    pub(super) lowers: &'a [&'a Path],
    /// The snapshot's directory.
    pub(super) own: &'a Path,
    /// Whether the snapshot's writable layer lies on top; otherwise the overlay is read-only.
    pub(super) writable: bool,
}

impl Stack<'_> {
    fn mount(&self, ids: Option<&IdMap>, target: &Path) -> Result<(), SnapshotError> {
        let failed = SnapshotError::io(format!("mount snapshot {} at {}", self.key, target.display()));
        if let Some(ids) = ids {
            return attach(&shifted::overlay(self, ids)?, target).map_err(failed);
        }
        match self.detached(self.lowers).and_then(|mount| attach(&mount, target)) {
            // The kernel knows overlayfs, but not this way to name its layers.
            Err(Errno::INVAL | Errno::NOSYS) => self.mount_old(target).map_err(failed),
            other => other.map_err(failed),
        }
    }

    /// An overlay that is attached nowhere, of `lowers` instead of its own.
    pub(super) fn detached(&self, lowers: &[&Path]) -> Result<OwnedFd, Errno> {
        let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let set = |key: &str, value: &Path| {
            rustix::mount::fsconfig_set_string(context.as_fd(), key, value.as_os_str())
        };
        set("source", Path::new("podhold"))?;
        for lower in lowers {
            set("lowerdir+", lower)?;
        }
        let mut attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
        if self.writable {
            set("upperdir", &self.own.join("fs"))?;
            set("workdir", &self.own.join("work"))?;
            attributes = MountAttrFlags::empty();
        }
        rustix::mount::fsconfig_create(context.as_fd())?;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    }

    /// Mounts by mount(2), whose options must fit into one page.
    fn mount_old(&self, target: &Path) -> Result<(), Errno> {
        let open = |path: &Path| -> Result<OwnedFd, Errno> {
            rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        };
        let lowers = self.lowers.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
        let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
        let below: Vec<String> = lowers.iter().map(name).collect();
        let mut options = format!("lowerdir={}", below.join(":"));
        let mut flags = MountFlags::RDONLY;
        // Open until the mount is made, which names them.
        let own = self.writable.then_some(self.own);
        let own =
            own.map(|own| Ok::<_, Errno>((open(&own.join("fs"))?, open(&own.join("work"))?))).transpose()?;
        if let Some((upper, work)) = &own {
            options = format!("{options},upperdir={},workdir={}", name(upper), name(work));
            flags = MountFlags::empty();
        }
        let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
        rustix::mount::mount("podhold", target, "overlay", flags, Some(options.as_c_str()))
    }
}

fn attach(mount: &OwnedFd, target: &Path) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount.as_fd(), "", CWD, target, flags)
}

/// Makes the writable layer's root look like the image's: it is what a container sees as `/`.
fn like_root(upper: &Path, lowers: &[Layer], ids: Option<&IdMap>) -> std::io::Result<()> {
    let shown = lowers.iter().find(|layer| layer.record.root_entry);
    let (uid, gid, mode) = match shown {
        Some(layer) => {
            let found = fs::symlink_metadata(&layer.fs)?;
            (found.uid(), found.gid(), found.mode())
        }
        None => (0, 0, 0o755),
    };
    let (uid, gid) = match ids {
        None => (uid, gid),
        Some(ids) => ids.on_host(uid, gid).ok_or_else(|| {
            std::io::Error::other(format!("owner {uid}:{gid} of the image's / is not mapped for the pod"))
        })?,
    };
    std::os::unix::fs::lchown(upper, Some(uid), Some(gid))?;
    fs::set_permissions(upper, fs::Permissions::from_mode(mode & 0o7777))
}

impl Snapshots for Overlay {
    fn mount(
        &self,
        key: &str,
        image: &Image,
        target: &Path,
        ids: Option<&IdMap>,
    ) -> Result<(), SnapshotError> {
        check_key(key)?;
        let own = self.dir.join(key);
        let Some(lowers) = self.to_mount(key, image, ids, target)? else { return Ok(()) };
        let mut paths: Vec<&Path> = lowers.iter().map(|layer| layer.fs.as_path()).collect();
        if paths.is_empty() {
            paths.push(&self.empty);
        }
        Stack { key, lowers: &paths, own: &own, writable: true }.mount(ids, target)
    }

    fn view(
        &self,
        key: &str,
        image: &Image,
        target: &Path,
        ids: Option<&IdMap>,
    ) -> Result<(), SnapshotError> {
        check_key(key)?;
        // Its own layer is shown like the others, and so is not shifted itself.
        let Some(lowers) = self.to_mount(key, image, None, target)? else { return Ok(()) };
        let own = self.dir.join(key);
        // What would be the writable layer lies on top all the same: empty, it gives the root its owner and
        // mode, and overlayfs its second layer.
        let top = own.join("fs");
        let mut paths = vec![top.as_path()];
        paths.extend(lowers.iter().map(|layer| layer.fs.as_path()));
        if lowers.is_empty() {
            paths.push(&self.empty);
        }
        Stack { key, lowers: &paths, own: &own, writable: false }.mount(ids, target)
    }

    fn check_ids(&self, ids: &IdMap) -> Result<(), SnapshotError> {
        let own = self.dir.join(format!(".{}", self.next.fetch_add(1, Ordering::Relaxed)));
        let make = || -> std::io::Result<()> {
            let mut builder = fs::DirBuilder::new();
            builder.mode(0o700).create(&own)?;
            builder.create(own.join("work"))?;
            builder.create(own.join("fs"))
        };
        let made = make().map_err(SnapshotError::io(format!("make {}", own.display())));
        let stack = Stack { key: "check", lowers: &[&self.empty], own: &own, writable: true };
        let checked = made.and_then(|()| shifted::overlay(&stack, ids));
        let _ = self.trash.discard(&own);
        checked.map(drop)
    }

    fn unmount(&self, target: &Path) -> Result<(), SnapshotError> {
        let unmount = |flags| rustix::mount::unmount(target, flags | UnmountFlags::NOFOLLOW);
        match unmount(UnmountFlags::empty()) {
            Err(Errno::BUSY) => unmount(UnmountFlags::DETACH),
            other => other,
        }
        .or_else(|errno| match errno {
            Errno::INVAL | Errno::NOENT => Ok(()),
            other => Err(other),
        })
        .map_err(SnapshotError::io(format!("unmount {}", target.display())))
    }

    fn remove(&self, key: &str) -> Result<(), SnapshotError> {
        check_key(key)?;
        let path = self.dir.join(key);
        self.trash.discard(&path).map_err(SnapshotError::io(format!("delete {}", path.display())))?;
        let held = self.held().remove(key);
        if held.is_none() {
            return Ok(());
        }
        drop(held);
        let collected = self.layers.collect();
        collected.map_err(|error| SnapshotError::io(format!("snapshot {key}"))(std::io::Error::other(error)))
    }

    fn usage(&self, key: &str) -> Result<Usage, SnapshotError> {
        check_key(key)?;
        if !self.held().contains_key(key) {
            return Err(SnapshotError::NotFound(key.to_owned()));
        }
        let path = self.dir.join(key).join("fs");
        measure(&path, measure::MOST).map_err(SnapshotError::io(format!("measure {}", path.display())))
    }

    fn keys(&self) -> Vec<String> {
        self.held().keys().cloned().collect()
    }

    fn root(&self) -> &Path {
        &self.root
    }
}

fn is_mount_point(target: &Path) -> Result<bool, SnapshotError> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(CWD, target, flags, StatxFlags::TYPE)
        .map_err(SnapshotError::io(format!("look at {}", target.display())))?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Whether the overlay at `target` has `top` as its uppermost layer, writable or not. Reads the mount table, which is slow with many
/// mounts: only asked when something is mounted there already.
fn is_mounted_from(target: &Path, top: &Path) -> Result<bool, SnapshotError> {
    let table =
        fs::read_to_string("/proc/self/mountinfo").map_err(SnapshotError::io("read /proc/self/mountinfo"))?;
    let target = target.canonicalize().map_err(SnapshotError::io(format!("look at {}", target.display())))?;
    let options = ["upperdir", "lowerdir+"].map(|name| format!("{name}={}", top.display()));
    let line = table.lines().rev().find(|line| {
        line.split(' ').nth(4).is_some_and(|point| unescape(point) == target.as_os_str().as_bytes())
    });
    let line = line.map(|line| String::from_utf8_lossy(&unescape(line)).into_owned()).unwrap_or_default();
    Ok(line.split([' ', ',']).any(|part| options.iter().any(|option| part == option)))
}

/// `\040` and the like (proc_pid_mountinfo(5)).
fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\');
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(byte) => (out.push(byte), rest = &after[3..]).1,
            None => (out.push(*first), rest = after).1,
        }
    }
    out
}
