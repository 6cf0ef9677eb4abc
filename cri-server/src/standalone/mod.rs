//! Pods without a kubelet: a manifest becomes the same requests a kubelet would send, and the same verbs
//! carry them out.

mod host;
pub(crate) mod log_text;
mod logs;
mod manifest;
mod plan;
mod quantity;
mod request;
mod run;
mod supported;
mod users;
mod volume;

pub use self::{
    manifest::{Manifest, ManifestError},
    plan::{check, dry_run},
    run::run,
};
