//! The pause process: holds a pod's namespaces and, as pid 1 of a shared one, reaps.
//!
//! Compiled by `build.rs` on its own, without core's runtime and without libc. Invariant: it opens no
//! file, allocates nothing and has no signal handlers; all signals are blocked and taken by
//! `rt_sigtimedwait(2)`, so none can be lost between two waits and none ends it but TERM, INT and KILL.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

use core::arch::{asm, naked_asm};

const SIGINT: usize = 2;
const SIGTERM: usize = 15;
const SIGCHLD: usize = 17;
const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;
/// Size of the kernel's signal set in bytes.
const SET_SIZE: usize = 8;

#[cfg(target_arch = "x86_64")]
mod nr {
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const WAIT4: usize = 61;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 128;
    pub(crate) const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod nr {
    pub(crate) const RT_SIGPROCMASK: usize = 135;
    pub(crate) const WAIT4: usize = 260;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 137;
    pub(crate) const EXIT_GROUP: usize = 94;
}

#[cfg(target_arch = "x86_64")]
fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let answer;
    // SAFETY: the callers below pass numbers and pointers as the system call's manual page asks; the
    // kernel changes rcx and r11 besides rax.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => answer, in("rdi") a, in("rsi") b, in("rdx") c,
             in("r10") d, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    answer
}

#[cfg(target_arch = "aarch64")]
fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let answer;
    // SAFETY: as on x86_64; the kernel changes x0 alone.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => answer, in("x1") b, in("x2") c, in("x3") d,
             options(nostack));
    }
    answer
}

/// Entry point: the stack is aligned for a call, which a plain function may not assume here.
#[unsafe(no_mangle)]
#[unsafe(naked)]
extern "C" fn _start() -> ! {
    #[cfg(target_arch = "x86_64")]
    naked_asm!("xor ebp, ebp", "call {run}", "ud2", run = sym run);
    #[cfg(target_arch = "aarch64")]
    naked_asm!("mov x29, #0", "bl {run}", "brk #1", run = sym run);
}

extern "C" fn run() -> ! {
    let every: u64 = !0;
    let awaited: u64 = (1 << (SIGINT - 1)) | (1 << (SIGTERM - 1)) | (1 << (SIGCHLD - 1));
    syscall(nr::RT_SIGPROCMASK, SIG_BLOCK, &raw const every as usize, 0, SET_SIZE);
    loop {
        // Children may have been inherited or have died before the mask was set.
        while syscall(nr::WAIT4, usize::MAX, 0, WNOHANG, 0) > 0 {}
        let signal = syscall(nr::RT_SIGTIMEDWAIT, &raw const awaited as usize, 0, 0, SET_SIZE);
        if signal == SIGTERM as isize || signal == SIGINT as isize {
            break;
        }
    }
    loop {
        syscall(nr::EXIT_GROUP, 0, 0, 0, 0);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        syscall(nr::EXIT_GROUP, 70, 0, 0, 0);
    }
}
