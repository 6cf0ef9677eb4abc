//! A small file system in the place of one of the daemon's directories, in the test's machine only.

use std::path::{Path, PathBuf};

use podhold_integration::{
    daemon::{Daemon, Places},
    rig::Rig,
};

/// A file system that can be filled.
pub(super) struct Place {
    directory: PathBuf,
}

/// What is small about it.
pub(super) enum Kind {
    /// ext4 on a loop device, with this many MiB.
    Disk(u32),
    /// The same, with this many inodes.
    Inodes(u32),
    /// A tmpfs of this many KiB.
    Memory(u32),
}

async fn sh(rig: &Rig, script: String) -> String {
    rig.machine.run_well(["sh", "-ec", &script]).await.unwrap()
}

impl Place {
    /// Mounts it over `directory`, with a copy of what is there.
    pub(super) async fn over(rig: &Rig, directory: PathBuf, kind: Kind) -> Self {
        let (at, image) = (directory.display(), rig.machine.directory().join("disk.img"));
        let image = image.display();
        let loaded = |options: String| {
            format!(
                "truncate -s 128M {image}; mkfs.ext4 -q -m 0 {options} {image}; mkdir -p {at}.new; \
                 mount -o loop {image} {at}.new; rmdir {at}.new/lost+found"
            )
        };
        let make = match kind {
            Kind::Disk(mebibytes) => loaded("-b 1024 -F ".into()).replace("128M", &format!("{mebibytes}M")),
            Kind::Inodes(inodes) => loaded(format!("-N {inodes} -F ")),
            Kind::Memory(kibibytes) => {
                format!("mkdir -p {at}.new; mount -t tmpfs -o size={kibibytes}k,mode=700 small {at}.new")
            }
        };
        let script = format!(
            "{make}; cp -a {at}/. {at}.new/; chmod 700 {at}.new; mount --bind {at}.new {at}; \
             umount {at}.new; rmdir {at}.new"
        );
        sh(rig, script).await;
        Self { directory }
    }

    /// Lets the daemon use it in the place of its own directory.
    pub(super) async fn under(rig: &mut Rig, which: fn(&Places) -> PathBuf, kind: Kind) -> Self {
        assert_eq!(rig.daemon.stop(&rig.machine).await.unwrap(), 0);
        let place = Self::over(rig, which(&rig.places), kind).await;
        rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
        place
    }

    pub(super) fn path(&self) -> &Path {
        &self.directory
    }

    /// Writes until there is no byte left.
    pub(super) async fn fill(&self, rig: &Rig) {
        let at = self.directory.display();
        let script = format!(
            "for size in 64k 1k 1; do dd if=/dev/zero bs=$size count=200000 oflag=append conv=notrunc \
             of={at}/filler 2>/dev/null || sync -f {at}; done; \
             ! (echo something > {at}/more) 2>/dev/null; rm -f {at}/more"
        );
        sh(rig, script).await;
    }

    /// Makes files until there is no inode left.
    pub(super) async fn fill_inodes(&self, rig: &Rig) {
        let at = self.directory.display();
        sh(
            rig,
            format!("mkdir {at}/filler; n=0; while (: > {at}/filler/$n) 2>/dev/null; do n=$((n+1)); done"),
        )
        .await;
    }

    /// Gives back what [`fill`](Self::fill) took.
    pub(super) async fn free(&self, rig: &Rig) {
        sh(rig, format!("rm -rf {at}/filler; sync -f {at}", at = self.directory.display())).await;
    }

    pub(super) async fn remount(&self, rig: &Rig, how: &str) {
        sh(rig, format!("mount -o remount,{how} {}", self.directory.display())).await;
    }

    /// What lies in one of its directories.
    pub(super) async fn list(&self, rig: &Rig, directory: &str) -> Vec<String> {
        let at = self.directory.join(directory);
        let names = sh(rig, format!("ls -A {}", at.display())).await;
        names.lines().map(str::to_owned).collect()
    }

    /// Takes it away; the daemon has its own directory again, as it was.
    pub(super) async fn leave(self, rig: &mut Rig) {
        // One that ends well removes the cgroup of all pods, which was there before the test.
        rig.daemon.kill(&rig.machine).await.unwrap();
        sh(rig, format!("umount {}", self.directory.display())).await;
        rig.daemon = Daemon::start(&rig.machine, &rig.places).await.unwrap();
    }
}
