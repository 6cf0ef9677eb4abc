//! The contract of `Snapshots`, checked on real mounts.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use podhold_image::{Config, IdMap, IdRange, Image, Images, SnapshotError, Snapshots};
use support::{Site, Tar, TestImage, TestRegistry, is_root};

async fn image(site: &Site, registry: &TestRegistry, name: &str, layers: &[Vec<u8>]) -> Arc<Image> {
    registry.push(name, "latest", &TestImage::new(name, layers));
    site.images.pull(&registry.name(name), None, None).await.unwrap()
}

fn base() -> Vec<u8> {
    Tar::new()
        .dir("./", 0o751)
        .dir("etc/", 0o755)
        .file("etc/name", b"base")
        .file("etc/old", b"old")
        .dir("cache/", 0o1777)
        .file("cache/junk", b"junk")
        .build()
}

fn upper() -> Vec<u8> {
    Tar::new().file("etc/name", b"upper").file("etc/.wh.old", b"").file("cache/.wh..wh..opq", b"").build()
}

fn mount_point(site: &Site, name: &str) -> PathBuf {
    let path = site.dir.path().join(name);
    fs::create_dir(&path).unwrap();
    path
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

/// What every implementation keeps.
fn conforms(snapshots: &dyn Snapshots, image: &Image, [one, two]: [&Path; 2]) {
    assert!(snapshots.keys().is_empty());
    snapshots.mount("one", image, one, None).unwrap();
    snapshots.mount("one", image, one, None).unwrap();
    snapshots.mount("two.2_x-y", image, two, None).unwrap();
    let root = fs::metadata(one).unwrap();
    assert_eq!(root.mode() & 0o7777, 0o751, "the root looks as the image says");
    assert_eq!(fs::read(one.join("etc/name")).unwrap(), b"upper");
    assert!(!one.join("etc/old").exists() && !one.join("cache/junk").exists());
    assert_eq!(fs::metadata(one.join("cache")).unwrap().mode() & 0o7777, 0o1777, "as in the layer below");
    fs::write(one.join("etc/name"), vec![b'x'; 50_000]).unwrap();
    fs::remove_file(one.join("etc/none")).unwrap_err();
    assert_eq!(fs::read(two.join("etc/name")).unwrap(), b"upper", "snapshots do not see each other");
    let usage = snapshots.usage("one").unwrap();
    assert!((50_000..200_000).contains(&usage.bytes) && usage.inodes >= 3, "{usage:?}");
    let mut keys = snapshots.keys();
    keys.sort();
    assert_eq!(keys, ["one", "two.2_x-y"]);
    snapshots.unmount(one).unwrap();
    snapshots.unmount(one).unwrap();
    assert!(!is_mounted(one) && is_mounted(two));
    snapshots.mount("one", image, one, None).unwrap();
    assert_eq!(fs::read(one.join("etc/name")).unwrap().len(), 50_000, "writes outlive an unmount");
    let busy = fs::File::open(one.join("etc/name")).unwrap();
    snapshots.unmount(one).unwrap();
    assert!(!is_mounted(one), "lazily, when in use");
    drop(busy);
    assert!(matches!(snapshots.mount("one", image, two, None), Err(SnapshotError::Occupied { .. })));
    snapshots.unmount(two).unwrap();
    snapshots.unmount(&two.join("missing")).unwrap();
    for key in ["one", "one", "two.2_x-y", "never"] {
        snapshots.remove(key).unwrap();
    }
    assert!(snapshots.keys().is_empty());
    assert!(matches!(snapshots.usage("one"), Err(SnapshotError::NotFound(_))));
    for key in ["", ".", "..", "../x", "a/b", "a b", "a\n", &"k".repeat(129)] {
        assert!(
            matches!(snapshots.mount(key, image, one, None), Err(SnapshotError::InvalidKey(_))),
            "{key:?}"
        );
        assert!(snapshots.remove(key).is_err());
    }
    shows_owners_shifted(snapshots, image, one);
}

fn shows_owners_shifted(snapshots: &dyn Snapshots, image: &Image, target: &Path) {
    let host = |path: &str| fs::File::open(path).unwrap().into();
    let ranges = |host| vec![IdRange { container: 0, host, length: 65_536 }];
    let ids = |namespace| IdMap { namespace, uids: ranges(300_000), gids: ranges(500_000) };
    // The host's own namespace maps nothing, and a file is no namespace.
    for path in ["/proc/self/ns/user", "/dev/null"] {
        assert!(snapshots.mount("ids", image, target, Some(&ids(host(path)))).is_err(), "{path}");
    }
    snapshots.remove("ids").unwrap();
    let mut holder = user_namespace("0 300000 65536", "0 500000 65536");
    let ids = ids(host(&format!("/proc/{}/ns/user", holder.id())));
    snapshots.check_ids(&ids).unwrap();
    snapshots.mount("ids", image, target, Some(&ids)).unwrap();
    snapshots.mount("ids", image, target, Some(&ids)).unwrap();
    let owner = |path: &str| fs::metadata(target.join(path)).map(|found| (found.uid(), found.gid())).unwrap();
    assert_eq!([owner(""), owner("etc/name"), owner("cache")], [(300_000, 500_000); 3]);
    fs::write(target.join("etc/name"), "changed").unwrap();
    assert_eq!(owner("etc/name"), (300_000, 500_000), "also once it was copied up");
    snapshots.unmount(target).unwrap();
    snapshots.mount("ids", image, target, Some(&ids)).unwrap();
    assert_eq!(fs::read(target.join("etc/name")).unwrap(), b"changed");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(owner("etc"), (300_000, 500_000), "whoever made the namespace may end");
    snapshots.unmount(target).unwrap();
    snapshots.remove("ids").unwrap();
}

/// A process in a user namespace with these mappings.
fn user_namespace(uids: &str, gids: &str) -> std::process::Child {
    let mut holder = std::process::Command::new("unshare")
        .args(["--user", "sh", "-c", "echo; exec sleep 1000"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0];
    std::io::Read::read_exact(&mut holder.stdout.take().unwrap(), &mut said).unwrap();
    for (file, map) in [("uid_map", uids), ("gid_map", gids)] {
        fs::write(format!("/proc/{}/{file}", holder.id()), map).unwrap();
    }
    holder
}

#[tokio::test(flavor = "multi_thread")]
async fn overlay_keeps_the_contract() {
    if !is_root() {
        return;
    }
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    let image = image(&site, &registry, "app", &[base(), upper()]).await;
    let (one, two) = (mount_point(&site, "one"), mount_point(&site, "two"));
    conforms(&*site.images.snapshots(), &image, [&one, &two]);
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_stay_while_a_snapshot_needs_them() {
    if !is_root() {
        return;
    }
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    let image = image(&site, &registry, "app", &[base(), upper()]).await;
    let target = mount_point(&site, "mnt");
    let snapshots = site.images.snapshots();
    snapshots.mount("c1", &image, &target, None).unwrap();
    site.images.remove(&image.id).await.unwrap();
    assert!(site.images.list().is_empty());
    assert_eq!(site.count("layers"), 2);
    snapshots.unmount(&target).unwrap();
    snapshots.mount("c1", &image, &target, None).unwrap();
    assert_eq!(fs::read(target.join("etc/name")).unwrap(), b"upper");
    snapshots.unmount(&target).unwrap();
    snapshots.remove("c1").unwrap();
    assert_eq!(site.count("layers"), 0);
    let error = snapshots.mount("c2", &image, &target, None).unwrap_err();
    assert!(matches!(error, SnapshotError::MissingLayer { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_shows_an_image_read_only_and_holds_its_layers() {
    if !is_root() {
        return;
    }
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    let one_layer = image(&site, &registry, "one", &[base()]).await;
    let two_layers = image(&site, &registry, "two", &[base(), upper()]).await;
    let none = image(&site, &registry, "none", &[]).await;
    let (target, other) = (mount_point(&site, "mnt"), mount_point(&site, "other"));
    let snapshots = site.images.snapshots();
    for (key, image, shown) in
        [("c1.0", &one_layer, Some("base")), ("c1.1", &two_layers, Some("upper")), ("c1.2", &none, None)]
    {
        snapshots.view(key, image, &target, None).unwrap();
        snapshots.view(key, image, &target, None).unwrap();
        let mode = fs::metadata(&target).unwrap().mode() & 0o777;
        assert_eq!(mode, if shown.is_some() { 0o751 } else { 0o755 }, "{key}: the image's own root");
        let name = fs::read_to_string(target.join("etc/name")).ok();
        assert_eq!(name.as_deref(), shown, "{key}");
        let refused = fs::write(target.join("mine"), b"w").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{key}");
        // Somebody else's mount is not taken for it.
        let occupied = snapshots.view("c2.0", image, &target, None).unwrap_err();
        assert!(matches!(occupied, SnapshotError::Occupied { .. }), "{occupied}");
        snapshots.remove("c2.0").unwrap();
        snapshots.unmount(&target).unwrap();
    }
    site.images.remove(&two_layers.id).await.unwrap();
    snapshots.view("c1.1", &two_layers, &other, None).unwrap();
    assert_eq!(fs::read(other.join("etc/name")).unwrap(), b"upper");
    snapshots.unmount(&other).unwrap();
    for key in ["c1.0", "c1.1", "c1.2"] {
        snapshots.remove(key).unwrap();
    }
    assert!(snapshots.keys().is_empty());
    assert_eq!(site.count("layers"), 1, "the removed image's own layer is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_survive_a_restart() {
    if !is_root() {
        return;
    }
    let registry = TestRegistry::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = Config { dir: dir.path().join("images"), ..Config::default() };
    let site = Site { images: Images::open(config.clone()).await.unwrap(), dir };
    let image = image(&site, &registry, "app", &[base()]).await;
    let target = mount_point(&site, "mnt");
    site.images.snapshots().mount("c1", &image, &target, None).unwrap();
    fs::write(target.join("mine"), b"w").unwrap();
    let Site { dir, images } = site;
    drop(images);
    fs::create_dir(config.dir.join("snapshots/.7")).unwrap();
    let images = Images::open(config.clone()).await.unwrap();
    let snapshots = images.snapshots();
    assert_eq!(snapshots.keys(), ["c1"]);
    snapshots.mount("c1", &image, &target, None).unwrap();
    images.remove(&image.id).await.unwrap();
    snapshots.unmount(&target).unwrap();
    snapshots.mount("c1", &image, &target, None).unwrap();
    assert_eq!(fs::read(target.join("mine")).unwrap(), b"w");
    snapshots.unmount(&target).unwrap();
    snapshots.remove("c1").unwrap();
    assert_eq!(fs::read_dir(config.dir.join("layers")).unwrap().count(), 0);
    drop(dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshots_record_is_written_as_all_records_are() {
    if !is_root() {
        return;
    }
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    let image = image(&site, &registry, "app", &[base()]).await;
    let target = mount_point(&site, "mnt");
    let snapshots = site.images.snapshots();
    snapshots.mount("c1", &image, &target, None).unwrap();
    let dir = site.dir.path().join("images/snapshots/c1");
    let mut names: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["fs", "snapshot.json", "work"], "no half-written record beside it");
    // The mode the store's record writer gives, which syncs before it renames.
    assert_eq!(fs::metadata(dir.join("snapshot.json")).unwrap().mode() & 0o777, 0o600);
    snapshots.unmount(&target).unwrap();
    snapshots.remove("c1").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_layers_and_none_can_be_mounted() {
    if !is_root() {
        return;
    }
    let (site, registry) = (Site::new().await, TestRegistry::start().await);
    let layers: Vec<_> = (0..130).map(|n| Tar::new().file(&format!("f{n}"), b"x").build()).collect();
    let many = image(&site, &registry, "many", &layers).await;
    let none = image(&site, &registry, "none", &[]).await;
    let (a, b) = (mount_point(&site, "a"), mount_point(&site, "b"));
    let snapshots = site.images.snapshots();
    snapshots.mount("many", &many, &a, None).unwrap();
    snapshots.mount("none", &none, &b, None).unwrap();
    assert_eq!(fs::read_dir(&a).unwrap().count(), 130);
    fs::write(b.join("x"), b"x").unwrap();
    for (key, target) in [("many", &a), ("none", &b)] {
        snapshots.unmount(target).unwrap();
        snapshots.remove(key).unwrap();
    }
}
