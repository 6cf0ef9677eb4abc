//! Image references: `[registry/]repository[:tag][@digest]`, made canonical the way Docker does. No I/O.
//!
//! Invariant: a [`Reference`] names a registry, a valid repository, and a tag or a digest (or both), so
//! it can be put into a URL without escaping.

use std::{fmt, str::FromStr};

use crate::digest::Digest;

/// What an image is called. `busybox` is `docker.io/library/busybox:latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a string is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image reference: {reason}")]
pub struct InvalidReference {
    /// What was given (at most 300 characters of it).
    pub text: String,
    /// What is wrong with it, and the mend.
    pub reason: &'static str,
}

impl Reference {
    /// Takes a reference from outside and makes it canonical: `docker.io`, `library/` and `:latest` are
    /// added where they are left out.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        Self::read(text).map_err(|reason| InvalidReference { text: text.chars().take(300).collect(), reason })
    }

    fn read(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("it is empty; write it as registry/repository:tag");
        }
        if text.len() > 1000 {
            return Err("it is longer than 1000 bytes");
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest = Digest::parse(digest).map_err(
                    |_| "after '@' a digest is expected: sha256: and 64 lower-case hexadecimal digits",
                )?;
                (rest, Some(digest))
            }
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        let (registry, path) = split_registry(name);
        if tag.is_none()
            && digest.is_none()
            && name.len() == 64
            && name.bytes().all(|b| b.is_ascii_hexdigit())
        {
            return Err("64 hexadecimal digits are an image id, not a name");
        }
        if !valid_registry(registry) {
            return Err("the registry must be a host name or address with an optional :port");
        }
        let repository = if registry == "docker.io" && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if registry.len() + repository.len() + 1 > 255 {
            return Err("registry and repository together are longer than 255 bytes");
        }
        check_repository(&repository)?;
        if !tag.is_none_or(valid_tag) {
            return Err(
                "a tag has 1 to 128 letters, digits, '_', '.' and '-', and begins with none of the last two",
            );
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest"),
            (tag, _) => tag,
        };
        Ok(Self { registry: registry.to_owned(), repository, tag: tag.map(str::to_owned), digest })
    }

    /// The registry as it is written in names, such as `docker.io` or `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path within the registry, such as `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if there is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index, if there is one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository: the reference without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What the registry is asked for: the digest when there is one, otherwise the tag.
    pub fn target(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }
}

/// The registry and the rest. The first part is a registry when it cannot be part of a Docker Hub name.
fn split_registry(name: &str) -> (&str, &str) {
    let (registry, path) = match name.split_once('/') {
        Some((first, path))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, path)
        }
        _ => ("docker.io", name),
    };
    if registry == "index.docker.io" { ("docker.io", path) } else { (registry, path) }
}

fn valid_registry(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            return rest.is_empty() || rest.strip_prefix(':').is_some_and(valid_port);
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    port.is_none_or(valid_port) && host.split('.').all(label)
}

fn valid_port(port: &str) -> bool {
    port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the repository must be in lower case");
    }
    if repository.split('/').all(valid_component) {
        Ok(())
    } else {
        Err(
            "each part of the repository has lower-case letters and digits, with single '.', '_', '__' or dashes between",
        )
    }
}

/// Letters and digits, with separators (`.`, `_`, `__`, any number of `-`) between them only.
fn valid_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let ends = component.bytes().next().is_some_and(alphanumeric)
        && component.bytes().last().is_some_and(alphanumeric);
    ends && separators.all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn valid_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        && !tag.starts_with(['.', '-'])
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;
    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_become_canonical() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let table = [
            ("busybox".to_owned(), "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36".to_owned(), "docker.io/library/busybox:1.36".to_owned()),
            ("user/app".to_owned(), "docker.io/user/app:latest".to_owned()),
            ("index.docker.io/library/busybox".to_owned(), "docker.io/library/busybox:latest".to_owned()),
            ("docker.io/busybox".to_owned(), "docker.io/library/busybox:latest".to_owned()),
            ("localhost/app".to_owned(), "localhost/app:latest".to_owned()),
            ("localhost:5000/app:v1".to_owned(), "localhost:5000/app:v1".to_owned()),
            ("[::1]:5000/app".to_owned(), "[::1]:5000/app:latest".to_owned()),
            ("registry.k8s.io/pause:3.9".to_owned(), "registry.k8s.io/pause:3.9".to_owned()),
            ("a.b/c/d__e/f-g--h.i".to_owned(), "a.b/c/d__e/f-g--h.i:latest".to_owned()),
            (format!("busybox@{digest}"), format!("docker.io/library/busybox@{digest}")),
            (format!("quay.io/a/b:t@{digest}"), format!("quay.io/a/b:t@{digest}")),
        ];
        for (given, canonical) in table {
            let reference = Reference::parse(&given).unwrap();
            assert_eq!(reference.to_string(), canonical, "{given}");
            assert_eq!(Reference::parse(&canonical).unwrap(), reference, "{given}");
        }
    }

    #[test]
    fn odd_references_are_refused_with_a_reason() {
        let id = "0".repeat(64);
        let long = "a".repeat(256);
        let bad = [
            "",
            ":",
            "/",
            "a//b",
            "A",
            "a:b:c/d",
            "a@sha256:1",
            "a@",
            "a:",
            "a:-x",
            "../a",
            "a/../b",
            "a b",
            "a\nb",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "http://a/b",
            "host:99999/a",
            "host:/a",
            "[::x]/a",
            "a?b",
            "a#b",
            "a%2f",
            &id,
            &long,
        ];
        for bad in bad {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }
}
