//! The images that tests use, by name.
//!
//! | name | what it is for |
//! |---|---|
//! | `busybox:1` | a shell and the usual tools; root, user `guest` (1000), group `extra` (2000) |
//! | `probe:1` | `podhold-probe` as entry point, argument `sleep` |
//! | `probe:user` | the same, as user 1000 with working directory, environment and stop signal |
//! | `probe:realtime` | `probe:1` with a stop signal of the real-time range |
//! | `layers:1` | plain, gzip and zstd layers; whiteouts, an opaque directory, hard links, owners |
//! | `multi:1` | an index whose first manifest is for another architecture |
//! | `multi:2` | the same; its image has no other name |
//! | `alien:1` | an index without a manifest for this machine |
//! | `nocommand:1` | neither entry point nor command |
//! | `probe:uid`, `probe:names`, `probe:ids` | the other forms of a user |
//! | `hostile:*` | images that attack (see [`hostile`](super::hostile)) |
//! | `nasty:1` | everything that tools get wrong, in three layers (see [`nasty`](super::nasty)) |
//! | with a `/`, and `pause` | what the official suite pulls; see [`conformance`](super::conformance) |

use std::{io, path::Path};

use super::{Compression, Image, ImageBuilder, Layer, LayerBuilder, conformance, index};

/// Debian's static busybox, from the package busybox-static.
pub const BUSYBOX: &str = "/bin/busybox";

/// The applets that have a name of their own in `busybox:1`, as hard links.
pub(super) const APPLETS: &[&str] = &[
    "sh", "ls", "cat", "echo", "sleep", "true", "false", "id", "ps", "kill", "env", "pwd", "touch", "mkdir",
    "rm", "stat", "mount", "umount", "hostname", "nslookup", "wget", "nc", "ip", "grep", "head", "tail",
    "wc", "seq", "dd", "sync", "test", "chmod", "chown", "df", "du", "date", "uname", "yes", "sort", "tr",
    "cut", "sed",
];

/// An image and the references it is pushed under.
#[derive(Debug)]
pub struct Named {
    /// Repository, without registry.
    pub repository: &'static str,
    /// Tag.
    pub tag: &'static str,
    /// What is pushed.
    pub image: Image,
}

/// All images, in the order in which they are best pushed.
#[derive(Debug)]
pub struct Catalogue {
    /// The images.
    pub images: Vec<Named>,
}

impl Catalogue {
    /// Builds all images from the program `probe` and from [`BUSYBOX`].
    pub fn build(probe: &Path) -> io::Result<Self> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
        };
        let programs = (read(probe)?, read(Path::new(BUSYBOX))?);
        let probe = probe_layer(&programs.0);
        let busybox = busybox_layer(&programs.1);
        let named = |repository, tag, image| Named { repository, tag, image };
        let mut images = vec![
            named("busybox", "1", shell().layer(busybox.clone()).finish()),
            named("probe", "1", probe_image(&probe).finish()),
            named("probe", "user", user_image(&probe)),
            named("probe", "realtime", probe_image(&probe).config("StopSignal", "SIGRTMIN+3").finish()),
            named("layers", "1", layered(&busybox)),
            named("multi", "1", index([("s390x", foreign()), ("amd64", probe_image(&probe).finish())])),
            named("multi", "2", index([("s390x", foreign()), ("amd64", other_shell(&busybox))])),
            named("alien", "1", index([("s390x", foreign())])),
            named("nocommand", "1", ImageBuilder::new().layer(busybox.clone()).finish()),
            named("nasty", "1", super::nasty::image()),
            named("probe", "uid", probe_image(&probe).config("User", "1000").finish()),
            named("probe", "names", probe_image(&probe).config("User", "guest:extra").finish()),
            named("probe", "ids", probe_image(&probe).config("User", "4321:1234").finish()),
        ];
        images.extend(super::hostile::images(&busybox));
        images.extend(conformance::images(&programs.0, &programs.1));
        Ok(Self { images })
    }

    /// The image with this repository and tag.
    pub fn get(&self, repository: &str, tag: &str) -> Option<&Image> {
        self.images.iter().find(|n| n.repository == repository && n.tag == tag).map(|n| &n.image)
    }
}

fn other_shell(busybox: &Layer) -> Image {
    shell().layer(busybox.clone()).config("StopSignal", "SIGINT").finish()
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000:guest:/home/guest:/bin/sh\n";
const GROUP: &str = "root:x:0:\nguest:x:1000:\nextra:x:2000:guest\n";

/// The directories and files every image of ours has.
fn base() -> LayerBuilder {
    LayerBuilder::new()
        .directory("/etc", 0o755)
        .file("/etc/passwd", 0o644, PASSWD)
        .file("/etc/group", 0o644, GROUP)
        .directory("/root", 0o700)
        .directory("/home", 0o755)
        .directory("/tmp", 0o1777)
}

fn probe_layer(program: &[u8]) -> Layer {
    base().file("/probe", 0o755, program).finish(Compression::Gzip)
}

fn busybox_layer(program: &[u8]) -> Layer {
    let layer = base().directory("/bin", 0o755).file("/bin/busybox", 0o755, program);
    let link = |layer: LayerBuilder, name: &&str| layer.hard_link(&format!("/bin/{name}"), "bin/busybox");
    APPLETS.iter().fold(layer, link).finish(Compression::Gzip)
}

fn shell() -> ImageBuilder {
    ImageBuilder::new().config("Cmd", vec!["/bin/sh"]).config("Env", vec!["PATH=/bin"])
}

fn probe_image(probe: &Layer) -> ImageBuilder {
    ImageBuilder::new()
        .layer(probe.clone())
        .config("Entrypoint", vec!["/probe"])
        .config("Cmd", vec!["sleep"])
        .config("Env", vec!["PATH=/", "FROM_IMAGE=yes"])
}

fn user_image(probe: &Layer) -> Image {
    probe_image(probe)
        .config("User", "guest")
        .config("WorkingDir", "/tmp")
        .config("StopSignal", "SIGUSR1")
        .config("Labels", serde_json::json!({"org.example.purpose": "test"}))
        .finish()
}

/// Three layers above busybox, one in each compression, that change and hide what lies below.
fn layered(busybox: &Layer) -> Image {
    let lower = LayerBuilder::new()
        .directory("/data", 0o755)
        .file("/data/hidden", 0o644, "must not be seen\n")
        .file("/data/changed", 0o644, "old\n")
        .hard_link("/data/changed-too", "data/changed")
        .directory("/data/emptied", 0o755)
        .file("/data/emptied/hidden", 0o644, "must not be seen\n")
        .finish(Compression::None);
    let middle = LayerBuilder::new()
        .whiteout("/data/hidden")
        .file("/data/changed", 0o600, "new\n")
        .opaque("/data/emptied")
        .file("/data/emptied/left", 0o644, "seen\n")
        .finish(Compression::Zstd);
    let upper = LayerBuilder::new()
        .owned_file("data/owned", 0o640, (1000, 2000), b"mine\n")
        .file("/data/one", 0o644, "same file\n")
        .hard_link("/data/two", "data/one")
        .symlink("/data/link", "/data/one")
        .finish(Compression::Gzip);
    shell().layer(busybox.clone()).layer(lower).layer(middle).layer(upper).finish()
}

/// An image that cannot run here.
pub(super) fn foreign() -> Image {
    let layer = base().file("/probe", 0o755, "not for this machine\n").finish(Compression::Gzip);
    ImageBuilder::new().architecture("s390x").layer(layer).config("Cmd", vec!["/probe"]).finish()
}
