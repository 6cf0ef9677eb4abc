//! One pod on this host: its paths, records, namespaces, network, shim and pause process.

pub mod bundle;
pub mod client;
pub mod launch;
pub mod netns;
pub mod network;
pub mod record;
pub mod shim;

mod id;
mod layout;
mod sealed;
mod sys;
mod wire;

pub use id::{ContainerId, InvalidId, PodId};
pub use layout::Layout;
