//! One connection to systemd's manager, for one errand: its private socket, else the system bus.
//!
//! Not kept between errands: the private socket tells every connection what happens to any unit, and what nobody
//! reads piles up in process 1. Invariant: no call outlives its deadline.

use std::{
    io::{self, IoSlice, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, sockopt,
};

use super::message::{self, ERROR, FIXED, LONGEST, Malformed, Message, Method, RETURN, SIGNAL, Writer};

const PRIVATE: &str = "/run/systemd/private";
const SYSTEM: &str = "/run/dbus/system_bus_socket";
/// More than the other side says before messages begin.
const LONGEST_LINE: usize = 1024;
/// Jobs that ended before their call was answered.
const EARLY: usize = 64;

const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const BUS: &str = "org.freedesktop.DBus";

/// Why systemd has not done what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// There is nobody to ask, or the connection has broken: it may have done it.
    #[error("systemd cannot be asked by {PRIVATE} nor by {SYSTEM}")]
    Lost(#[source] io::Error),
    /// It was silent too long.
    #[error("systemd has not answered for {} s", .0.as_secs())]
    Silent(Duration),
    /// It will not.
    #[error("systemd refuses: {text} ({name})")]
    Refused {
        /// The name of the error, such as `org.freedesktop.systemd1.NoSuchUnit`.
        name: String,
        /// Its words.
        text: String,
    },
    /// It tried in vain.
    #[error("systemd's job has ended as {0:?}")]
    Job(String),
    /// It says what nobody understands.
    #[error("{0}")]
    Malformed(String),
}

impl From<Malformed> for BusError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl BusError {
    /// Whether it is the refusal of this name, the part after the last dot.
    pub(super) fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name.rsplit('.').next() == Some(wanted))
    }

    /// Whether asking again may help: systemd is being executed anew, or its bus is.
    pub(super) fn passes(&self) -> bool {
        matches!(self, Self::Lost(_))
            || ["NoReply", "Disconnected", "ServiceUnknown", "NameHasNoOwner"]
                .iter()
                .any(|name| self.is(name))
    }
}

/// A time by which all has to be done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    time: Duration,
}

impl Deadline {
    pub(super) fn within(time: Duration) -> Self {
        Self { at: Instant::now() + time, time }
    }

    pub(super) fn left(self) -> Result<Duration, BusError> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(BusError::Silent(self.time)) } else { Ok(left) }
    }

    fn failed(self, error: io::Error) -> BusError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => BusError::Silent(self.time),
            _ => BusError::Lost(error),
        }
    }
}

/// A connection that is open.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    deadline: Deadline,
    serial: u32,
    /// Whether descriptors may be sent.
    pub(super) takes_fds: bool,
    ended: Vec<(String, String)>,
}

impl Bus {
    /// Connects to whoever answers for systemd.
    pub(super) fn open(deadline: Deadline) -> Result<Self, BusError> {
        match Self::dial(Path::new(PRIVATE), deadline) {
            Ok(bus) => Ok(bus),
            Err(BusError::Lost(_)) => {
                let mut bus = Self::dial(Path::new(SYSTEM), deadline)?;
                bus.introduce()?;
                Ok(bus)
            }
            Err(error) => Err(error),
        }
    }

    fn dial(path: &Path, deadline: Deadline) -> Result<Self, BusError> {
        let connect = || {
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            )?;
            // What connecting waits for when many are before us.
            let left = deadline.at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(left))?;
            rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok::<_, rustix::io::Errno>(UnixStream::from(socket))
        };
        let stream = connect().map_err(|error| deadline.failed(error.into()))?;
        let mut bus = Self { stream, deadline, serial: 0, takes_fds: false, ended: Vec::new() };
        bus.authenticate()?;
        Ok(bus)
    }

    /// Says who we are, which the kernel vouches for.
    fn authenticate(&mut self) -> Result<(), BusError> {
        let user = rustix::process::geteuid().as_raw().to_string();
        let user: String = user.bytes().map(|digit| format!("{digit:02x}")).collect();
        self.write(format!("\0AUTH EXTERNAL {user}\r\nNEGOTIATE_UNIX_FD\r\n").as_bytes(), &[])?;
        let answer = self.line()?;
        if !answer.starts_with("OK ") {
            return Err(BusError::Refused { name: "AUTH".to_owned(), text: answer });
        }
        self.takes_fds = self.line()? == "AGREE_UNIX_FD";
        self.write(b"BEGIN\r\n", &[])
    }

    /// What a bus wants that has others on it than systemd.
    fn introduce(&mut self) -> Result<(), BusError> {
        let bus = |member| Method { destination: BUS, path: "/org/freedesktop/DBus", interface: BUS, member };
        self.call(bus("Hello"), "", Writer::default(), None)?;
        let mut rule = Writer::default();
        rule.text(&format!(
            "type='signal',sender='org.freedesktop.systemd1',interface='{MANAGER}',member='JobRemoved'"
        ));
        self.call(bus("AddMatch"), "s", rule, None)?;
        self.ask("Subscribe", "", Writer::default(), None).map(drop)
    }

    /// Calls a method of the manager; answers the texts it returns.
    pub(super) fn ask(
        &mut self,
        member: &str,
        signature: &str,
        body: Writer,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Vec<String>, BusError> {
        self.call(of_manager(member), signature, body, fd)
    }

    /// A property of the manager.
    pub(super) fn property(&mut self, name: &str) -> Result<String, BusError> {
        self.property_of(of_manager("Get").path, MANAGER, name)
    }

    /// Which of systemd's states a unit is in, such as `active`.
    pub(super) fn state_of(&mut self, unit: &str) -> Result<String, BusError> {
        let mut body = Writer::default();
        body.text(unit);
        let path = self.ask("GetUnit", "s", body, None)?.pop().unwrap_or_default();
        self.property_of(&path, "org.freedesktop.systemd1.Unit", "ActiveState")
    }

    fn property_of(&mut self, path: &str, interface: &str, name: &str) -> Result<String, BusError> {
        let mut body = Writer::default();
        body.text(interface);
        body.text(name);
        let method = Method { path, interface: "org.freedesktop.DBus.Properties", ..of_manager("Get") };
        let mut answer = self.call(method, "ss", body, None)?;
        answer.pop().ok_or_else(|| BusError::Malformed(format!("the property {name} is empty")))
    }

    /// Calls a method that begins a job, and waits for the job's end.
    pub(super) fn run(
        &mut self,
        member: &str,
        signature: &str,
        body: Writer,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), BusError> {
        let job = self.ask(member, signature, body, fd)?.pop();
        let job = job.ok_or_else(|| BusError::Malformed(format!("{member} names no job")))?;
        loop {
            if let Some((_, result)) = self.ended.iter().find(|(ended, _)| *ended == job) {
                return if result == "done" { Ok(()) } else { Err(BusError::Job(result.clone())) };
            }
            if let Some(message) = self.next()? {
                self.note(&message);
            }
        }
    }

    fn call(
        &mut self,
        method: Method<'_>,
        signature: &str,
        body: Writer,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Vec<String>, BusError> {
        self.serial += 1;
        let bytes = message::call(method, self.serial, signature, body, u32::from(fd.is_some()));
        self.write(&bytes, fd.as_slice())?;
        loop {
            let Some(message) = self.next()? else { continue };
            if message.reply_to != Some(self.serial) {
                self.note(&message);
                continue;
            }
            let words = message.words();
            return match message.kind {
                RETURN => words.ok_or_else(|| {
                    BusError::Malformed(format!("{} answers a {:?}", method.member, message.signature))
                }),
                ERROR => Err(BusError::Refused {
                    name: message.error.unwrap_or_default(),
                    text: words.unwrap_or_default().join(" "),
                }),
                kind => Err(BusError::Malformed(format!("{} is answered by kind {kind}", method.member))),
            };
        }
    }

    /// Remembers a job's end. Others' jobs end as well.
    fn note(&mut self, message: &Message) {
        if message.kind != SIGNAL || message.member.as_deref() != Some("JobRemoved") {
            return;
        }
        if let Some([_, job, _, result]) = message.words().as_deref() {
            if self.ended.len() >= EARLY {
                self.ended.remove(0);
            }
            self.ended.push((job.clone(), result.clone()));
        }
    }

    /// The next message; `None` for one that is too long to be for us.
    fn next(&mut self) -> Result<Option<Message>, BusError> {
        let mut fixed = [0; FIXED];
        self.read(&mut fixed)?;
        let whole = message::whole_length(fixed)?;
        let mut rest = whole - FIXED as u64;
        if whole > LONGEST as u64 {
            let mut sink = [0; 4096];
            while rest > 0 {
                let piece = usize::try_from(rest).unwrap_or(usize::MAX).min(sink.len());
                self.read(&mut sink[..piece])?;
                rest -= piece as u64;
            }
            return Ok(None);
        }
        let mut bytes = fixed.to_vec();
        bytes.resize(usize::try_from(whole).unwrap_or(LONGEST), 0);
        self.read(&mut bytes[FIXED..])?;
        Ok(Some(message::parse(&bytes)?))
    }

    fn line(&mut self) -> Result<String, BusError> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() > LONGEST_LINE {
                return Err(BusError::Malformed("its greeting does not end".to_owned()));
            }
            let mut byte = [0];
            self.read(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn read(&mut self, mut bytes: &mut [u8]) -> Result<(), BusError> {
        while !bytes.is_empty() {
            let left = self.deadline.left()?;
            self.stream.set_read_timeout(Some(left)).map_err(BusError::Lost)?;
            match self.stream.read(bytes) {
                Ok(0) => return Err(BusError::Lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => bytes = &mut bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.deadline.failed(error)),
            }
        }
        Ok(())
    }

    /// Descriptors go with the first byte.
    fn write(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), BusError> {
        let left = self.deadline.left()?;
        self.stream.set_write_timeout(Some(left)).map_err(BusError::Lost)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut along = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            along.push(SendAncillaryMessage::ScmRights(fds));
        }
        let sent = rustix::net::sendmsg(
            self.stream.as_fd(),
            &[IoSlice::new(bytes)],
            &mut along,
            SendFlags::NOSIGNAL,
        );
        let sent = sent.map_err(|error| self.deadline.failed(error.into()))?;
        self.stream.write_all(&bytes[sent..]).map_err(|error| self.deadline.failed(error))
    }
}

fn of_manager(member: &str) -> Method<'_> {
    Method {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: MANAGER,
        member,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What becomes of a call to somebody who says this and then nothing, or hangs up.
    fn told(words: &'static [u8], hangs_up: bool) -> BusError {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bus");
        let listener = UnixListener::bind(&path).unwrap();
        let other = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _unheard = stream.write_all(words);
            if !hangs_up {
                // Until we hang up.
                let _all = stream.read_to_end(&mut Vec::new());
            }
        });
        let deadline = Deadline::within(Duration::from_millis(300));
        let asked = Bus::dial(&path, deadline).and_then(|mut bus| bus.property("Version"));
        let error = asked.unwrap_err();
        other.join().unwrap();
        error
    }

    #[test]
    fn nobody_keeps_a_call_beyond_its_deadline_or_makes_it_believe_anything() {
        const AGREED: &[u8] = b"OK 0123\r\nAGREE_UNIX_FD\r\n";
        let silent = [&b""[..], b"OK 0123\r\n", AGREED];
        for words in silent {
            assert!(matches!(told(words, false), BusError::Silent(_)), "{words:?}");
            assert!(told(words, true).passes(), "{words:?}");
        }
        assert!(matches!(told(b"REJECTED EXTERNAL\r\n", false), BusError::Refused { .. }));
        assert!(matches!(told(&[b'x'; 4096], false), BusError::Malformed(_)));
        assert!(matches!(
            told(b"OK 0123\r\nAGREE_UNIX_FD\r\nnot a message at all", false),
            BusError::Malformed(_)
        ));
        // A message that is longer than any is read to its end, and never kept.
        assert!(matches!(
            told(b"OK 0123\r\nAGREE_UNIX_FD\r\nl\x04\0\x01\0\0\0\x01\x01\0\0\0\0\0\0\0", false),
            BusError::Silent(_) | BusError::Malformed(_)
        ));
    }

    #[test]
    fn who_is_not_there_may_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let deadline = Deadline::within(Duration::from_secs(5));
        let error = Bus::dial(&dir.path().join("nobody"), deadline).unwrap_err();
        assert!(matches!(error, BusError::Lost(_)) && error.passes(), "{error}");
    }
}
