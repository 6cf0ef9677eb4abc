//! The pause program as bytes, to be run from a sealed memory file.
//!
//! The program itself is `src/program/pause.rs`; `build.rs` compiles it. This crate runs nothing.

/// The static ELF program that holds a pod's namespaces: it blocks all signals, reaps its children and
/// ends with code 0 on SIGTERM or SIGINT.
pub static PAUSE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));
