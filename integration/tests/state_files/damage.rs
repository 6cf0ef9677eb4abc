//! The ways in which a file or directory of ours can be damaged.

use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// One way, with a name for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    Truncated,
    Empty,
    RandomBytes,
    DeeplyNested,
    Huge,
    NulBytes,
    AnotherShape,
    AnotherId,
    OlderVersion,
    NewerVersion,
    ForeignOwner,
    GroupWritable,
    WorldWritable,
    Symlink,
    Fifo,
    Directory,
    Device,
    /// Nothing is there any more.
    Missing,
}

/// All ways in which a record can be damaged.
pub(crate) const OF_RECORDS: [Damage; 17] = [
    Damage::Truncated,
    Damage::Empty,
    Damage::RandomBytes,
    Damage::DeeplyNested,
    Damage::Huge,
    Damage::NulBytes,
    Damage::AnotherShape,
    Damage::AnotherId,
    Damage::OlderVersion,
    Damage::NewerVersion,
    Damage::ForeignOwner,
    Damage::GroupWritable,
    Damage::WorldWritable,
    Damage::Symlink,
    Damage::Fifo,
    Damage::Directory,
    Damage::Device,
];

/// All ways in which a directory can be damaged.
pub(crate) const OF_DIRECTORIES: [Damage; 7] = [
    Damage::ForeignOwner,
    Damage::GroupWritable,
    Damage::WorldWritable,
    Damage::Symlink,
    Damage::Fifo,
    Damage::Device,
    Damage::Missing,
];

/// What was at a path before it was damaged.
#[derive(Debug)]
pub(crate) struct Good {
    path: PathBuf,
    aside: PathBuf,
}

impl Good {
    /// Damages what is at `path`.
    pub(crate) fn damage(path: &Path, how: Damage) -> Self {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // Beside the whole state directory's tree, on the same file system.
        let place = tempfile::Builder::new().prefix("podhold-good-").tempdir().unwrap().keep();
        let aside = place.join(name);
        fs::rename(path, &aside).unwrap();
        apply(path, &aside, how);
        Self { path: path.to_owned(), aside }
    }

    /// Puts it back as an administrator does from a backup.
    pub(crate) fn put_back(self) {
        remove(&self.path);
        if self.aside.is_dir() {
            chown(&self.aside, Some(0), Some(0)).unwrap();
            fs::set_permissions(&self.aside, fs::Permissions::from_mode(0o700)).unwrap();
        }
        fs::rename(&self.aside, &self.path).unwrap();
        self.forget();
    }

    /// Whether it is as it was, with all that is in it.
    pub(crate) fn is_whole(&self) -> bool {
        self.aside.is_dir() && fs::read_dir(&self.aside).unwrap().next().is_some()
    }

    /// Nobody wants it back.
    pub(crate) fn forget(&self) {
        fs::remove_dir_all(self.aside.parent().unwrap()).unwrap();
    }
}

fn remove(path: &Path) {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

fn apply(path: &Path, good: &Path, how: Damage) {
    let copy = || {
        if good.is_dir() {
            copy_tree(good, path);
        } else {
            fs::copy(good, path).unwrap();
        }
    };
    let mode = |mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let write = |bytes: &[u8]| {
        fs::write(path, bytes).unwrap();
        mode(0o600);
    };
    match how {
        Damage::Truncated => {
            let whole = fs::read(good).unwrap();
            write(&whole[..whole.len() / 2]);
        }
        Damage::Empty => write(b""),
        Damage::RandomBytes => {
            let mut bytes = [0; 4096];
            rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
            write(&bytes);
        }
        Damage::DeeplyNested => {
            let mut text = b"{\"version\":1,\"data\":".to_vec();
            text.extend(std::iter::repeat_n(b'[', 1 << 20));
            write(&text);
        }
        Damage::Huge => {
            write(b"{\"version\":1,\"data\":\"");
            // Sparse: it takes no room on the disk.
            fs::File::options().append(true).open(path).unwrap().set_len(64 << 30).unwrap();
        }
        Damage::NulBytes => write(&[0; 1000]),
        Damage::AnotherShape => write(br#"{"version":1,"data":{"id":[],"layers":7}}"#),
        Damage::AnotherId => write(&with_another_id(&fs::read(good).unwrap())),
        Damage::OlderVersion => write(&with_version(&fs::read(good).unwrap(), 0)),
        Damage::NewerVersion => write(&with_version(&fs::read(good).unwrap(), 2)),
        Damage::ForeignOwner => {
            copy();
            chown(path, Some(12345), None).unwrap();
        }
        Damage::GroupWritable => {
            copy();
            mode(0o770);
        }
        Damage::WorldWritable => {
            copy();
            mode(0o706);
        }
        Damage::Symlink => symlink(good, path).unwrap(),
        Damage::Fifo => mknod(path, SFlag::S_IFIFO, Mode::S_IRWXU, 0).unwrap(),
        Damage::Directory => {
            fs::create_dir(path).unwrap();
            fs::write(path.join("full"), "").unwrap();
        }
        Damage::Device => mknod(path, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap(),
        Damage::Missing => {}
    }
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let place = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &place);
        } else {
            fs::copy(entry.path(), place).unwrap();
        }
    }
}

fn changed(text: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut value: serde_json::Value = serde_json::from_slice(text).unwrap();
    change(&mut value);
    let mut out = Vec::new();
    out.write_all(value.to_string().as_bytes()).unwrap();
    out
}

fn with_version(text: &[u8], version: u32) -> Vec<u8> {
    changed(text, |value| value["version"] = version.into())
}

/// With every id another one, as in a file that was put back at the wrong place.
fn with_another_id(text: &[u8]) -> Vec<u8> {
    changed(text, |value| {
        for field in ["id", "pod"] {
            for place in ["", "/data"] {
                let found = value.pointer_mut(place).and_then(|object| object.get_mut(field));
                if let Some(id) = found {
                    *id = "f".repeat(64).into();
                }
            }
        }
    })
}
