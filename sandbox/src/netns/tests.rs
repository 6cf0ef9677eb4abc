//! Real namespaces, in a directory of their own.

use std::{net::TcpListener, os::unix::fs::MetadataExt};

use super::*;

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIPPED: network namespaces need root");
    }
    root
}

#[test]
fn a_namespace_is_new_and_its_loopback_works() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/ns");
    create(&path).unwrap();
    let first = inode(&path);
    assert_ne!(first, inode(Path::new("/proc/self/ns/net")));
    create(&path).unwrap();
    assert_eq!(inode(&path), first, "creating again keeps the namespace");
    let before = inode(Path::new("/proc/thread-self/ns/net"));
    run_in(&path, || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()).unwrap();
    assert_eq!(inode(Path::new("/proc/thread-self/ns/net")), before, "the caller's thread stays at home");
    let stats = interface_stats(&path).unwrap();
    assert_eq!(stats[0].name, "lo");
    remove(&path).unwrap();
    remove(&path).unwrap();
    assert!(!path.exists());
    assert!(run_in(&path, || ()).unwrap_err().is_missing());
}

#[test]
fn a_file_left_by_an_earlier_boot_is_used_again() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ns");
    fs::write(&path, "").unwrap();
    assert!(!exists(&path));
    assert!(matches!(run_in(&path, || ()), Err(NetnsError::NotMounted(_))));
    create(&path).unwrap();
    assert!(exists(&path));
    remove(&path).unwrap();
}

#[test]
fn a_symbolic_link_is_not_followed() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (link, target) = (dir.path().join("link"), dir.path().join("target"));
    fs::write(&target, "").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert!(create(&link).is_err());
    assert!(run_in(&link, || ()).is_err());
    assert!(target.exists());
}

#[test]
fn a_panic_in_a_namespace_is_an_error() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ns");
    create(&path).unwrap();
    let result = run_in(&path, || -> () { panic!("on purpose") });
    assert!(matches!(result, Err(NetnsError::Panicked(_))));
    remove(&path).unwrap();
}

#[test]
fn many_namespaces_are_made_at_once() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..16).map(|n| dir.path().join(n.to_string())).collect();
    thread::scope(|scope| {
        let made: Vec<_> = paths.iter().map(|path| scope.spawn(|| create(path))).collect();
        made.into_iter().for_each(|made| made.join().unwrap().unwrap());
    });
    let mut inodes: Vec<_> = paths.iter().map(|path| inode(path)).collect();
    inodes.sort_unstable();
    inodes.dedup();
    assert_eq!(inodes.len(), 16);
    for path in paths {
        remove(&path).unwrap();
    }
}
