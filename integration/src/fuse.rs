//! A file system in user space whose server can stop answering: a mount that hangs, as one of a network file
//! system does when its server is gone.
//!
//! The server keeps a small tree in memory. When it holds, it reads requests and answers none: a process that
//! waits for one sleeps where no signal reaches it, as with a disk or a server that is gone. Every look at the
//! file system is a request: nothing is cached.
//!
//! The protocol is that of the kernel's `linux/fuse.h`, version 7.31; numbers are in the machine's own order.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags},
    mount::{MountFlags, UnmountFlags},
};
use tokio::time::{Instant, interval};

use crate::{
    machine::{Machine, MachineError},
    programs,
};

/// How long the server may take to do what it is told.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest request: a write of 128 KiB and its head.
const LARGEST: usize = (128 << 10) + 4096;
const IN_HEADER: usize = 40;
const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_644;

/// A mounted file system that can be made to hang. To be ended with [`end`](Self::end).
#[derive(Debug)]
pub struct HangingMount {
    /// Where it is mounted, in the machine.
    pub path: PathBuf,
    pid: i32,
    log: PathBuf,
}

impl HangingMount {
    /// Mounts one at `path`; it answers, and has a file `file`.
    pub async fn start(machine: &Machine, path: &Path) -> Result<Self, MachineError> {
        let failed = |source| MachineError::Io { what: format!("make {}", path.display()), source };
        fs::create_dir_all(path).map_err(failed)?;
        let log = path.with_extension("log");
        let words = [programs::built("podhold-fuse").display().to_string(), path.display().to_string()];
        let pid = machine.spawn(&words, BTreeMap::new(), &log).await?;
        let mount = Self { path: path.to_owned(), pid, log };
        mount.said("mounted", 0).await?;
        Ok(mount)
    }

    /// From now on no request is answered.
    pub async fn hang(&self, machine: &Machine) -> Result<(), MachineError> {
        self.tell(machine, Signal::SIGUSR1, "holding").await
    }

    /// Waits until a process waits for an answer that does not come: no signal ends it from now on.
    pub async fn holds_a_caller(&self) -> Result<(), MachineError> {
        self.said("a caller waits", 0).await
    }

    /// Answers all requests that wait, and every one from now on.
    pub async fn answer(&self, machine: &Machine) -> Result<(), MachineError> {
        self.tell(machine, Signal::SIGUSR2, "answering").await
    }

    /// Unmounts it and ends its server.
    pub async fn end(self, machine: &Machine) -> Result<(), MachineError> {
        machine.signal(self.pid, Signal::SIGTERM).await?;
        machine.wait(self.pid).await.map(drop)
    }

    async fn tell(&self, machine: &Machine, signal: Signal, answer: &str) -> Result<(), MachineError> {
        let before = self.count(answer);
        machine.signal(self.pid, signal).await?;
        self.said(answer, before).await
    }

    fn count(&self, word: &str) -> usize {
        fs::read_to_string(&self.log).map_or(0, |text| text.lines().filter(|line| *line == word).count())
    }

    /// Waits until the server has said a word once more.
    async fn said(&self, word: &str, before: usize) -> Result<(), MachineError> {
        let deadline = Instant::now() + PATIENCE;
        let mut ticks = interval(Duration::from_millis(10));
        while self.count(word) <= before {
            ticks.tick().await;
            if Instant::now() >= deadline {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                return Err(MachineError::Refused(format!("podhold-fuse does not say {word:?}: {log}")));
            }
        }
        Ok(())
    }
}

/// Mounts the file system at `path` and serves it until TERM; USR1 has it hold, USR2 answer.
pub fn serve(path: &Path) -> io::Result<()> {
    let mut heard = SigSet::empty();
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTERM] {
        heard.add(signal);
    }
    heard.thread_block()?;
    let signals = SignalFd::with_flags(&heard, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/fuse", flags, Mode::empty())?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
        std::os::fd::AsRawFd::as_raw_fd(&device)
    );
    let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
    rustix::mount::mount("podhold-fuse", path, "fuse", MountFlags::empty(), Some(options.as_c_str()))?;
    println!("mounted");
    let mut tree = Tree::new();
    let mut held: Option<Vec<Vec<u8>>> = None;
    loop {
        let mut ready = [PollFd::new(&signals, PollFlags::IN), PollFd::new(&device, PollFlags::IN)];
        poll(&mut ready, None)?;
        while let Some(signal) = signals.read_signal()? {
            match Signal::try_from(i32::try_from(signal.ssi_signo).unwrap_or(0)) {
                Ok(Signal::SIGUSR1) => {
                    held.get_or_insert_default();
                    println!("holding");
                }
                Ok(Signal::SIGUSR2) => {
                    for request in held.take().unwrap_or_default() {
                        tree.respond(&device, &request)?;
                    }
                    println!("answering");
                }
                _ => return Ok(rustix::mount::unmount(path, UnmountFlags::DETACH)?),
            }
        }
        let mut request = vec![0; LARGEST];
        match rustix::io::read(&device, &mut request) {
            Ok(count) => request.truncate(count),
            // Nothing there, or the request was given up while it was read.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::NOENT) => continue,
            Err(rustix::io::Errno::NODEV) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        match &mut held {
            Some(held) => {
                if is_waited_for(u32_at(&request, 4)) {
                    println!("a caller waits");
                }
                held.push(request);
            }
            None => tree.respond(&device, &request)?,
        }
    }
}

/// Whether a process waits for the answer: not so with FORGET, RELEASE, RELEASEDIR, INTERRUPT and BATCH_FORGET.
fn is_waited_for(operation: u32) -> bool {
    !matches!(operation, 2 | 18 | 29 | 36 | 42)
}

/// A file or directory.
enum Node {
    File(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, u64>),
}

/// The files, by inode number. Nothing is ever deleted from it but names.
struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    fn new() -> Self {
        // Number 0 is nobody's, 1 is the root.
        let root = Node::Directory([(b"file".to_vec(), 2)].into());
        Self { nodes: vec![Node::File(Vec::new()), root, Node::File(b"content\n".to_vec())] }
    }

    fn respond(&mut self, device: impl AsFd, request: &[u8]) -> io::Result<()> {
        let number = |at: usize| u32_at(request, at);
        let (operation, node) = (number(4), u64_at(request, 16));
        let unique = &request[8..16];
        let body = request.get(IN_HEADER..).unwrap_or_default();
        let (error, answer) = match self.operate(operation, node, body) {
            // FORGET, INTERRUPT and the like.
            None => return Ok(()),
            Some(Ok(answer)) => (0, answer),
            Some(Err(errno)) => (-errno, Vec::new()),
        };
        let length = u32::try_from(16 + answer.len()).map_err(io::Error::other)?;
        let mut packet = length.to_ne_bytes().to_vec();
        packet.extend(error.to_ne_bytes());
        packet.extend(unique);
        packet.extend(answer);
        match rustix::io::write(device, &packet) {
            // Nobody waits for it any more.
            Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The answer to a request; `None` where none is expected.
    fn operate(&mut self, operation: u32, node: u64, body: &[u8]) -> Option<Result<Vec<u8>, i32>> {
        use nix::libc::{EEXIST, ENOENT, ENOSYS};
        Some(match operation {
            2 | 36 | 42 => return None,
            26 => Ok(initialized()),
            // LOOKUP
            1 => self.find(node, name(body)).map(|found| self.entry(found)).ok_or(ENOENT),
            // GETATTR, SETATTR
            3 | 4 => {
                if operation == 4
                    && u32_at(body, 0) & (1 << 3) != 0
                    && let Some(Node::File(content)) = self.node_mut(node)
                {
                    content.resize(usize::try_from(u64_at(body, 16)).unwrap_or(0), 0);
                }
                Ok([&[0; 16], self.attributes(node).as_slice()].concat())
            }
            // MKDIR
            9 => match self.find(node, name(&body[8..])) {
                Some(_) => Err(EEXIST),
                None => Ok(self.add(node, name(&body[8..]), Node::Directory(BTreeMap::new()))),
            },
            // UNLINK, RMDIR
            10 | 11 => match self.node_mut(node) {
                Some(Node::Directory(names)) => names.remove(name(body)).map(|_| Vec::new()).ok_or(ENOENT),
                _ => Err(ENOENT),
            },
            // CREATE: an entry, then an open file.
            35 => {
                let name = name(&body[16..]);
                let entry = match self.find(node, name) {
                    Some(found) => self.entry(found),
                    None => self.add(node, name, Node::File(Vec::new())),
                };
                Ok([entry.as_slice(), &[0; 16]].concat())
            }
            // OPEN, OPENDIR
            14 | 27 => Ok(vec![0; 16]),
            // READ
            15 => {
                let (offset, size) = (u64_at(body, 8), u32_at(body, 16));
                let rest = match self.node_mut(node) {
                    Some(Node::File(content)) => content.get(usize::try_from(offset).unwrap_or(usize::MAX)..),
                    _ => None,
                };
                Ok(rest.unwrap_or_default().iter().take(size as usize).copied().collect())
            }
            // WRITE
            16 => {
                let (offset, data) = (u64_at(body, 8), &body[40..]);
                if let Some(Node::File(content)) = self.node_mut(node) {
                    let offset = usize::try_from(offset).unwrap_or(0);
                    content.resize(content.len().max(offset + data.len()), 0);
                    content[offset..offset + data.len()].copy_from_slice(data);
                }
                Ok([u32::try_from(data.len()).unwrap_or(0).to_ne_bytes(), [0; 4]].concat())
            }
            // READDIR
            28 => Ok(if u64_at(body, 8) == 0 { self.list(node) } else { Vec::new() }),
            // STATFS
            17 => Ok(vec![0; 80]),
            // RELEASE, FSYNC, FLUSH, RELEASEDIR, ACCESS, DESTROY
            18 | 20 | 25 | 29 | 34 | 38 => Ok(Vec::new()),
            _ => Err(ENOSYS),
        })
    }

    fn node_mut(&mut self, number: u64) -> Option<&mut Node> {
        self.nodes.get_mut(usize::try_from(number).ok()?)
    }

    fn find(&mut self, directory: u64, name: &[u8]) -> Option<u64> {
        match self.node_mut(directory)? {
            Node::Directory(names) => names.get(name).copied(),
            Node::File(_) => None,
        }
    }

    fn add(&mut self, directory: u64, name: &[u8], node: Node) -> Vec<u8> {
        let number = self.nodes.len() as u64;
        self.nodes.push(node);
        if let Some(Node::Directory(names)) = self.node_mut(directory) {
            names.insert(name.to_vec(), number);
        }
        self.entry(number)
    }

    /// `fuse_entry_out`; it is believed for no time at all.
    fn entry(&mut self, number: u64) -> Vec<u8> {
        [&number.to_ne_bytes(), &[0; 32][..], &self.attributes(number)].concat()
    }

    /// `fuse_attr`.
    fn attributes(&mut self, number: u64) -> Vec<u8> {
        let (size, mode) = match self.node_mut(number) {
            Some(Node::File(content)) => (content.len() as u64, FILE),
            _ => (0, DIRECTORY),
        };
        let mut attributes = Vec::with_capacity(88);
        for value in [number, size, size.div_ceil(512), 0, 0, 0] {
            attributes.extend(u64::to_ne_bytes(value));
        }
        for value in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
            attributes.extend(u32::to_ne_bytes(value));
        }
        attributes
    }

    fn list(&mut self, number: u64) -> Vec<u8> {
        let Some(Node::Directory(names)) = self.node_mut(number) else { return Vec::new() };
        let mut list = Vec::new();
        for (position, (name, number)) in (1u64..).zip(names.iter()) {
            list.extend(number.to_ne_bytes());
            list.extend(position.to_ne_bytes());
            list.extend(u32::try_from(name.len()).unwrap_or(0).to_ne_bytes());
            list.extend(0u32.to_ne_bytes());
            list.extend(name);
            list.resize(list.len().next_multiple_of(8), 0);
        }
        list
    }
}

/// `fuse_init_out`.
fn initialized() -> Vec<u8> {
    let mut answer = Vec::with_capacity(64);
    // Version 7.31, read-ahead, flags; background requests; largest write; granularity of times.
    for value in [7u32, 31, 0, 0, 0, 128 << 10, 1] {
        answer.extend(value.to_ne_bytes());
    }
    answer.resize(64, 0);
    answer
}

/// A name that ends with NUL.
fn name(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map_or(0, u64::from_ne_bytes)
}
