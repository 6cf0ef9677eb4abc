//! What a cgroup uses. Reads files by name; lists no directory.
//!
//! Invariant: a number the kernel does not offer is `None`, so that nobody takes a made-up zero for a
//! measurement. libcgroups' own statistics fail as a whole when one file is missing, hence this.

mod files;
mod v1;
mod v2;

use files::{Table, number, records};

use crate::{CgroupError, CgroupPath, Cgroups, Version};

/// Use of a cgroup at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// Processor time and throttling.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Swap.
    pub swap: SwapStats,
    /// Tasks.
    pub pids: PidsStats,
    /// Pressure of input and output (v2).
    pub io_pressure: Option<Pressure>,
}

/// Processor use. Times are in nanoseconds since the cgroup was made.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CpuStats {
    /// Time used, all processors together.
    pub usage_ns: Option<u64>,
    /// Part of it in user mode (v2; on v1 see [`Details`]).
    pub user_ns: Option<u64>,
    /// Part of it in the kernel (v2; on v1 see [`Details`]).
    pub system_ns: Option<u64>,
    /// Quota periods that have passed.
    pub periods: Option<u64>,
    /// Periods in which the quota was used up.
    pub throttled_periods: Option<u64>,
    /// Time spent waiting for quota.
    pub throttled_ns: Option<u64>,
    /// Pressure (v2).
    pub pressure: Option<Pressure>,
}

/// Memory use in bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MemoryStats {
    /// All memory charged, page cache included.
    pub usage: Option<u64>,
    /// Usage without the inactive page cache: what cannot be given back at once.
    pub working_set: Option<u64>,
    /// Limit minus working set; `None` without a limit.
    pub available: Option<u64>,
    /// The cgroup's own limit.
    pub limit: Option<u64>,
    /// Anonymous memory.
    pub rss: Option<u64>,
    /// Page cache.
    pub cache: Option<u64>,
    /// Mapped files.
    pub mapped_file: Option<u64>,
    /// Kernel memory.
    pub kernel: Option<u64>,
    /// Page cache used lately.
    pub active_file: Option<u64>,
    /// Page cache not used lately.
    pub inactive_file: Option<u64>,
    /// Anonymous memory used lately.
    pub active_anon: Option<u64>,
    /// Anonymous memory not used lately.
    pub inactive_anon: Option<u64>,
    /// Memory that cannot be reclaimed.
    pub unevictable: Option<u64>,
    /// Page faults since the cgroup was made.
    pub page_faults: Option<u64>,
    /// Those that had to read from disk.
    pub major_page_faults: Option<u64>,
    /// Pressure (v2).
    pub pressure: Option<Pressure>,
}

/// Swap use in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SwapStats {
    /// Swap in use.
    pub usage: Option<u64>,
    /// How much more may be used; `None` without a limit.
    pub available: Option<u64>,
    /// The limit of swap alone.
    pub limit: Option<u64>,
}

/// Numbers of tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PidsStats {
    /// Threads of all processes, those beneath included.
    pub threads: Option<u64>,
    /// The limit of [`Self::threads`].
    pub limit: Option<u64>,
    /// Processes directly in the cgroup.
    pub processes: Option<u64>,
}

/// Pressure stall information, see the kernel's Documentation/accounting/psi.rst.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Some tasks were stalled.
    pub some: PressureLine,
    /// All tasks were stalled at once.
    pub full: PressureLine,
}

/// One line of pressure: percentages of the last seconds, and a total.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PressureLine {
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last 60 seconds.
    pub avg60: f64,
    /// Percent of the last 300 seconds.
    pub avg300: f64,
    /// Microseconds since the cgroup was made.
    pub total_us: u64,
}

/// Numbers that only metrics ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// Processor time in user mode, nanoseconds.
    pub cpu_user_ns: Option<u64>,
    /// Processor time in the kernel, nanoseconds.
    pub cpu_system_ns: Option<u64>,
    /// The most memory ever charged, bytes.
    pub memory_peak: Option<u64>,
    /// How often the memory limit was hit.
    pub memory_limit_hits: Option<u64>,
    /// Input and output by block device.
    pub devices: Vec<DeviceIo>,
    /// Huge pages by their size.
    pub hugepages: Vec<HugepageStats>,
}

/// Use of huge pages of one size, bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugepageStats {
    /// The size as the kernel writes it, such as `2MB`.
    pub page_size: String,
    /// In use.
    pub usage: u64,
    /// The most ever in use (v1).
    pub peak: Option<u64>,
}

/// Input and output of one block device since the cgroup was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Major device number.
    pub major: u32,
    /// Minor device number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

/// How much of [`Stats`] is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Everything.
    All,
    /// Without tasks, throttling and kernel memory on v1: what is asked for often, in half the time.
    Usage,
}

pub(crate) fn read(cgroups: &Cgroups, path: &CgroupPath, extent: Extent) -> Result<Stats, CgroupError> {
    let pids = match extent {
        Extent::All => read_pids(cgroups, path)?,
        Extent::Usage => PidsStats::default(),
    };
    match cgroups.version() {
        Version::V1 => {
            let (memory, swap) = match cgroups.dir_of("memory", path) {
                Some(dir) => v1::read_memory(&dir, extent)?,
                None => Default::default(),
            };
            let cpu = v1::read_cpu(cgroups, path, extent)?;
            Ok(Stats { cpu, memory, swap, pids, io_pressure: None })
        }
        Version::V2 => {
            let dir = cgroups.main_dir(path);
            let (memory, swap) = v2::read_memory(&dir)?;
            let io_pressure = v2::pressure(&dir.join("io.pressure"))?;
            Ok(Stats { cpu: v2::read_cpu(&dir)?, memory, swap, pids, io_pressure })
        }
    }
}

pub(crate) fn oom_kills(cgroups: &Cgroups, path: &CgroupPath) -> Result<u64, CgroupError> {
    let Some(dir) = cgroups.dir_of("memory", path) else { return Ok(0) };
    let file = match cgroups.version() {
        Version::V1 => "memory.oom_control",
        Version::V2 => "memory.events",
    };
    let table = Table::read(&dir.join(file))?;
    Ok(table.and_then(|table| table.get("oom_kill")).unwrap_or(0))
}

pub(crate) fn details(cgroups: &Cgroups, path: &CgroupPath) -> Result<Details, CgroupError> {
    let mut details = match cgroups.version() {
        Version::V1 => v1::details(cgroups, path),
        Version::V2 => v2::details(&cgroups.main_dir(path)),
    }?;
    details.hugepages = hugepages(cgroups, path)?;
    Ok(details)
}

/// Hybrid machines have this controller in either tree.
fn hugepages(cgroups: &Cgroups, path: &CgroupPath) -> Result<Vec<HugepageStats>, CgroupError> {
    let Some(dir) = cgroups.dir_of("hugetlb", path) else { return Ok(Vec::new()) };
    let unified = cgroups.root_of("hugetlb") == cgroups.unified_root();
    let mut found = Vec::new();
    for page_size in page_sizes() {
        let file = |name: &str| dir.join(format!("hugetlb.{page_size}.{name}"));
        let usage = number(file(if unified { "current" } else { "usage_in_bytes" }))?;
        let peak = if unified { None } else { number(file("max_usage_in_bytes"))? };
        found.extend(usage.map(|usage| HugepageStats { page_size, usage, peak }));
    }
    Ok(found)
}

/// The sizes of huge pages here, as cgroup files are named by them.
pub(crate) fn page_sizes() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        let kib: u64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(match kib {
            kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
            kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
            kib => format!("{kib}KB"),
        })
    };
    let mut sizes: Vec<String> = entries.filter_map(size).collect();
    sizes.sort();
    sizes
}

fn read_pids(cgroups: &Cgroups, path: &CgroupPath) -> Result<PidsStats, CgroupError> {
    let procs = records(&cgroups.main_dir(path).join("cgroup.procs"))?;
    let processes = procs.map(|procs| procs.lines().count() as u64);
    let Some(dir) = cgroups.dir_of("pids", path) else {
        return Ok(PidsStats { processes, ..Default::default() });
    };
    Ok(PidsStats {
        threads: number(dir.join("pids.current"))?,
        limit: number(dir.join("pids.max"))?,
        processes,
    })
}

fn derived(mut memory: MemoryStats) -> MemoryStats {
    let inactive = memory.inactive_file.unwrap_or(0);
    memory.working_set = memory.usage.map(|usage| usage.saturating_sub(inactive));
    memory.available = memory.limit.zip(memory.working_set).map(|(limit, set)| limit.saturating_sub(set));
    memory
}

fn swap(usage: Option<u64>, limit: Option<u64>) -> SwapStats {
    let available = limit.zip(usage).map(|(limit, usage)| limit.saturating_sub(usage));
    SwapStats { usage, available, limit }
}

fn device_entry<'a>(devices: &'a mut Vec<DeviceIo>, device: &str) -> Option<&'a mut DeviceIo> {
    let (major, minor) = device.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let at = devices.iter().position(|io| (io.major, io.minor) == (major, minor)).unwrap_or_else(|| {
        devices.push(DeviceIo { major, minor, ..DeviceIo::default() });
        devices.len() - 1
    });
    devices.get_mut(at)
}
