//! Frames over a unix socket, with files beside them; used by both ends of the shim protocol.
//!
//! A frame is a length (u32, little endian), then that many bytes. Files are attached to a frame's first
//! bytes, all of them at once. Does not know what a frame means.
//!
//! A process that is at its limit of open files gets the frame without its files: that is the trouble of
//! this one frame ([`is_out_of_descriptors`]), the connection goes on.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use prost::Message;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The largest frame either end sends or accepts.
pub(crate) const MAX_FRAME: usize = 4 << 20;
/// The most files that may wait for the frame they belong to.
pub(crate) const MAX_FILES: usize = 16;
/// The version this build speaks.
pub(crate) const VERSION: u32 = 2;
const HEADER: usize = 4;
const CHUNK: usize = 16 << 10;

/// What a look at the socket brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Some bytes.
    Some,
    /// Nothing for now.
    Nothing,
    /// The other end is closed.
    End,
}

/// Frames that come in, put together from what the socket gives.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    /// The files of each frame that has some; `None` where this process had no room for all of them.
    files: VecDeque<Option<Vec<OwnedFd>>>,
}

/// Whether an error of [`Inbox::files`] says that this process is at its limit of open files.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMFILE)
}

impl Inbox {
    /// Takes what the socket has, without waiting.
    pub(crate) fn receive(&mut self, socket: impl AsFd) -> io::Result<Received> {
        let mut chunk = [0; CHUNK];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = loop {
            match recvmsg(&socket, &mut [IoSliceMut::new(&mut chunk)], &mut ancillary, flags) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(Received::Nothing),
                Err(error) => return Err(error.into()),
                Ok(got) => break got,
            }
        };
        // What did not fit has been closed by the kernel, and those that did are dropped here.
        let cut = got.flags.contains(ReturnFlags::CTRUNC);
        let mut came = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                came.extend(files);
            }
        }
        if cut || !came.is_empty() {
            self.files.push_back((!cut).then_some(came));
        }
        if self.files.iter().flatten().map(Vec::len).sum::<usize>() > MAX_FILES
            || self.files.len() > MAX_FILES
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too many files beside the frames"));
        }
        if got.bytes == 0 {
            return Ok(Received::End);
        }
        self.bytes.extend_from_slice(&chunk[..got.bytes]);
        Ok(Received::Some)
    }

    /// The next whole frame as a message, if there is one.
    pub(crate) fn next<M: Message + Default>(&mut self) -> io::Result<Option<M>> {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let length = u32::from_le_bytes(*header) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        let Some(body) = self.bytes.get(HEADER..HEADER + length) else { return Ok(None) };
        let message =
            M::decode(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        self.bytes.drain(..HEADER + length);
        if self.bytes.is_empty() {
            // A large frame is rare; its memory is not kept.
            self.bytes = Vec::new();
        }
        Ok(Some(message))
    }

    /// The files that belong to a frame which names `count` of them. After an error that
    /// [`is_out_of_descriptors`] the frames that follow have theirs.
    pub(crate) fn files(&mut self, count: u32) -> io::Result<VecDeque<OwnedFd>> {
        if count == 0 {
            return Ok(VecDeque::new());
        }
        match self.files.pop_front() {
            Some(Some(files)) if files.len() == count as usize => Ok(files.into()),
            Some(None) => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a file beside a frame is missing")),
        }
    }
}

/// Frames that wait to be sent.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    frames: VecDeque<Outgoing>,
    size: usize,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    files: Vec<OwnedFd>,
}

impl Outbox {
    /// Puts a message in the queue. Fails when it is larger than a frame may be.
    pub(crate) fn push(&mut self, message: &impl Message, files: Vec<OwnedFd>) -> io::Result<()> {
        let length = message.encoded_len();
        if length > MAX_FRAME {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a frame of {length} bytes")));
        }
        let mut bytes = Vec::with_capacity(HEADER + length);
        bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        message.encode(&mut bytes).map_err(io::Error::other)?;
        self.size += bytes.len();
        self.frames.push_back(Outgoing { bytes, sent: 0, files });
        Ok(())
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes that wait.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Sends what the socket takes, without waiting. True when all has been sent.
    pub(crate) fn send(&mut self, socket: impl AsFd) -> io::Result<bool> {
        while let Some(frame) = self.frames.front_mut() {
            let fds: Vec<BorrowedFd<'_>> = frame.files.iter().map(AsFd::as_fd).collect();
            match send_bytes(&socket, &frame.bytes[frame.sent..], &fds) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
                Ok(sent) => {
                    frame.sent += sent;
                    self.size -= sent;
                    frame.files.clear();
                    if frame.sent == frame.bytes.len() {
                        self.frames.pop_front();
                    }
                }
            }
        }
        Ok(true)
    }
}

fn send_bytes(socket: impl AsFd, bytes: &[u8], files: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(rustix::io::Errno::INVAL);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}

/// Sends one packet over a SEQPACKET socket, waiting for room.
pub(crate) fn send_packet(socket: impl AsFd, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    packet(socket, bytes, files, SendFlags::NOSIGNAL)
}

/// Sends one packet over a SEQPACKET socket, or fails when there is no room.
pub(crate) fn try_send_packet(socket: impl AsFd, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    packet(socket, bytes, files, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn packet(socket: impl AsFd, bytes: &[u8], files: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, flags) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(()),
        }
    }
}

/// Takes one packet from a SEQPACKET socket without waiting: its bytes (none: the other end is closed)
/// and files; none of them when this process had no room for all. A packet longer than `CHUNK` is cut.
pub(crate) fn receive_packet(socket: impl AsFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut inbox = Inbox::default();
    match inbox.receive(socket)? {
        Received::Nothing => Ok(None),
        Received::End => Ok(Some((Vec::new(), Vec::new()))),
        Received::Some => {
            let files = inbox.files.into_iter().flatten().flatten().collect();
            Ok(Some((inbox.bytes, files)))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream};

    use podhold_proto::shim::{Hello, Request, request::Call};

    use super::*;

    fn request(id: u64, fds: u32) -> Request {
        let hello = Hello { version: 1, features: vec!["x".repeat(100_000)] };
        Request { id, fds, call: Some(Call::Hello(hello)) }
    }

    #[test]
    fn frames_and_their_files_arrive_in_order() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut outbox, mut inbox) = (Outbox::default(), Inbox::default());
        outbox.push(&request(1, 0), vec![]).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        outbox.push(&request(2, 1), vec![file.into()]).unwrap();
        let mut got = Vec::new();
        while got.len() < 2 {
            outbox.send(&near).unwrap();
            inbox.receive(&far).unwrap();
            while let Some(request) = inbox.next::<Request>().unwrap() {
                let files = inbox.files(request.fds).unwrap();
                got.push((request.id, files.len()));
            }
        }
        assert_eq!(got, [(1, 0), (2, 1)]);
        assert!(outbox.is_empty() && outbox.size() == 0);
        drop(near);
        assert_eq!(inbox.receive(&far).unwrap(), Received::End);
    }

    #[test]
    fn a_frame_that_is_too_large_or_garbage_is_an_error() {
        for bytes in [&b"\xff\xff\xff\xff"[..], &b"\x04\0\0\0\xff\xff\xff\xff"[..]] {
            let (mut near, far) = UnixStream::pair().unwrap();
            near.write_all(bytes).unwrap();
            let mut inbox = Inbox::default();
            inbox.receive(&far).unwrap();
            assert!(inbox.next::<Request>().is_err(), "{bytes:?}");
        }
        assert!(Inbox::default().files(1).is_err());
    }
}
