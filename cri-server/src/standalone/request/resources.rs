//! Resources of containers and pods as cgroup limits, computed as the kubelet does. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity};
use podhold_proto::cri;

use crate::standalone::{
    host::Host,
    manifest::{Findings, ManifestError, join, refuse},
    quantity::Amount,
};

/// Period of the processor quota, in microseconds.
const PERIOD: i64 = 100_000;
/// Least quota the kernel takes.
const LEAST_QUOTA: i64 = 1000;
/// Least and most shares the kernel takes.
const SHARES: (i64, i64) = (2, 262_144);
/// Out-of-memory adjustment of guaranteed pods.
const GUARANTEED: i64 = -997;
/// Of those that ask for nothing.
const BEST_EFFORT: i64 = 1000;
const HUGE_PAGES: &str = "hugepages-";

/// What is asked for and what is the limit; zero and absent are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Bounds {
    pub(super) request: i64,
    pub(super) limit: i64,
}

/// What a container needs: thousandths of a processor, and bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Needs {
    pub(super) cpu: Bounds,
    pub(super) memory: Bounds,
    /// Bytes, not held to.
    pub(super) disk: Bounds,
    /// Limits by the size of a page as the CRI writes it, such as `2MB`.
    huge: BTreeMap<String, i64>,
}

/// The class a pod's needs put it in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quality {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Needs {
    /// Of a container; `field` is its path in the manifest.
    pub(super) fn of(resources: Option<&ResourceRequirements>, field: &str) -> Result<Self, ManifestError> {
        let mut needs = Self::default();
        let Some(resources) = resources else { return Ok(needs) };
        let empty = BTreeMap::new();
        let limits = resources.limits.as_ref().unwrap_or(&empty);
        let requests = resources.requests.as_ref().unwrap_or(&empty);
        let pair = |name: &str, read: fn(Amount) -> i64| -> Result<Bounds, ManifestError> {
            let limit = amount(limits, name, &format!("{field}.resources.limits"))?;
            let path = format!("{field}.resources.requests");
            let request = amount(requests, name, &path)?;
            if let (Some(request), Some(limit)) = (request, limit)
                && request > limit
            {
                let (more, less) = (&requests[name].0, &limits[name].0);
                return refuse(join(&path, name), format!("{more} is more than the limit, {less}"));
            }
            Ok(Bounds { request: request.or(limit).map_or(0, read), limit: limit.map_or(0, read) })
        };
        let mut found = Findings::default();
        needs.cpu = found.part(pair("cpu", Amount::thousandths)).unwrap_or_default();
        needs.memory = found.part(pair("memory", Amount::units)).unwrap_or_default();
        needs.disk = found.part(pair("ephemeral-storage", Amount::units)).unwrap_or_default();
        let least = podhold_cgroups::LEAST_MEMORY;
        if needs.memory.limit > 0 && needs.memory.limit < least {
            let reason = format!("{} bytes hold no process; give it at least {least}", needs.memory.limit);
            found.part::<()>(refuse(format!("{field}.resources.limits.memory"), reason));
        }
        for name in limits.keys().chain(requests.keys()).filter(|name| name.starts_with(HUGE_PAGES)) {
            let Some(bounds) = found.part(pair(name, Amount::units)) else { continue };
            let at = join(&format!("{field}.resources.limits"), name);
            if bounds.limit == 0 || bounds.request != bounds.limit {
                let reason = "must be there and equal to its request: huge pages are not shared";
                found.part::<()>(refuse(at, reason));
            } else if let Some(size) = page_size(&name[HUGE_PAGES.len()..]) {
                needs.huge.insert(size, bounds.limit);
            } else {
                found.part::<()>(refuse(at, "is not the size of a page, such as hugepages-2Mi"));
            }
        }
        found.whole(needs)
    }

    fn asks_for_anything(&self) -> bool {
        self.cpu != Bounds::default() || self.memory != Bounds::default()
    }

    fn is_bound(&self) -> bool {
        let bound = |bounds: Bounds| bounds.limit > 0 && bounds.limit == bounds.request;
        bound(self.cpu) && bound(self.memory)
    }

    /// The limits of the container's cgroup.
    pub(super) fn container(&self, quality: Quality, host: &Host) -> cri::LinuxContainerResources {
        // Who takes too much of its memory ends with all its processes, as a kubelet has it.
        let group = host.limits_groups.then(|| ("memory.oom.group".to_owned(), "1".to_owned()));
        cri::LinuxContainerResources {
            oom_score_adj: self.oom_score(quality, host.memory),
            unified: group.into_iter().collect(),
            ..self.limits()
        }
    }

    fn limits(&self) -> cri::LinuxContainerResources {
        let huge = self.huge.iter();
        cri::LinuxContainerResources {
            cpu_period: PERIOD,
            cpu_quota: quota(self.cpu.limit),
            cpu_shares: shares(self.cpu.request),
            memory_limit_in_bytes: self.memory.limit,
            // Memory and swap together: no swap.
            memory_swap_limit_in_bytes: self.memory.limit,
            hugepage_limits: huge
                .map(|(size, limit)| cri::HugepageLimit {
                    page_size: size.clone(),
                    limit: limit.unsigned_abs(),
                })
                .collect(),
            ..Default::default()
        }
    }

    fn oom_score(&self, quality: Quality, memory: i64) -> i64 {
        match quality {
            Quality::Guaranteed => GUARANTEED,
            Quality::BestEffort => BEST_EFFORT,
            Quality::Burstable => {
                let part = i128::from(self.memory.request) * 1000 / i128::from(memory.max(1));
                let score = 1000 - i64::try_from(part).unwrap_or(1000);
                // Between the guaranteed and those that ask for nothing.
                score.clamp(1000 + GUARANTEED, BEST_EFFORT - 1)
            }
        }
    }
}

fn amount(map: &BTreeMap<String, Quantity>, name: &str, path: &str) -> Result<Option<Amount>, ManifestError> {
    let Some(Quantity(text)) = map.get(name) else { return Ok(None) };
    match Amount::parse(text) {
        Some(value) => Ok(Some(value)),
        None => refuse(join(path, name), format!("{text:?} is not a quantity such as 500m or 64Mi")),
    }
}

/// `2Mi` as the CRI writes it, `2MB`.
fn page_size(size: &str) -> Option<String> {
    let (number, unit) = size.split_at(size.find(|c: char| !c.is_ascii_digit())?);
    let unit = match unit {
        "Ki" => "KB",
        "Mi" => "MB",
        "Gi" => "GB",
        _ => return None,
    };
    (!number.is_empty()).then(|| format!("{number}{unit}"))
}

fn shares(thousandths: i64) -> i64 {
    (thousandths.saturating_mul(1024) / 1000).clamp(SHARES.0, SHARES.1)
}

fn quota(thousandths: i64) -> i64 {
    match thousandths {
        0 => 0,
        more => (more.saturating_mul(PERIOD) / 1000).max(LEAST_QUOTA),
    }
}

/// The class of a pod with these containers.
pub(super) fn quality<'n>(all: impl Iterator<Item = &'n Needs> + Clone) -> Quality {
    if !all.clone().any(Needs::asks_for_anything) {
        Quality::BestEffort
    } else if all.clone().all(Needs::is_bound) {
        Quality::Guaranteed
    } else {
        Quality::Burstable
    }
}

/// One init container's needs, and whether it stays (a sidecar).
pub(super) type Init<'n> = (&'n Needs, bool);

/// The limits of the pod's cgroup: what its containers together may take at any one time.
pub(super) fn pod(init: &[Init<'_>], apps: &[&Needs], quality: Quality) -> cri::LinuxContainerResources {
    let together = |part: fn(&Needs) -> i64| {
        let (mut sidecars, mut most) = (0_i64, 0_i64);
        for (needs, stays) in init {
            let now = sidecars.saturating_add(part(needs));
            most = most.max(now);
            if *stays {
                sidecars = now;
            }
        }
        let apps = apps.iter().map(|needs| part(needs)).fold(sidecars, i64::saturating_add);
        most.max(apps)
    };
    let all = || init.iter().map(|(needs, _)| *needs).chain(apps.iter().copied());
    // A pod of which one container has no limit has none.
    let limited =
        |limit: fn(&Needs) -> i64| if all().all(|needs| limit(needs) > 0) { together(limit) } else { 0 };
    if quality == Quality::BestEffort {
        return cri::LinuxContainerResources { cpu_shares: SHARES.0, ..Default::default() };
    }
    let memory = limited(|needs| needs.memory.limit);
    cri::LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: quota(limited(|needs| needs.cpu.limit)),
        cpu_shares: shares(together(|needs| needs.cpu.request)),
        memory_limit_in_bytes: memory,
        ..Default::default()
    }
}

/// What the pod itself takes besides its containers (`spec.overhead`).
pub(super) fn overhead(
    overhead: Option<&BTreeMap<String, Quantity>>,
) -> Result<Option<cri::LinuxContainerResources>, ManifestError> {
    let Some(overhead) = overhead else { return Ok(None) };
    let mut found = Findings::default();
    let cpu = found.part(amount(overhead, "cpu", "spec.overhead")).flatten().map_or(0, Amount::thousandths);
    let memory = found.part(amount(overhead, "memory", "spec.overhead")).flatten().map_or(0, Amount::units);
    found.whole(Some(cri::LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: quota(cpu),
        cpu_shares: shares(cpu),
        memory_limit_in_bytes: memory,
        ..Default::default()
    }))
}

/// A sidecar is not killed before the containers it serves.
pub(super) fn shield(sidecar: &mut cri::LinuxContainerResources, apps: impl Iterator<Item = i64>) {
    if let Some(least) = apps.min() {
        sidecar.oom_score_adj = sidecar.oom_score_adj.min(least);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(limits: &[(&str, &str)], requests: &[(&str, &str)]) -> ResourceRequirements {
        let map = |list: &[(&str, &str)]| {
            list.iter().map(|(name, text)| ((*name).to_owned(), Quantity((*text).to_owned()))).collect()
        };
        ResourceRequirements { limits: Some(map(limits)), requests: Some(map(requests)), claims: None }
    }

    fn needs(limits: &[(&str, &str)], requests: &[(&str, &str)]) -> Needs {
        Needs::of(Some(&resources(limits, requests)), "c").unwrap()
    }

    #[test]
    fn limits_become_quota_shares_and_bytes() {
        let limits =
            needs(&[("cpu", "500m"), ("memory", "64Mi"), ("hugepages-2Mi", "4Mi")], &[("cpu", "0.25")]);
        let limits = limits.container(Quality::Burstable, &Host { memory: 1 << 30, ..Host::default() });
        assert_eq!((limits.cpu_quota, limits.cpu_period, limits.cpu_shares), (50_000, 100_000, 256));
        assert_eq!(limits.memory_limit_in_bytes, 64 << 20);
        assert_eq!(limits.hugepage_limits[0].page_size, "2MB");
        for (cpu, shares, quota) in [("1m", 2, 1000), ("2", 2048, 200_000), ("1000", 262_144, 100_000_000)] {
            let limits = needs(&[("cpu", cpu)], &[]).limits();
            assert_eq!((limits.cpu_shares, limits.cpu_quota), (shares, quota), "{cpu}");
        }
        assert_eq!(Needs::default().limits().cpu_shares, 2);
    }

    #[test]
    fn the_class_follows_from_requests_and_limits() {
        let bound = needs(&[("cpu", "1"), ("memory", "64Mi")], &[]);
        let half = needs(&[("cpu", "1")], &[]);
        let less = needs(&[("cpu", "1"), ("memory", "64Mi")], &[("memory", "32Mi")]);
        let none = Needs::default();
        for (all, want) in [
            (vec![&none, &none], Quality::BestEffort),
            (vec![&bound, &bound], Quality::Guaranteed),
            (vec![&bound, &none], Quality::Burstable),
            (vec![&half], Quality::Burstable),
            (vec![&less], Quality::Burstable),
        ] {
            assert_eq!(quality(all.iter().copied()), want, "{all:?}");
        }
    }

    #[test]
    fn a_container_that_takes_too_much_ends_as_a_whole() {
        let unified = |limits_groups| {
            let host = Host { limits_groups, ..Host::default() };
            Needs::default().container(Quality::BestEffort, &host).unified
        };
        assert_eq!(unified(true), [("memory.oom.group".to_owned(), "1".to_owned())].into());
        assert!(unified(false).is_empty(), "cgroups of version 1 have no such file");
    }

    #[test]
    fn the_more_is_asked_for_the_later_it_is_killed() {
        let memory = 1 << 30;
        for (quality, request, want) in [
            (Quality::Guaranteed, "1Gi", -997),
            (Quality::BestEffort, "0", 1000),
            (Quality::Burstable, "1Ki", 999),
            (Quality::Burstable, "512Mi", 500),
            (Quality::Burstable, "2Gi", 3),
        ] {
            assert_eq!(needs(&[], &[("memory", request)]).oom_score(quality, memory), want, "{request}");
        }
        let mut sidecar = cri::LinuxContainerResources { oom_score_adj: 900, ..Default::default() };
        shield(&mut sidecar, [800, 950].into_iter());
        assert_eq!(sidecar.oom_score_adj, 800);
    }

    #[test]
    fn a_pod_has_what_its_containers_take_at_once() {
        let of = |cpu: &str, memory: &str| needs(&[("cpu", cpu), ("memory", memory)], &[]);
        let (large, sidecar, app) = (of("3", "100Mi"), of("1", "10Mi"), of("500m", "50Mi"));
        let limits = pod(&[(&sidecar, true), (&large, false)], &[&app, &app], Quality::Guaranteed);
        assert_eq!(limits.cpu_quota, 400_000, "the sidecar and the init container");
        assert_eq!(
            limits.memory_limit_in_bytes,
            110 << 20,
            "as much with the apps as with the init container"
        );
        let limits = pod(&[(&large, false)], &[&app, &Needs::default()], Quality::Burstable);
        assert_eq!((limits.cpu_quota, limits.memory_limit_in_bytes, limits.cpu_shares), (0, 0, 3072));
        assert_eq!(pod(&[], &[&Needs::default()], Quality::BestEffort).cpu_shares, 2);
    }

    #[test]
    fn needs_that_make_no_sense_are_refused_by_field() {
        for (limits, requests, want) in [
            (
                vec![("cpu", "lots")],
                vec![],
                "c.resources.limits.cpu: \"lots\" is not a quantity such as 500m or 64Mi",
            ),
            (vec![("cpu", "1")], vec![("cpu", "2")], "c.resources.requests.cpu: 2 is more than the limit, 1"),
            (
                vec![("memory", "10")],
                vec![],
                "c.resources.limits.memory: 10 bytes hold no process; give it at least",
            ),
            (
                vec![],
                vec![("hugepages-2Mi", "2Mi")],
                "c.resources.limits.hugepages-2Mi: must be there and equal",
            ),
            (
                vec![("hugepages-x", "2Mi")],
                vec![],
                "c.resources.limits.hugepages-x: is not the size of a page",
            ),
        ] {
            let error = Needs::of(Some(&resources(&limits, &requests)), "c").unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }
}
