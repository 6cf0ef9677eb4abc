//! Container names before their lines, in colour where there is any. Pure.

/// Colours of the containers' names, in turn.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

/// Whether there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    On,
    Off,
}

impl Colour {
    /// On a terminal, unless `NO_COLOR` is set to anything (no-color.org).
    pub(super) fn of(terminal: bool, no_color: &str) -> Self {
        if terminal && no_color.is_empty() { Self::On } else { Self::Off }
    }
}

/// How a container's lines are marked.
#[derive(Debug, Clone)]
pub(crate) struct Label {
    name: String,
    index: usize,
    width: usize,
}

impl Label {
    /// The label of the container `name`, the `index`th of its pod, padded to `width`.
    pub(crate) fn new(name: &str, index: usize, width: usize) -> Self {
        Self { name: name.to_owned(), index, width }
    }

    /// Lines that stand alone.
    pub(crate) fn none() -> Self {
        Self::new("", 0, 0)
    }

    /// What stands before each line.
    pub(super) fn text(&self, colour: Colour) -> String {
        let Self { name, index, width } = self;
        match colour {
            _ if name.is_empty() => String::new(),
            Colour::On => format!("\x1b[{}m{name:<width$}\x1b[0m | ", COLOURS[index % COLOURS.len()]),
            Colour::Off => format!("{name:<width$} | "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_coloured_on_a_terminal_that_may_be() {
        let label = Label::new("web", 1, 5);
        assert_eq!(label.text(Colour::of(true, "")), "\x1b[33mweb  \x1b[0m | ");
        assert_eq!(label.text(Colour::of(true, "1")), "web   | ");
        assert_eq!(label.text(Colour::of(false, "")), "web   | ");
    }
}
