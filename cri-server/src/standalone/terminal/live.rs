//! The last line of the terminal, which says how the pod is. Makes the text; writes nothing.

/// Columns of a terminal that does not say how many it has.
const COLUMNS: usize = 80;
/// To the first column, and what is to the right of it away.
const ERASE: &str = "\r\x1b[K";

/// The live view.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// The line is on the terminal now.
    shown: bool,
    /// A container has written the beginning of a line: ours must wait for its end.
    pub(super) within_line: bool,
}

impl Live {
    /// What takes the line away.
    pub(super) fn erase(&self) -> String {
        if self.shown { ERASE.to_owned() } else { String::new() }
    }

    /// What puts it there; it was taken away before.
    pub(super) fn line(&mut self, words: &str) -> String {
        let columns = rustix::termios::tcgetwinsize(std::io::stderr()).map_or(0, |size| size.ws_col.into());
        self.within(words, if columns == 0 { COLUMNS } else { columns })
    }

    fn within(&mut self, words: &str, columns: usize) -> String {
        self.shown = !self.within_line;
        // The last column stays free: a cursor beyond it would be in the next line.
        if self.shown { words.chars().take(columns.saturating_sub(1)).collect() } else { String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_fits_the_terminal_and_waits_for_the_end_of_a_containers() {
        let mut live = Live::default();
        assert_eq!(live.erase(), "");
        assert_eq!(live.within("running, ready 1/2", 8), "running");
        assert_eq!(live.erase(), ERASE);
        live.within_line = true;
        assert_eq!((live.within("running", 80), live.erase()), (String::new(), String::new()));
    }
}
