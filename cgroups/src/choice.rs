//! Which driver this machine gets.

use crate::{CgroupError, Driver, Version, mounts, systemd::Systemd};

/// A driver, and why it is that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The driver.
    pub driver: Driver,
    /// The reason, in words.
    pub reason: String,
}

impl Choice {
    /// What is wanted, if it can work here; where nothing is, systemd on machines whose cgroups are its own.
    pub fn of(wanted: Option<Driver>) -> Result<Self, CgroupError> {
        let chosen = |driver, reason: &str| Ok(Self { driver, reason: reason.to_owned() });
        match wanted {
            Some(Driver::Cgroupfs) => chosen(Driver::Cgroupfs, "it was asked for"),
            Some(Driver::Systemd) => {
                can_be_systemd().map_err(|reason| CgroupError::DriverUnavailable { reason })?;
                chosen(Driver::Systemd, "it was asked for")
            }
            None => match can_be_systemd() {
                Ok(version) => {
                    chosen(Driver::Systemd, &format!("systemd {version} has the unified hierarchy"))
                }
                Err(reason) => chosen(Driver::Cgroupfs, &reason),
            },
        }
    }
}

/// systemd's version; else why its driver cannot work.
fn can_be_systemd() -> Result<u32, String> {
    match mounts::detect() {
        Ok((Version::V2, _)) => {}
        Ok((Version::V1, _)) => return Err("the machine is not pure cgroup v2".to_owned()),
        Err(error) => return Err(error.to_string()),
    }
    if !Systemd::is_running() {
        return Err("systemd does not run here".to_owned());
    }
    Systemd::default().version().map_err(|error| crate::error::with_sources(&error))
}
