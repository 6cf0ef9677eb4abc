//! Images that attack whoever runs them, one for each way. Repository `hostile`.
//!
//! | tag | what it tries |
//! |---|---|
//! | `user-N` | `User` number N of [`USERS`] |
//! | `passwd` | users whose lines in `/etc/passwd` and `/etc/group` are odd |
//! | `volume` | `Volumes` that lead out of the image |
//! | `workdir` | a working directory behind a file descriptor, and links to each |
//! | `links` | links into `/proc`, and out of the root, to be mount targets |
//! | `dev-link`, `proc-link`, `sys-link` | a link to [`VICTIM`] in the place of a system directory |
//! | `labels` | labels in the runtime's own name |
//! | `through-link` | a file whose directory is a link to `/etc` |
//! | `hard-link` | a hard link to a link to `/etc/passwd`, with another mode |

use serde_json::json;

use super::{Compression, ImageBuilder, Layer, LayerBuilder, Named};

/// What `User` of an image must not be taken for: none of these names a user.
pub const USERS: [&str; 10] = [
    "4294967296",
    "4294967295",
    "18446744073709551616",
    "-1",
    "+0",
    "0x0",
    "00:4294967296",
    "1000:-1",
    " 0",
    "guest\nroot",
];

/// The users of `passwd` that must not be taken for anybody, least of all for root.
pub const ODD_USERS: [&str; 6] = ["over", "wrap", "empty", "minus", "short", "group"];

const ODD_PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    over:x:4294967296:1000::/:/bin/sh\n\
    wrap:x:18446744073709551616:1000::/:/bin/sh\n\
    empty:x::::/:/bin/sh\n\
    minus:x:-1:1000::/:/bin/sh\n\
    short:x\n\
    group:x:1000:4294967296::/:/bin/sh\n";

/// How many descriptors `workdir` tries.
pub const DESCRIPTORS: std::ops::Range<u32> = 0..24;

/// Where on the host links of these images lead. Nobody else has anything there.
pub const VICTIM: &str = "/var/lib/podhold-victim";

/// All of them. `shell` has busybox.
pub fn images(shell: &Layer) -> Vec<Named> {
    let with = |layer: LayerBuilder| image(shell).layer(layer.finish(Compression::Gzip));
    let named = |tag, image| Named { repository: "hostile", tag, image };
    let mut workdir = LayerBuilder::new().directory("/proc", 0o755).directory("/proc/self", 0o755);
    workdir = workdir.directory("/proc/self/fd", 0o755);
    for number in DESCRIPTORS {
        let place = format!("/proc/self/fd/{number}");
        workdir = workdir.directory(&place, 0o755).symlink(&format!("/cwd{number}"), &place);
    }
    let links = LayerBuilder::new()
        .directory("/proc", 0o755)
        .directory("/proc/sys", 0o755)
        .symlink("/to-proc", "/proc/sys/kernel")
        .symlink("/to-self", "../../proc/self")
        .symlink("/to-host", &format!("/../../../../../../../..{VICTIM}"));
    // The place is there in the image too: a mount in it succeeds, and a path from outside leads elsewhere.
    let system = |name| with(LayerBuilder::new().directory(VICTIM, 0o755).symlink(name, VICTIM)).finish();
    let volume = LayerBuilder::new().symlink("/leak", "/../../../../etc").directory("/data", 0o755);
    let mut all = vec![
        named("passwd", with(LayerBuilder::new().file("/etc/passwd", 0o644, ODD_PASSWD)).finish()),
        named("volume", {
            let volumes = json!({"/leak": {}, "/../../../../etc": {}, "/data": {}, "../..": {}});
            with(volume).config("Volumes", volumes).finish()
        }),
        named("workdir", with(workdir).config("WorkingDir", "/proc/self/fd/7").finish()),
        named("links", with(links).finish()),
        named("dev-link", system("/dev")),
        named("proc-link", system("/proc")),
        named("sys-link", system("/sys")),
        named("labels", image(shell).config("Labels", labels()).finish()),
        named("through-link", {
            let layer = LayerBuilder::new().symlink("/d", "/etc");
            with(layer.file("/d/podhold-hostile", 0o777, "escaped\n")).finish()
        }),
        named("hard-link", {
            let layer = LayerBuilder::new().symlink("/l", "/etc/passwd");
            with(layer.hard_link("/h", "l")).finish()
        }),
    ];
    const TAGS: [&str; USERS.len()] =
        ["user-0", "user-1", "user-2", "user-3", "user-4", "user-5", "user-6", "user-7", "user-8", "user-9"];
    for (tag, user) in TAGS.into_iter().zip(USERS) {
        all.push(named(tag, image(shell).config("User", user).finish()));
    }
    all
}

fn image(shell: &Layer) -> ImageBuilder {
    ImageBuilder::new().layer(shell.clone()).config("Cmd", vec!["/bin/sh"]).config("Env", vec!["PATH=/bin"])
}

fn labels() -> serde_json::Value {
    json!({
        "io.kubernetes.container.name": "forged",
        "io.kubernetes.pod.uid": "forged",
        "io.cri-containerd.kind": "sandbox",
        "io.podhold.privileged": "true",
        "org.example.mine": "fine",
    })
}
