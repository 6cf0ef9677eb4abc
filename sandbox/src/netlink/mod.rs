//! Conversations with the kernel about links and rules, by netlink(7). Without `unsafe`.
//!
//! Invariant: the kernel acts on what was sent before the sending returns, and has queued its answers by
//! then; so answers are read until there are none, and nothing here waits. A socket belongs to the network
//! namespace of the thread that made it.

mod message;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::sys::socket::{setsockopt, sockopt};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, netlink::SocketAddrNetlink,
        recv, sendto, socket_with,
    },
};

pub(crate) use self::message::{
    APPEND, Attributes, CREATE, DUMP, EXCLUSIVE, Message, REPLACE, Received, attribute, attributes, short,
};
use self::message::{Answer, answers};

/// Room for what is sent at once: all rules and ports of a host.
const ROOM: usize = 8 << 20;
/// The longest datagram the kernel answers with.
const LONGEST: usize = 64 << 10;
/// How often a list is asked for again that changed while it was told.
const TRIES: usize = 8;

/// What a socket speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Links, addresses, routes: rtnetlink(7).
    Route,
    /// Packet filter.
    Netfilter,
}

/// A message that the kernel has refused.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Why.
    pub(crate) source: io::Error,
}

impl Refused {
    /// The kernel's error number.
    pub(crate) fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }

    fn whole(source: impl Into<io::Error>) -> Self {
        Self { source: source.into() }
    }
}

/// A conversation in the network namespace of the thread that began it.
#[derive(Debug)]
pub(crate) struct Socket {
    family: Family,
    /// Until it is closed.
    fd: Option<OwnedFd>,
}

impl Drop for Socket {
    /// The kernel closes one of the packet filter only when it has freed all that was lately removed from the filter,
    /// which takes it 10 ms and more: nobody waits for that.
    fn drop(&mut self) {
        let fd = self.fd.take();
        if self.family == Family::Netfilter {
            // Without a thread it is closed here.
            let _closed = std::thread::Builder::new().name("netlink".to_owned()).spawn(move || drop(fd));
        }
    }
}

impl Socket {
    pub(crate) fn open(family: Family) -> io::Result<Self> {
        let protocol = match family {
            Family::Route => None,
            Family::Netfilter => Some(netlink::NETFILTER),
        };
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        // As root of the initial user namespace; elsewhere what is common has to do.
        let _smaller = setsockopt(&socket, sockopt::SndBufForce, &ROOM);
        let _smaller = setsockopt(&socket, sockopt::RcvBufForce, &ROOM);
        Ok(Self { family, fd: Some(socket) })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("it is open until it is dropped").as_fd()
    }

    /// Sends all messages at once; the kernel takes one after another. Those that do not ask for an
    /// acknowledgement are answered only when refused; the first refusal is returned.
    pub(crate) fn send(&self, messages: &[Message]) -> Result<(), Refused> {
        let acknowledged = messages.iter().rposition(Message::is_acknowledged);
        let mut done = acknowledged.is_none();
        self.put(messages).map_err(Refused::whole)?;
        while let Some(datagram) = self.take(RecvFlags::DONTWAIT).map_err(Refused::whole)? {
            for answer in answers(&datagram) {
                let Answer::Told { sequence, code } = answer else { continue };
                let index = usize::try_from(sequence).unwrap_or(0).saturating_sub(1);
                match code {
                    0 => done |= Some(index) == acknowledged,
                    code => {
                        let source = io::Error::from_raw_os_error(code);
                        self.drain();
                        return Err(Refused { source });
                    }
                }
            }
        }
        if done { Ok(()) } else { Err(Refused::whole(io::Error::other("the kernel has not answered"))) }
    }

    /// Asks one question and returns the answers to it.
    pub(crate) fn ask(&self, question: &Message) -> io::Result<Vec<Received>> {
        self.put(std::slice::from_ref(question))?;
        let mut found = Vec::new();
        while let Some(datagram) = self.take(RecvFlags::DONTWAIT)? {
            for answer in answers(&datagram) {
                match answer {
                    Answer::Object(object) => found.push(object),
                    Answer::Told { code: 0, .. } | Answer::End | Answer::Changed => {}
                    Answer::Told { code, .. } => {
                        self.drain();
                        return Err(io::Error::from_raw_os_error(code));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Asks for a list; again when it changed meanwhile.
    pub(crate) fn list(&self, question: &Message) -> io::Result<Vec<Received>> {
        self.list_of(question, |_| true)
    }

    /// As [`list`](Self::list), of those that `wanted` picks by what follows the header. The others take no
    /// room, however many there are.
    pub(crate) fn list_of(
        &self,
        question: &Message,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> io::Result<Vec<Received>> {
        for _ in 0..TRIES {
            if let Some(whole) = self.list_once(question, &wanted)? {
                return Ok(whole);
            }
        }
        Err(io::Error::other("the list changes faster than it can be read"))
    }

    fn list_once(
        &self,
        question: &Message,
        wanted: &dyn Fn(&[u8]) -> bool,
    ) -> io::Result<Option<Vec<Received>>> {
        self.put(std::slice::from_ref(question))?;
        let (mut found, mut changed) = (Vec::new(), false);
        // A list is told piece by piece, each when the one before was taken.
        while let Some(datagram) = self.take(RecvFlags::empty())? {
            for answer in answers(&datagram) {
                match answer {
                    Answer::Object(object) => {
                        changed |= object.interrupted;
                        if wanted(&object.body) {
                            found.push(object);
                        }
                    }
                    Answer::Changed => changed = true,
                    Answer::End | Answer::Told { code: 0, .. } => return Ok((!changed).then_some(found)),
                    Answer::Told { code, .. } => return Err(io::Error::from_raw_os_error(code)),
                }
            }
        }
        Ok(None)
    }

    fn put(&self, messages: &[Message]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (message, sequence) in messages.iter().zip(1..) {
            message.encode(sequence, &mut bytes);
        }
        sendto(self.fd(), &bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        Ok(())
    }

    /// The next datagram; `None` when there is none.
    fn take(&self, flags: RecvFlags) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; LONGEST];
        loop {
            match recv(self.fd(), &mut buffer[..], flags) {
                Ok((received, _)) => {
                    buffer.truncate(received);
                    return Ok(Some(buffer));
                }
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Forgets answers that nobody wants any more.
    fn drain(&self) {
        while let Ok(Some(_)) = self.take(RecvFlags::DONTWAIT) {}
    }
}
