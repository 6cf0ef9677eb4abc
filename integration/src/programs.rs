//! Finds the programs under test and our own.

use std::{
    io,
    path::{Path, PathBuf},
};

/// A program that was built in the same profile as the running one: `podhold`, `podhold-shim`,
/// `podhold-probe` and so on.
///
/// # Panics
/// When [`find`] does not find it.
pub fn built(name: &str) -> PathBuf {
    find(name).unwrap_or_else(|error| panic!("{error}"))
}

/// The same, for programs of which a user asks something: an error names the mend. `PODHOLD_BIN_DIR` names another
/// directory to look in.
pub fn find(name: &str) -> io::Result<PathBuf> {
    let me = std::env::current_exe()?;
    let beside = me.parent().unwrap_or(Path::new("/"));
    // Test programs lie in a directory `deps` beneath that of the others.
    let directories =
        [std::env::var_os("PODHOLD_BIN_DIR").map(PathBuf::from), Some(beside.to_owned()), up(beside)];
    let mut found = directories.into_iter().flatten().map(|d| d.join(name)).filter(|p| p.exists());
    found.next().ok_or_else(|| {
        let mend = "run cargo build --workspace --bins (with --release where this one was built so)";
        let text = format!("{name} is not built: there is none beside {}; {mend}", me.display());
        io::Error::new(io::ErrorKind::NotFound, text)
    })
}

fn up(directory: &Path) -> Option<PathBuf> {
    directory.parent().map(Path::to_owned)
}
