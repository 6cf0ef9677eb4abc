//! Paths with words in the place of what is random in them, so that the same step has the same name in
//! every run. Pure.

/// Turns paths into words.
#[derive(Debug)]
pub(super) struct Words {
    root: String,
}

impl Words {
    /// For a daemon whose files lie beneath `root`.
    pub(super) fn new(root: &str) -> Self {
        Self { root: format!("{}/", root.trim_end_matches('/')) }
    }

    pub(super) fn path(&self, path: &str) -> String {
        let path = path.trim_end_matches(" (deleted)");
        if let Some(rest) = path.strip_prefix("/proc/") {
            return process(rest);
        }
        if let Some(rest) = path.strip_prefix("/sys/fs/cgroup/") {
            return cgroup(rest);
        }
        match path.strip_prefix(&self.root) {
            Some(rest) => beneath(rest),
            None => parts(path, ""),
        }
    }
}

/// A file of a process.
fn process(rest: &str) -> String {
    let words: Vec<&str> = rest.split('/').map(|part| if is_number(part) { "N" } else { part }).collect();
    format!("/proc/{}", words.join("/"))
}

/// A cgroup, whichever hierarchy it is in.
fn cgroup(rest: &str) -> String {
    let mut after = rest.split('/').skip_while(|part| !part.starts_with("podhold-it-")).skip(1).peekable();
    if after.peek().is_none() {
        return "cgroup PARENT".to_owned();
    }
    let words: Vec<String> = after.map(cgroup_part).collect();
    format!("cgroup {}", name_ids(words))
}

fn cgroup_part(part: &str) -> String {
    match part.strip_prefix("pause-") {
        Some(id) if is_id(id) => "pause".to_owned(),
        _ if part.starts_with("pod") && part.contains('-') => "podUID".to_owned(),
        _ => part.to_owned(),
    }
}

/// In a cgroup the pod comes first, unless its cgroup is named by its UID.
fn name_ids(words: Vec<String>) -> String {
    let mut names = ["POD", "CONTAINER"].into_iter();
    if words.iter().any(|word| word == "podUID") {
        names.next();
    }
    let named = words.into_iter().map(|word| match is_id(&word) {
        true => names.next().unwrap_or("ID").to_owned(),
        false => word,
    });
    named.collect::<Vec<_>>().join("/")
}

/// A file of the daemon's. What is in an image is one word: it does not matter which file of it.
fn beneath(rest: &str) -> String {
    for inside in ["/fs/", "/upper/", "/rootfs/"] {
        if let Some((before, _)) = rest.split_once(inside) {
            return format!("{}{inside}…", parts(before, ""));
        }
    }
    parts(rest, "")
}

fn parts(path: &str, above: &str) -> String {
    let mut above = above.to_owned();
    let mut words = Vec::new();
    for part in path.split('/') {
        words.push(part_word(part, &above));
        above = part.to_owned();
    }
    words.join("/")
}

fn part_word(part: &str, above: &str) -> String {
    let (id, rest) = part.split_at(part.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(part.len()));
    if is_id(id) {
        let word = match above {
            "pods" | "netns" | "cni" => "POD",
            "containers" | "snapshots" => "CONTAINER",
            _ => "ID",
        };
        return format!("{word}{rest}");
    }
    // Made by the kubelet from the pod's UID.
    if above == "pod-logs" {
        return "POD".to_owned();
    }
    if above == "snapshots" && part.starts_with('.') {
        return ".N".to_owned();
    }
    let numbered = is_number(part) && matches!(above, "ingest" | "layers" | "trash" | "task" | "fd");
    if numbered { "N".to_owned() } else { part.to_owned() }
}

fn is_id(text: &str) -> bool {
    text.len() >= 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_random_becomes_a_word() {
        let words = Words::new("/tmp/podhold-it-x");
        let id = "0123456789abcdef".repeat(4);
        let is = |path: &str, expected: &str| assert_eq!(words.path(&path.replace("ID", &id)), expected);
        is("/tmp/podhold-it-x/state/pods/ID/pod.json.new", "state/pods/POD/pod.json.new");
        is("/tmp/podhold-it-x/run/pods/ID/containers/ID", "run/pods/POD/containers/CONTAINER");
        is("/tmp/podhold-it-x/state/images/ingest/7/fs/etc/passwd", "state/images/ingest/N/fs/…");
        is("/tmp/podhold-it-x/state/images/layers/12", "state/images/layers/N");
        is("/sys/fs/cgroup/cpu,cpuacct/podhold-it-1-1/ID/pause-ID", "cgroup POD/pause");
        is("/sys/fs/cgroup/memory/podhold-it-1-1/ID/ID/tasks", "cgroup POD/CONTAINER/tasks");
        is("/sys/fs/cgroup/memory/podhold-it-1-1", "cgroup PARENT");
        is("/sys/fs/cgroup/pids/podhold-it-1-1/kubepods/pod0-0-1/ID", "cgroup kubepods/podUID/CONTAINER");
        is("/tmp/podhold-it-x/pod-logs/default_killed_0-0-1/one", "pod-logs/POD/one");
        is("/tmp/podhold-it-x/state/images/snapshots/.3/fs", "state/images/snapshots/.N/fs");
        is("/proc/4711/fd/9", "/proc/N/fd/N");
        is("/etc/hosts", "/etc/hosts");
    }
}
