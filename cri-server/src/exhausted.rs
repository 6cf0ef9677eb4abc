//! What is full or used up, told from the words of an error. Pure.
//!
//! By words, since errors come from many places: from the kernel here, from the shim, from libcontainer as a
//! report, from network plugins on their standard error. All of them end in what strerror(3) says.

use tonic::Code;

/// Something is full, used up or read-only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lack {
    /// The gRPC code: RESOURCE_EXHAUSTED when room or numbers are used up.
    pub code: Code,
    /// What an administrator can do.
    pub mend: &'static str,
    words: &'static str,
}

const NO_SPACE: &str = "no space left on device";
const READ_ONLY: &str = "read-only file system";

const LACKS: [Lack; 6] = [
    Lack {
        words: NO_SPACE,
        code: Code::ResourceExhausted,
        mend: "its file system is full: free space (df) or inodes (df -i) there; the same call works then",
    },
    Lack {
        words: "disk quota exceeded",
        code: Code::ResourceExhausted,
        mend: "a disk quota is used up: raise it or free space; the same call works then",
    },
    Lack {
        words: READ_ONLY,
        code: Code::FailedPrecondition,
        mend: "its file system is mounted read-only: look why in the kernel's log, and remount it writable",
    },
    Lack {
        words: "too many open files",
        code: Code::ResourceExhausted,
        mend: "the limit on open files is reached: raise LimitNOFILE of the daemon, or fs.file-max",
    },
    Lack {
        words: "cannot allocate memory",
        code: Code::ResourceExhausted,
        mend: "memory is used up: raise the memory limit of the daemon's cgroup, or free memory",
    },
    Lack {
        words: "resource temporarily unavailable",
        code: Code::ResourceExhausted,
        mend: "no process or thread can be made: raise the limit on tasks (pids.max, TasksMax) of the daemon's \
               or the pod's cgroup",
    },
];

/// What is used up, if that is the cause.
pub fn of(words: &str) -> Option<Lack> {
    let words = words.to_ascii_lowercase();
    // A logger that does not take its orders says the same as a full table of processes.
    let stuck = words.contains("reach the logger");
    let found = LACKS.into_iter().find(|lack| words.contains(lack.words));
    found.filter(|lack| !(stuck && lack.words == "resource temporarily unavailable"))
}

/// Whether a file system that is read-only is the cause.
pub fn is_read_only(words: &str) -> bool {
    words.to_ascii_lowercase().contains(READ_ONLY)
}

/// Whether a file system that is full or read-only is the cause.
pub fn is_disk(words: &str) -> bool {
    is_read_only(words) || of(words).is_some_and(|lack| lack.words.starts_with(NO_SPACE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_up_is_told_from_every_source() {
        let enospc = std::io::Error::from_raw_os_error(libc::ENOSPC).to_string();
        let go = "plugin type=\"bridge\" failed (add): open /x: no space left on device";
        let nix = "failed to mkdir: ENOSPC: No space left on device";
        for words in [enospc.as_str(), go, nix] {
            assert_eq!(of(words).map(|lack| lack.code), Some(Code::ResourceExhausted), "{words}");
            assert!(is_disk(words) && !is_read_only(words));
        }
        let read_only = std::io::Error::from_raw_os_error(libc::EROFS).to_string();
        assert_eq!(of(&read_only).map(|lack| lack.code), Some(Code::FailedPrecondition));
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN, libc::EDQUOT] {
            let words = std::io::Error::from_raw_os_error(errno).to_string();
            assert_eq!(of(&words).map(|lack| lack.code), Some(Code::ResourceExhausted), "{words}");
        }
        assert_eq!(of("no such file or directory"), None);
        assert_eq!(of("reach the logger: Resource temporarily unavailable (os error 11)"), None);
    }
}
