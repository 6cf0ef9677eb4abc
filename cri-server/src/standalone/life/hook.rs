//! postStart and preStop hooks.

use super::{
    action::Action,
    probe::{Failed, Target, get},
};

/// Runs a hook to its end. Of a page only that it answers counts, as with a kubelet.
pub(super) async fn run(target: &Target, action: &Action) -> Result<(), Failed> {
    match action {
        Action::Http(page) => get(page, target.address).await.map(drop),
        action => target.act(action).await,
    }
}
