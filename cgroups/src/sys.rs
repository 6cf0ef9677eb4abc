//! The bpf(2) system call, for device rules. The only `unsafe` of this crate.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};

use nix::libc;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Cgroups beneath may have filters of their own, which then hold as well.
const ALLOW_MULTI: u32 = 2;
const MOST_ATTACHED: usize = 64;

/// Loads the program and attaches it in place of those attached to the cgroup before. The new one holds
/// before the old ones go, so that there is no moment without rules.
pub(crate) fn replace_device_filter(cgroup: &Path, program: &[u64]) -> io::Result<()> {
    let cgroup = File::open(cgroup)?;
    let before = attached(cgroup.as_raw_fd())?;
    let filter = load(program)?;
    attach_or_detach(PROG_ATTACH, &cgroup, &filter)?;
    for id in before {
        attach_or_detach(PROG_DETACH, &cgroup, &open(id)?)?;
    }
    Ok(())
}

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

#[repr(C)]
struct Query {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    flags: u32,
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    let count = u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let code = program.as_ptr() as u64;
    let license = c"Apache-2.0".as_ptr() as u64;
    let mut request = Load { kind: TYPE_CGROUP_DEVICE, count, code, license, ..Load::default() };
    // SAFETY: `code` points to `count` instructions and `license` to a C string, both alive throughout.
    let fd = unsafe { bpf(PROG_LOAD, &mut request) }?;
    // SAFETY: the kernel has just made this fd for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn open(id: u32) -> io::Result<OwnedFd> {
    let mut request = ById { id, next_id: 0, flags: 0 };
    // SAFETY: the request holds no pointers.
    let fd = unsafe { bpf(PROG_GET_FD_BY_ID, &mut request) }?;
    // SAFETY: the kernel has just made this fd for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach_or_detach(command: libc::c_int, cgroup: &File, program: &OwnedFd) -> io::Result<()> {
    let flags = if command == PROG_ATTACH { ALLOW_MULTI } else { 0 };
    let target = cgroup.as_raw_fd().cast_unsigned();
    let program = program.as_raw_fd().cast_unsigned();
    let mut request = Attach { target, program, kind: ATTACH_CGROUP_DEVICE, flags };
    // SAFETY: the request holds no pointers, and its fds are open.
    unsafe { bpf(command, &mut request) }.map(drop)
}

/// The ids of the device programs attached to this very cgroup.
fn attached(cgroup: RawFd) -> io::Result<Vec<u32>> {
    let mut ids = vec![0u32; MOST_ATTACHED];
    let mut request = Query {
        target: cgroup.cast_unsigned(),
        kind: ATTACH_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: MOST_ATTACHED as u32,
        padding: 0,
    };
    // SAFETY: `ids` has room for `count` numbers and outlives the call.
    unsafe { bpf(PROG_QUERY, &mut request) }?;
    ids.truncate(request.count as usize);
    Ok(ids)
}

/// # Safety
/// `request` is what `command` expects, and every pointer in it is valid for the call.
unsafe fn bpf<T>(command: libc::c_int, request: &mut T) -> io::Result<RawFd> {
    let size = size_of::<T>();
    // SAFETY: the caller vouches for the request; its size is passed along, the kernel reads no further.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(request), size) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as RawFd) }
}
