//! Pods without a kubelet: a manifest becomes the same requests a kubelet would send, and the same verbs
//! carry them out.

mod forgotten;
mod host;
mod left;
mod life;
pub(crate) mod log_text;
mod manifest;
mod plan;
mod quantity;
mod request;
mod run;
mod supported;
mod terminal;
mod users;
mod volume;

pub(crate) use self::terminal::{Label, Screen, follow};
pub use self::{
    forgotten::end_forgotten,
    left::{RUN_BY, is_kept, remove_directories, run_by},
    life::Policy,
    manifest::{Manifest, ManifestError},
    plan::{check, dry_run},
    run::{FIRST, Finished, HOST, Options, PullWhen, run},
};
