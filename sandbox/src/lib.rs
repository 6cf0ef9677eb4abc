//! One pod on this host: its paths, records, namespaces, network, shim and pause process.

pub mod bundle;
pub mod client;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod idmap;
pub mod launch;
pub mod netns;
pub mod network;
pub mod record;
pub mod shim;
pub mod terminal;

mod id;
mod layout;
mod netlink;
mod sealed;
mod seccomp;
mod sys;
mod wire;

pub use id::{ContainerId, InvalidId, PodId};
pub use layout::Layout;
