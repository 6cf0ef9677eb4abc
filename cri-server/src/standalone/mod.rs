//! Pods without a kubelet: a manifest becomes the same requests a kubelet would send, and the same verbs
//! carry them out.

mod convert;
mod limits;
pub(crate) mod log_text;
mod logs;
mod manifest;
mod quantity;
mod run;
mod supported;
mod users;
mod volumes;

pub use self::{
    manifest::{Manifest, ManifestError},
    run::run,
};
