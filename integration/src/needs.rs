//! What a test needs of the machine it runs on. A test that lacks something says so and returns; in CI
//! (`CI=true`) that is a failure.

use std::path::PathBuf;

/// Whether `program` is on the `PATH`.
pub fn has_program(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

/// Where CNI plugins may be installed: Debian's place, then everybody else's.
pub const CNI_DIRECTORIES: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// Whether the CNI plugin `name` is installed.
pub fn has_plugin(name: &str) -> bool {
    CNI_DIRECTORIES.iter().any(|directory| PathBuf::from(directory).join(name).exists())
}

/// Whether we are root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says that the test is skipped, in the words that `.ci/run` counts.
///
/// # Panics
/// In CI, where nothing may be missing.
pub fn skipped(reason: &str) {
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "in CI nothing is skipped: {reason}");
    println!("SKIPPED: {reason}");
}

/// Says that the test is for another machine, which is no lack of this one: the guest of `make vm` runs it.
pub fn elsewhere(reason: &str) {
    println!("SKIPPED: {reason}; make vm runs it in the guest");
}

/// Returns from the test, saying why, unless everything named is there: `root`, `program "NAME"`,
/// `plugin "NAME"`.
#[macro_export]
macro_rules! require {
    ($($kind:ident $($name:literal)?),+ $(,)?) => {
        $(if let Some(reason) = $crate::require!(@ $kind $($name)?) {
            $crate::needs::skipped(&reason);
            return;
        })+
    };
    (@ root) => { (!$crate::needs::is_root()).then(|| "needs root".to_owned()) };
    (@ program $name:literal) => {
        (!$crate::needs::has_program($name)).then(|| format!("needs the program {}", $name))
    };
    (@ plugin $name:literal) => {
        (!$crate::needs::has_plugin($name)).then(|| format!("needs the CNI plugin {}", $name))
    };
}
