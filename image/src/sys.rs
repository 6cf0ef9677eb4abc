//! The only unsafe code of this crate: mount calls that rustix lacks or cannot promise to be safe.
#![allow(unsafe_code)]

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

/// Shifts the owners that a detached mount shows by the mapping of a user namespace.
pub(crate) fn map_ids(mount: impl AsFd, namespace: impl AsFd) -> io::Result<()> {
    let namespace = namespace.as_fd();
    let attributes = MountAttributes {
        set: ID_MAPPED,
        clear: 0,
        propagation: 0,
        user_namespace: u64::from(namespace.as_raw_fd().cast_unsigned()),
    };
    // SAFETY: both fds are borrowed, so they are open; the path is a NUL-terminated constant, and the
    // kernel reads as many bytes of `attributes` as it is told, which is its size.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling thread a mount namespace of its own. Only for a thread that ends with what it does.
pub(crate) fn own_mount_namespace() -> io::Result<()> {
    // SAFETY: unshare(2) touches no memory. CLONE_NEWNS (with the CLONE_FS it brings along) changes this
    // thread's view of paths alone; file descriptors stay shared.
    match unsafe { libc::unshare(libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
