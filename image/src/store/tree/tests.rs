//! Trees that change, and what is told of it. Needs a file system with extended attributes of users.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

fn open(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

/// A tree, and where it is noted.
fn tree(dir: &Path) -> (OwnedFd, std::path::PathBuf, String) {
    let root = dir.join("fs");
    let mut contents = Contents::default();
    for name in ["", "a", "a/b", "a.d", "a.d/e", "z"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    for name in ["a/file", "a/b/file", "a.d/e/file", "file", "zero"] {
        let text = if name == "zero" { "" } else { name };
        fs::write(root.join(name), text).unwrap();
        let inode = fs::metadata(root.join(name)).unwrap().ino();
        contents.note(inode, XxHash3_128::oneshot(text.as_bytes()));
    }
    fs::hard_link(root.join("file"), root.join("z/link")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("link")).unwrap();
    let (root, place) = (open(&root), dir.join("tree"));
    let hash = write(&root, &contents.sorted(), &place).unwrap();
    (root, place, hash)
}

fn found(dir: &Path, work: impl FnOnce(&Path)) -> Vec<(String, String)> {
    let (root, place, hash) = tree(dir);
    assert_eq!(compare(&root, (&place, &hash), 9).unwrap(), (Vec::new(), 0));
    work(&dir.join("fs"));
    let (differences, count) = compare(&root, (&place, &hash), 9).unwrap();
    assert_eq!(count, differences.len() as u64);
    differences.into_iter().map(|difference| (difference.path, difference.what)).collect()
}

#[test]
fn every_change_is_told_with_its_path() {
    let keep_time = |path: &Path, work: &dyn Fn()| {
        let time = fs::metadata(path).unwrap().modified().unwrap();
        work();
        fs::File::open(path).unwrap().set_modified(time).unwrap();
    };
    type Work<'a> = &'a dyn Fn(&Path);
    let cases: [(Work<'_>, &[(&str, &str)]); 6] = [
        (
            &|root| {
                keep_time(&root.join("a/b/file"), &|| fs::write(root.join("a/b/file"), "a/B/file").unwrap())
            },
            &[("/a/b/file", "other content")],
        ),
        (
            &|root| keep_time(&root.join("a/b"), &|| fs::remove_file(root.join("a/b/file")).unwrap()),
            &[("/a/b/file", "is missing")],
        ),
        (
            &|root| keep_time(&root.join("a.d"), &|| fs::write(root.join("a.d/new"), "").unwrap()),
            &[("/a.d/new", "is not of the layer")],
        ),
        (
            &|root| fs::set_permissions(root.join("zero"), fs::Permissions::from_mode(0o600)).unwrap(),
            &[("/zero", "mode 0600 instead of 0644")],
        ),
        (
            &|root| {
                keep_time(root, &|| {
                    fs::remove_file(root.join("link")).unwrap();
                    std::os::unix::fs::symlink("elsewhere", root.join("link")).unwrap();
                })
            },
            &[("/link", "other content")],
        ),
        (
            &|root| keep_time(root, &|| fs::remove_dir_all(root.join("a.d")).unwrap()),
            &[("/a.d", "is missing"), ("/a.d/e", "is missing"), ("/a.d/e/file", "is missing")],
        ),
    ];
    for (work, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let found = found(dir.path(), work);
        let matches = |(found, expected): (&(String, String), &(&str, &str))| {
            found.0 == expected.0 && found.1.contains(expected.1)
        };
        assert!(
            found.len() == expected.len() && found.iter().zip(expected).all(matches),
            "{found:?}, not {expected:?}"
        );
    }
}

#[test]
fn holes_are_zeros_and_what_was_not_noted_is_read() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("fs");
    fs::create_dir(&root).unwrap();
    let make = |name: &str| {
        let file = fs::File::create(root.join(name)).unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(b"data", (1 << 20) + 7).unwrap();
        file
    };
    let (noted, unnoted) = (make("noted"), make("unnoted"));
    let mut contents = Contents::default();
    let whole = fs::read(root.join("noted")).unwrap();
    contents.note(noted.metadata().unwrap().ino(), XxHash3_128::oneshot(&whole));
    let (open_root, place) = (open(&root), dir.path().join("tree"));
    let hash = write(&open_root, &contents.sorted(), &place).unwrap();
    assert_eq!(compare(&open_root, (&place, &hash), 9).unwrap(), (Vec::new(), 0));
    for file in [noted, unnoted] {
        let time = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(b"x", 2 << 20).unwrap();
        file.set_modified(time).unwrap();
    }
    let (differences, _) = compare(&open_root, (&place, &hash), 9).unwrap();
    let told: Vec<_> = differences.iter().map(|found| (found.path.as_str(), found.what.as_str())).collect();
    assert_eq!(told, [("/noted", "other content"), ("/unnoted", "other content")]);
}

#[test]
fn extended_attributes_count_and_a_damaged_note_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let set = |root: &Path| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(root.join("file"), "user.a", b"b", flags).unwrap();
    };
    let found = found(dir.path(), set);
    // One file with two names.
    assert_eq!(found, [("/file".to_owned(), "other extended attributes (also /z/link)".to_owned())]);
    let place = dir.path().join("tree");
    let mut bytes = fs::read(&place).unwrap();
    let hash = hash_of_file(&place).unwrap();
    bytes[3] ^= 1;
    fs::write(&place, bytes).unwrap();
    assert!(compare(&open(&dir.path().join("fs")), (&place, &hash), 9).is_err());
}
