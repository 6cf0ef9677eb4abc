//! Which images a key of a credentials file is for. No I/O.
//!
//! Keys are written as host (`quay.io`), as URL (`https://index.docker.io/v1/`), with a part of the repository
//! (`quay.io/team`, containers tools and kubelet), and with `*` in parts of the host (kubelet).

/// A key, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    host: String,
    path: String,
}

impl Key {
    pub(crate) fn read(text: &str) -> Self {
        let text = text.trim();
        let bare = ["https://", "http://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let is_url = bare.is_some() || text.ends_with('/');
        let mut bare = bare.unwrap_or(text).trim_end_matches('/');
        if is_url {
            // Docker's addresses of registries end with the version of their interface.
            bare = ["/v1", "/v2"].iter().find_map(|end| bare.strip_suffix(end)).unwrap_or(bare);
        }
        let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
        Self { host: canonical(host), path: path.trim_end_matches('/').to_owned() }
    }

    /// Whether this is the address of the whole registry.
    pub(crate) fn is_host(&self, registry: &str) -> bool {
        self.host == canonical(registry)
    }

    /// How well the key fits an image; the larger, the more is said by it. `None`: it is for others.
    pub(crate) fn fit(&self, registry: &str, repository: &str) -> Option<(usize, bool)> {
        let registry = canonical(registry);
        let exact = self.host == registry;
        if !exact && !wild(&self.host, &registry) {
            return None;
        }
        let rest = repository.strip_prefix(self.path.as_str())?;
        let whole = self.path.is_empty() || rest.is_empty() || rest.starts_with('/');
        whole.then_some((self.path.len(), exact))
    }
}

/// All names of Docker Hub are one.
fn canonical(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        _ => host,
    }
}

/// Whether `host` is one that `pattern` means: `*` stands for any characters within one label.
fn wild(pattern: &str, host: &str) -> bool {
    if !pattern.contains('*') || pattern.split('.').count() != host.split('.').count() {
        return false;
    }
    pattern.split('.').zip(host.split('.')).all(|(pattern, label)| match pattern.split_once('*') {
        None => pattern == label,
        Some((before, after)) => {
            let middle = label.strip_prefix(before).and_then(|rest| {
                // The port belongs to the last label and is not meant by a `*`.
                let after = after.strip_prefix('*').unwrap_or(after);
                rest.strip_suffix(after)
            });
            middle.is_some_and(|middle| !middle.contains(':'))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_the_peers_mean_by_them() {
        let table = [
            ("quay.io", "quay.io", "a/b", Some((0, true))),
            ("https://quay.io", "quay.io", "a/b", Some((0, true))),
            ("https://quay.io/v2/", "quay.io", "a/b", Some((0, true))),
            ("QUAY.io", "quay.io", "a/b", Some((0, true))),
            ("quay.io", "quay.io:443", "a/b", None),
            ("quay.io:5000", "quay.io", "a/b", None),
            ("quay.io/a", "quay.io", "a/b", Some((1, true))),
            ("quay.io/a/", "quay.io", "a/b", Some((1, true))),
            ("quay.io/a/b", "quay.io", "a/b", Some((3, true))),
            ("quay.io/a/b", "quay.io", "a/bc", None),
            ("quay.io/a/b/c", "quay.io", "a/b", None),
            ("quay.io/v2", "quay.io", "v2/x", Some((2, true))),
            ("https://index.docker.io/v1/", "docker.io", "library/busybox", Some((0, true))),
            ("docker.io", "docker.io", "library/busybox", Some((0, true))),
            ("registry-1.docker.io", "docker.io", "library/busybox", Some((0, true))),
            ("docker.io/library", "docker.io", "library/busybox", Some((7, true))),
            ("*.dkr.example", "1.dkr.example", "x", Some((0, false))),
            ("*.dkr.example", "1.2.dkr.example", "x", None),
            ("pre*post.example/x", "pre-and-post.example", "x/y", Some((1, false))),
            ("*.example:5000", "a.example:5000", "x", Some((0, false))),
            ("*.*", "a.example:5000", "x", None),
            ("*", "quay.io", "x", None),
            ("evil.quay.io", "quay.io", "x", None),
            ("quay.io.evil", "quay.io", "x", None),
            ("", "quay.io", "x", None),
        ];
        for (key, registry, repository, expected) in table {
            assert_eq!(
                Key::read(key).fit(registry, repository),
                expected,
                "{key} for {registry}/{repository}"
            );
        }
    }
}
