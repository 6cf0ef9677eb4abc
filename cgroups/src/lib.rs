//! Policy over libcgroups: where a pod's cgroups are, what limits they get, what they have used.

mod path;

pub use path::{CgroupPath, InvalidCgroupPath};
