//! Archives that are imported when the daemon starts: the images of a node without a registry.
//!
//! They are imported one after another while the daemon serves; until then their images are not there, and
//! whoever asks for one asks again. An archive whose images are all here is not read again unless it has
//! changed. One that cannot be imported is logged, and stands among the damaged things; other files are named in the
//! log and left alone.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use podhold_image::ImportOptions;
use tracing::{info, warn};

use super::{Runtime, blocking};
use crate::{
    error::{Error, Result, chain},
    state::{Damage, Hidden},
};

/// How archives' names end.
const ENDINGS: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"];

/// What was imported from an archive.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Seen {
    size: u64,
    inode: u64,
    /// Seconds since 1970, and nanoseconds.
    modified: [i64; 2],
    /// Ids of the images it brought.
    images: Vec<String>,
}

impl Runtime {
    /// Imports what is in the configured directory, in a task of its own.
    pub fn preload(self: &Arc<Self>) {
        if self.config.image.preload_dir.as_os_str().is_empty() {
            return;
        }
        let runtime = Arc::clone(self);
        tokio::spawn(async move {
            let dir = &runtime.config.image.preload_dir;
            if let Err(error) = runtime.preload_all(dir).await {
                runtime.not_preloaded(dir, &error);
            }
        });
    }

    fn not_preloaded(&self, path: &Path, error: &Error) {
        let reason = chain(error);
        warn!(path = %path.display(), reason, "images not loaded at start");
        self.store.add_damage(Damage { path: path.to_owned(), reason, hides: Hidden::Archive });
    }

    async fn preload_all(&self, dir: &Path) -> Result<()> {
        let (list, ledger) = (dir.to_owned(), self.layout.state().join("preloaded.json"));
        let Shelf { archives, others } = blocking("preload", move || Shelf::read(&list)).await?;
        for (path, reason) in others {
            info!(path = %path.display(), reason, "not loaded at start");
        }
        let read = ledger.clone();
        let before = blocking("preload", move || Ok(remembered(&read))).await?;
        let mut now = before.clone();
        now.retain(|path, _| archives.iter().any(|(there, _)| there == path));
        for (path, mut seen) in archives {
            let known =
                before.get(&path).filter(|known| seen == Seen { images: Vec::new(), ..(*known).clone() });
            match known.filter(|known| known.images.iter().all(|id| self.images.find(id).is_some())) {
                Some(known) => seen = known.clone(),
                None => match self.preload_one(&path).await {
                    Ok(images) => seen.images = images,
                    Err(error) => {
                        self.not_preloaded(&path, &error);
                        now.remove(&path);
                        continue;
                    }
                },
            }
            if now.insert(path, seen.clone()) == Some(seen) {
                continue;
            }
            // After each, so that a daemon that ends does not begin anew.
            let (place, text) = (ledger.clone(), serde_json::to_vec(&now));
            let text = text.map_err(|error| Error::failed("preload", &error))?;
            if let Err(error) = blocking("preload", move || remember(&place, &text)).await {
                warn!(%error, "it is not noted which archives were loaded; the next start loads them again");
            }
        }
        Ok(())
    }

    async fn preload_one(&self, path: &Path) -> Result<Vec<String>> {
        let (place, origin) = (path.to_owned(), path.display().to_string());
        let opened = blocking("preload", move || {
            fs::File::open(&place).map_err(Error::doing(format!("opening {}", place.display())))
        });
        let file = opened.await?;
        info!(archive = origin, "loading images");
        let imported =
            self.import_images(Box::new(file), ImportOptions { origin, ..ImportOptions::default() }).await?;
        Ok(imported.images.iter().map(|image| image.id.clone()).collect())
    }
}

/// What is in the directory.
#[derive(Debug, Default)]
struct Shelf {
    /// By name.
    archives: Vec<(PathBuf, Seen)>,
    /// What is left alone, and why.
    others: Vec<(PathBuf, String)>,
}

impl Shelf {
    fn read(dir: &Path) -> Result<Self> {
        let reading = || Error::doing(format!("reading {}", dir.display()));
        let mut shelf = Self::default();
        for entry in fs::read_dir(dir).map_err(reading())? {
            let path = entry.map_err(reading())?.path();
            match Seen::of(&path) {
                Ok(seen) => shelf.archives.push((path, seen)),
                Err(reason) => shelf.others.push((path, reason)),
            }
        }
        shelf.archives.sort_by(|a, b| a.0.cmp(&b.0));
        shelf.others.sort();
        Ok(shelf)
    }
}

impl Seen {
    /// What an archive looks like before it is imported; why a file is none.
    fn of(path: &Path) -> std::result::Result<Self, String> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') {
            return Err("it is hidden, and may be half copied".to_owned());
        }
        if !ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            return Err(format!(
                "by its name it is no archive of images: these end in {}",
                ENDINGS.join(", ")
            ));
        }
        let metadata = fs::metadata(path).map_err(|error| format!("it cannot be looked at: {error}"))?;
        if !metadata.is_file() {
            return Err("it is not a regular file".to_owned());
        }
        let modified = [metadata.mtime(), metadata.mtime_nsec()];
        Ok(Self { size: metadata.len(), inode: metadata.ino(), modified, images: Vec::new() })
    }
}

/// What was imported before; what cannot be read is imported again.
fn remembered(path: &Path) -> BTreeMap<PathBuf, Seen> {
    fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Not synced: after a power loss an archive is at worst imported once more.
fn remember(path: &Path, text: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, path));
    written.map_err(Error::doing(format!("writing {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_archive_is_named_with_the_reason_and_keeps_none_from_being_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["b.tar", "a.tar.zst", ".half.tar", "README.md", "app.tar.xz"] {
            fs::write(at(name), "x").unwrap();
        }
        fs::create_dir(at("dir.tar")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("gone.tar")).unwrap();
        let shelf = Shelf::read(dir.path()).unwrap();
        let archives: Vec<_> = shelf.archives.iter().map(|(path, _)| path.clone()).collect();
        assert_eq!(archives, [at("a.tar.zst"), at("b.tar")]);
        let others: Vec<_> = shelf.others.iter().map(|(path, _)| path.clone()).collect();
        assert_eq!(
            others,
            [at(".half.tar"), at("README.md"), at("app.tar.xz"), at("dir.tar"), at("gone.tar")]
        );
        for ((path, reason), part) in
            shelf.others.iter().zip(["hidden", ".tar.zst", ".tar.zst", "not a regular file", "No such file"])
        {
            assert!(reason.contains(part), "{}: {reason}", path.display());
        }
    }
}
