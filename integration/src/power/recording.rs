//! What happened to a disk, in order, and the disks that a power cut at some moment of it may leave. No mounts.
//!
//! Invariant: a disk made here has everything that was written before the last flush before the moment, and of
//! each later sector either what it had then or what some later write made of it. The first block is whole.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use crate::kills::Dice;

/// Stands for a flush where a write has its offset.
pub(super) const FLUSH: u64 = u64::MAX;
/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;
/// Where ext4's superblock ends, which is longer than a sector. It is written in place and has a checksum: no ext4
/// survives half of one without fsck, whoever uses it.
const SUPERBLOCK: usize = 4096;
/// In so many bytes at once a disk is written to a file.
const PIECE: usize = 64 << 10;

/// A write as it stands in the record.
pub(super) fn entry(offset: u64, data: &[u8]) -> Vec<u8> {
    [&offset.to_le_bytes(), &(data.len() as u64).to_le_bytes(), data].concat()
}

/// Something that happened to the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes were written.
    Write {
        /// Where.
        offset: usize,
        /// What.
        data: Vec<u8>,
    },
    /// All that was written before is there for good.
    Flush,
}

/// A disk as it was at first, and what happened to it.
#[derive(Debug, Clone)]
pub struct Recording {
    /// The disk before everything.
    pub base: Vec<u8>,
    /// In order.
    pub events: Vec<Event>,
    /// Where in the record each event ends, in bytes.
    ends: Vec<u64>,
}

impl Recording {
    /// Reads what [`super::device::serve`] has recorded of the disk that was in the file `base`.
    pub fn read(base: &Path, record: &Path) -> io::Result<Self> {
        let (base, record) = (fs::read(base)?, fs::read(record)?);
        let (mut events, mut ends, mut at) = (Vec::new(), Vec::new(), 0);
        let word = |at: usize| {
            let eight = record.get(at..at + 8)?;
            Some(u64::from_le_bytes(eight.try_into().ok()?))
        };
        while let (Some(offset), Some(length)) = (word(at), word(at + 8)) {
            let length = usize::try_from(length).map_err(io::Error::other)?;
            // The last one may be cut off.
            let Some(data) = record.get(at + 16..at + 16 + length) else { break };
            events.push(match offset {
                FLUSH => Event::Flush,
                _ => Event::Write {
                    offset: usize::try_from(offset).map_err(io::Error::other)?,
                    data: data.to_vec(),
                },
            });
            at += 16 + length;
            ends.push(at as u64);
        }
        Ok(Self { base, events, ends })
    }

    /// How many events are in the first `bytes` of the record.
    pub fn events_within(&self, bytes: u64) -> usize {
        self.ends.partition_point(|end| *end <= bytes)
    }

    /// How many flushes there were.
    pub fn flushes(&self) -> usize {
        self.events.iter().filter(|event| **event == Event::Flush).count()
    }

    /// A disk that a power cut after the first `moment` events may leave.
    pub fn cut(&self, moment: usize, dice: &mut Dice) -> Vec<u8> {
        let events = &self.events[..moment];
        let safe = events.iter().rposition(|event| *event == Event::Flush).map_or(0, |last| last + 1);
        let mut disk = self.base.clone();
        for event in &events[..safe] {
            if let Event::Write { offset, data } = event {
                disk[*offset..*offset + data.len()].copy_from_slice(data);
            }
        }
        // A cache may have been nearly empty, or nearly full.
        let kept_of_100 = *dice.one(&[0, 10, 50, 90, 100]);
        for event in &events[safe..] {
            let Event::Write { offset, data } = event else { continue };
            let torn = *offset >= SUPERBLOCK && dice.below(8) == 0;
            let keep = dice.below(100) < kept_of_100;
            for (number, sector) in data.chunks(SECTOR).enumerate() {
                if if torn { dice.below(2) == 0 } else { keep } {
                    let start = offset + number * SECTOR;
                    disk[start..start + sector.len()].copy_from_slice(sector);
                }
            }
        }
        disk
    }
}

/// Writes a disk to a new file, with holes for what is zero.
pub fn write_disk(disk: &[u8], path: &Path) -> io::Result<()> {
    static ZEROS: [u8; PIECE] = [0; PIECE];
    let file = File::options().create(true).truncate(true).write(true).open(path)?;
    file.set_len(disk.len() as u64)?;
    for (number, piece) in disk.chunks(PIECE).enumerate() {
        if piece != &ZEROS[..piece.len()] {
            file.write_all_at(piece, (number * PIECE) as u64)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn write(offset: usize, byte: u8) -> Event {
        Event::Write { offset, data: vec![byte; 2 * SECTOR] }
    }

    #[test]
    fn what_was_flushed_stays_and_the_rest_may_be_torn() {
        let at = SUPERBLOCK;
        let events = vec![write(at, 1), Event::Flush, write(at, 2), write(at + 2 * SECTOR, 3)];
        let recording = Recording { base: vec![0; at + 4 * SECTOR], events, ends: Vec::new() };
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..4000 {
            let disk = recording.cut(4, &mut Dice::new(Some(seed)));
            let sectors: Vec<u8> = disk[at..].chunks(SECTOR).map(|sector| sector[0]).collect();
            assert!(disk.chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            assert!(sectors[..2].iter().all(|byte| [1, 2].contains(byte)), "{sectors:?}");
            assert!(sectors[2..].iter().all(|byte| [0, 3].contains(byte)), "{sectors:?}");
            seen.insert(sectors);
        }
        assert_eq!(seen.len(), 16, "every mixture of sectors comes about");
        for seed in 0..50 {
            assert_eq!(recording.cut(2, &mut Dice::new(Some(seed)))[at], 1);
            assert_eq!(
                recording.cut(2, &mut Dice::new(Some(seed)))[at + 2 * SECTOR],
                0,
                "that is yet to come"
            );
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let (base, record) = (dir.path().join("base"), dir.path().join("record"));
        write_disk(&[7; 3 * PIECE], &base).unwrap();
        let bytes = [entry(5, b"abc"), entry(FLUSH, &[]), entry(9, b"cut off")].concat();
        fs::write(&record, &bytes[..bytes.len() - 1]).unwrap();
        let read = Recording::read(&base, &record).unwrap();
        assert_eq!(read.base, vec![7; 3 * PIECE]);
        assert_eq!(read.events, [Event::Write { offset: 5, data: b"abc".to_vec() }, Event::Flush]);
        assert_eq!([0, 18, 19, 35].map(|bytes| read.events_within(bytes)), [0, 0, 1, 2]);
    }
}
