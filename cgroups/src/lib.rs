//! Policy over libcgroups: where a pod's cgroups are, what limits they get, what they have used.
//!
//! libcgroups translates OCI resources into files and freezes; everything it leaves out is here: which
//! hierarchies there are, making and removing whole trees, joining every hierarchy, statistics that
//! bear missing files, and kills that reach every process. Blocking calls throughout, none of them
//! unbounded; an async caller uses `spawn_blocking`.

mod choice;
mod devices;
mod driver;
mod error;
mod events;
mod find;
mod handle;
mod kill;
mod limits;
mod mounts;
mod path;
mod remove;
mod scope;
mod stats;
mod sys;
mod systemd;
mod undo;
mod validate;

pub use choice::Choice;
pub use driver::{Driver, Place, pod_of_scope};
pub use error::CgroupError;
pub use handle::Cgroups;
pub use mounts::Version;
pub use path::{CgroupPath, InvalidCgroupPath};
pub use stats::{
    CpuStats, Details, DeviceIo, HugepageStats, MemoryStats, PidsStats, Pressure, PressureLine, Stats,
    SwapStats,
};
pub use systemd::BusError;
pub use validate::LEAST_MEMORY;
