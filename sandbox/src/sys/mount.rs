//! The one mount call that rustix lacks.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// `MOUNT_ATTR_IDMAP` (linux/mount.h).
const ID_MAPPED: u64 = 0x0010_0000;

/// What is changed about a mount.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MountChange {
    /// Attributes to set (`MOUNT_ATTR_*`).
    pub(crate) set: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`; 0 leaves the propagation.
    pub(crate) propagation: u64,
    /// Whether the mounts beneath are changed too.
    pub(crate) recursive: bool,
}

/// Changes a mount, which may be a detached one (mount_setattr(2), Linux 5.12).
pub(crate) fn change_mount(mount: impl AsFd, change: MountChange) -> io::Result<()> {
    let MountChange { set, propagation, recursive } = change;
    set_attributes(mount, &MountAttributes { set, clear: 0, propagation, user_namespace: 0 }, recursive)
}

/// Shifts the owners that a detached mount shows by the mapping of a user namespace. Mounts beneath it
/// are left as they are.
pub(crate) fn map_ids(mount: impl AsFd, namespace: impl AsFd) -> io::Result<()> {
    let user_namespace = u64::from(namespace.as_fd().as_raw_fd().cast_unsigned());
    let attributes = MountAttributes { set: ID_MAPPED, clear: 0, propagation: 0, user_namespace };
    set_attributes(mount, &attributes, false)
}

fn set_attributes(mount: impl AsFd, attributes: &MountAttributes, recursive: bool) -> io::Result<()> {
    let flags = if recursive { libc::AT_EMPTY_PATH | libc::AT_RECURSIVE } else { libc::AT_EMPTY_PATH };
    // SAFETY: the mount's fd is borrowed, so it is open; the path is a NUL-terminated constant, and the
    // kernel reads as many bytes of `attributes` as it is told, which is its size. A user namespace in it is
    // a number the kernel looks up, which the caller holds open.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttributes>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
