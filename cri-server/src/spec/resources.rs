//! CRI limits as OCI limits. Pure.

use std::collections::HashMap;

use oci_spec::runtime::{
    LinuxCpuBuilder, LinuxDeviceCgroup, LinuxHugepageLimitBuilder, LinuxMemoryBuilder, LinuxResources,
    LinuxResourcesBuilder,
};
use podhold_cgroups::LEAST_MEMORY;
use podhold_proto::cri;

use crate::error::{Error, Result};

/// The kernel's period of CPU quotas, microseconds.
const DEFAULT_PERIOD: i64 = 100_000;

/// Limits for a container's cgroup. What the request leaves at zero stays unlimited.
pub fn build(
    limits: &cri::LinuxContainerResources,
    devices: Vec<LinuxDeviceCgroup>,
) -> Result<LinuxResources> {
    check(limits)?;
    let mut cpu = LinuxCpuBuilder::default();
    if limits.cpu_shares > 0 {
        cpu = cpu.shares(limits.cpu_shares.unsigned_abs().clamp(2, 262_144));
    }
    if limits.cpu_quota != 0 {
        cpu = cpu.quota(limits.cpu_quota);
    }
    if limits.cpu_period > 0 {
        cpu = cpu.period(limits.cpu_period.unsigned_abs());
    }
    if !limits.cpuset_cpus.is_empty() {
        cpu = cpu.cpus(limits.cpuset_cpus.clone());
    }
    if !limits.cpuset_mems.is_empty() {
        cpu = cpu.mems(limits.cpuset_mems.clone());
    }
    let mut memory = LinuxMemoryBuilder::default();
    if limits.memory_limit_in_bytes != 0 {
        memory = memory.limit(limits.memory_limit_in_bytes);
    }
    if limits.memory_swap_limit_in_bytes != 0 {
        memory = memory.swap(limits.memory_swap_limit_in_bytes);
    }
    let mut resources = LinuxResourcesBuilder::default()
        .cpu(cpu.build().map_err(Error::doing("cpu limits"))?)
        .memory(memory.build().map_err(Error::doing("memory limits"))?)
        .devices(devices);
    if !limits.hugepage_limits.is_empty() {
        resources = resources.hugepage_limits(hugepages(limits)?);
    }
    if !limits.unified.is_empty() {
        resources = resources.unified(limits.unified.clone().into_iter().collect::<HashMap<_, _>>());
    }
    resources.build().map_err(Error::doing("limits"))
}

/// `now` with the fields set that `update` sets: what UpdateContainerResources leaves at zero stays.
pub fn updated(
    now: &cri::LinuxContainerResources,
    update: &cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    let number = |new: i64, old: i64| if new == 0 { old } else { new };
    let text = |new: &String, old: &String| if new.is_empty() { old.clone() } else { new.clone() };
    let mut merged = cri::LinuxContainerResources {
        cpu_period: number(update.cpu_period, now.cpu_period),
        cpu_quota: number(update.cpu_quota, now.cpu_quota),
        cpu_shares: number(update.cpu_shares, now.cpu_shares),
        memory_limit_in_bytes: number(update.memory_limit_in_bytes, now.memory_limit_in_bytes),
        oom_score_adj: number(update.oom_score_adj, now.oom_score_adj),
        cpuset_cpus: text(&update.cpuset_cpus, &now.cpuset_cpus),
        cpuset_mems: text(&update.cpuset_mems, &now.cpuset_mems),
        hugepage_limits: now.hugepage_limits.clone(),
        unified: now.unified.clone(),
        memory_swap_limit_in_bytes: number(update.memory_swap_limit_in_bytes, now.memory_swap_limit_in_bytes),
    };
    if !update.hugepage_limits.is_empty() {
        merged.hugepage_limits.clone_from(&update.hugepage_limits);
    }
    merged.unified.extend(update.unified.clone());
    merged
}

/// Limits for a pod's cgroup: those of its containers together, and what the pod itself takes. What the
/// containers have no limit of, the pod has none of either. `None` when nothing is limited.
pub fn of_pod(
    overhead: Option<&cri::LinuxContainerResources>,
    containers: Option<&cri::LinuxContainerResources>,
) -> Result<Option<LinuxResources>> {
    if let Some(overhead) = overhead {
        // Beside its containers a pod may take less than a container needs.
        check_as("linux.overhead", overhead, 1)?;
    }
    let Some(containers) = containers else { return Ok(None) };
    check(containers)?;
    let none = cri::LinuxContainerResources::default();
    let overhead = overhead.unwrap_or(&none);
    let sum = |of: i64, more: i64| if of > 0 { of.saturating_add(more.max(0)) } else { of };
    let period = if containers.cpu_period > 0 { containers.cpu_period } else { DEFAULT_PERIOD };
    let more_quota = match overhead.cpu_period {
        other if other > 0 && other != period => {
            let scaled = i128::from(overhead.cpu_quota.max(0)) * i128::from(period) / i128::from(other);
            i64::try_from(scaled).unwrap_or(i64::MAX)
        }
        _ => overhead.cpu_quota,
    };
    let mut together = containers.clone();
    together.cpu_shares = sum(containers.cpu_shares, overhead.cpu_shares);
    together.cpu_quota = sum(containers.cpu_quota, more_quota);
    together.memory_limit_in_bytes = sum(containers.memory_limit_in_bytes, overhead.memory_limit_in_bytes);
    together.memory_swap_limit_in_bytes =
        sum(containers.memory_swap_limit_in_bytes, overhead.memory_limit_in_bytes);
    // It is for processes, and a pod's cgroup has none of its own.
    together.oom_score_adj = 0;
    if together == none {
        return Ok(None);
    }
    build(&together, Vec::new()).map(Some)
}

fn check(limits: &cri::LinuxContainerResources) -> Result<()> {
    check_as("linux.resources", limits, LEAST_MEMORY)
}

/// `at` is where the limits are in the request, `least` the smallest limit of memory in bytes.
fn check_as(at: &str, limits: &cri::LinuxContainerResources, least: i64) -> Result<()> {
    let field = |name: &str| format!("{at}.{name}");
    for (name, value) in [("cpu_period", limits.cpu_period), ("cpu_shares", limits.cpu_shares)] {
        if value < 0 {
            return Err(Error::invalid(field(name), format!("{value} is negative; leave it 0 for no limit")));
        }
    }
    if limits.cpu_quota < -1 {
        let reason = format!("{} is not a quota; use microseconds, or -1 for none", limits.cpu_quota);
        return Err(Error::invalid(field("cpu_quota"), reason));
    }
    let memory = limits.memory_limit_in_bytes;
    if memory < -1 || (1..least).contains(&memory) {
        let reason = format!("{memory} bytes hold no process; use at least {least}, or 0 for no limit");
        return Err(Error::invalid(field("memory_limit_in_bytes"), reason));
    }
    let swap = limits.memory_swap_limit_in_bytes;
    if swap > 0 && memory > 0 && swap < memory {
        let reason = format!("{swap} is memory and swap together, and below the memory limit {memory}");
        return Err(Error::invalid(field("memory_swap_limit_in_bytes"), reason));
    }
    if swap < -1 {
        let reason = format!("{swap} is not a number of bytes; use -1 for no limit");
        return Err(Error::invalid(field("memory_swap_limit_in_bytes"), reason));
    }
    if swap > 0 && memory <= 0 {
        let reason = "counts memory and swap together, so it needs memory_limit_in_bytes as well";
        return Err(Error::invalid(field("memory_swap_limit_in_bytes"), reason));
    }
    if !(-1000..=1000).contains(&limits.oom_score_adj) {
        let reason = format!("{} is not from -1000 to 1000", limits.oom_score_adj);
        return Err(Error::invalid(field("oom_score_adj"), reason));
    }
    for (name, list) in [("cpuset_cpus", &limits.cpuset_cpus), ("cpuset_mems", &limits.cpuset_mems)] {
        if !list.bytes().all(|b| b.is_ascii_digit() || b == b',' || b == b'-') {
            return Err(Error::invalid(field(name), format!("{list:?} is not a list such as 0-2,5")));
        }
    }
    for key in limits.unified.keys() {
        if key.contains('/') || key.starts_with('.') || !key.contains('.') {
            let reason = format!("{key:?} is not a cgroup v2 file such as memory.high");
            return Err(Error::invalid(field("unified"), reason));
        }
    }
    Ok(())
}

fn hugepages(limits: &cri::LinuxContainerResources) -> Result<Vec<oci_spec::runtime::LinuxHugepageLimit>> {
    let one = |limit: &cri::HugepageLimit| {
        let value = i64::try_from(limit.limit).unwrap_or(i64::MAX);
        LinuxHugepageLimitBuilder::default()
            .page_size(limit.page_size.clone())
            .limit(value)
            .build()
            .map_err(Error::doing("hugepage limits"))
    };
    limits.hugepage_limits.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_zero_stays_unlimited() {
        let built = build(&cri::LinuxContainerResources::default(), Vec::new()).unwrap();
        assert_eq!(built.memory().as_ref().unwrap().limit(), None);
        assert_eq!(built.cpu().as_ref().unwrap().quota(), None);
    }

    #[test]
    fn an_update_changes_only_what_it_sets() {
        let now = cri::LinuxContainerResources { cpu_shares: 512, cpu_quota: 1000, ..Default::default() };
        let update = cri::LinuxContainerResources { cpu_quota: 2000, ..Default::default() };
        let merged = updated(&now, &update);
        assert_eq!((merged.cpu_shares, merged.cpu_quota), (512, 2000));
    }

    #[test]
    fn a_pod_is_limited_by_its_containers_and_its_overhead() {
        type Limits = cri::LinuxContainerResources;
        let containers = Limits {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            memory_limit_in_bytes: 64 << 20,
            oom_score_adj: 5,
            ..Default::default()
        };
        let overhead = Limits {
            cpu_period: 50_000,
            cpu_quota: 5_000,
            cpu_shares: 7,
            memory_limit_in_bytes: 1 << 20,
            ..Default::default()
        };
        let limits = of_pod(Some(&overhead), Some(&containers)).unwrap().unwrap();
        let cpu = limits.cpu().as_ref().unwrap();
        assert_eq!(
            (cpu.quota(), cpu.shares()),
            (Some(60_000), None),
            "no shares without those of containers"
        );
        assert_eq!(limits.memory().as_ref().unwrap().limit(), Some(65 << 20));
        assert_eq!(of_pod(Some(&overhead), None).unwrap(), None);
        assert_eq!(of_pod(None, Some(&Limits::default())).unwrap(), None);
        let message = of_pod(Some(&Limits { cpu_quota: -5, ..overhead }), None).unwrap_err().to_string();
        assert!(message.starts_with("linux.overhead.cpu_quota: "), "{message}");
    }

    #[test]
    fn limits_that_make_no_sense_are_refused_by_field() {
        type Limits = cri::LinuxContainerResources;
        let table: [(&str, Limits); 6] = [
            ("cpu_period", Limits { cpu_period: -5, ..Default::default() }),
            ("cpu_quota", Limits { cpu_quota: -7, ..Default::default() }),
            ("memory_limit_in_bytes", Limits { memory_limit_in_bytes: 10, ..Default::default() }),
            ("oom_score_adj", Limits { oom_score_adj: 2000, ..Default::default() }),
            ("cpuset_cpus", Limits { cpuset_cpus: "all".into(), ..Default::default() }),
            ("unified", Limits { unified: [("../x".into(), "1".into())].into(), ..Default::default() }),
        ];
        for (field, limits) in table {
            let message = build(&limits, Vec::new()).unwrap_err().to_string();
            assert!(message.starts_with(&format!("linux.resources.{field}: ")), "{message}");
        }
    }
}
