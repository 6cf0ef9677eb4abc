//! `podhold look-up`: follows one path and ends. The daemon starts it for paths that may hang.

use std::path::PathBuf;

use crate::runtime::{Purpose, look_up};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// What the path is wanted for.
    purpose: Purpose,
    /// The path.
    path: PathBuf,
}

pub(super) fn main(arguments: &Arguments) {
    look_up(&arguments.path, arguments.purpose);
}
