//! Stand-ins for the images that the official CRI suite (sigs.k8s.io/cri-tools, `critest`) pulls.
//!
//! They have the names of the suite's own images without their registry: all registries of the suite are
//! mirrored to ours. Their programs are Debian's busybox and `podhold-probe`, under the names by which
//! the suite calls them. Nothing is upstream's.

use super::{
    Compression, Image, ImageBuilder, Layer, LayerBuilder,
    catalogue::{APPLETS, Named, foreign},
    index,
};

/// The registries that the suite names.
pub const REGISTRIES: [&str; 5] = ["registry.k8s.io", "k8s.gcr.io", "gcr.io", "docker.io", "quay.io"];

/// Applets that only the suite needs.
const MORE_APPLETS: [&str; 7] = ["brctl", "ping", "pidof", "netstat", "top", "xargs", "find"];

/// Stand-ins in `podhold-probe` for what busybox lacks.
const STAND_INS: [&str; 3] = ["bin/sh", "bin/pgrep", "bin/ipcs"];

const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nginx:x:101:101:nginx:/nonexistent:/bin/false
default-user:x:1000:1000:default-user:/home:/bin/sh
nobody:x:65534:65534:nobody:/home:/bin/false
";

const GROUP: &str = "\
root:x:0:
daemon:x:1:
www-data:x:33:
nginx:x:101:
users:x:100:
default-user:x:1000:
group-defined-in-image:x:50000:default-user
nobody:x:65534:
";

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// All stand-ins, from the programs `probe` and `busybox`.
pub(super) fn images(probe: &[u8], busybox: &[u8]) -> Vec<Named> {
    let tools = tools(probe, busybox);
    let e2e = |name: &'static str, tag, image| Named { repository: name, tag, image };
    let mut images = vec![
        e2e("e2e-test-images/busybox", "1.29-2", for_two_machines(shell(&tools).finish())),
        e2e("e2e-test-images/nginx", "1.14-2", web(&tools, "nginx", None)),
        e2e("e2e-test-images/httpd", "2.4.39-4", web(&tools, "httpd", None)),
        e2e("e2e-test-images/nonewprivs", "1.3", set_uid(probe)),
        e2e("pause", "3.9", for_two_machines(pause(probe))),
        e2e("k8s-staging-cri-tools/hostnet-nginx-amd64", "latest", web(&tools, "nginx", Some("12003"))),
    ];
    images.extend(users(&tools));
    images.extend(plain(&tools));
    images
}

/// Images that differ in nothing but a file, one of them under three tags.
fn plain(tools: &Layer) -> impl Iterator<Item = Named> {
    [
        ("k8s-staging-cri-tools/test-image-latest", &["latest"][..]),
        ("k8s-staging-cri-tools/test-image-tag", &["test"]),
        ("k8s-staging-cri-tools/test-image-tag", &["all"]),
        ("k8s-staging-cri-tools/test-image-1", &["latest"]),
        ("k8s-staging-cri-tools/test-image-2", &["latest"]),
        ("k8s-staging-cri-tools/test-image-3", &["latest"]),
        ("k8s-staging-cri-tools/test-image-tags", &["1", "2", "3"]),
    ]
    .into_iter()
    .flat_map(|(repository, tags)| {
        let name = format!("/{}-{}", repository.rsplit('/').next().unwrap_or_default(), tags[0]);
        let mark = LayerBuilder::new().file(&name, 0o644, "").finish(Compression::Gzip);
        let image = shell(tools).layer(mark).finish();
        tags.iter().map(move |tag| Named { repository, tag, image: image.clone() })
    })
}

/// Images with a user, in every form that a configuration can name one.
fn users(tools: &Layer) -> impl Iterator<Item = Named> {
    [
        ("k8s-staging-cri-tools/test-image-user-uid", "1002"),
        ("k8s-staging-cri-tools/test-image-user-username", "www-data"),
        ("k8s-staging-cri-tools/test-image-user-uid-group", "1003:users"),
        ("k8s-staging-cri-tools/test-image-user-username-group", "www-data:100"),
        ("k8s-staging-cri-tools/test-image-predefined-group", "1000"),
    ]
    .into_iter()
    .map(|(repository, user)| {
        let image = shell(tools).config("User", user).finish();
        Named { repository, tag: "latest", image }
    })
}

fn base() -> LayerBuilder {
    let open = ["/etc", "/bin", "/home", "/mnt", "/usr", "/usr/sbin", "/var", "/var/run"];
    open.iter()
        .fold(LayerBuilder::new(), |layer, directory| layer.directory(directory, 0o755))
        .directory("/root", 0o700)
        .directory("/tmp", 0o1777)
        .file("/etc/passwd", 0o644, PASSWD)
        .file("/etc/group", 0o644, GROUP)
}

/// Each program is a hard link of its own: a mask on one leaves the others alone.
fn tools(probe: &[u8], busybox: &[u8]) -> Layer {
    let layer = base().file("/bin/busybox", 0o755, busybox).file("/usr/sbin/nginx", 0o755, probe);
    let applets = APPLETS.iter().chain(&MORE_APPLETS).filter(|name| **name != "sh");
    let layer = applets.fold(layer, |layer, name| layer.hard_link(&format!("/bin/{name}"), "bin/busybox"));
    let stand_ins = STAND_INS.iter().chain(&["usr/sbin/httpd"]);
    stand_ins.fold(layer, |layer, path| layer.hard_link(path, "usr/sbin/nginx")).finish(Compression::Gzip)
}

fn shell(tools: &Layer) -> ImageBuilder {
    ImageBuilder::new().layer(tools.clone()).config("Cmd", vec!["sh"]).config("Env", vec![PATH])
}

fn web(tools: &Layer, program: &str, port: Option<&str>) -> Image {
    let command: Vec<&str> = [program].into_iter().chain(port).collect();
    shell(tools).config("Cmd", command).finish()
}

fn pause(probe: &[u8]) -> Image {
    let layer = LayerBuilder::new().file("/pause", 0o755, probe).finish(Compression::Gzip);
    ImageBuilder::new().layer(layer).config("Entrypoint", vec!["/pause"]).config("Env", vec![PATH]).finish()
}

/// A program that shows the user it got by its set-user-ID bit, or did not get.
fn set_uid(probe: &[u8]) -> Image {
    let layer = base().file("/nonewprivs", 0o4755, probe).finish(Compression::Gzip);
    ImageBuilder::new().layer(layer).config("Entrypoint", vec!["/nonewprivs"]).finish()
}

/// Somebody else's architecture first, so that a runtime has to look for its own.
fn for_two_machines(image: Image) -> Image {
    index([("s390x", foreign()), ("amd64", image)])
}
