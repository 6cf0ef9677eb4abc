//! Pods without a kubelet: a manifest becomes the same requests a kubelet would send, and the same verbs
//! carry them out.

mod convert;
mod life;
mod limits;
pub(crate) mod log_text;
mod manifest;
mod quantity;
mod run;
mod supported;
mod terminal;
mod users;
mod volumes;

pub(crate) use self::terminal::{Label, Screen, follow};
pub use self::{
    life::Policy,
    manifest::{Manifest, ManifestError},
    run::{FIRST, HOST, Options, PullWhen, RUN_BY, RunError, check, remove_directories, run},
    terminal::printable,
};
