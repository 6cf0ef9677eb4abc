//! The daemon and command line `podhold`.
//!
//! Arrows: `grpc`, `streaming` and `standalone` call `runtime`; `runtime` uses `spec`, `state` and the crates below.
//! Nothing calls back up.

#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod cli;
pub mod config;
pub mod descriptors;
pub mod doctor;
pub mod error;
pub mod exhausted;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod grpc;
pub mod runtime;
pub mod spec;
pub mod standalone;
pub mod state;
pub mod streaming;

mod lsm;
mod numbers;
mod output;
mod service;
mod sys;
