//! Mount propagation, which libcontainer leaves to what the sources happen to have: its binds are clones of
//! them, and it changes no bind's propagation afterwards.
//!
//! A container all of whose binds are private needs nothing: `rootfsPropagation: private` makes everything
//! private before it is bound. For any other, the creator enters a mount namespace of its own, in which it
//! binds every source once more, each with the propagation that was asked for, and libcontainer binds those.
//! The namespace goes with the creator; in the shim's own nothing is mounted.
//!
//! Nothing here is ever removed recursively: what lies behind a staged source is the user's.

use std::{
    fs, io,
    os::fd::OwnedFd,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use nix::sched::{CloneFlags, unshare};
use oci_spec::runtime::{Mount, Spec};
use rustix::{
    fs::{AtFlags, CWD},
    mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change},
};

/// Sources bound in the creator's own mount namespace.
#[derive(Debug)]
pub(super) struct Staged {
    directory: PathBuf,
}

/// Binds the sources anew where the container needs it, and puts the new places into the spec. `directory`
/// must be of nobody else; it is made. `None` when libcontainer can have the sources as they are.
pub(super) fn stage(spec: &mut Spec, directory: &Path) -> Result<Option<Staged>, String> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let shared = mounts.iter().any(|mount| asked(mount) == Some(MountPropagationFlags::SHARED));
    let slave = mounts.iter().any(|mount| asked(mount) == Some(MountPropagationFlags::DOWNSTREAM));
    let mut linux = spec.linux().clone().ok_or("config.json: linux is missing")?;
    // What libcontainer does to all mounts first: whatever would undo the staged ones is left out.
    let root = match (shared, slave) {
        (true, _) => "shared",
        (false, true) => "slave",
        (false, false) => "private",
    };
    linux.set_rootfs_propagation(Some(root.to_owned()));
    spec.set_linux(Some(linux));
    if !shared && !slave {
        return Ok(None);
    }
    let staged = Staged { directory: directory.to_owned() };
    let failed = |what: &str, error: io::Error| format!("mount propagation: {what}: {error}");
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| failed("a mount namespace", errno.into()))?;
    let sources = mounts.iter().map(open_source).collect::<Result<Vec<_>, _>>()?;
    // From here on nothing that is mounted or unmounted reaches the host.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|errno| failed("making mounts private", errno.into()))?;
    staged.mount_directory().map_err(|error| failed(&directory.display().to_string(), error))?;
    for (index, source) in sources.into_iter().enumerate() {
        let Some(source) = source else { continue };
        let mount = &mut mounts[index];
        let place = staged.bind(index, &source, asked(mount)).map_err(|error| {
            failed(&mount.source().clone().unwrap_or_default().display().to_string(), error)
        })?;
        mount.set_source(Some(place));
    }
    spec.set_mounts(Some(mounts));
    Ok(Some(staged))
}

/// What a bind was asked to have; `None` for anything else than a bind.
fn asked(mount: &Mount) -> Option<MountPropagationFlags> {
    let options = mount.options().as_deref().unwrap_or_default();
    let has = |names: [&str; 2]| options.iter().any(|option| names.contains(&option.as_str()));
    if mount.typ().as_deref() != Some("bind") && !has(["bind", "rbind"]) {
        return None;
    }
    Some(if has(["shared", "rshared"]) {
        MountPropagationFlags::SHARED
    } else if has(["slave", "rslave"]) {
        MountPropagationFlags::DOWNSTREAM
    } else {
        MountPropagationFlags::PRIVATE
    })
}

/// A clone of a bind's source, mounted nowhere yet.
fn open_source(mount: &Mount) -> Result<Option<OwnedFd>, String> {
    if asked(mount).is_none() {
        return Ok(None);
    }
    let source = mount.source().clone().unwrap_or_default();
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if mount.options().iter().flatten().any(|option| option == "rbind") {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let clone = rustix::mount::open_tree(CWD, &source, flags);
    clone.map(Some).map_err(|errno| format!("mount {}: {errno}", source.display()))
}

impl Staged {
    /// A file system of our own to mount on, in the creator's namespace alone.
    fn mount_directory(&self) -> io::Result<()> {
        // The first container of a pod finds nothing there yet.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        rustix::mount::mount("podhold", &self.directory, "tmpfs", MountFlags::empty(), Some(c"mode=0700"))?;
        Ok(())
    }

    fn bind(
        &self,
        index: usize,
        source: &OwnedFd,
        propagation: Option<MountPropagationFlags>,
    ) -> io::Result<PathBuf> {
        let place = self.directory.join(index.to_string());
        let kind = rustix::fs::statat(source, "", AtFlags::EMPTY_PATH)?;
        if rustix::fs::FileType::from_raw_mode(kind.st_mode).is_dir() {
            fs::create_dir(&place)?;
        } else {
            fs::OpenOptions::new().write(true).create_new(true).open(&place)?;
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(source, "", CWD, &place, flags)?;
        let propagation = propagation.unwrap_or(MountPropagationFlags::PRIVATE);
        mount_change(&place, propagation | MountPropagationFlags::REC)?;
        Ok(place)
    }

    /// Lets go of the sources. The container has its own binds of them by now.
    pub(super) fn finish(self) {
        let _ = rustix::mount::unmount(&self.directory, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        // Refused while anything is mounted there: never recursive.
        let _ = fs::remove_dir(&self.directory);
    }
}
