//! Statistics of the v1 hierarchies.

use std::path::Path;

use super::{
    CpuStats, Details, DeviceIo, Extent, MemoryStats, SwapStats, derived, device_entry,
    files::{Table, number, text},
    swap,
};
use crate::{CgroupError, CgroupPath, Cgroups};

/// v1 writes "no limit" as the largest multiple of a page; anything as large means none.
const V1_NO_LIMIT: u64 = 1 << 62;

pub(super) fn read_cpu(
    cgroups: &Cgroups,
    path: &CgroupPath,
    extent: Extent,
) -> Result<CpuStats, CgroupError> {
    let usage_ns = match cgroups.dir_of("cpuacct", path) {
        Some(dir) => number(dir.join("cpuacct.usage"))?,
        None => None,
    };
    let throttling = match cgroups.dir_of("cpu", path).filter(|_| extent == Extent::All) {
        Some(dir) => Table::read(&dir.join("cpu.stat"))?.unwrap_or_default(),
        None => Table::default(),
    };
    Ok(CpuStats {
        usage_ns,
        periods: throttling.get("nr_periods"),
        throttled_periods: throttling.get("nr_throttled"),
        throttled_ns: throttling.get("throttled_time"),
        ..CpuStats::default()
    })
}

pub(super) fn read_memory(dir: &Path, extent: Extent) -> Result<(MemoryStats, SwapStats), CgroupError> {
    let table = Table::read(&dir.join("memory.stat"))?.unwrap_or_default();
    // total_ counts the cgroups beneath as well, as v2 does throughout.
    let total = |key: &str| table.get(&format!("total_{key}"));
    // What neither the cgroup nor one above it limits needs no look at its own limit.
    let limited = |name: &str, with_ancestors: &str| match table.get(with_ancestors) {
        Some(limit) if limit >= V1_NO_LIMIT => Ok::<_, CgroupError>(None),
        _ => Ok(number(dir.join(name))?.filter(|limit| *limit < V1_NO_LIMIT)),
    };
    let usage = number(dir.join("memory.usage_in_bytes"))?;
    let limit = limited("memory.limit_in_bytes", "hierarchical_memory_limit")?;
    let kernel = match extent {
        Extent::All => number(dir.join("memory.kmem.usage_in_bytes"))?,
        Extent::Usage => None,
    };
    let memory = MemoryStats {
        usage,
        limit,
        rss: total("rss"),
        cache: total("cache"),
        mapped_file: total("mapped_file"),
        kernel,
        active_file: total("active_file"),
        inactive_file: total("inactive_file"),
        active_anon: total("active_anon"),
        inactive_anon: total("inactive_anon"),
        unevictable: total("unevictable"),
        page_faults: total("pgfault"),
        major_page_faults: total("pgmajfault"),
        ..MemoryStats::default()
    };
    let swap_usage = match total("swap") {
        None => number(dir.join("memory.memsw.usage_in_bytes"))?
            .zip(usage)
            .map(|(both, memory)| both.saturating_sub(memory)),
        known => known,
    };
    let both_limit = limited("memory.memsw.limit_in_bytes", "hierarchical_memsw_limit")?;
    let swap_limit = both_limit.zip(limit).map(|(both, memory)| both.saturating_sub(memory));
    Ok((derived(memory), swap(swap_usage, swap_limit)))
}

pub(super) fn details(cgroups: &Cgroups, path: &CgroupPath) -> Result<Details, CgroupError> {
    let mut details = Details::default();
    if let Some(dir) = cgroups.dir_of("cpuacct", path) {
        details.cpu_user_ns = number(dir.join("cpuacct.usage_user"))?;
        details.cpu_system_ns = number(dir.join("cpuacct.usage_sys"))?;
    }
    if let Some(dir) = cgroups.dir_of("memory", path) {
        details.memory_peak = number(dir.join("memory.max_usage_in_bytes"))?;
        // A charge fails at one of the two limits; where they are equal, at the second.
        let hits = [number(dir.join("memory.failcnt"))?, number(dir.join("memory.memsw.failcnt"))?];
        details.memory_limit_hits = hits.into_iter().flatten().reduce(u64::saturating_add);
    }
    if let Some(dir) = cgroups.dir_of("blkio", path) {
        let bytes = text(&dir.join("blkio.throttle.io_service_bytes_recursive"))?.unwrap_or_default();
        let operations = text(&dir.join("blkio.throttle.io_serviced_recursive"))?.unwrap_or_default();
        add_device_lines(&mut details.devices, &bytes, |io| (&mut io.read_bytes, &mut io.write_bytes));
        add_device_lines(&mut details.devices, &operations, |io| (&mut io.reads, &mut io.writes));
    }
    Ok(details)
}

/// Lines such as `8:0 Read 4096`.
fn add_device_lines(
    devices: &mut Vec<DeviceIo>,
    text: &str,
    fields: fn(&mut DeviceIo) -> (&mut u64, &mut u64),
) {
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(device), Some(kind), Some(value)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let (Some(io), Ok(value)) = (device_entry(devices, device), value.parse()) else { continue };
        let (read, write) = fields(io);
        match kind {
            "Read" => *read = value,
            "Write" => *write = value,
            _ => {}
        }
    }
}
