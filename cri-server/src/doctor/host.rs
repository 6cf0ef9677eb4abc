//! The kernel, and what this process may ask of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use podhold_cgroups::{Cgroups, Choice, Version};

use super::Finding;
use crate::{
    config::Config,
    lsm::apparmor::{self, Standing},
};

/// Without these no pod has limits.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Kernel with all that is used without asking: `openat2`, `clone3`, pidfds, `close_range` that closes at exec, mount_setattr.
const OLDEST: (u32, u32) = (5, 12);
/// Kernel whose overlayfs takes layers that are detached, idmapped mounts.
const IDMAPPED: (u32, u32) = (6, 8);

pub(super) fn all(config: &Config) -> Vec<Finding> {
    vec![
        root(),
        kernel(),
        cgroups(config),
        namespaces(),
        user_namespaces(),
        overlay(&config.state_dir),
        idmapped_mounts(),
        seccomp(),
        apparmor(config),
        selinux(),
        capabilities(),
        security_of_oom(),
    ]
}

fn root() -> Finding {
    match rustix::process::geteuid().is_root() {
        true => Finding::works("user", "root"),
        false => Finding::broken("user", "not root", "run it with sudo"),
    }
}

/// Major and minor number of the kernel.
fn release() -> Option<(String, (u32, u32))> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?.trim().to_owned();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    let version = (numbers.next()?, numbers.next()?);
    Some((text, version))
}

fn kernel() -> Finding {
    match release() {
        Some((text, version)) if version >= OLDEST => Finding::works("kernel", format!("Linux {text}")),
        Some((text, _)) => Finding::broken("kernel", format!("Linux {text}"), "boot Linux 5.12 or newer"),
        None => Finding::broken("kernel", "its version cannot be read", "mount /proc"),
    }
}

fn cgroups(config: &Config) -> Finding {
    let check = "cgroups";
    let choice = match Choice::of(config.wanted_driver()) {
        Ok(choice) => choice,
        Err(error) => return Finding::broken(check, error, "set cgroups.driver to cgroupfs, or to auto"),
    };
    let cgroups = match Cgroups::detect(choice.driver) {
        Ok(cgroups) => cgroups,
        Err(error) => return Finding::broken(check, error, "mount a cgroup file system, best cgroup2"),
    };
    let version = cgroups.version();
    let found = format!(
        "{version:?}: {}; driver {} ({})",
        cgroups.controllers().join(", "),
        choice.driver,
        choice.reason
    );
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|name| !cgroups.has(name)).collect();
    if !missing.is_empty() {
        let mend = format!(
            "enable {} (kernel parameter cgroup_enable=, or cgroup.subtree_control of the parents)",
            missing.join(", ")
        );
        return Finding::broken(check, found, mend);
    }
    match version {
        Version::V2 => Finding::works(check, found),
        _ => Finding::degraded(
            check,
            found,
            "no pressure statistics, no memory.high, slower starts",
            "boot with systemd.unified_cgroup_hierarchy=1",
        ),
    }
}

fn namespaces() -> Finding {
    let kinds = ["mnt", "net", "pid", "ipc", "uts", "cgroup"];
    let missing: Vec<&str> = kinds
        .into_iter()
        .filter(|kind| fs::symlink_metadata(format!("/proc/self/ns/{kind}")).is_err())
        .collect();
    if missing.is_empty() {
        return Finding::works("namespaces", kinds.join(", "));
    }
    Finding::broken("namespaces", format!("no {}", missing.join(", ")), "boot a kernel that has them")
}

fn user_namespaces() -> Finding {
    let check = "user namespaces";
    let cost = "pods with hostUsers: false are refused";
    if fs::symlink_metadata("/proc/self/ns/user").is_err() {
        return Finding::degraded(check, "none", cost, "boot a kernel with CONFIG_USER_NS");
    }
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    match most.trim() {
        "0" => Finding::degraded(check, "at most 0", cost, "sysctl user.max_user_namespaces=10000"),
        most => Finding::works(check, format!("at most {most}")),
    }
}

/// By a mount in a mount namespace of its own, on the file system that layers are on.
fn overlay(state: &Path) -> Finding {
    let check = "overlayfs";
    let place = state.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned();
    let found = format!("on {}", place.display());
    // A thread of its own, since it does not come back from that namespace.
    let tried = std::thread::spawn(move || try_overlay(&place)).join();
    match tried.unwrap_or_else(|_| Err("the check panicked".to_owned())) {
        Ok(()) => Finding::works(check, found),
        Err(reason) => Finding::broken(
            check,
            format!("{found}: {reason}"),
            "load the module overlay, or put state_dir on ext4 or xfs (with ftype=1)",
        ),
    }
}

fn try_overlay(place: &Path) -> Result<(), String> {
    let dir = place.join(format!(".podhold-doctor-{}", std::process::id()));
    let made = lay_over(&dir);
    let removed = fs::remove_dir_all(&dir);
    made?;
    removed.map_err(|error| format!("cannot remove {}: {error}", dir.display()))
}

fn lay_over(dir: &Path) -> Result<(), String> {
    let [lower, upper, work, target]: [PathBuf; 4] =
        ["lower", "upper", "work", "target"].map(|name| dir.join(name));
    for part in [&lower, &upper, &work, &target] {
        fs::create_dir_all(part).map_err(|error| format!("cannot make {}: {error}", part.display()))?;
    }
    let said = |what: &'static str| move |error: nix::Error| format!("{what}: {error}");
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).map_err(said("no mount namespace"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(said("cannot make mounts private"))?;
    let data =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
        .map_err(said("cannot mount"))?;
    nix::mount::umount(&target).map_err(said("cannot unmount"))
}

fn idmapped_mounts() -> Finding {
    let check = "idmapped mounts";
    match release() {
        Some((_, version)) if version >= IDMAPPED => Finding::works(check, "in this kernel's overlayfs"),
        _ => Finding::degraded(
            check,
            "not for overlayfs",
            "pods with hostUsers: false are refused",
            "boot Linux 6.8 or newer",
        ),
    }
}

fn seccomp() -> Finding {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    match actions.trim() {
        "" => Finding::degraded(
            "seccomp",
            "none",
            "containers with a profile are refused",
            "boot a kernel with CONFIG_SECCOMP_FILTER",
        ),
        actions => Finding::works("seccomp", actions),
    }
}

fn apparmor(config: &Config) -> Finding {
    let check = "AppArmor";
    if !apparmor::is_enabled() {
        return Finding::degraded(
            check,
            "not enabled",
            "containers that ask for a profile of theirs are refused",
            "boot with apparmor=1 lsm=…,apparmor, where it is wanted",
        );
    }
    let profile = apparmor::NAME;
    let cost = "containers run without it; those that ask for RuntimeDefault are refused";
    match apparmor::standing(&config.run_dir) {
        Standing::Loaded => Finding::works(check, format!("enabled; {profile} is loaded, by Podhold")),
        Standing::Foreign => {
            let by = "is loaded, not by a daemon of this run directory, which replaces it when it starts";
            Finding::works(check, format!("enabled; {profile} {by}"))
        }
        Standing::Waiting(program) => {
            let by = format!("is not loaded yet: the next daemon or pod does that, by {}", program.display());
            Finding::works(check, format!("enabled; {profile} {by}"))
        }
        Standing::Missing { reason, mend } => {
            Finding::degraded(check, format!("enabled; {profile} is not loaded: {reason}"), cost, mend)
        }
    }
}

fn selinux() -> Finding {
    let found = match fs::read_to_string("/sys/fs/selinux/enforce") {
        Ok(enforce) if enforce.trim() == "1" => "enforcing; containers have no labels of their own",
        Ok(_) => "permissive; containers have no labels of their own",
        Err(_) => "not enabled",
    };
    Finding::degraded(
        "SELinux",
        found,
        "pods that ask for labels are refused: labels are not built yet, with SELinux enabled neither",
        "leave seLinuxOptions out of the pods that run here",
    )
}

fn capabilities() -> Finding {
    let check = "capabilities";
    let Ok(bounding) = caps::read(None, caps::CapSet::Bounding) else {
        return Finding::broken(check, "the bounding set cannot be read", "mount /proc");
    };
    let mut missing: Vec<String> = caps::all().difference(&bounding).map(ToString::to_string).collect();
    missing.sort();
    let needed = ["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID", "CAP_MKNOD"];
    let found = format!("not in the bounding set: {}", missing.join(", "));
    let mend = "start it with all capabilities: as a unit without CapabilityBoundingSet, or a privileged VM";
    if missing.is_empty() {
        Finding::works(check, "all")
    } else if needed.iter().any(|name| missing.iter().any(|missing| missing == name)) {
        Finding::broken(check, found, mend)
    } else {
        Finding::degraded(check, found, "no container can have them, a privileged one neither", mend)
    }
}

/// Whether pause can be kept from the kernel's OOM killer.
fn security_of_oom() -> Finding {
    let check = "oom_score_adj";
    let has = caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_RESOURCE);
    match has {
        Ok(true) => Finding::works(check, "can be lowered"),
        _ => Finding::degraded(
            check,
            "cannot be lowered",
            "under a shortage of memory the kernel may end pods' own processes first",
            "give the daemon CAP_SYS_RESOURCE",
        ),
    }
}
