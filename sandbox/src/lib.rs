//! One pod on this host: its paths, records, namespaces, network, shim and pause process.

pub mod launch;

mod id;
mod layout;

pub use id::{ContainerId, InvalidId, PodId};
pub use layout::Layout;
