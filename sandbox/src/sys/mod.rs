//! The only unsafe code of this crate: forks, signals, and fds by number.
#![allow(unsafe_code)]

mod filter;
mod mount;
mod process;
mod signal;
mod spawn;
mod watch;

pub(crate) use filter::load_filter;
pub(crate) use mount::{MountChange, change_mount, map_ids};
pub(crate) use process::{
    CloneFlags, adopt_listener, close_fds_except, fork, fork_into, promise_single_thread, reset_signals,
    set_close_on_exec_from,
};
pub(crate) use signal::SignalNumber;
pub(crate) use spawn::{Program, spawn};
pub(crate) use watch::watch;
