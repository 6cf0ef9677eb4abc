//! What a loss of power leaves of records: they have a name and no content, since pods do not outlive the
//! boot and their records are therefore not synced. Nobody would ever ask for such a pod by its id.

use std::{fs::File, io::Read, path::Path, sync::Arc};

use tracing::{info, warn};

use crate::{
    runtime::{Runtime, blocking},
    state::Hidden,
};

impl Runtime {
    /// After a reboot: removes pods and containers whose records have never reached the disk.
    pub(super) async fn drop_blank(self: &Arc<Self>) {
        if !self.boot.rebooted {
            return;
        }
        let damaged = self.store.damaged();
        let looked = blocking("damaged records", move || {
            Ok(damaged.into_iter().filter(|damage| is_blank(&damage.path)).collect::<Vec<_>>())
        });
        for damage in looked.await.unwrap_or_default() {
            let removed = match &damage.hides {
                Hidden::Pod(id) => self.remove_damaged_pod(id.as_str()).await,
                Hidden::Container(_, id) => self.remove_damaged_container(id.as_str()).await,
                Hidden::Nothing | Hidden::Archive => continue,
            };
            let path = damage.path.display();
            match removed {
                Ok(()) => info!(%path, "lost with the power, and so is what it was of; removed"),
                Err(error) => warn!(%path, %error, "lost with the power; what it was of is not removed"),
            }
        }
    }
}

/// Whether a file is there and all that was ever written to it is lost: it is empty, or has holes only.
fn is_blank(path: &Path) -> bool {
    // Nothing of ours that cannot be read by its own rules is read here.
    if !path.symlink_metadata().is_ok_and(|found| found.is_file()) {
        return false;
    }
    let Ok(mut file) = File::open(path) else { return false };
    let mut piece = [0; 4096];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return true,
            Ok(count) if piece[..count].iter().all(|byte| *byte == 0) => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_lost_all_is_blank() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        assert!(!is_blank(&path));
        for (content, blank) in [(&b""[..], true), (&[0; 9000], true), (b"{", false), (b"\0\0{", false)] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(is_blank(&path), blank, "{content:?}");
        }
        assert!(!is_blank(dir.path()));
    }
}
