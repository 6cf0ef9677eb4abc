//! Host files and directories in containers, as the kubelet asks for them.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use podhold_integration::{
    configs::{self, security},
    rig,
    rig::{BUSYBOX, Rig},
};
use podhold_proto::cri::{ContainerConfig, ExecSyncResponse, Mount};

/// A directory of the host with a file in it.
fn volume(rig: &Rig, name: &str) -> PathBuf {
    let directory = rig.machine.directory().join("volumes").join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("file"), "from the host\n").unwrap();
    directory
}

fn writable(host: &Path, container: &str) -> Mount {
    Mount { readonly: false, ..configs::mount(host, container) }
}

/// A container that waits, with these mounts.
fn shell(mounts: Vec<Mount>) -> ContainerConfig {
    let mut config = configs::container("shell", BUSYBOX, &["1000"]);
    config.command = vec!["/bin/sleep".into()];
    config.mounts = mounts;
    config
}

async fn sh(rig: &Rig, container: &str, script: &str) -> ExecSyncResponse {
    rig.cri().exec(container, &["/bin/sh", "-c", script]).await.unwrap()
}

/// The command fails with these words.
async fn fails(rig: &Rig, container: &str, script: &str, words: &str) {
    let done = sh(rig, container, script).await;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.exit_code != 0 && said.contains(words), "{script}: {} {said:?}", done.exit_code);
}

#[tokio::test]
async fn files_and_directories_are_bound_read_only_or_writable_as_asked() {
    let rig = rig!();
    let (plain, open) = (volume(&rig, "plain"), volume(&rig, "open"));
    let config = rig.pod("binds");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mounts = vec![
        configs::mount(&plain, "/ro"),
        writable(&open, "/rw"),
        configs::mount(&plain.join("file"), "/ro-file"),
        writable(&open.join("file"), "/new/place/rw-file"),
    ];
    let id = rig.run(&pod, &config, &shell(mounts)).await;
    for path in ["/ro/file", "/rw/file", "/ro-file", "/new/place/rw-file"] {
        assert_eq!(rig.cri().exec_well(&id, &["cat", path]).await.unwrap(), "from the host\n", "{path}");
    }
    fails(&rig, &id, "echo no > /ro/file", "Read-only").await;
    fails(&rig, &id, "touch /ro/other", "Read-only").await;
    fails(&rig, &id, "echo no > /ro-file", "Read-only").await;
    rig.cri()
        .exec_well(&id, &["sh", "-c", "echo one > /rw/other && echo two > /new/place/rw-file"])
        .await
        .unwrap();
    assert_eq!(fs::read_to_string(open.join("other")).unwrap(), "one\n");
    assert_eq!(fs::read_to_string(open.join("file")).unwrap(), "two\n");
    // What the host writes later is seen too.
    fs::write(plain.join("later"), "news\n").unwrap();
    assert_eq!(rig.cri().exec_well(&id, &["cat", "/ro/later"]).await.unwrap(), "news\n");
    rig.cri().end_pod(&pod).await.unwrap();
    assert!(plain.join("file").exists() && open.join("file").exists(), "removing a pod removes no volume");
    rig.finish().await;
}

#[tokio::test]
async fn a_symlinked_source_is_what_it_leads_to_and_a_missing_one_is_made() {
    let rig = rig!();
    let real = volume(&rig, "real");
    let link = rig.machine.directory().join("volumes/link");
    symlink(&real, &link).unwrap();
    let missing = rig.machine.directory().join("volumes/not/there/yet");
    let config = rig.pod("sources");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let id = rig
        .run(&pod, &config, &shell(vec![configs::mount(&link, "/link"), writable(&missing, "/made")]))
        .await;
    assert_eq!(rig.cri().exec_well(&id, &["cat", "/link/file"]).await.unwrap(), "from the host\n");
    rig.cri().exec_well(&id, &["touch", "/made/file"]).await.unwrap();
    let made = fs::metadata(&missing).unwrap();
    assert!(made.is_dir() && missing.join("file").exists());
    assert_eq!(made.permissions().mode() & 0o7777, 0o755);
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn mount_options_are_in_force() {
    let rig = rig!();
    let tools = volume(&rig, "tools");
    fs::copy("/bin/busybox", tools.join("true")).unwrap();
    fs::set_permissions(tools.join("true"), fs::Permissions::from_mode(0o755)).unwrap();
    let config = rig.pod("options");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let with = |target: &str, options: &[&str]| Mount {
        mount_options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..writable(&tools, target)
    };
    let mounts = vec![with("/free", &[]), with("/bound", &["noexec", "nosuid", "nodev"])];
    let id = rig.run(&pod, &config, &shell(mounts)).await;
    rig.cri().exec_well(&id, &["/free/true"]).await.unwrap();
    fails(&rig, &id, "/bound/true", "Permission denied").await;
    let table = rig.cri().exec_well(&id, &["cat", "/proc/self/mountinfo"]).await.unwrap();
    let options = |target: &str| -> Vec<String> {
        let line = table.lines().find(|line| line.split(' ').nth(4) == Some(target)).unwrap();
        line.split(' ').nth(5).unwrap().split(',').map(str::to_owned).collect()
    };
    for option in ["noexec", "nosuid", "nodev"] {
        assert!(options("/bound").contains(&option.to_owned()), "no {option} in {table}");
        assert!(!options("/free").contains(&option.to_owned()), "{option} was not asked for: {table}");
    }
    let mut strange = shell(vec![with("/x", &["suid"])]);
    strange.metadata.as_mut().unwrap().name = "strange".into();
    let refusal = rig.cri().create(&pod, &config, &strange).await.unwrap_err();
    assert!(refusal.message().contains("mount_options"), "{refusal}");
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_read_only_root_can_not_be_written_and_volumes_on_it_can() {
    let rig = rig!();
    let open = volume(&rig, "open");
    let config = rig.pod("frozen");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let mut container = shell(vec![writable(&open, "/rw")]);
    security(&mut container).readonly_rootfs = true;
    let id = rig.run(&pod, &config, &container).await;
    for script in ["touch /new", "echo x > /etc/passwd", "echo x > /etc/hosts", "rm /bin/ls"] {
        fails(&rig, &id, script, "Read-only").await;
    }
    rig.cri().exec_well(&id, &["sh", "-c", "touch /rw/new && touch /dev/shm/new"]).await.unwrap();
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

#[tokio::test]
async fn a_file_over_a_directory_is_refused_and_the_other_way_round() {
    let rig = rig!();
    let plain = volume(&rig, "plain");
    let config = rig.pod("mismatch");
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let cases =
        [("file-on-directory", plain.join("file"), "/etc"), ("directory-on-file", plain, "/etc/passwd")];
    for (name, source, target) in cases {
        let mut container = shell(vec![configs::mount(&source, target)]);
        container.metadata.as_mut().unwrap().name = name.into();
        rig.cri().run(&pod, &config, &container).await.expect_err(name);
    }
    rig.cri().end_pod(&pod).await.unwrap();
    rig.finish().await;
}

/// All that lies in a directory, as the host sees it.
async fn listing(rig: &Rig, directory: &str) -> String {
    let format = "%P %y %m %U %G %l %i\\n";
    let all = rig.machine.run_well(["find", directory, "-xdev", "-printf", format]).await.unwrap();
    let mut lines: Vec<&str> = all.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

#[tokio::test]
async fn the_hosts_dev_takes_the_place_of_the_containers_and_stays_as_it_is() {
    let rig = rig!();
    let look_alike = rig.machine.directory().join("volumes/dev");
    fs::create_dir_all(look_alike.join("pts")).unwrap();
    fs::create_dir_all(look_alike.join("shm")).unwrap();
    fs::write(look_alike.join("ptmx"), "the host's\n").unwrap();
    let mut config = rig.pod("dev");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let pod = rig.cri().run_pod(&config).await.unwrap();
    let table = rig.machine.run_well(["cat", "/proc/self/mountinfo"]).await.unwrap();
    for (name, source, privileged, propagation, readonly) in [
        ("host", PathBuf::from("/dev"), true, 0, false),
        ("slave", PathBuf::from("/dev"), true, 1, false),
        ("confined", PathBuf::from("/dev"), false, 0, false),
        ("alike", look_alike.clone(), true, 0, true),
    ] {
        let path = source.to_str().unwrap();
        let before = listing(&rig, path).await;
        let mut container = shell(vec![Mount { propagation, readonly, ..writable(&source, "/dev") }]);
        container.metadata.as_mut().unwrap().name = name.into();
        security(&mut container).privileged = privileged;
        let id = rig.run(&pod, &config, &container).await;
        let points = rig.cri().exec_well(&id, &["cat", "/proc/self/mountinfo"]).await.unwrap();
        let top = |target: &str| {
            let line = points.lines().rfind(|line| line.split(' ').nth(4) == Some(target));
            line.unwrap_or_else(|| panic!("{name}: no {target} in {points}")).to_owned()
        };
        assert!(top("/dev/pts").contains(" devpts "), "{name}: {points}");
        assert!(top("/dev").split(' ').nth(5).unwrap().starts_with(if readonly { "ro" } else { "rw" }));
        sh(&rig, &id, "touch /dev/shm/of-the-pod").await;
        assert!(!source.join("shm/of-the-pod").exists(), "{name}: /dev/shm is the host's");
        let seen = rig.cri().exec_well(&id, &["ls", "-A", "/dev/pts"]).await.unwrap();
        assert_eq!(seen.trim(), "ptmx", "{name}: /dev/pts is not the container's own");
        let names = rig.cri().exec_well(&id, &["ls", "-A", "/dev"]).await.unwrap();
        let mut names: Vec<String> = names.lines().map(str::to_owned).collect();
        let mut host: Vec<String> = fs::read_dir(&source)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        host.sort();
        assert_eq!(names, host, "{name}");
        let kmsg = sh(&rig, &id, "exec 3</dev/kmsg").await;
        if source == Path::new("/dev") {
            assert_eq!(kmsg.exit_code == 0, privileged, "{name}: {kmsg:?}");
        }
        assert_eq!(listing(&rig, path).await, before, "{name}: the source was changed");
    }
    rig.cri().end_pod(&pod).await.unwrap();
    let after = rig.machine.run_well(["cat", "/proc/self/mountinfo"]).await.unwrap();
    let of_dev = |table: &str| -> Vec<String> {
        table.lines().filter(|line| line.contains(" /dev")).map(str::to_owned).collect()
    };
    assert_eq!(of_dev(&after), of_dev(&table), "the host's own mounts");
    assert_eq!(fs::read_to_string(look_alike.join("ptmx")).unwrap(), "the host's\n");
    rig.finish().await;
}
