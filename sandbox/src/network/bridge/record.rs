//! What a pod was given, on disk: one small file per pod in the run directory, since links and rules are as
//! volatile as that.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{ledger::HostPort, pool::Subnet};
use crate::{
    PodId,
    record::{self, RecordError},
};

/// What a pod was given.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pod: PodId,
    /// Its first address.
    address: Ipv4Addr,
    /// The ranges its addresses are from.
    pub(super) pools: Pools,
    pub(super) ports: Vec<HostPort>,
}

/// The ranges of one bridge. A pod has the same place in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pools {
    pub(super) v4: Subnet,
    pub(super) v6: Option<Subnet>,
}

impl Pools {
    /// The ranges, the first first.
    pub(super) fn all(&self) -> impl Iterator<Item = Subnet> {
        [Some(self.v4), self.v6].into_iter().flatten()
    }

    /// The addresses at a place.
    pub(super) fn at(&self, place: u32) -> Vec<IpAddr> {
        self.all().map(|pool| pool.nth(place)).collect()
    }

    /// The last place a pod may have.
    pub(super) fn last(&self) -> u32 {
        self.all().map(|pool| pool.last()).min().unwrap_or(0)
    }
}

impl Record {
    /// `None` when the place has no IPv4 address.
    pub(super) fn new(pod: &PodId, place: u32, pools: Pools, ports: Vec<HostPort>) -> Option<Self> {
        let IpAddr::V4(address) = pools.v4.nth(place) else { return None };
        Some(Self { pod: pod.clone(), address, pools, ports })
    }

    /// Its place in the pools.
    pub(super) fn place(&self) -> Option<u32> {
        self.pools.v4.place(self.address.into())
    }

    pub(super) fn read(dir: &Path, pod: &PodId) -> Result<Self, RecordError> {
        let path = path(dir, pod);
        let record: Self = record::read(&path)?;
        let reason = if record.pod != *pod {
            format!("it is of another pod, {}", record.pod)
        } else if record.place().is_none() {
            format!("its address {} is not of {}", record.address, record.pools.v4)
        } else {
            return Ok(record);
        };
        Err(RecordError::Invalid { path, reason })
    }

    pub(super) fn write(&self, dir: &Path) -> Result<(), RecordError> {
        record::write(&path(dir, &self.pod), self)
    }
}

/// Removes a pod's record, whatever is there in its place.
pub(super) fn remove(dir: &Path, pod: &PodId) -> Result<(), RecordError> {
    let path = path(dir, pod);
    record::remove(&record::temporary_of(&path)?)?;
    let removed = fs::remove_file(&path).or_else(|error| match error.kind() {
        io::ErrorKind::IsADirectory => fs::remove_dir_all(&path),
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    });
    removed.map_err(|source| RecordError::Io { path, operation: "remove", source })
}

/// Removes what a daemon has left that ended while it wrote a record. Nobody writes one now.
pub(super) fn remove_unfinished(dir: &Path) {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    for name in names.filter_map(|name| name.into_string().ok()) {
        let pod = name.strip_prefix('.').and_then(|name| name.strip_suffix(".json.new"));
        if pod.is_some_and(|pod| PodId::parse(pod).is_ok())
            && let Err(error) = fs::remove_file(dir.join(&name))
        {
            tracing::warn!(name, %error, "unfinished record not removed");
        }
    }
}

/// The pods that have a record, readable or not.
pub(super) fn pods(dir: &Path) -> Vec<PodId> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let names = entries.filter_map(Result::ok).filter_map(|entry| entry.file_name().into_string().ok());
    let names = names.filter_map(|name| name.strip_suffix(".json").map(str::to_owned));
    names.filter_map(|name| PodId::parse(&name).ok()).collect()
}

pub(super) fn path(dir: &Path, pod: &PodId) -> PathBuf {
    dir.join(format!("{pod}.json"))
}
