//! Decides whether limits make sense before any is written. Pure.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use crate::{CgroupError, Version};

/// Smallest memory limit in bytes: with less the kernel cannot start a program.
pub const LEAST_MEMORY: i64 = 4 << 20;

/// The longest quota the kernel takes, microseconds (kernel/sched/core.c).
const MOST_QUOTA: i64 = (1 << 44) - 1;
/// More processors or memory nodes than a machine has.
const MOST_PROCESSORS: u32 = 1 << 16;

/// Refuses values that no kernel takes, or that would reach files outside the cgroup.
pub(crate) fn check(version: Version, resources: &LinuxResources) -> Result<(), CgroupError> {
    if let Some(memory) = resources.memory() {
        check_memory(memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        check_cpu(version, cpu)?;
    }
    for huge in resources.hugepage_limits().iter().flatten() {
        if !is_page_size(huge.page_size()) {
            return refuse(
                "hugepageLimits.pageSize",
                huge.page_size(),
                "use a form such as \"2MB\" or \"1GB\"",
            );
        }
    }
    for (key, value) in resources.unified().iter().flatten() {
        check_unified(version, key, value)?;
    }
    Ok(())
}

/// The controllers the resources need, each with the field that needs it.
pub(crate) fn needs(version: Version, resources: &LinuxResources) -> Vec<(&'static str, &'static str)> {
    let mut needs = Vec::new();
    if resources.memory().as_ref().is_some_and(|memory| *memory != LinuxMemory::default()) {
        needs.push(("memory", "memory"));
    }
    if let Some(cpu) = resources.cpu() {
        if cpu.shares().is_some()
            || cpu.quota().is_some()
            || cpu.period().is_some()
            || cpu.idle().is_some()
            || cpu.realtime_runtime().is_some()
            || cpu.realtime_period().is_some()
            || cpu.burst().is_some()
        {
            needs.push(("cpu", "cpu"));
        }
        if cpu.cpus().is_some() || cpu.mems().is_some() {
            needs.push(("cpu.cpus", "cpuset"));
        }
    }
    if resources.pids().is_some() {
        needs.push(("pids", "pids"));
    }
    if resources.block_io().is_some() {
        needs.push(("blockIO", if version == Version::V1 { "blkio" } else { "io" }));
    }
    if resources.hugepage_limits().as_ref().is_some_and(|limits| !limits.is_empty()) {
        needs.push(("hugepageLimits", "hugetlb"));
    }
    needs
}

fn check_memory(memory: &LinuxMemory) -> Result<(), CgroupError> {
    let limit = memory.limit().filter(|limit| *limit != 0);
    let fields = [
        ("memory.limit", limit),
        ("memory.swap", memory.swap()),
        ("memory.reservation", memory.reservation()),
    ];
    for (field, value) in fields {
        if let Some(value) = value.filter(|value| *value < -1) {
            return refuse(field, value, "use a number of bytes, or -1 for no limit");
        }
    }
    if let Some(limit) = limit.filter(|limit| (0..LEAST_MEMORY).contains(limit)) {
        return refuse("memory.limit", limit, "a container needs at least 4 MiB (4194304)");
    }
    if let (Some(limit), Some(swap)) = (limit, memory.swap())
        && swap > 0
        && (swap < limit || limit == -1)
    {
        return refuse(
            "memory.swap",
            swap,
            "it counts memory and swap together: it must not be below memory.limit",
        );
    }
    if let Some(swappiness) = memory.swappiness().filter(|value| *value > 100) {
        return refuse("memory.swappiness", swappiness, "use 0 to 100");
    }
    Ok(())
}

fn check_cpu(version: Version, cpu: &LinuxCpu) -> Result<(), CgroupError> {
    if let Some(quota) = cpu.quota().filter(|quota| (1..1000).contains(quota)) {
        return refuse("cpu.quota", quota, "the kernel takes 1000 microseconds at least, or -1 for no limit");
    }
    if let Some(quota) = cpu.quota().filter(|quota| *quota < -1 || *quota > MOST_QUOTA) {
        return refuse("cpu.quota", quota, "use microseconds of each period, or -1 for no limit");
    }
    if let Some(period) = cpu.period().filter(|p| *p != 0 && !(1_000..=1_000_000).contains(p)) {
        return refuse("cpu.period", period, "use 1000 to 1000000 microseconds");
    }
    if version == Version::V2 && (cpu.realtime_runtime().is_some() || cpu.realtime_period().is_some()) {
        return refuse("cpu.realtimeRuntime", "", "cgroup v2 has no real-time limits; leave it out");
    }
    for (field, list) in [("cpu.cpus", cpu.cpus()), ("cpu.mems", cpu.mems())] {
        if let Some(list) = list.as_ref().filter(|list| !is_list(list)) {
            return refuse(field, list, "use a list such as \"0-3,8\"");
        }
    }
    Ok(())
}

fn check_unified(version: Version, key: &str, value: &str) -> Result<(), CgroupError> {
    let field = format!("unified[{key:?}]");
    if version == Version::V1 {
        return refuse(&field, value, "it needs cgroup v2, and this machine's controllers are on v1");
    }
    let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    let (controller, file) = key.split_once('.').unwrap_or((key, ""));
    if !plain || controller.is_empty() || file.is_empty() {
        return refuse(&field, value, "the key must be the plain name of a file such as \"memory.high\"");
    }
    if controller == "cgroup" {
        return refuse(&field, value, "the cgroup.* files belong to the runtime");
    }
    if value.contains('\0') || value.len() > 4096 {
        return refuse(&field, "", "the value is too long or holds a NUL");
    }
    Ok(())
}

fn refuse<T>(field: &str, value: impl ToString, reason: &str) -> Result<T, CgroupError> {
    Err(CgroupError::Invalid { field: field.to_owned(), value: value.to_string(), reason: reason.to_owned() })
}

fn is_page_size(text: &str) -> bool {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let power = text[..digits].parse::<u64>().is_ok_and(u64::is_power_of_two);
    power && matches!(&text[digits..], "KB" | "MB" | "GB")
}

/// A list as cpuset(7) writes it. An empty one stands for "unchanged" and is dropped by the caller.
fn is_list(text: &str) -> bool {
    text.len() <= 4096 && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-'))
}

/// Whether every number of the list is in the other; a list that is torn is in none.
pub(crate) fn is_within(list: &str, available: &str) -> bool {
    let ranges = |list: &str| -> Option<Vec<(u32, u32)>> {
        let range = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last && last < MOST_PROCESSORS).then_some((first, last))
        };
        list.split(',').map(range).collect()
    };
    let (Some(list), Some(available)) = (ranges(list), ranges(available)) else { return false };
    let has = |n: u32| available.iter().any(|(first, last)| (*first..=*last).contains(&n));
    list.iter().all(|(first, last)| (*first..=*last).all(has))
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResourcesBuilder};

    use super::*;

    fn memory(limit: i64, swap: i64) -> Result<(), CgroupError> {
        let memory = LinuxMemoryBuilder::default().limit(limit).swap(swap).build().unwrap();
        check(Version::V2, &LinuxResourcesBuilder::default().memory(memory).build().unwrap())
    }

    #[test]
    fn memory_limits_are_named_when_refused() {
        assert!(memory(64 << 20, 64 << 20).is_ok());
        assert!(memory(-1, -1).is_ok());
        assert!(memory(0, 0).is_ok());
        let text = memory(4096, -1).unwrap_err().to_string();
        assert!(text.contains("memory.limit = 4096") && text.contains("4 MiB"), "{text}");
        assert!(memory(64 << 20, 32 << 20).unwrap_err().to_string().contains("memory.swap"));
        assert!(memory(-2, -1).is_err());
    }

    #[test]
    fn cpu_limits_outside_the_kernels_range_are_refused() {
        let check = |quota: i64, period: u64, cpus: &str| {
            let cpu = LinuxCpuBuilder::default().quota(quota).period(period).cpus(cpus).build().unwrap();
            super::check(Version::V1, &LinuxResourcesBuilder::default().cpu(cpu).build().unwrap())
        };
        assert!(check(50_000, 100_000, "0-1,3").is_ok());
        assert!(check(-1, 0, "").is_ok());
        assert!(check(10, 100_000, "0").is_err());
        assert!(check(-1, 2_000_000, "0").is_err());
        assert!(check(-1, 100_000, "0\n1").is_err());
        assert!(check(-1, 100_000, "../x").is_err());
    }

    #[test]
    fn a_cpuset_is_within_another_or_not() {
        for (list, available) in [("0", "0-1"), ("0-1,3", "0-3"), ("1", "0,1")] {
            assert!(is_within(list, available), "{list} {available}");
        }
        for (list, available) in [("2", "0-1"), ("0-2", "0-1"), ("1-0", "0-1"), ("0-", "0-1"), (",", "0-1")] {
            assert!(!is_within(list, available), "{list} {available}");
        }
        assert!(!is_within("0-4294967295", "0-1"));
    }

    #[test]
    fn unified_keys_cannot_leave_the_cgroup() {
        let check = |key: &str| {
            let unified = std::collections::HashMap::from([(key.to_owned(), "1".to_owned())]);
            super::check(Version::V2, &LinuxResourcesBuilder::default().unified(unified).build().unwrap())
        };
        assert!(check("memory.high").is_ok());
        assert!(check("hugetlb.1GB.rsvd.max").is_ok());
        for bad in ["", "..", "../x", "/etc/passwd", "memory", ".high", "cgroup.procs", "memory./x", "a b.c"]
        {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn page_sizes_are_powers_of_two_with_a_unit() {
        assert!(is_page_size("2MB") && is_page_size("1GB") && is_page_size("64KB"));
        for bad in ["", "2", "MB", "3MB", "2MB/../..", "2mb"] {
            assert!(!is_page_size(bad), "{bad:?}");
        }
    }
}
