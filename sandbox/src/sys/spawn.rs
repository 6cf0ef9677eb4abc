//! Programs started without a copy of this process.
//!
//! fork(2) copies the page tables under the lock that every page fault takes: a daemon that forks for each
//! program makes those of its threads wait that answer clients. posix_spawn(3) shares the memory until the
//! program is executed. The standard library uses it too, for all that need no more than it offers; but it
//! looks for `posix_spawn_file_actions_addchdir_np` by a weak reference, which takes nothing out of a static
//! C library. It is there because [`spawn`] names it.

use std::{
    ffi::{CStr, CString},
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
};

use nix::unistd::Pid;

/// The number under which a program has the file that it is to keep.
const KEPT: RawFd = 3;

/// A program to be started: in `/`, in a session of its own, with no signal blocked or ignored that matters
/// to it.
pub(crate) struct Program<'a> {
    /// The executable file.
    pub(crate) path: &'a CStr,
    /// Its environment, `NAME=value` each.
    pub(crate) environment: &'a [CString],
    /// Its standard input, output and error. None may have one of the numbers 0 to 2.
    pub(crate) standard: [BorrowedFd<'a>; 3],
    /// A file that it has open besides.
    pub(crate) kept: Option<BorrowedFd<'a>>,
}

/// Starts a program, whose only argument is its own path. Blocks until it is executed.
///
/// The caller reaps it.
pub(crate) fn spawn(program: &Program<'_>) -> io::Result<Pid> {
    let mut actions = Actions::new()?;
    for (file, number) in program.standard.iter().zip(0..) {
        actions.give(file.as_raw_fd(), number)?;
    }
    if let Some(kept) = program.kept {
        actions.give(kept.as_raw_fd(), KEPT)?;
    }
    actions.start_in(c"/")?;
    let attributes = Attributes::new()?;
    let arguments = [program.path.as_ptr().cast_mut(), std::ptr::null_mut()];
    let environment = program.environment.iter().map(|variable| variable.as_ptr().cast_mut());
    let environment: Vec<_> = environment.chain([std::ptr::null_mut()]).collect();
    let mut pid = 0;
    // SAFETY: every pointer is to something that lives across the call; both lists end with a null; actions
    // and attributes are initialised (posix_spawn(3)).
    let answer = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            program.path.as_ptr(),
            actions.0.as_ptr(),
            attributes.0.as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
        )
    };
    checked(answer)?;
    Ok(Pid::from_raw(pid))
}

fn checked(answer: libc::c_int) -> io::Result<()> {
    if answer == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(answer)) }
}

/// What the child does before it executes the program. Initialised from `new` until dropped.
struct Actions(Box<MaybeUninit<libc::posix_spawn_file_actions_t>>);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = Box::new(MaybeUninit::uninit());
        // SAFETY: it initialises what the pointer is to.
        checked(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        Ok(Self(actions))
    }

    /// Gives it a file under this number, open across the exec.
    fn give(&mut self, file: RawFd, number: RawFd) -> io::Result<()> {
        // SAFETY: the actions are initialised; two numbers are noted.
        checked(unsafe { libc::posix_spawn_file_actions_adddup2(self.0.as_mut_ptr(), file, number) })
    }

    fn start_in(&mut self, directory: &CStr) -> io::Result<()> {
        // SAFETY: the actions are initialised; the path is copied.
        checked(unsafe {
            libc::posix_spawn_file_actions_addchdir_np(self.0.as_mut_ptr(), directory.as_ptr())
        })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, and never used again.
        unsafe { libc::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}

/// How the child differs from us. Initialised from `new` until dropped.
struct Attributes(Box<MaybeUninit<libc::posix_spawnattr_t>>);

impl Attributes {
    /// A session of its own, no signal blocked, and SIGPIPE, which Rust programs ignore, as it was.
    fn new() -> io::Result<Self> {
        let mut attributes = Box::new(MaybeUninit::uninit());
        // SAFETY: it initialises what the pointer is to.
        checked(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        let mut attributes = Self(attributes);
        let none = *nix::sys::signal::SigSet::empty().as_ref();
        let mut pipe = nix::sys::signal::SigSet::empty();
        pipe.add(nix::sys::signal::Signal::SIGPIPE);
        let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF | SETSID;
        let given = attributes.0.as_mut_ptr();
        // SAFETY: the attributes are initialised; what the pointers are to is copied.
        unsafe {
            checked(libc::posix_spawnattr_setsigmask(given, &raw const none))?;
            checked(libc::posix_spawnattr_setsigdefault(given, std::ptr::from_ref(pipe.as_ref())))?;
            checked(libc::posix_spawnattr_setflags(given, flags as libc::c_short))?;
        }
        Ok(attributes)
    }
}

/// Of spawn.h; the libc crate does not have it for this system.
const SETSID: libc::c_int = 0x80;

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, and never used again.
        unsafe { libc::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::fd::AsFd,
        process::Command,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    /// Set by every fork of this process.
    static FORKED: AtomicBool = AtomicBool::new(false);

    extern "C" fn forks() {
        FORKED.store(true, Ordering::SeqCst);
    }

    /// Tests of a crate are threads of one process and others fork: asked in a process of its own.
    const ALONE: &str = "PODHOLD_TEST_SPAWNS_ALONE";

    #[test]
    fn no_program_is_started_by_a_fork() {
        if std::env::var_os(ALONE).is_none() {
            let here = "sys::spawn::tests::no_program_is_started_by_a_fork";
            let mut again = Command::new(std::env::current_exe().unwrap());
            let done = again.args([here, "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
            let said = String::from_utf8_lossy(&done.stdout);
            assert!(done.status.success() && said.contains("1 passed"), "{done:?}");
            return;
        }
        // SAFETY: the handler does nothing but store a flag.
        assert_eq!(unsafe { libc::pthread_atfork(Some(forks), None, None) }, 0);
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let standard = [null.as_fd(), null.as_fd(), null.as_fd()];
        let program = Program { path: c"/bin/true", environment: &[], standard, kept: Some(null.as_fd()) };
        nix::sys::wait::waitpid(spawn(&program).unwrap(), None).unwrap();
        assert!(!FORKED.load(Ordering::SeqCst), "spawn");
        assert!(Command::new("/bin/true").env_clear().current_dir("/").status().unwrap().success());
        assert!(!FORKED.load(Ordering::SeqCst), "std");
        // SAFETY: the child ends at once.
        match unsafe { nix::unistd::fork() }.unwrap() {
            // SAFETY: ends the process and does nothing else.
            nix::unistd::ForkResult::Child => unsafe { libc::_exit(0) },
            nix::unistd::ForkResult::Parent { child } => nix::sys::wait::waitpid(child, None).unwrap(),
        };
        assert!(FORKED.load(Ordering::SeqCst), "a fork is seen");
    }

    #[test]
    fn what_cannot_be_executed_is_an_error() {
        let null = File::open("/dev/null").unwrap();
        let standard = [null.as_fd(), null.as_fd(), null.as_fd()];
        let program = Program { path: c"/nowhere/at/all", environment: &[], standard, kept: None };
        assert_eq!(spawn(&program).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
