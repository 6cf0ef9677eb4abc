//! `skopeo` and `umoci` make the same root filesystem of an image as we do, file by file.
//!
//! What umoci does wrong, or cannot do, is written down in [`umoci_differs`], with the reason.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::BTreeMap,
    fmt, fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

use podhold_integration::{
    configs::container,
    images::blob::digest,
    require, rig,
    rig::{BUSYBOX, REGISTRY, Rig},
};

/// What one path of a tree is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct File {
    mode: u32,
    owner: (u32, u32),
    time: (i64, i64),
    device: u64,
    content: Content,
    attributes: BTreeMap<String, Vec<u8>>,
    /// The first of the names that this file has.
    same_as: String,
}

#[derive(Clone, PartialEq, Eq)]
enum Content {
    Regular { size: u64, digest: String },
    Link(Vec<u8>),
    Other,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Regular { size, digest } => write!(f, "{size} bytes, {digest}"),
            Self::Link(target) => write!(f, "link to {}", target.escape_ascii()),
            Self::Other => f.write_str("-"),
        }
    }
}

type Tree = BTreeMap<String, File>;

/// Everything beneath `root`, by escaped path.
fn tree(root: &Path) -> Tree {
    let mut files = Tree::new();
    let mut first_names = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let content = if meta.is_file() {
            let bytes = fs::read(&path).unwrap();
            Content::Regular { size: meta.len(), digest: digest(&bytes) }
        } else if meta.is_symlink() {
            Content::Link(fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec())
        } else {
            Content::Other
        };
        let kind = meta.file_type();
        let is_device = kind.is_char_device() || kind.is_block_device();
        if !meta.is_dir() {
            let first: &mut String = first_names.entry((meta.dev(), meta.ino())).or_insert(name.clone());
            *first = name.clone().min(first.clone());
        }
        let file = File {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            time: (meta.mtime(), meta.mtime_nsec()),
            device: if is_device { meta.rdev() } else { 0 },
            content,
            attributes: attributes(&path),
            same_as: format!("{}:{}", meta.dev(), meta.ino()),
        };
        files.insert(name, file);
    }
    let by_number: BTreeMap<String, String> =
        first_names.into_iter().map(|((dev, ino), name)| (format!("{dev}:{ino}"), name)).collect();
    for (name, file) in &mut files {
        file.same_as = by_number.get(&file.same_as).unwrap_or(name).clone();
    }
    files
}

fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0_u8; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = std::str::from_utf8(name).unwrap().to_owned();
            let mut value = vec![0_u8; 64 << 10];
            let length = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..]).unwrap();
            value.truncate(length);
            (name, value)
        })
        .collect()
}

/// Makes both trees equal where umoci 0.4.7 differs from us and the archives say nothing: the time of the root
/// directory when no layer has an entry for it. umoci takes 1970, we the time of the pull.
///
/// umoci cannot unpack GNU sparse files and layers in zstd at all: they are in no image compared here.
fn umoci_differs(ours: &Tree, theirs: &mut Tree) {
    if let (Some(our), Some(their)) = (ours.get(""), theirs.get_mut("")) {
        their.time = our.time;
    }
}

/// Where the container's root filesystem is for us.
fn rootfs(rig: &Rig, pod: &str, container: &str) -> std::path::PathBuf {
    let inside = rig.places.run().join("pods").join(pod).join("containers").join(container).join("rootfs");
    let root = format!("/proc/{}/root", rig.daemon_on_the_host());
    Path::new(&root).join(inside.strip_prefix("/").unwrap())
}

/// Unpacks an image with skopeo and umoci, and compares.
async fn compare(rig: &Rig, image: &str) {
    let work = tempfile::tempdir_in(rig.machine.directory()).unwrap();
    let path = |name: &str| work.path().join(name).display().to_string();
    let copied = format!("oci:{}:it", path("oci"));
    let source = format!("docker://{image}");
    let copy = ["skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", &source, &copied];
    rig.machine.run_well(copy).await.unwrap_or_else(|error| panic!("{image}: {error}"));
    let (layout, bundle) = (format!("{}:it", path("oci")), path("bundle"));
    rig.machine
        .run_well(["umoci", "unpack", "--image", &layout, &bundle])
        .await
        .unwrap_or_else(|error| panic!("{image}: {error}"));
    rig.cri().pull(image).await.unwrap();
    let config = rig.pod("trees");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let made = rig.cri().create(&pod, &config, &container("trees", image, &["x"])).await.unwrap();
    let (ours, mut theirs) = (tree(&rootfs(rig, &pod, &made)), tree(&work.path().join("bundle/rootfs")));
    umoci_differs(&ours, &mut theirs);
    let mut differences = Vec::new();
    for name in ours.keys().chain(theirs.keys()).collect::<std::collections::BTreeSet<_>>() {
        let (our, their) = (ours.get(name), theirs.get(name));
        if our != their {
            differences.push(format!("/{name}\n  ours   {our:?}\n  umoci  {their:?}"));
        }
    }
    println!("{image}: {} files compared", ours.len());
    rig.cri().end_pod(&pod).await.unwrap();
    assert!(differences.is_empty(), "{image}:\n{}", differences.join("\n"));
}

#[tokio::test]
async fn skopeo_and_umoci_make_the_same_trees() {
    require!(program "skopeo", program "umoci");
    let rig = rig!();
    for image in [format!("{REGISTRY}/nasty:1"), BUSYBOX.to_owned()] {
        compare(&rig, &image).await;
    }
    rig.finish().await;
}
