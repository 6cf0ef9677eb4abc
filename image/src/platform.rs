//! Platforms: which manifest of an index runs here. No I/O.

use oci_distribution::manifest::ImageIndexEntry;
use oci_spec::image::{Arch, Os};

/// Operating system, processor architecture and its variant, with the names the OCI index uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Such as `linux`.
    pub os: Os,
    /// Such as `amd64` or `arm64`.
    pub arch: Arch,
    /// Such as `v7` (arm) or `v3` (amd64). `None` takes the architecture's base variant.
    pub variant: Option<String>,
}

impl Default for Platform {
    /// This machine's: the platform this program was built for, with the variant its processor has.
    fn default() -> Self {
        let arch = Arch::default();
        let variant = match arch {
            Arch::Amd64 => Some(amd64_level()).filter(|level| *level > 1).map(|level| format!("v{level}")),
            Arch::ARM64 => Some("v8".to_owned()),
            Arch::ARM => Some(arm_variant(rustix::system::uname().machine())),
            _ => None,
        };
        Self { os: Os::default(), arch, variant }
    }
}

/// The processor's level (x86-64 psABI, "Micro-Architecture Levels").
#[cfg(target_arch = "x86_64")]
fn amd64_level() -> u8 {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("cmpxchg16b") && has!("popcnt") && has!("sse4.2") && has!("ssse3") && has!("sse4.1");
    let v3 = v2 && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma");
    let v3 = v3 && has!("avx") && has!("lzcnt") && has!("movbe");
    let v4 = v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd");
    let v4 = v4 && has!("avx512dq") && has!("avx512vl");
    1 + u8::from(v2) + u8::from(v3) + u8::from(v4)
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_level() -> u8 {
    1
}

/// The variant of a 32-bit ARM machine, from the kernel's name for it, such as `armv7l`.
fn arm_variant(machine: &std::ffi::CStr) -> String {
    let level = match machine.to_bytes() {
        [b'a', b'r', b'm', b'v', level @ b'5'..=b'7', ..] => char::from(*level),
        [b'a', b'r', b'm', b'v', b'8', ..] | [b'a', b'a', b'r', b'c', b'h', ..] => '8',
        _ => '7',
    };
    format!("v{level}")
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.arch)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// Added to the level of an image for this architecture, above all levels of its 32-bit sister.
const NATIVE: u16 = 1000;

impl Platform {
    /// Whether something built for this runs here. Empty names are taken for ours: some builders leave them
    /// out.
    pub(crate) fn runs(&self, os: &Os, arch: &Arch, variant: Option<&str>) -> bool {
        let unnamed = |name: String| name.is_empty();
        let os = if unnamed(os.to_string()) { &self.os } else { os };
        let arch = if unnamed(arch.to_string()) { &self.arch } else { arch };
        self.rank(os, arch, variant).is_some()
    }

    /// The entries of an index that may run here, the best first: the highest variant not above ours, then
    /// programs of the 32-bit sister, then entries that name no platform; the first of equals first.
    pub(crate) fn candidates<'a>(&self, entries: &'a [ImageIndexEntry]) -> Vec<&'a ImageIndexEntry> {
        let rank = |entry: &'a ImageIndexEntry| match &entry.platform {
            None => Some(0),
            // A feature that a system must have, and we know none: formats of layers of some runtimes.
            Some(platform) if platform.os_features.as_ref().is_some_and(|list| !list.is_empty()) => None,
            Some(platform) => self.rank(&platform.os, &platform.architecture, platform.variant.as_deref()),
        };
        let mut ranked: Vec<_> = entries.iter().filter_map(|entry| Some((rank(entry)?, entry))).collect();
        // Stable.
        ranked.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        ranked.into_iter().map(|(_, entry)| entry).collect()
    }

    /// How well a platform fits; `None` for not at all.
    fn rank(&self, os: &Os, arch: &Arch, variant: Option<&str>) -> Option<u16> {
        if *os != self.os {
            return None;
        }
        let level = level(arch, variant)?;
        let native = *arch == self.arch;
        let highest = match (&self.arch, arch) {
            _ if native => level_of(self)?,
            (Arch::Amd64, Arch::i386) => u8::MAX,
            (Arch::ARM64, Arch::ARM) => 8,
            _ => return None,
        };
        (level <= highest).then_some(1 + u16::from(level) + if native { NATIVE } else { 0 })
    }
}

fn level_of(platform: &Platform) -> Option<u8> {
    level(&platform.arch, platform.variant.as_deref())
}

/// A variant as a number; the base variant where none is given.
fn level(arch: &Arch, variant: Option<&str>) -> Option<u8> {
    let base = match arch {
        Arch::ARM64 => 8,
        Arch::ARM => 7,
        _ => 1,
    };
    match variant {
        None | Some("") => Some(base),
        Some(variant) => {
            variant.strip_prefix('v')?.split('.').next()?.parse().ok().filter(|level| *level < 100)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(arch: &str, variant: Option<&str>) -> ImageIndexEntry {
        let variant = variant.map_or(String::new(), |v| format!(r#","variant":"{v}""#));
        let json = format!(
            r#"{{"mediaType":"m","digest":"{arch}{variant}","size":1,"platform":{{"os":"linux","architecture":"{arch}"{variant}}}}}"#,
        );
        serde_json::from_str(&json.replacen(&format!(r#"{arch}{variant}"#), arch, 1)).unwrap()
    }

    fn choose(platform: (&str, Option<&str>), entries: &[(&str, Option<&str>)]) -> Option<usize> {
        let platform =
            Platform { os: Os::Linux, arch: platform.0.into(), variant: platform.1.map(str::to_owned) };
        let entries: Vec<_> = entries.iter().map(|(arch, variant)| entry(arch, *variant)).collect();
        let chosen = *platform.candidates(&entries).first()?;
        entries.iter().position(|entry| std::ptr::eq(entry, chosen))
    }

    #[test]
    fn the_best_variant_that_runs_here_is_chosen() {
        let arm = [("amd64", None), ("arm", Some("v5")), ("arm", Some("v7")), ("arm64", Some("v8"))];
        assert_eq!(choose(("arm", Some("v7")), &arm), Some(2));
        assert_eq!(choose(("arm", Some("v6")), &arm), Some(1));
        assert_eq!(choose(("arm64", Some("v8")), &arm), Some(3));
        assert_eq!(choose(("arm64", None), &arm), Some(3));
        assert_eq!(choose(("amd64", None), &arm), Some(0));
        assert_eq!(choose(("s390x", None), &arm), None);
        let amd = [("arm64", None), ("amd64", Some("v3")), ("amd64", Some("v2")), ("amd64", None)];
        assert_eq!(choose(("amd64", None), &amd), Some(3));
        assert_eq!(choose(("amd64", Some("v2")), &amd), Some(2));
        assert_eq!(choose(("amd64", Some("v4")), &amd), Some(1));
        assert_eq!(choose(("amd64", None), &[("amd64", None), ("amd64", None)]), Some(0));
    }
    #[test]
    fn programs_of_the_32_bit_sister_come_after_our_own() {
        let mixed =
            [("386", None), ("arm", Some("v7")), ("arm", Some("v6")), ("amd64", None), ("arm64", None)];
        assert_eq!(choose(("amd64", Some("v3")), &mixed), Some(3));
        assert_eq!(choose(("amd64", Some("v3")), &mixed[..3]), Some(0));
        assert_eq!(choose(("arm64", Some("v8")), &mixed), Some(4));
        assert_eq!(choose(("arm64", Some("v8")), &mixed[..3]), Some(1));
        assert_eq!(choose(("386", None), &mixed), Some(0));
        assert_eq!(choose(("386", None), &mixed[3..]), None, "not the other way round");
        assert_eq!(choose(("arm", Some("v6")), &mixed), Some(2));
    }

    #[test]
    fn entries_that_want_what_nobody_has_are_passed_over() {
        let entries: Vec<ImageIndexEntry> = serde_json::from_str(
            r#"[{"mediaType":"m","digest":"a","size":1,"platform":{"os":"linux","architecture":"amd64","os.features":["erofs"]}},
                {"mediaType":"m","digest":"b","size":1,"platform":{"os":"linux","architecture":"amd64","os.version":"6.1","os.features":[]}},
                {"mediaType":"m","digest":"c","size":1,"platform":{"os":"unknown","architecture":"unknown"}},
                {"mediaType":"m","digest":"d","size":1}]"#,
        )
        .unwrap();
        let ours = Platform { os: Os::Linux, arch: Arch::Amd64, variant: None };
        let found: Vec<&str> = ours.candidates(&entries).iter().map(|entry| entry.digest.as_str()).collect();
        assert_eq!(found, ["b", "d"]);
    }

    #[test]
    fn a_machine_knows_its_variant() {
        for (machine, variant) in
            [(c"armv6l", "v6"), (c"armv7l", "v7"), (c"aarch64", "v8"), (c"armv8l", "v8"), (c"x", "v7")]
        {
            assert_eq!(arm_variant(machine), variant);
        }
        assert!((1..=4).contains(&amd64_level()));
        let ours = Platform::default();
        assert!(
            ours.runs(&ours.os, &ours.arch, ours.variant.as_deref()) && ours.runs(&ours.os, &ours.arch, None)
        );
        assert!(ours.runs(&Os::Other(String::new()), &Arch::Other(String::new()), None));
        assert!(!ours.runs(&Os::Windows, &ours.arch, None) && !ours.runs(&ours.os, &ours.arch, Some("v99")));
    }
}
