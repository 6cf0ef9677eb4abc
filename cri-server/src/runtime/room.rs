//! Whether the state directory takes anything: what Status says of it.

use std::{path::Path, sync::Arc, time::Duration};

use rustix::fs::StatVfsMountFlags;
use tokio::time::timeout;

use super::Runtime;

/// How long the file system may take to answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// Fewer free bytes than this are none: a record and its directory need as many.
const LEAST: u64 = 64 << 10;

/// How much a directory's file system takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// Enough, or not known.
    Enough,
    /// Nothing more, until something is removed. What is short, in words.
    Full(String),
    /// Nothing at all, until it is mounted otherwise. In words.
    ReadOnly(String),
    /// It does not answer. In words.
    Silent(String),
}

impl Runtime {
    /// What the file system of the state directory takes now. Answers in bounded time.
    pub async fn room(&self) -> Room {
        let directory = self.layout.state().to_owned();
        // One at a time: a disk that hangs costs one thread, however often it is asked about.
        let Ok(turn) = Arc::clone(&self.room_looks).try_acquire_owned() else {
            return self.last_room.lock().expect("no code panics while it holds this").clone();
        };
        let look = tokio::task::spawn_blocking({
            let directory = directory.clone();
            move || {
                let found = look(&directory);
                drop(turn);
                found
            }
        });
        let room = match timeout(PATIENCE, look).await {
            Ok(looked) => looked.unwrap_or(Room::Enough),
            Err(_) => Room::Silent(format!(
                "state_dir {}: its file system does not answer, or this daemon has no thread to ask it",
                directory.display()
            )),
        };
        let mut last = self.last_room.lock().expect("no code panics while it holds this");
        if *last != room {
            match &room {
                Room::Enough => tracing::info!("the state directory can be written again"),
                Room::Full(words) | Room::ReadOnly(words) | Room::Silent(words) => {
                    tracing::warn!(reason = words, "the state directory cannot be written");
                }
            }
            last.clone_from(&room);
        }
        room
    }
}

fn look(directory: &Path) -> Room {
    let Ok(found) = rustix::fs::statvfs(directory) else { return Room::Enough };
    let directory = directory.display();
    if found.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Room::ReadOnly(format!(
            "state_dir {directory}: its file system is mounted read-only: no pod can be made; pods that are \
             there go on and can be stopped; look why in the kernel's log, and remount it writable"
        ));
    }
    // Of what is kept for root an ext4 uses some itself: it may be full before that is used up.
    if found.f_bavail.saturating_mul(found.f_frsize) < LEAST {
        return Room::Full(format!("state_dir {directory}: no space left on its file system; free some"));
    }
    if found.f_files > 0 && found.f_ffree == 0 {
        return Room::Full(format!(
            "state_dir {directory}: no inodes left on its file system (df -i); remove files"
        ));
    }
    Room::Enough
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_directory_takes_something() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(look(directory.path()), Room::Enough);
        assert_eq!(look(&directory.path().join("missing")), Room::Enough, "that is told elsewhere");
    }
}
