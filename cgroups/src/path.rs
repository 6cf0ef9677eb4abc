//! Names of cgroups. No I/O.
//!
//! Invariant: a [`CgroupPath`] is absolute within the hierarchy, normalised, and never the root.

use std::fmt;

/// A cgroup within every hierarchy, such as `/kubepods/burstable/podUID/CONTAINER`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupPath(String);

/// Why a string does not name a cgroup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} does not name a cgroup: {reason}")]
pub struct InvalidCgroupPath {
    /// What was given.
    pub path: String,
    /// What is wrong with it, and the mend.
    pub reason: &'static str,
}

impl CgroupPath {
    /// Takes a path from outside (CRI `cgroup_parent`).
    pub fn parse(text: &str) -> Result<Self, InvalidCgroupPath> {
        let refuse = |reason| Err(InvalidCgroupPath { path: text.to_owned(), reason });
        let Some(rest) = text.strip_prefix('/') else {
            return refuse("it must begin with '/'");
        };
        if text.len() > 4000 || text.bytes().any(|b| b == 0 || b == b'\n') {
            return refuse("it is too long or holds a NUL or a newline");
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.is_empty() {
            return refuse("the root cgroup cannot hold a pod");
        }
        if rest.split('/').any(|part| matches!(part, "" | "." | "..") || part.len() > 255) {
            return refuse("each part must be a plain name of at most 255 bytes");
        }
        Ok(Self(format!("/{rest}")))
    }

    /// The cgroup `name` beneath this one.
    ///
    /// # Panics
    /// When `name` is not a plain name; ids and constants always are.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        let path = Self::parse(&format!("{}/{name}", self.0));
        path.expect("ids and constants are plain names")
    }

    /// The cgroup above this one; `None` beneath the root, which is nobody's.
    pub fn parent(&self) -> Option<Self> {
        let (above, _) = self.0.rsplit_once('/')?;
        (!above.is_empty()).then(|| Self(above.to_owned()))
    }

    /// Its own name, the last part.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The path as text, beginning with `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path without its leading `/`, to be joined to a hierarchy's mount point.
    pub fn relative(&self) -> &str {
        &self.0[1..]
    }
}

impl TryFrom<String> for CgroupPath {
    type Error = InvalidCgroupPath;
    fn try_from(text: String) -> Result<Self, InvalidCgroupPath> {
        Self::parse(&text)
    }
}

impl From<CgroupPath> for String {
    fn from(path: CgroupPath) -> String {
        path.0
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_leave_its_hierarchy() {
        for bad in ["", "/", "//", "a", "/a/../b", "/a/./b", "/a//b", "/..", "/a\nb"] {
            assert!(CgroupPath::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(CgroupPath::parse("/a/b/").unwrap().as_str(), "/a/b");
        let child = CgroupPath::parse("/a").unwrap().child("b");
        assert_eq!(child.as_str(), "/a/b");
        assert_eq!(child.parent().and_then(|a| a.parent()), None);
    }
}
