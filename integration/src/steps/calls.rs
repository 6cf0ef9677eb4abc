//! Which system calls are steps, and what they are called.

use nix::{
    libc::{self, user_regs_struct},
    unistd::Pid,
};

use super::{
    memory::{address, descriptor, listener, path, text, word},
    words::Words,
};

/// Where a call's object is among its arguments.
enum Object {
    /// A path at this argument.
    Path(usize),
    /// A directory's descriptor at this argument, a path at the next.
    Beneath(usize),
    /// A descriptor at this argument.
    Descriptor(usize),
    /// It says enough by itself.
    Nothing,
}

/// Calls that are always steps: their number, their name, their object.
const CALLS: &[(libc::c_long, &str, Object)] = &[
    (libc::SYS_mkdir, "mkdir", Object::Path(0)),
    (libc::SYS_mkdirat, "mkdir", Object::Beneath(0)),
    (libc::SYS_rmdir, "rmdir", Object::Path(0)),
    (libc::SYS_unlink, "unlink", Object::Path(0)),
    (libc::SYS_unlinkat, "unlink", Object::Beneath(0)),
    (libc::SYS_rename, "rename", Object::Path(0)),
    (libc::SYS_renameat, "rename", Object::Beneath(0)),
    (libc::SYS_renameat2, "rename", Object::Beneath(0)),
    (libc::SYS_link, "link", Object::Path(1)),
    (libc::SYS_linkat, "link", Object::Beneath(2)),
    (libc::SYS_symlink, "symlink", Object::Path(1)),
    (libc::SYS_symlinkat, "symlink", Object::Beneath(1)),
    (libc::SYS_mknod, "mknod", Object::Path(0)),
    (libc::SYS_mknodat, "mknod", Object::Beneath(0)),
    (libc::SYS_chmod, "chmod", Object::Path(0)),
    (libc::SYS_fchmod, "chmod", Object::Descriptor(0)),
    (libc::SYS_fchmodat, "chmod", Object::Beneath(0)),
    (libc::SYS_chown, "chown", Object::Path(0)),
    (libc::SYS_lchown, "chown", Object::Path(0)),
    (libc::SYS_fchown, "chown", Object::Descriptor(0)),
    (libc::SYS_fchownat, "chown", Object::Beneath(0)),
    (libc::SYS_truncate, "truncate", Object::Path(0)),
    (libc::SYS_ftruncate, "truncate", Object::Descriptor(0)),
    (libc::SYS_fallocate, "fallocate", Object::Descriptor(0)),
    (libc::SYS_utimensat, "utimes", Object::Beneath(0)),
    (libc::SYS_setxattr, "setxattr", Object::Path(0)),
    (libc::SYS_lsetxattr, "setxattr", Object::Path(0)),
    (libc::SYS_fsetxattr, "setxattr", Object::Descriptor(0)),
    (libc::SYS_mount, "mount", Object::Path(1)),
    (libc::SYS_umount2, "umount", Object::Path(0)),
    (libc::SYS_open_tree, "open_tree", Object::Beneath(0)),
    (libc::SYS_move_mount, "move_mount", Object::Beneath(2)),
    (libc::SYS_fsopen, "fsopen", Object::Path(0)),
    (libc::SYS_fsconfig, "fsconfig", Object::Nothing),
    (libc::SYS_fsmount, "fsmount", Object::Nothing),
    (libc::SYS_mount_setattr, "mount_setattr", Object::Beneath(0)),
    (libc::SYS_unshare, "unshare", Object::Nothing),
    (libc::SYS_setns, "setns", Object::Descriptor(0)),
    (libc::SYS_fsync, "fsync", Object::Descriptor(0)),
    (libc::SYS_fdatasync, "fsync", Object::Descriptor(0)),
    (libc::SYS_syncfs, "syncfs", Object::Descriptor(0)),
    (libc::SYS_fork, "fork", Object::Nothing),
    (libc::SYS_vfork, "fork", Object::Nothing),
    (libc::SYS_kill, "kill", Object::Nothing),
    (libc::SYS_pidfd_send_signal, "kill", Object::Nothing),
];

/// The name of the step a thread is about to make; `None` when its call is none.
pub(super) fn name(thread: Pid, registers: &user_regs_struct, words: &Words) -> Option<String> {
    let number = libc::c_long::try_from(registers.orig_rax).ok()?;
    let arguments = [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9];
    if let Some((_, name, object)) = CALLS.iter().find(|(call, ..)| *call == number) {
        let object = match *object {
            Object::Path(at) => path(thread, at_working_directory(), arguments[at]),
            Object::Beneath(at) => path(thread, arguments[at], arguments[at + 1]),
            Object::Descriptor(at) => descriptor(thread, arguments[at]),
            Object::Nothing => return Some((*name).to_owned()),
        };
        return Some(format!("{name} {}", words.path(&namespace(&object))));
    }
    match number {
        libc::SYS_open => open(words, &path(thread, at_working_directory(), arguments[0]), arguments[1]),
        libc::SYS_creat => open(words, &text(thread, arguments[0]), making()),
        libc::SYS_openat => open(words, &path(thread, arguments[0], arguments[1]), arguments[2]),
        libc::SYS_openat2 => {
            open(words, &path(thread, arguments[0], arguments[1]), word(thread, arguments[2])?)
        }
        libc::SYS_write | libc::SYS_pwrite64 => write(thread, words, arguments[0], Some(arguments[2])),
        libc::SYS_writev
        | libc::SYS_pwritev
        | libc::SYS_pwritev2
        | libc::SYS_sendmsg
        | libc::SYS_copy_file_range
        | libc::SYS_splice => {
            let to = match number {
                libc::SYS_copy_file_range | libc::SYS_splice => arguments[2],
                _ => arguments[0],
            };
            write(thread, words, to, None)
        }
        libc::SYS_sendto | libc::SYS_sendfile => write(thread, words, arguments[0], Some(arguments[2])),
        libc::SYS_connect => {
            Some(format!("connect {}", words.path(&address(thread, arguments[1], arguments[2]))))
        }
        libc::SYS_bind => Some(format!("bind {}", words.path(&address(thread, arguments[1], arguments[2])))),
        libc::SYS_clone => child(arguments[0]),
        libc::SYS_clone3 => child(word(thread, arguments[0])?),
        _ => None,
    }
}

fn at_working_directory() -> u64 {
    u64::from(libc::AT_FDCWD.cast_unsigned())
}

fn making() -> u64 {
    u64::from((libc::O_CREAT | libc::O_TRUNC).cast_unsigned())
}

/// `net:[4026531840]` is one of many.
fn namespace(object: &str) -> String {
    match object.split_once(":[") {
        Some((kind, _)) => kind.to_owned(),
        None => object.to_owned(),
    }
}

/// Opening a file is a step when it may make or empty it.
fn open(words: &Words, path: &str, flags: u64) -> Option<String> {
    (flags & making() != 0).then(|| format!("create {}", words.path(path)))
}

/// A write is a step when it goes to a file, to a child or to a shim.
fn write(thread: Pid, words: &Words, number: u64, length: Option<u64>) -> Option<String> {
    // Standard output and error: what the daemon logs.
    if number == 1 || number == 2 {
        return None;
    }
    let object = descriptor(thread, number);
    if object.starts_with('/') {
        return (!object.starts_with("/dev/")).then(|| format!("write {}", words.path(&object)));
    }
    if object.starts_with("pipe:") {
        return Some("write to a child".to_owned());
    }
    // One byte wakes another thread of the daemon's own.
    if length == Some(1) {
        return None;
    }
    // What was accepted has its listener's path, and the daemon listens for its clients only.
    match listener(thread, &object) {
        Some(path) if path.is_empty() => Some("send to a shim".to_owned()),
        _ => None,
    }
}

/// A child is a step, a thread is none.
fn child(flags: u64) -> Option<String> {
    let thread = u64::from(libc::CLONE_THREAD.cast_unsigned());
    (flags & thread == 0).then(|| "fork".to_owned())
}
