//! What a test and the init process of its machine say to each other: one JSON value a line.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

/// One request, answered once by an [`Answer`] with the same number.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) number: u64,
    pub(crate) call: Call,
}

/// What init can do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    /// Starts a program.
    Spawn(Program),
    /// Sends a signal.
    Signal { pid: i32, signal: i32 },
    /// Answers once a program that was spawned has ended.
    Wait { pid: i32 },
}

/// A program to run in a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Program {
    /// The program and its arguments.
    pub(super) arguments: Vec<String>,
    /// Environment variables beside those of the test.
    pub(super) environment: BTreeMap<String, String>,
    /// File to which standard output is appended; made if missing.
    pub(super) stdout: PathBuf,
    /// File to which standard error is appended; made if missing.
    pub(super) stderr: PathBuf,
}

/// The reply to the request with this number.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) number: u64,
    pub(crate) outcome: Outcome,
}

/// How a call went.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// Spawn: the process, as the machine's pid namespace sees it.
    Started { pid: i32 },
    /// Signal: it was sent.
    Sent,
    /// Wait: the exit code, or 128 + signal.
    Ended { code: i32 },
    /// It could not be done; why.
    Refused { reason: String },
}
