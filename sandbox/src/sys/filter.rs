//! Seccomp filters by seccomp(2).

use std::io;

/// Puts this process under a filter, given as the bytes of `struct sock_filter`s. See seccomp(2),
/// SECCOMP_SET_MODE_FILTER.
pub(crate) fn load_filter(program: &[u8], flags: libc::c_ulong) -> io::Result<()> {
    let (instructions, []) = program.as_chunks::<8>() else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the program is cut off"));
    };
    let mut instructions: Vec<libc::sock_filter> = instructions
        .iter()
        .map(|[c0, c1, jt, jf, k @ ..]| libc::sock_filter {
            code: u16::from_ne_bytes([*c0, *c1]),
            jt: *jt,
            jf: *jf,
            k: u32::from_ne_bytes(*k),
        })
        .collect();
    let length = u16::try_from(instructions.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the program is too long"))?;
    let program = libc::sock_fprog { len: length, filter: instructions.as_mut_ptr() };
    // SAFETY: `program` names `len` initialized instructions that live until the call returns; the kernel
    // copies and verifies them.
    let answer = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(&program))
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
