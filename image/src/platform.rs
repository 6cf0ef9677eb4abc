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
    /// The platform this program was built for.
    fn default() -> Self {
        let arch = Arch::default();
        let variant = match arch {
            Arch::ARM64 => Some("v8"),
            Arch::ARM => Some("v7"),
            _ => None,
        };
        Self { os: Os::default(), arch, variant: variant.map(str::to_owned) }
    }
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

impl Platform {
    /// Whether something built for `os` and `arch` runs here. Empty names are taken for ours: some
    /// builders leave them out.
    pub(crate) fn runs(&self, os: &Os, arch: &Arch) -> bool {
        let unnamed = |name: String| name.is_empty();
        (os == &self.os || unnamed(os.to_string())) && (arch == &self.arch || unnamed(arch.to_string()))
    }

    /// The best entry of an index: the highest variant that runs here, and the first of equals. Entries
    /// without a platform come last.
    pub(crate) fn choose<'a>(&self, entries: &'a [ImageIndexEntry]) -> Option<&'a ImageIndexEntry> {
        let ranked = entries.iter().filter_map(|entry| Some((self.rank(entry)?, entry)));
        // `min_by_key` keeps the first of equals.
        ranked.min_by_key(|(rank, _)| std::cmp::Reverse(*rank)).map(|(_, entry)| entry)
    }

    /// How well an entry fits: its variant's level plus one; 0 for "no platform given"; `None` for no.
    fn rank(&self, entry: &ImageIndexEntry) -> Option<u8> {
        let Some(platform) = &entry.platform else { return Some(0) };
        if platform.os != self.os || platform.architecture != self.arch {
            return None;
        }
        let level = self.level(platform.variant.as_deref())?;
        (level <= self.level(self.variant.as_deref())?).then_some(level + 1)
    }

    /// A variant as a number; the base variant where none is given.
    fn level(&self, variant: Option<&str>) -> Option<u8> {
        let base = match self.arch {
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
        platform.choose(&entries).map(|chosen| entries.iter().position(|e| std::ptr::eq(e, chosen)).unwrap())
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
}
