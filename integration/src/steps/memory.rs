//! What a stopped thread's arguments point to, and what its descriptors are. Reads only.

use std::{fs, io::IoSliceMut, path::PathBuf};

use nix::{
    libc,
    sys::uio::{RemoteIoVec, process_vm_readv},
    unistd::Pid,
};

/// The longest path and socket address that is read.
const LONGEST: usize = 4096;

/// Memory cannot be read across the end of a page that may be the last.
const PAGE: usize = 4096;

/// Bytes at an address; fewer where the memory ends.
pub(super) fn bytes(thread: Pid, address: u64, length: usize) -> Vec<u8> {
    let mut found = vec![0; length];
    let Ok(base) = usize::try_from(address) else { return Vec::new() };
    let read =
        process_vm_readv(thread, &mut [IoSliceMut::new(&mut found)], &[RemoteIoVec { base, len: length }]);
    found.truncate(read.unwrap_or(0));
    found
}

/// A number of eight bytes.
pub(super) fn word(thread: Pid, address: u64) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes(thread, address, 8).try_into().ok()?))
}

/// A text that ends with a zero.
pub(super) fn text(thread: Pid, address: u64) -> String {
    let mut found = Vec::new();
    let mut at = address;
    while found.len() < LONGEST {
        let within = usize::try_from(at).unwrap_or(0) % PAGE;
        let piece = bytes(thread, at, PAGE - within);
        if let Some(end) = piece.iter().position(|byte| *byte == 0) {
            found.extend_from_slice(&piece[..end]);
            break;
        }
        if piece.is_empty() {
            break;
        }
        at += piece.len() as u64;
        found.extend(piece);
    }
    String::from_utf8_lossy(&found).into_owned()
}

/// What a descriptor of the thread is, as the kernel names it: a path, `socket:[N]`, `pipe:[N]`.
pub(super) fn descriptor(thread: Pid, number: u64) -> String {
    let link = format!("/proc/{thread}/fd/{}", number & 0xffff_ffff);
    fs::read_link(link).map_or_else(|_| "?".to_owned(), |path| path.display().to_string())
}

/// The path that a call means by a directory and a path relative to it.
pub(super) fn path(thread: Pid, directory: u64, address: u64) -> String {
    let text = text(thread, address);
    if text.starts_with('/') {
        return text;
    }
    // The upper half of the register says nothing.
    let number = u32::try_from(directory & 0xffff_ffff).unwrap_or(0).cast_signed();
    let directory = match number {
        libc::AT_FDCWD => String::new(),
        _ => descriptor(thread, directory),
    };
    if text.is_empty() { directory } else { PathBuf::from(directory).join(text).display().to_string() }
}

/// The address given to connect or bind: a path, or a word for its family.
pub(super) fn address(thread: Pid, at: u64, length: u64) -> String {
    let bytes = bytes(thread, at, usize::try_from(length).unwrap_or(0).min(LONGEST));
    let Some((family, rest)) = bytes.split_at_checked(2) else { return "?".to_owned() };
    match i32::from(u16::from_ne_bytes([family[0], family[1]])) {
        libc::AF_UNIX => String::from_utf8_lossy(rest.split(|byte| *byte == 0).next().unwrap_or(rest)).into(),
        libc::AF_INET | libc::AF_INET6 => "tcp".to_owned(),
        other => format!("family {other}"),
    }
}

/// The path of the listening socket that a connected socket came from; `None` for the side that dialled and
/// for other kinds.
pub(super) fn listener(thread: Pid, socket: &str) -> Option<String> {
    let inode = socket.strip_prefix("socket:[")?.strip_suffix(']')?;
    let table = fs::read_to_string(format!("/proc/{thread}/net/unix")).ok()?;
    let line = table.lines().find(|line| line.split_whitespace().nth(6) == Some(inode))?;
    Some(line.split_whitespace().nth(7).unwrap_or_default().to_owned())
}
