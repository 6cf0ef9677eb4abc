//! What a directory tree is, file by file, so that two can be compared.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

use sha2::{Digest, Sha256};

/// Everything about each file, by its path.
pub type Tree = BTreeMap<String, String>;

/// Reads a tree: type, owner, mode, time, attributes, links among its files, content.
pub fn read(root: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    let mut first_names = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let found = fs::symlink_metadata(&path)?;
        let name = path.strip_prefix(root).map_err(io::Error::other)?.display().to_string();
        let kind = found.file_type();
        let content = if kind.is_file() {
            hex(&Sha256::digest(fs::read(&path)?))
        } else if kind.is_symlink() {
            format!("to {}", fs::read_link(&path)?.display())
        } else if kind.is_char_device() || kind.is_block_device() {
            format!("device {}", found.rdev())
        } else {
            String::new()
        };
        if kind.is_dir() {
            for entry in fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        } else {
            first_names.entry(found.ino()).or_insert_with(Vec::new).push(name.clone());
        }
        let size = if kind.is_dir() { 0 } else { found.len() };
        let (mode, uid, gid) = (found.mode(), found.uid(), found.gid());
        // What no archive describes (a whiteout, a root) has the time at which it was made; archives give times
        // in whole seconds.
        let time = if found.mtime_nsec() == 0 { found.mtime().to_string() } else { "now".to_owned() };
        let xattrs = attributes(&path)?;
        let what = format!("{mode:o} {uid}:{gid} {size} {time} {xattrs} {content}");
        tree.insert(name, what);
    }
    for mut names in first_names.into_values().filter(|names| names.len() > 1) {
        names.sort();
        let what = format!(" same as {}", names[0]);
        for name in &names[1..] {
            tree.entry(name.clone()).or_default().push_str(&what);
        }
    }
    Ok(tree)
}

fn attributes(path: &Path) -> io::Result<String> {
    let mut names = vec![0_u8; 64 << 10];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice())?;
    let mut found = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0_u8; 64 << 10];
        let name = std::ffi::OsStr::from_bytes(name);
        let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice())?;
        found.insert(name.to_owned(), hex(&value[..length]));
    }
    Ok(format!("{found:?}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first differences, in words.
pub fn differences(found: &Tree, truth: &Tree) -> Vec<String> {
    let mut words = Vec::new();
    for (name, what) in truth {
        match found.get(name) {
            None => words.push(format!("{name:?} is missing")),
            Some(other) if other != what => words.push(format!("{name:?} is {other}, not {what}")),
            Some(_) => {}
        }
    }
    words.extend(
        found.keys().filter(|name| !truth.contains_key(*name)).map(|name| format!("{name:?} is new")),
    );
    words
}
