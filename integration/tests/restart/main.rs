//! The daemon comes and goes; pods, logs and exit codes stay.

#![allow(clippy::unwrap_used, reason = "a test")]

mod life;
mod lines;
mod older_shim;
mod reached;
mod successor;

use std::time::Duration;

/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(30);
