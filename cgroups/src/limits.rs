//! Applies limits and freezes through libcgroups, and mends what it leaves out.
//!
//! Mended here: "no swap" on v2 (libcgroups leaves `memory.swap.max` unwritten when limit and swap are
//! equal); swap limits where the kernel accounts no swap; raising a v1 memory limit above the old
//! memory+swap limit; device rules on v2; huge pages on hybrid machines, whose controller sits in the unified tree; values
//! of the kernel's refusal, which become errors that name the OCI field.

use std::{error::Error, path::Path};

use libcgroups::{
    common::{CgroupManager, ControllerOpt, FreezerState, WrappedIoError},
    v1::manager::{Manager as ManagerV1, V1ManagerError},
    v2::manager::{Manager as ManagerV2, V2ManagerError},
};
use oci_spec::runtime::{LinuxMemory, LinuxResources};

use crate::{
    CgroupError, CgroupPath, Cgroups, Version, devices,
    handle::{enable_controllers, write},
    stats,
    undo::Saved,
    validate,
};

pub(crate) fn check(
    cgroups: &Cgroups,
    parent: &CgroupPath,
    resources: &LinuxResources,
) -> Result<(), CgroupError> {
    validate::check(cgroups.version(), resources)?;
    for (field, controller) in validate::needs(cgroups.version(), resources) {
        // Machines without it are told huge page limits all the same, and peers take no notice.
        if !cgroups.has(controller) && controller != "hugetlb" {
            return Err(CgroupError::NoController { field: field.to_owned(), controller });
        }
    }
    for key in resources.unified().iter().flat_map(|map| map.keys()) {
        let controller = key.split('.').next().unwrap_or_default();
        if !cgroups.has(controller) {
            return Err(CgroupError::Invalid {
                field: format!("unified[{key:?}]"),
                value: String::new(),
                reason: format!("the {controller} cgroup controller is not available"),
            });
        }
    }
    let sizes = stats::page_sizes();
    for huge in resources.hugepage_limits().iter().flatten() {
        if !sizes.contains(huge.page_size()) {
            let reason = format!("this machine has pages of {}", sizes.join(", "));
            return Err(CgroupError::Invalid {
                field: "hugepageLimits.pageSize".to_owned(),
                value: huge.page_size().clone(),
                reason,
            });
        }
    }
    let Some(cpu) = resources.cpu() else { return Ok(()) };
    for (field, name, list) in
        [("cpu.cpus", "cpuset.cpus", cpu.cpus()), ("cpu.mems", "cpuset.mems", cpu.mems())]
    {
        let Some(list) = list.as_ref().filter(|list| !list.is_empty()) else { continue };
        let Some(available) = cpuset_within(cgroups, parent, name) else { continue };
        if !validate::is_within(list, &available) {
            return Err(CgroupError::Invalid {
                field: field.to_owned(),
                value: list.clone(),
                reason: format!("available here: {available}"),
            });
        }
    }
    Ok(())
}

/// What cgroups beneath `parent`, or beneath its first ancestor that exists, may use.
fn cpuset_within(cgroups: &Cgroups, parent: &CgroupPath, name: &str) -> Option<String> {
    let ancestors = std::iter::successors(Some(parent.clone()), CgroupPath::parent);
    let dirs = ancestors.filter_map(|path| cgroups.dir_of("cpuset", &path));
    let dirs = dirs.chain(cgroups.root_of("cpuset").map(Path::to_owned));
    let files = dirs.flat_map(|dir| [dir.join(format!("{name}.effective")), dir.join(name)]);
    let lists = files.filter_map(|file| std::fs::read_to_string(file).ok());
    lists.map(|list| list.trim().to_owned()).find(|list| !list.is_empty())
}

pub(crate) fn set(
    cgroups: &Cgroups,
    path: &CgroupPath,
    resources: &LinuxResources,
) -> Result<(), CgroupError> {
    validate::check(cgroups.version(), resources)?;
    for (field, controller) in validate::needs(cgroups.version(), resources) {
        if !cgroups.has(controller) {
            return Err(CgroupError::NoController { field: field.to_owned(), controller });
        }
    }
    let dir = cgroups.main_dir(path);
    for (key, value) in resources.unified().iter().flatten() {
        if !dir.join(key).exists() {
            return Err(CgroupError::Invalid {
                field: format!("unified[{key:?}]"),
                value: value.clone(),
                reason: "this kernel has no such file in a container's cgroup".to_owned(),
            });
        }
    }
    let saved = Saved::of(cgroups, path, resources);
    write_all(cgroups, path, resources).inspect_err(|_| saved.restore())
}

fn write_all(cgroups: &Cgroups, path: &CgroupPath, resources: &LinuxResources) -> Result<(), CgroupError> {
    let version = cgroups.version();
    let mut resources = resources.clone();
    drop_unset(&mut resources);
    if let Some(memory) = resources.memory_mut() {
        prepare_memory(cgroups, path, memory)?;
    }
    let huge = resources.hugepage_limits().clone().filter(|limits| !limits.is_empty());
    if version == Version::V1 && cgroups.root_of("hugetlb") == cgroups.unified_root() {
        resources.set_hugepage_limits(None);
        if huge.is_some() {
            set_hugepages_hybrid(cgroups, path, huge)?;
        }
    }
    if asks_for_something(version, &resources) {
        apply(cgroups, path, &resources)?;
    }
    if version == Version::V2 && resources.memory().as_ref().is_some_and(no_swap) {
        let file = dir(cgroups, "memory", path)?.join("memory.swap.max");
        write(&file, "0").map_err(|error| refused_write(error, "0"))?;
    }
    if version == Version::V2
        && let Some(rules) = resources.devices().as_ref().filter(|rules| !rules.is_empty())
    {
        devices::apply(&cgroups.main_dir(path), rules)?;
    }
    Ok(())
}

pub(crate) fn freeze(cgroups: &Cgroups, path: &CgroupPath, state: FreezerState) -> Result<(), CgroupError> {
    let operation = if state == FreezerState::Frozen { "freeze" } else { "thaw" };
    let library = |reason: String| CgroupError::Library { path: path.clone(), operation, reason };
    match cgroups.version() {
        Version::V1 => manager_v1(path)?.freeze(state).map_err(|error| library(error.to_string())),
        Version::V2 => manager_v2(cgroups, path)?.freeze(state).map_err(|error| library(error.to_string())),
    }
}

/// Finding its hierarchies costs libcgroups milliseconds on v1, and there it allows default devices each
/// time: not for nothing.
fn asks_for_something(version: Version, resources: &LinuxResources) -> bool {
    let rules = resources.devices().as_ref().is_some_and(|rules| !rules.is_empty());
    let unified = resources.unified().as_ref().is_some_and(|map| !map.is_empty());
    !validate::needs(version, resources).is_empty() || rules || unified
}

/// Empty lists and zeros mean "unchanged" in the CRI; libcgroups would write them.
fn drop_unset(resources: &mut LinuxResources) {
    if let Some(cpu) = resources.cpu_mut() {
        if cpu.cpus().as_deref() == Some("") {
            cpu.set_cpus(None);
        }
        if cpu.mems().as_deref() == Some("") {
            cpu.set_mems(None);
        }
        if cpu.quota() == Some(0) {
            cpu.set_quota(None);
        }
        if cpu.period() == Some(0) {
            cpu.set_period(None);
        }
    }
    if let Some(memory) = resources.memory_mut() {
        if memory.limit() == Some(0) {
            memory.set_limit(None);
        }
        if memory.swap() == Some(0) {
            memory.set_swap(None);
        }
    }
}

fn prepare_memory(cgroups: &Cgroups, path: &CgroupPath, memory: &mut LinuxMemory) -> Result<(), CgroupError> {
    if memory.swap().is_some() && !cgroups.accounts_swap(path) {
        tracing::debug!(cgroup = %path, "the kernel accounts no swap: its limit is left out");
        memory.set_swap(None);
    }
    let dir = dir(cgroups, "memory", path)?;
    let current = |name: &str| {
        let text = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        text.trim().parse::<i64>().ok()
    };
    let Some(limit) = memory.limit() else {
        // v2 has no swap limit that counts memory too: what it means depends on the limit in force.
        if cgroups.version() == Version::V2 && memory.swap().is_some() {
            memory.set_limit(Some(current("memory.max").unwrap_or(-1)));
        }
        return Ok(());
    };
    match cgroups.version() {
        Version::V1
            if memory.swap().is_none()
                && current("memory.memsw.limit_in_bytes").is_some_and(|both| both < limit) =>
        {
            memory.set_swap(Some(limit));
        }
        Version::V2 if limit > 0 && memory.check_before_update() == Some(true) => {
            if let Some(usage) = current("memory.current").filter(|usage| *usage > limit) {
                return Err(CgroupError::Invalid {
                    field: "memory.limit".to_owned(),
                    value: limit.to_string(),
                    reason: format!("{usage} bytes are in use; a lower limit would kill processes"),
                });
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whether the limits mean that no swap may be used.
fn no_swap(memory: &LinuxMemory) -> bool {
    matches!((memory.limit(), memory.swap()), (Some(limit), Some(swap)) if limit > 0 && limit == swap)
}

fn set_hugepages_hybrid(
    cgroups: &Cgroups,
    path: &CgroupPath,
    huge: Option<Vec<oci_spec::runtime::LinuxHugepageLimit>>,
) -> Result<(), CgroupError> {
    let Some(root) = cgroups.unified_root() else { return Ok(()) };
    let mut ancestor = root.to_owned();
    for part in path.relative().split('/') {
        enable_controllers(&ancestor)?;
        ancestor.push(part);
    }
    let mut only = LinuxResources::default();
    only.set_devices(None);
    only.set_hugepage_limits(huge);
    apply_v2(root, path, &only)
}

fn apply(cgroups: &Cgroups, path: &CgroupPath, resources: &LinuxResources) -> Result<(), CgroupError> {
    match cgroups.version() {
        Version::V1 => {
            let applied = manager_v1(path)?.apply(&options(resources));
            applied.map_err(|error| match (&error, wrapped_v1(&error)) {
                (V1ManagerError::MemoryController(reason), None) => CgroupError::Invalid {
                    field: "memory.limit".to_owned(),
                    value: resources.memory().as_ref().and_then(LinuxMemory::limit).unwrap_or(0).to_string(),
                    reason: reason.to_string(),
                },
                (_, io) => explain(path, &error, io),
            })
        }
        Version::V2 => apply_v2(dir_root(cgroups), path, resources),
    }
}

fn apply_v2(root: &Path, path: &CgroupPath, resources: &LinuxResources) -> Result<(), CgroupError> {
    // It warns of every controller it knows nothing of, each time.
    let quiet = tracing::subscriber::NoSubscriber::default();
    tracing::subscriber::with_default(quiet, || {
        let manager = ManagerV2::new(root.to_owned(), path.as_str().into())
            .map_err(|error| library(path, "open", &error))?;
        manager.apply(&options(resources)).map_err(|error| explain(path, &error, wrapped_v2(&error)))
    })
}

fn options(resources: &LinuxResources) -> ControllerOpt<'_> {
    let memory = resources.memory().as_ref();
    ControllerOpt {
        resources,
        disable_oom_killer: memory.and_then(LinuxMemory::disable_oom_killer).unwrap_or(false),
        oom_score_adj: None,
        freezer_state: None,
    }
}

fn manager_v1(path: &CgroupPath) -> Result<ManagerV1, CgroupError> {
    // It warns of every controller the machine lacks, each time; `needs` has said so where it matters.
    let quiet = tracing::subscriber::NoSubscriber::default();
    tracing::subscriber::with_default(quiet, || ManagerV1::new(path.as_str().as_ref()))
        .map_err(|error| library(path, "open", &error))
}

fn manager_v2(cgroups: &Cgroups, path: &CgroupPath) -> Result<ManagerV2, CgroupError> {
    ManagerV2::new(dir_root(cgroups).to_owned(), path.as_str().into())
        .map_err(|error| library(path, "open", &error))
}

fn dir_root(cgroups: &Cgroups) -> &Path {
    cgroups.unified_root().expect("a v2 handle has a unified hierarchy")
}

fn dir(
    cgroups: &Cgroups,
    controller: &'static str,
    path: &CgroupPath,
) -> Result<std::path::PathBuf, CgroupError> {
    cgroups
        .dir_of(controller, path)
        .ok_or(CgroupError::NoController { field: controller.to_owned(), controller })
}

fn library(path: &CgroupPath, operation: &'static str, error: &dyn Error) -> CgroupError {
    CgroupError::Library { path: path.clone(), operation, reason: error.to_string() }
}

fn wrapped_v1(error: &V1ManagerError) -> Option<&WrappedIoError> {
    match error {
        V1ManagerError::WrappedIo(io)
        | V1ManagerError::BlkioController(io)
        | V1ManagerError::CpuController(io)
        | V1ManagerError::CpuAcctController(io)
        | V1ManagerError::PidsController(io) => Some(io),
        other => wrapped_in_chain(other),
    }
}

fn wrapped_v2(error: &V2ManagerError) -> Option<&WrappedIoError> {
    match error {
        V2ManagerError::WrappedIo(io)
        | V2ManagerError::CpuSetController(io)
        | V2ManagerError::PidsController(io) => Some(io),
        other => wrapped_in_chain(other),
    }
}

fn wrapped_in_chain<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a WrappedIoError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// Turns the library's error into one that names the field, where it holds the kernel's answer.
fn explain(path: &CgroupPath, error: &dyn Error, io: Option<&WrappedIoError>) -> CgroupError {
    let again = |error: &std::io::Error| match error.raw_os_error() {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => std::io::Error::new(error.kind(), error.to_string()),
    };
    match io {
        Some(WrappedIoError::Write { err, path: file, data }) => CgroupError::Refused {
            field: field_of(file),
            value: data.clone(),
            file: file.clone(),
            hint: hint(file),
            source: again(err),
        },
        Some(WrappedIoError::Open { err, path: file })
            if !file.exists() && file.parent().is_some_and(Path::exists) =>
        {
            CgroupError::Refused {
                field: field_of(file),
                value: String::new(),
                file: file.clone(),
                hint: " (there is no such file: the controller is not enabled here)".to_owned(),
                source: again(err),
            }
        }
        Some(WrappedIoError::Open { err, path: file }) => CgroupError::io("open", file)(again(err)),
        _ => library(path, "apply limits", error),
    }
}

fn refused_write(error: CgroupError, value: &str) -> CgroupError {
    match error {
        CgroupError::Io { file, source, .. } => CgroupError::Refused {
            field: field_of(&file),
            value: value.to_owned(),
            hint: hint(&file),
            file,
            source,
        },
        other => other,
    }
}

/// The OCI field that a kernel file holds.
fn field_of(file: &Path) -> String {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let field = match name {
        "memory.limit_in_bytes" | "memory.max" => "memory.limit",
        "memory.memsw.limit_in_bytes" | "memory.swap.max" => "memory.swap",
        "memory.soft_limit_in_bytes" | "memory.low" => "memory.reservation",
        "memory.oom_control" => "memory.disableOOMKiller",
        "cpu.shares" | "cpu.weight" => "cpu.shares",
        "cpu.cfs_quota_us" | "cpu.max" => "cpu.quota",
        "cpu.cfs_period_us" => "cpu.period",
        "cpuset.cpus" => "cpu.cpus",
        "cpuset.mems" => "cpu.mems",
        "pids.max" => "pids.limit",
        "devices.allow" | "devices.deny" => "devices",
        other if other.starts_with("hugetlb.") => "hugepageLimits",
        other if other.starts_with("blkio.") || other.starts_with("io.") => "blockIO",
        other => other,
    };
    field.to_owned()
}

/// For cpusets: what the parent has to give.
fn hint(file: &Path) -> String {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(parent) = file.parent().and_then(Path::parent) else { return String::new() };
    let candidates = match name {
        "cpuset.cpus" => ["cpuset.cpus", "cpuset.cpus.effective"],
        "cpuset.mems" => ["cpuset.mems", "cpuset.mems.effective"],
        _ => return String::new(),
    };
    let lists = candidates.iter().filter_map(|name| std::fs::read_to_string(parent.join(name)).ok());
    let available = lists.map(|list| list.trim().to_owned()).find(|list| !list.is_empty());
    available.map(|list| format!(" (available: {list})")).unwrap_or_default()
}
