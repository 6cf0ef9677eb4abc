//! The images of the [`Catalogue`], pushed once and kept in a registry's storage directory beside the
//! build, for all tests to serve read-only.
//!
//! Invariant: a directory with the final name is complete; it is renamed into place.

use std::{
    collections::hash_map::DefaultHasher,
    fs::{self, File},
    hash::Hasher,
    io,
    path::{Path, PathBuf},
};

use crate::{
    images::{Catalogue, catalogue::BUSYBOX},
    programs,
    registry::{Access, Registry},
};

/// What the images are made by: a store that was made by other code is not taken for a new one.
const RECIPE: [&str; 7] = [
    include_str!("images/blob.rs"),
    include_str!("images/catalogue.rs"),
    include_str!("images/conformance.rs"),
    include_str!("images/hostile.rs"),
    include_str!("images/image.rs"),
    include_str!("images/layer.rs"),
    include_str!("images/nasty.rs"),
];

/// The storage directory, made if it is not there yet. Several processes may ask at once.
pub async fn directory() -> io::Result<PathBuf> {
    let probe = programs::find("podhold-probe")?;
    let parent = probe.parent().expect("a file is in a directory").join("fixture-images");
    fs::create_dir_all(&parent)?;
    let ready = parent.join(key(&probe)?);
    let lock = File::options().create(true).truncate(false).write(true).open(parent.join("lock"))?;
    let _held =
        tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await.map_err(io::Error::other)??;
    if !ready.exists() {
        remove_old(&parent)?;
        let making = tempfile::Builder::new().prefix("making-").tempdir_in(&parent)?;
        fill(making.path(), &probe).await.map_err(io::Error::other)?;
        fs::rename(making.keep(), &ready)?;
    }
    Ok(ready)
}

async fn fill(directory: &Path, probe: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let catalogue = Catalogue::build(probe)?;
    let registry = Registry::start(directory, 0, Access::Write).await?;
    registry.push_all(&catalogue).await?;
    Ok(registry.stop().await?)
}

/// A name for what the store is made from.
fn key(probe: &Path) -> io::Result<String> {
    let mut hash = DefaultHasher::new();
    RECIPE.iter().for_each(|code| hash.write(code.as_bytes()));
    hash.write(&fs::read(probe)?);
    hash.write(&fs::read(BUSYBOX)?);
    Ok(format!("registry-{:016x}", hash.finish()))
}

fn remove_old(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}
