//! A container's log file: whole entries, or none.
//!
//! Invariants: what is in the file are whole entries, also when the disk was full in the middle of one; what
//! could not be written is counted, and an entry of the same stream says so as soon as the disk takes
//! something again. Of a line of which a part is lost nothing more is written: its entry that says so ends
//! it. Never waits for room.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::SystemTime,
};

use super::cri_log::{self, STREAMS};

/// An open log file. Nobody else writes to it.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    gaps: [Gap; 2],
    /// It ends with a part of an entry that could not be cut off.
    torn: bool,
}

/// What of one stream is not in the file.
#[derive(Debug, Default)]
struct Gap {
    entries: u64,
    bytes: u64,
    reason: String,
    /// The next entries go on with a line of which a part is lost.
    within: bool,
}

impl LogFile {
    /// Opens a log file for appending: a regular file, not through a link at its end. An entry at its end
    /// that is not whole is ended by the next one.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("log {}: {error}", path.display()));
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o640).custom_flags(flags);
        let mut file = options.open(path).map_err(named)?;
        if !file.metadata().map_err(named)?.is_file() {
            return Err(named(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
        }
        // As a logger leaves it that was killed in the middle of an entry.
        let mut last = [0];
        let torn =
            file.seek(SeekFrom::End(-1)).is_ok() && file.read_exact(&mut last).is_ok() && last != *b"\n";
        Ok(Self { file, gaps: Default::default(), torn })
    }

    /// Goes on in another file; what is lost is told there.
    pub(super) fn replace(&mut self, next: Self) {
        self.file = next.file;
        self.torn = next.torn;
    }

    /// Appends entries of one stream, as far as the disk takes them.
    pub(super) fn write(&mut self, stream: usize, entries: &[u8], at: SystemTime) {
        let gap = &mut self.gaps[stream];
        let mut rest = entries;
        while gap.within && !rest.is_empty() {
            let (entry, after) = rest.split_at(end_of_first(rest));
            gap.within = cri_log::is_part(entry);
            gap.count(entry);
            rest = after;
        }
        if gap.within || (rest.is_empty() && gap.entries == 0) {
            return;
        }
        let notice = gap.notice(stream, at);
        let mut text = Vec::with_capacity(notice.len() + rest.len() + 1);
        text.extend_from_slice(if self.torn { b"\n" } else { b"" });
        text.extend_from_slice(&notice);
        let said = text.len();
        text.extend_from_slice(rest);
        let (written, failure) = write_some(&mut self.file, &text);
        let whole = self.cut_to_whole(&text[..written]);
        if whole >= said {
            self.gaps[stream] = Gap::default();
        }
        if let Some(error) = failure {
            let gap = &mut self.gaps[stream];
            gap.reason = error.to_string();
            let mut lost = &text[whole.max(said)..];
            while !lost.is_empty() {
                let (entry, after) = lost.split_at(end_of_first(lost));
                gap.within = cri_log::is_part(entry);
                gap.count(entry);
                lost = after;
            }
        }
    }

    /// Takes off what was written of an entry that is not whole, and tells how many bytes were kept.
    fn cut_to_whole(&mut self, written: &[u8]) -> usize {
        let whole = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let torn = (written.len() - whole) as u64;
        // A line break alone ends what was torn before.
        self.torn &= whole == 0;
        if torn > 0 {
            let length = self.file.metadata().map(|metadata| metadata.len());
            let cut = length.and_then(|length| self.file.set_len(length.saturating_sub(torn)));
            self.torn |= cut.is_err();
        }
        whole
    }
}

impl Gap {
    fn count(&mut self, entry: &[u8]) {
        self.entries += 1;
        self.bytes += entry.len() as u64;
    }

    /// The entry that tells of the gap; nothing when there is none.
    fn notice(&self, stream: usize, at: SystemTime) -> Vec<u8> {
        let mut text = Vec::new();
        if self.entries > 0 {
            let Self { entries, bytes, reason, .. } = self;
            let words = format!("[podhold: {entries} log entries ({bytes} bytes) are lost here: {reason}]");
            cri_log::whole_entry(STREAMS[stream], words.as_bytes(), at, &mut text);
        }
        text
    }
}

/// Where the first entry ends.
fn end_of_first(entries: &[u8]) -> usize {
    entries.iter().position(|byte| *byte == b'\n').map_or(entries.len(), |at| at + 1)
}

/// Writes as much as is taken.
fn write_some(file: &mut File, mut text: &[u8]) -> (usize, Option<io::Error>) {
    let all = text.len();
    while !text.is_empty() {
        match file.write(text) {
            Ok(0) => return (all - text.len(), Some(io::ErrorKind::WriteZero.into())),
            Ok(count) => text = &text[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (all - text.len(), Some(error)),
        }
    }
    (all, None)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::cri_log::Lines, *};

    /// A file that can be as large as this process lets it (RLIMIT_FSIZE would end it): one on a tmpfs.
    struct Disk(tempfile::TempDir);

    impl Disk {
        fn new(size: &str) -> Option<Self> {
            if !rustix::process::geteuid().is_root() {
                println!("SKIPPED: mounting a small file system needs root");
                return None;
            }
            let dir = tempfile::tempdir().unwrap();
            let options = std::ffi::CString::new(format!("size={size}")).unwrap();
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("log", dir.path(), "tmpfs", flags, Some(options.as_c_str())).unwrap();
            Some(Self(dir))
        }

        fn fill(&self) {
            let mut file = File::create(self.0.path().join("filler")).unwrap();
            while file.write(&[0; 4096]).is_ok_and(|count| count > 0) {}
        }

        fn free(&self) {
            fs::remove_file(self.0.path().join("filler")).unwrap();
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }

    /// Writes `text` as a stream does; gives what is in the file, without time stamps.
    fn put(log: &mut LogFile, lines: &mut Lines, text: &[u8]) {
        let mut entries = Vec::new();
        lines.take(text, SystemTime::UNIX_EPOCH, &mut entries);
        log.write(0, &entries, SystemTime::UNIX_EPOCH);
    }

    fn content(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "it ends with a whole entry");
        let stamp = "1970-01-01T00:00:00.000000000Z ";
        text.lines().map(|line| line.strip_prefix(stamp).unwrap().to_owned()).collect()
    }

    #[test]
    fn a_full_disk_loses_whole_lines_and_says_how_many() {
        let Some(disk) = Disk::new("64k") else { return };
        let path = disk.0.path().join("0.log");
        let (mut log, mut lines) = (LogFile::open(&path).unwrap(), Lines::new("stdout"));
        put(&mut log, &mut lines, b"first\n");
        disk.fill();
        for number in 0..400 {
            put(&mut log, &mut lines, format!("line {number}\n").as_bytes());
        }
        let full = content(&path);
        assert!(full.len() > 2 && full.len() < 400, "its last page takes some: {}", full.len());
        disk.free();
        put(&mut log, &mut lines, b"back\n");
        let all = content(&path);
        assert_eq!(all[..full.len()], full);
        let lost = 401 - full.len();
        assert!(all[full.len()].starts_with(&format!("stdout F [podhold: {lost} log entries (")), "{all:?}");
        assert!(all[full.len()].ends_with("No space left on device (os error 28)]"), "{all:?}");
        assert_eq!(all[full.len() + 1..], ["stdout F back"]);
    }

    #[test]
    fn a_line_of_which_a_part_is_lost_is_ended_by_saying_so() {
        let Some(disk) = Disk::new("128k") else { return };
        let path = disk.0.path().join("0.log");
        let (mut log, mut lines) = (LogFile::open(&path).unwrap(), Lines::new("stdout"));
        let long = vec![b'x'; cri_log::MAX_LINE];
        put(&mut log, &mut lines, &long);
        put(&mut log, &mut lines, &long);
        disk.fill();
        put(&mut log, &mut lines, &long);
        disk.free();
        put(&mut log, &mut lines, &long);
        put(&mut log, &mut lines, b"tail\nnext\n");
        let all = content(&path);
        let tags: Vec<&str> = all.iter().map(|line| line.get(..9).unwrap_or(line)).collect();
        assert_eq!(tags, ["stdout P ", "stdout F ", "stdout F "]);
        assert!(all[1].starts_with("stdout F [podhold: "), "{}", all[1]);
        assert_eq!(all[2], "stdout F next");
    }
}
