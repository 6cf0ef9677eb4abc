//! Statistics of the unified hierarchy.

use std::path::Path;

use super::{
    CpuStats, Details, MemoryStats, Pressure, SwapStats, derived, device_entry,
    files::{Table, number, text},
    swap,
};
use crate::CgroupError;

pub(super) fn read_cpu(dir: &Path) -> Result<CpuStats, CgroupError> {
    let table = Table::read(&dir.join("cpu.stat"))?.unwrap_or_default();
    let ns = |key| table.get(key).map(|us| us.saturating_mul(1000));
    Ok(CpuStats {
        usage_ns: ns("usage_usec"),
        user_ns: ns("user_usec"),
        system_ns: ns("system_usec"),
        periods: table.get("nr_periods"),
        throttled_periods: table.get("nr_throttled"),
        throttled_ns: ns("throttled_usec"),
        pressure: pressure(&dir.join("cpu.pressure"))?,
    })
}

pub(super) fn read_memory(dir: &Path) -> Result<(MemoryStats, SwapStats), CgroupError> {
    let table = Table::read(&dir.join("memory.stat"))?.unwrap_or_default();
    let memory = MemoryStats {
        usage: number(dir.join("memory.current"))?,
        limit: number(dir.join("memory.max"))?,
        rss: table.get("anon"),
        cache: table.get("file"),
        mapped_file: table.get("file_mapped"),
        kernel: table.get("kernel").or_else(|| table.get("kernel_stack")),
        active_file: table.get("active_file"),
        inactive_file: table.get("inactive_file"),
        active_anon: table.get("active_anon"),
        inactive_anon: table.get("inactive_anon"),
        unevictable: table.get("unevictable"),
        page_faults: table.get("pgfault"),
        major_page_faults: table.get("pgmajfault"),
        pressure: pressure(&dir.join("memory.pressure"))?,
        ..MemoryStats::default()
    };
    let usage = number(dir.join("memory.swap.current"))?;
    let limit = number(dir.join("memory.swap.max"))?;
    Ok((derived(memory), swap(usage, limit)))
}

pub(super) fn pressure(file: &Path) -> Result<Option<Pressure>, CgroupError> {
    let Some(text) = text(file)? else { return Ok(None) };
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split(' ');
        let target = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => target.avg10 = value.parse().unwrap_or_default(),
                "avg60" => target.avg60 = value.parse().unwrap_or_default(),
                "avg300" => target.avg300 = value.parse().unwrap_or_default(),
                "total" => target.total_us = value.parse().unwrap_or_default(),
                _ => {}
            }
        }
    }
    Ok(Some(pressure))
}

pub(super) fn details(dir: &Path) -> Result<Details, CgroupError> {
    let cpu = Table::read(&dir.join("cpu.stat"))?.unwrap_or_default();
    let ns = |key| cpu.get(key).map(|us: u64| us.saturating_mul(1000));
    let events = Table::read(&dir.join("memory.events"))?;
    let mut devices = Vec::new();
    for line in text(&dir.join("io.stat"))?.unwrap_or_default().lines() {
        let mut words = line.split(' ');
        let Some(io) = words.next().and_then(|device| device_entry(&mut devices, device)) else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match key {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.write_bytes = value,
                "rios" => io.reads = value,
                "wios" => io.writes = value,
                _ => {}
            }
        }
    }
    Ok(Details {
        cpu_user_ns: ns("user_usec"),
        cpu_system_ns: ns("system_usec"),
        memory_peak: number(dir.join("memory.peak"))?,
        memory_limit_hits: events.and_then(|events| events.get("max")),
        devices,
        ..Details::default()
    })
}
