//! AppArmor: what the kernel has loaded, and Podhold's own profile ([`own`]).
//!
//! Only [`own`] changes anything. Everything here may be read beside a daemon.

mod own;
mod parser;

use std::{fs, io::Read, path::Path};

pub(crate) use self::own::{NAME, OwnProfile, Standing, standing};

/// Says whether AppArmor is at work (kernel module parameter).
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// Names of the loaded profiles, one per line, each with its mode in parentheses (apparmorfs).
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
/// A directory for each loaded profile (apparmorfs).
const PROFILES: &str = "/sys/kernel/security/apparmor/policy/profiles";
/// Most that is read of the list of profiles, in bytes.
const LARGEST_LIST: u64 = 4 << 20;

/// Whether the kernel has AppArmor at work.
pub(crate) fn is_enabled() -> bool {
    fs::read_to_string(ENABLED).is_ok_and(|text| text.starts_with('Y'))
}

/// Whether the kernel tells which profiles it has: it does so in securityfs, where that is mounted.
fn tells_profiles() -> bool {
    Path::new(LOADED).exists()
}

/// Whether a profile of this name is loaded. May wait for somebody who loads one.
pub(crate) fn is_loaded(name: &str) -> bool {
    let mut list = String::new();
    let read = fs::File::open(LOADED).and_then(|file| file.take(LARGEST_LIST).read_to_string(&mut list));
    read.is_ok() && list.lines().any(|line| line.rsplit_once(" (").is_some_and(|(known, _)| known == name))
}

/// The kernel's digest of a loaded profile: the same until another text is loaded under its name. `None` where it
/// is not loaded, or the kernel was built without digests.
fn digest(name: &str) -> Option<String> {
    let beginning = format!("{name}.");
    let directories = fs::read_dir(PROFILES).ok()?.flatten();
    let mut of_name = directories.filter(|entry| entry.file_name().to_string_lossy().starts_with(&beginning));
    let found = of_name.find(|entry| {
        fs::read_to_string(entry.path().join("name")).is_ok_and(|known| known.trim_end() == name)
    })?;
    let read = |kind: &str| fs::read_to_string(found.path().join(kind)).ok();
    read("sha256").or_else(|| read("sha1")).map(|text| text.trim().to_owned())
}
