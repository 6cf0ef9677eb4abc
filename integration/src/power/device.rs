//! The recording device: a file in user space that keeps a disk, and notes every write and flush in order.
//!
//! The file is the root of its own FUSE mount, so there are no names. The kernel caches nothing of it: each
//! write of the loop device is one request here, and each flush one fsync (drivers/block/loop.c). One thread
//! serves one request after another, so the order in the record is the order on the disk.
//!
//! The protocol is that of `linux/fuse.h`, version 7.31.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::FileExt,
    },
    path::Path,
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};

use super::recording;
use crate::fuse::{u32_at, u64_at};

/// Largest write of one request.
const LARGEST: u32 = 128 << 10;
/// Of a request, before its body.
const IN_HEADER: usize = 40;
/// Of a write's body, before its data.
const WRITE_HEADER: usize = 40;
const REGULAR: u32 = 0o100_600;

/// Serves the disk that is in the file `disk` as the file `place`, and appends what happens to it to `record`,
/// until it is unmounted.
pub fn serve(disk: &Path, record: &Path, place: &Path) -> io::Result<()> {
    let disk = File::options().read(true).write(true).open(disk)?;
    let size = disk.metadata()?.len();
    let record = File::options().create(true).append(true).open(record)?;
    File::options().create(true).append(true).open(place)?;
    let channel = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let options = format!("fd={},rootmode=100000,user_id=0,group_id=0", channel.as_raw_fd());
    let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
    rustix::mount::mount("podhold-power", place, "fuse", MountFlags::empty(), Some(options.as_c_str()))?;
    println!("mounted");
    let mut device = Device { disk, record, size };
    let mut request = vec![0; LARGEST as usize + 4096];
    loop {
        match rustix::io::read(&channel, request.as_mut_slice()) {
            Ok(count) => device.respond(&channel, &request[..count])?,
            Err(Errno::INTR | Errno::NOENT) => {}
            // Unmounted.
            Err(Errno::NODEV) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes the device away. It must not be in use.
pub fn unmount(place: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(place, UnmountFlags::empty())?)
}

struct Device {
    disk: File,
    record: File,
    size: u64,
}

impl Device {
    fn respond(&mut self, channel: impl AsFd, request: &[u8]) -> io::Result<()> {
        let (operation, unique) = (u32_at(request, 4), &request[8..16]);
        let (error, answer) = match self.operate(operation, request.get(IN_HEADER..).unwrap_or_default()) {
            None => return Ok(()),
            Some(Ok(answer)) => (0, answer),
            Some(Err(errno)) => (-errno.raw_os_error(), Vec::new()),
        };
        let length = u32::try_from(16 + answer.len()).map_err(io::Error::other)?;
        let packet = [&length.to_ne_bytes(), &error.to_ne_bytes(), unique, answer.as_slice()].concat();
        match rustix::io::write(channel, &packet) {
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The answer to a request; `None` where none is expected.
    fn operate(&mut self, operation: u32, body: &[u8]) -> Option<Result<Vec<u8>, Errno>> {
        Some(match operation {
            // FORGET, INTERRUPT, BATCH_FORGET
            2 | 36 | 42 => return None,
            // INIT: version, read-ahead, flags, background requests, largest write, granularity of times
            26 => Ok(words(&[7, 31, 0, 0, 0, LARGEST, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
            // GETATTR, SETATTR: nothing can be changed
            3 | 4 => Ok([&[0; 16], self.attributes().as_slice()].concat()),
            // OPEN; FOPEN_DIRECT_IO: what is read and written is not cached
            14 => Ok(words(&[0, 0, 1, 0])),
            // READ
            15 => self.read(u64_at(body, 8), u32_at(body, 16)),
            // WRITE
            16 => self.write(u64_at(body, 8), body.get(WRITE_HEADER..).unwrap_or_default()),
            // FSYNC
            20 => self.note(recording::FLUSH, &[]).map(|()| Vec::new()),
            // STATFS
            17 => Ok(vec![0; 80]),
            // RELEASE, FLUSH (of a file that is closed), ACCESS, DESTROY
            18 | 25 | 34 | 38 => Ok(Vec::new()),
            _ => Err(Errno::NOSYS),
        })
    }

    fn read(&mut self, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; size.min(LARGEST) as usize];
        let count = self.disk.read_at(&mut bytes, offset).map_err(errno)?;
        bytes.truncate(count);
        Ok(bytes)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<Vec<u8>, Errno> {
        self.note(offset, data)?;
        self.disk.write_all_at(data, offset).map_err(errno)?;
        Ok(words(&[u32::try_from(data.len()).map_err(|_| Errno::INVAL)?, 0]))
    }

    fn note(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.record.write_all(&recording::entry(offset, data)).map_err(errno)
    }

    /// `fuse_attr`
    fn attributes(&self) -> Vec<u8> {
        let mut attributes = Vec::with_capacity(88);
        for value in [1, self.size, self.size.div_ceil(512), 0, 0, 0] {
            attributes.extend(u64::to_ne_bytes(value));
        }
        attributes.extend(words(&[0, 0, 0, REGULAR, 1, 0, 0, 0, 4096, 0]));
        attributes
    }
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
