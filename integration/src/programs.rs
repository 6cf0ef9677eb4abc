//! Finds the programs under test and our own.

use std::path::{Path, PathBuf};

/// A program that was built in the same profile as the running one: `podhold`, `podhold-shim`,
/// `podhold-probe` and so on.
///
/// # Panics
/// When it was not built, naming the mend. `PODHOLD_BIN_DIR` names another directory to look in.
pub fn built(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("the kernel knows what runs");
    let beside = me.parent().expect("a file is in a directory");
    // Test programs lie in a directory `deps` beneath that of the others.
    let directories =
        [std::env::var_os("PODHOLD_BIN_DIR").map(PathBuf::from), Some(beside.to_owned()), up(beside)];
    let mut found = directories.into_iter().flatten().map(|d| d.join(name)).filter(|p| p.exists());
    found
        .next()
        .unwrap_or_else(|| panic!("no program {name} near {}: run cargo build --workspace", me.display()))
}

fn up(directory: &Path) -> Option<PathBuf> {
    directory.parent().map(Path::to_owned)
}
