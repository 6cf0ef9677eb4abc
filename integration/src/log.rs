//! Reads container logs in the CRI format: `TIME STREAM TAG TEXT`, where TAG is F for a whole line and P
//! for a piece of one that goes on in the next.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Instant, interval};

/// How long a line may take to appear.
const PATIENCE: Duration = Duration::from_secs(30);

/// One entry of a log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// RFC 3339 with nanoseconds.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether a line ends here.
    pub whole: bool,
    /// The text, without newline.
    pub text: String,
}

/// All entries of a file. A malformed one is an error; one without its newline is still being written, and
/// none yet.
pub fn entries(path: &Path) -> io::Result<Vec<Entry>> {
    let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    whole
        .lines()
        .map(|line| parse(line).ok_or_else(|| io::Error::other(format!("not a CRI log line: {line:?}"))))
        .collect()
}

/// The lines that the container wrote to `stream`, pieces put together.
pub fn lines(path: &Path, stream: &str) -> io::Result<Vec<String>> {
    let (mut lines, mut open) = (Vec::new(), String::new());
    for entry in entries(path)?.into_iter().filter(|entry| entry.stream == stream) {
        open.push_str(&entry.text);
        if entry.whole {
            lines.push(std::mem::take(&mut open));
        }
    }
    Ok(lines)
}

/// Waits until a container has printed `line` on standard output.
///
/// # Panics
/// When it has not within half a minute; shows what it has printed instead.
pub async fn wait_for(path: &Path, line: &str) {
    wait_until(&[path.to_owned()], line, |each| each == line).await;
}

/// Waits until a line of standard output in one of the files begins with `beginning`; answers the line.
///
/// # Panics
/// When none has within half a minute.
pub async fn wait_for_start(files: &[PathBuf], beginning: &str) -> String {
    wait_until(files, beginning, |each| each.starts_with(beginning)).await
}

async fn wait_until(files: &[PathBuf], wanted: &str, fits: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + PATIENCE;
    // Written by a process that knows nothing of us: nobody tells.
    let mut ticks = interval(Duration::from_millis(20));
    loop {
        ticks.tick().await;
        // Missing at first, and its last line may be half written.
        let printed: Vec<String> =
            files.iter().flat_map(|file| lines(file, "stdout").unwrap_or_default()).collect();
        if let Some(line) = printed.iter().find(|line| fits(line)) {
            return line.clone();
        }
        let last = printed.len().saturating_sub(20);
        assert!(
            Instant::now() < deadline,
            "no line {wanted:?} in {files:?}; the last are {:?}",
            &printed[last..]
        );
    }
}

fn parse(line: &str) -> Option<Entry> {
    let mut words = line.splitn(4, ' ');
    let time = words.next().filter(|time| time.len() >= 20 && time.as_bytes()[10] == b'T')?;
    let stream = words.next().filter(|stream| matches!(*stream, "stdout" | "stderr"))?;
    let whole = match words.next()? {
        "F" => true,
        "P" => false,
        _ => return None,
    };
    let text = words.next()?;
    Some(Entry { time: time.to_owned(), stream: stream.to_owned(), whole, text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_one_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "2026-01-01T00:00:00.000000001Z stdout P ab\n2026-01-01T00:00:00.000000002Z stderr F other\n\
                    2026-01-01T00:00:00.000000003Z stdout F cd\n2026-01-01T00:00:00.000000004Z stdout F \n";
        fs::write(file.path(), text).unwrap();
        assert_eq!(lines(file.path(), "stdout").unwrap(), ["abcd", ""]);
        assert_eq!(lines(file.path(), "stderr").unwrap(), ["other"]);
        fs::write(file.path(), format!("{text}2026-01-01T00:00:00.0000")).unwrap();
        assert_eq!(entries(file.path()).unwrap().len(), 4, "the fifth is being written");
        fs::write(file.path(), "no log line\n").unwrap();
        assert!(entries(file.path()).is_err());
    }
}
