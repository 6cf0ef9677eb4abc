//! How far a pull, an import, an export or a verification is, on standard error: a line with a bar for each layer on
//! a terminal, otherwise a line when a layer begins and when it ends. Text and positions are made purely; one function
//! writes.

use std::{
    collections::HashMap,
    fmt::Write as _,
    io::{IsTerminal, Write as _},
    time::{Duration, Instant},
};

use podhold_image::{LayerProgress, LayerStage, Progress};
use tokio::sync::watch;

/// The terminal is drawn on at most once in this time.
const PACE: Duration = Duration::from_millis(100);
/// Widest bar, in columns.
const WIDEST: usize = 40;
/// Columns of a line without its bar.
const WORDS: usize = 69;

/// Shows work until its progress ends.
pub(super) async fn show(mut told: watch::Receiver<Progress>) {
    let terminal = std::io::stderr().is_terminal();
    let mut picture = Picture::default();
    loop {
        let ended = told.changed().await.is_err();
        let now = told.borrow_and_update().clone();
        let text = match terminal {
            true => picture.redraw(&now, size(), Instant::now()),
            false => picture.changes(&now),
        };
        // Whoever reads it may be gone; the pull goes on.
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
        if ended {
            return;
        }
        if terminal {
            tokio::time::sleep(PACE).await;
        }
    }
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    let found = rustix::termios::tcgetwinsize(std::io::stderr()).ok();
    let found = found.filter(|size| size.ws_col > 0 && size.ws_row > 0);
    found.map_or((80, 24), |size| (size.ws_col.into(), size.ws_row.into()))
}

/// What was written last.
#[derive(Default)]
struct Picture {
    /// Lines on the terminal that are ours, above the cursor.
    lines: usize,
    /// By layer: when its bytes began to come, and how many there were.
    begun: HashMap<String, (Instant, u64)>,
    /// By layer: bytes a second at its last change.
    rates: HashMap<String, f64>,
    /// By layer: what was said of it last.
    stages: HashMap<String, LayerStage>,
    /// Whether it was said that the archive is read.
    archive_told: bool,
}

impl Picture {
    /// What to write so that the terminal shows `progress` in the place of what it shows.
    fn redraw(&mut self, progress: &Progress, (columns, rows): (usize, usize), now: Instant) -> String {
        let mut lines: Vec<String> = Vec::new();
        // What is done goes first when there is not room for all: what moves is to be seen.
        let room = rows.saturating_sub(2).max(1);
        if let Some((done, size)) = progress.archive {
            lines.push(archive_line(done, size, columns));
        }
        let over = (progress.each.len() + lines.len()).saturating_sub(room);
        let mut left_out = 0;
        for layer in &progress.each {
            let rate = self.rate(layer, now);
            if left_out < over && matches!(layer.stage, LayerStage::Done | LayerStage::AlreadyHere) {
                left_out += 1;
                continue;
            }
            lines.push(line(layer, rate, columns));
        }
        lines.truncate(room);
        if !progress.each.is_empty() {
            lines.push(clipped(summary(progress), columns));
        }
        let mut text = String::new();
        if self.lines > 0 {
            let _ = write!(text, "\x1b[{}A", self.lines);
        }
        for line in &lines {
            let _ = write!(text, "\r\x1b[2K{line}\n");
        }
        // Lines that are not needed any more.
        text.push_str("\x1b[J");
        self.lines = lines.len();
        text
    }

    /// Bytes a second since the layer's bytes began to come; what an earlier pull kept does not count.
    fn rate(&mut self, layer: &LayerProgress, now: Instant) -> f64 {
        let key = layer.digest.to_string();
        let moves = !matches!(layer.stage, LayerStage::Waiting | LayerStage::Done | LayerStage::AlreadyHere);
        if moves && layer.received < layer.size {
            let (begun, first) = *self.begun.entry(key.clone()).or_insert((now, layer.received));
            let passed = now.duration_since(begun).as_secs_f64();
            if passed > 0.0 {
                let rate = layer.received.saturating_sub(first) as f64 / passed;
                self.rates.insert(key.clone(), rate);
            }
        }
        self.rates.get(&key).copied().unwrap_or_default()
    }

    /// A line for each layer that has begun or ended since the last call.
    fn changes(&mut self, progress: &Progress) -> String {
        let mut text = String::new();
        if let Some((done, _)) = progress.archive.filter(|_| !progress.each.is_empty() && !self.archive_told)
        {
            let _ = writeln!(text, "archive: read, {} MB", megabytes(done));
            self.archive_told = true;
        }
        for layer in &progress.each {
            let before = self.stages.insert(layer.digest.to_string(), layer.stage);
            if before == Some(layer.stage)
                || matches!(
                    layer.stage,
                    LayerStage::Waiting | LayerStage::Unpacking | LayerStage::Reading | LayerStage::Writing
                )
            {
                continue;
            }
            let (name, size) = (short(layer), megabytes(layer.size));
            let _ = write!(text, "{name}: {}, {size} MB", word(layer.stage));
            if layer.stage == LayerStage::Downloading && layer.resumed > 0 {
                let _ = write!(text, ", of which {} MB are here", megabytes(layer.resumed));
            }
            text.push('\n');
        }
        text
    }
}

/// A bar, with a space after it; nothing where there is no room for one.
fn bar(done: u64, size: u64, columns: usize) -> String {
    let part = if size == 0 { 1.0 } else { (done as f64 / size as f64).min(1.0) };
    let width = columns.saturating_sub(WORDS + 1).min(WIDEST);
    let full = (part * width as f64) as usize;
    match width {
        0..=3 => String::new(),
        _ => format!("[{}{}] ", "=".repeat(full), " ".repeat(width - full)),
    }
}

/// How much of an archive was read; of how much, where that is known.
fn archive_line(done: u64, size: u64, columns: usize) -> String {
    let bytes = match size {
        0 => format!("{} MB", megabytes(done)),
        _ => format!("{}/{} MB", megabytes(done.min(size)), megabytes(size)),
    };
    let word = if done < size || size == 0 { "reading" } else { "read" };
    let bar = bar(done.min(size), size.max(1), columns);
    clipped(format!("archive      {bar}{bytes:>19} {:>13}  {word}", ""), columns)
}

fn line(layer: &LayerProgress, rate: f64, columns: usize) -> String {
    let bar = bar(layer.received, layer.size, columns);
    let bytes = format!("{}/{} MB", megabytes(layer.received.min(layer.size)), megabytes(layer.size));
    let rate = match rate > 0.0 {
        true => format!("{:.1} MB/s", rate / 1e6),
        false => String::new(),
    };
    clipped(format!("{} {bar}{bytes:>19} {rate:>13}  {}", short(layer), word(layer.stage)), columns)
}

fn summary(progress: &Progress) -> String {
    let Progress { layers, layers_done, bytes, bytes_done, .. } = progress;
    format!("{layers_done} of {layers} layers, {} of {} MB", megabytes(*bytes_done), megabytes(*bytes))
}

/// At most what fits into a line: a terminal that wraps would put the cursor elsewhere than we think.
fn clipped(mut line: String, columns: usize) -> String {
    line.truncate(columns.saturating_sub(1));
    line
}

fn short(layer: &LayerProgress) -> &str {
    &layer.digest.hex()[..12]
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

fn word(stage: LayerStage) -> &'static str {
    match stage {
        LayerStage::Waiting => "waiting",
        LayerStage::Downloading => "downloading",
        LayerStage::Unpacking => "unpacking",
        LayerStage::Done => "done",
        LayerStage::AlreadyHere => "already here",
        LayerStage::Reading => "reading",
        LayerStage::Writing => "writing",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use podhold_image::Digest;

    use super::*;

    fn layer(n: u8, received: u64, stage: LayerStage) -> LayerProgress {
        let digest = Arc::new(Digest::parse(&format!("sha256:{}", format!("{n:02x}").repeat(32))).unwrap());
        LayerProgress { digest, size: 20_000_000, received, resumed: 0, stage }
    }

    fn progress(each: Vec<LayerProgress>) -> Progress {
        let (layers, bytes_done) = (each.len(), each.iter().map(|layer| layer.received).sum());
        Progress { layers, layers_done: 1, bytes: 40_000_000, bytes_done, each, archive: None }
    }

    #[test]
    fn a_terminal_shows_one_line_for_each_layer_in_its_place() {
        let mut picture = Picture::default();
        let begun = Instant::now();
        let now = |n: u64| begun + Duration::from_secs(n);
        let first = picture.redraw(&progress(vec![layer(1, 0, LayerStage::Downloading)]), (80, 24), now(0));
        assert_eq!(
            first,
            "\r\x1b[2K010101010101 [          ]         0.0/20.0 MB                downloading\n\
             \r\x1b[2K1 of 1 layers, 0.0 of 40.0 MB\n\x1b[J"
        );
        let two = [layer(1, 10_000_000, LayerStage::Downloading), layer(2, 0, LayerStage::Waiting)];
        let second = picture.redraw(&progress(two.to_vec()), (80, 24), now(4));
        assert_eq!(
            second,
            "\x1b[2A\r\x1b[2K010101010101 [=====     ]        10.0/20.0 MB      2.5 MB/s  downloading\n\
             \r\x1b[2K020202020202 [          ]         0.0/20.0 MB                waiting\n\
             \r\x1b[2K1 of 2 layers, 10.0 of 40.0 MB\n\x1b[J"
        );
    }

    #[test]
    fn no_line_is_wider_and_no_picture_higher_than_the_terminal() {
        let stage = |n| if n < 30 { LayerStage::Done } else { LayerStage::Downloading };
        let many = progress((0..40).map(|n| layer(n, 1_000_000, stage(n))).collect());
        for columns in [1, 20, 69, 70, 74, 80, 200] {
            let text = Picture::default().redraw(&many, (columns, 24), Instant::now());
            let lines: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("\r\x1b[2K")).collect();
            assert!(lines.iter().all(|line| line.len() < columns), "{columns}: {lines:?}");
            assert_eq!(lines.len(), 23);
            let moving = lines.iter().filter(|line| line.contains("downloading")).count();
            assert!(columns < 69 || moving == 10, "{columns}: {lines:?}");
        }
    }

    #[test]
    fn an_archive_that_is_read_has_a_bar_of_its_own() {
        let mut picture = Picture::default();
        let reading = Progress { archive: Some((10_000_000, 20_000_000)), ..Progress::default() };
        assert_eq!(
            picture.redraw(&reading, (80, 24), Instant::now()),
            "\r\x1b[2Karchive      [=====     ]        10.0/20.0 MB                reading\n\x1b[J"
        );
        assert_eq!(Picture::default().changes(&reading), "");
        let piped = Progress { archive: Some((10_000_000, 0)), ..Progress::default() };
        assert!(picture.redraw(&piped, (80, 24), Instant::now()).contains(" 10.0 MB "));
        let read = Progress {
            archive: Some((20_000_000, 20_000_000)),
            ..progress(vec![layer(1, 0, LayerStage::Unpacking), layer(2, 0, LayerStage::Waiting)])
        };
        let text = picture.redraw(&read, (80, 4), Instant::now());
        assert!(
            text.contains("20.0/20.0 MB                read\n") && text.matches('\n').count() == 3,
            "{text}"
        );
        let mut lines = Picture::default();
        assert_eq!(lines.changes(&read), "archive: read, 20.0 MB\n");
        assert_eq!(lines.changes(&read), "");
    }

    #[test]
    fn where_there_is_no_terminal_only_beginnings_and_ends_are_told() {
        let mut picture = Picture::default();
        let mut resumed = layer(1, 5_000_000, LayerStage::Downloading);
        resumed.resumed = 5_000_000;
        let here = layer(2, 20_000_000, LayerStage::AlreadyHere);
        assert_eq!(
            picture.changes(&progress(vec![resumed.clone(), here.clone()])),
            "010101010101: downloading, 20.0 MB, of which 5.0 MB are here\n020202020202: already here, 20.0 MB\n"
        );
        resumed.received = 6_000_000;
        assert_eq!(picture.changes(&progress(vec![resumed.clone(), here.clone()])), "");
        resumed.stage = LayerStage::Unpacking;
        assert_eq!(picture.changes(&progress(vec![resumed.clone(), here.clone()])), "");
        resumed.stage = LayerStage::Done;
        assert_eq!(picture.changes(&progress(vec![resumed, here])), "010101010101: done, 20.0 MB\n");
    }
}
