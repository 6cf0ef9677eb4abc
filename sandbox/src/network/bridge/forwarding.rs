//! The settings of the kernel that traffic of pods needs: forwarding, where the host does not forward, and
//! answers to host ports by way of loopback.
//!
//! Invariant: where the host forwards already nothing is changed but the bridge. What is changed elsewhere is
//! remembered in a file first, and given back unless somebody has changed it since or needs it: another of our
//! daemons, which says so in its table, or whoever has switched forwarding on for the whole host.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::error::BridgeError;
use crate::record;

const IPV4: &str = "/proc/sys/net/ipv4/conf";
const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// Interfaces that forward for the sake of pods alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Uplinks {
    pub(super) v4: BTreeSet<String>,
    pub(super) v6: BTreeSet<String>,
}

/// A setting that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Setting {
    path: PathBuf,
    before: String,
    after: String,
}

impl Setting {
    fn new(path: PathBuf, before: &str, after: &str) -> Self {
        Self { path, before: before.to_owned(), after: after.to_owned() }
    }

    /// Its interface and name, where it is one beneath this directory.
    fn beneath(&self, conf: &str) -> Option<(&str, &str)> {
        let mut parts = self.path.strip_prefix(conf).ok()?.iter().map(|part| part.to_str());
        Some((parts.next()??, parts.next()??))
    }

    /// Whether the host has decided it meanwhile, for all its interfaces.
    fn is_the_hosts(&self) -> bool {
        self.beneath(IPV4).is_some_and(|(_, name)| name == "forwarding") && is_on(&all(IPV4))
    }

    /// Whether pods of others need it.
    fn is_needed_by(&self, others: &Uplinks) -> bool {
        match (self.beneath(IPV4), self.beneath(IPV6)) {
            (Some((interface, _)), _) => others.v4.contains(interface),
            (_, Some(("all", _))) => !others.v6.is_empty(),
            (_, Some((interface, _))) => others.v6.contains(interface),
            _ => false,
        }
    }
}

/// What forwards for our sake, on disk and here.
#[derive(Debug, Clone)]
pub(super) struct Forwarding {
    file: PathBuf,
    changed: Vec<Setting>,
    /// What has to be so for pods to be forwarded, each with its value.
    needed: Vec<(PathBuf, &'static str)>,
    /// The other interfaces of the host, where only some of them forward.
    others: Option<Vec<String>>,
    /// What forwards for our sake.
    pub(super) uplinks: Uplinks,
}

impl Forwarding {
    /// Lets the bridge forward, and where the host does not, `others` too: what they take in has to be sent
    /// on to pods. `elsewhere` forwards for the sake of other daemons' pods.
    pub(super) fn open(
        file: PathBuf,
        bridge: &str,
        v6: bool,
        others: &[String],
        elsewhere: &Uplinks,
    ) -> Result<Self, BridgeError> {
        let mut changed = known(&file);
        let before = changed.len();
        // Of an interface that has gone nothing is to be given back.
        changed.retain(|setting| setting.path.exists() && !setting.is_the_hosts());
        if changed.is_empty() {
            record::remove(&file)?;
        } else if changed.len() < before {
            record::write(&file, &changed)?;
        }
        let uplinks = Uplinks::default();
        let mut forwarding = Self { file, changed, needed: Vec::new(), others: None, uplinks };
        forwarding.need(of(IPV4, bridge, "route_localnet"), "1")?;
        if is_on(&all(IPV4)) {
            forwarding.needed.push((all(IPV4), "1"));
        } else {
            forwarding.open_v4(bridge, others, elsewhere)?;
        }
        let own6 = forwarding.changed.iter().any(|setting| setting.path == all(IPV6));
        if v6 && is_on(&all(IPV6)) && !own6 && (forces(bridge) || elsewhere.v6.is_empty()) {
            forwarding.needed.push((all(IPV6), "1"));
        } else if v6 {
            forwarding.open_v6(bridge, others, elsewhere)?;
        }
        Ok(forwarding)
    }

    fn open_v4(&mut self, bridge: &str, others: &[String], elsewhere: &Uplinks) -> Result<(), BridgeError> {
        self.needed.push((all(IPV4), "0"));
        self.need(of(IPV4, bridge, "forwarding"), "1")?;
        for name in others {
            let theirs = elsewhere.v4.contains(name).then_some("0");
            if self.change(of(IPV4, name, "forwarding"), "1", theirs)? {
                self.uplinks.v4.insert(name.clone());
            }
        }
        self.others = Some(others.to_vec());
        tracing::info!(bridge, interfaces = ?self.uplinks.v4, "this host does not forward IPv4; these interfaces do for pods now");
        Ok(())
    }

    fn open_v6(&mut self, bridge: &str, others: &[String], elsewhere: &Uplinks) -> Result<(), BridgeError> {
        self.others = Some(others.to_vec());
        // Since Linux 6.17; without it the kernel looks at the host's setting alone.
        if forces(bridge) {
            self.needed.push((all(IPV6), "0"));
            self.need(of(IPV6, bridge, "force_forwarding"), "1")?;
            for name in others {
                let theirs = elsewhere.v6.contains(name).then_some("0");
                if self.change(of(IPV6, name, "force_forwarding"), "1", theirs)? {
                    self.uplinks.v6.insert(name.clone());
                }
            }
        } else {
            for name in others {
                // A host that forwards takes no routes from routers unless it is told to.
                let accept = of(IPV6, name, "accept_ra");
                let theirs = elsewhere.v6.contains(name).then_some("1");
                if is_on(&accept) || theirs.is_some() {
                    self.change(accept, "2", theirs)?;
                }
            }
            self.change(all(IPV6), "1", (!elsewhere.v6.is_empty()).then_some("0"))?;
            self.uplinks.v6.extend(others.iter().cloned());
        }
        let interfaces = &self.uplinks.v6;
        tracing::info!(
            bridge,
            ?interfaces,
            "this host does not forward IPv6; these interfaces do for pods now"
        );
        Ok(())
    }

    /// Whether all is still as pods need it, and the host has these other interfaces.
    pub(super) fn is_current(
        &self,
        others: impl FnOnce() -> Result<Vec<String>, BridgeError>,
    ) -> Result<bool, BridgeError> {
        let is = |(path, value): &(PathBuf, &str)| {
            fs::read_to_string(path)
                .map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |now| now.trim() == *value)
        };
        if !self.needed.iter().all(is) {
            return Ok(false);
        }
        self.others.as_ref().map_or(Ok(true), |known| Ok(others()? == *known))
    }

    /// Sets what is nobody else's.
    fn need(&mut self, path: PathBuf, value: &'static str) -> Result<(), BridgeError> {
        write(&path, value)?;
        self.needed.push((path, value));
        Ok(())
    }

    /// Sets what is to be given back. `theirs` is what it was before another daemon of ours has changed it.
    /// Answers whether it is so for the sake of pods alone.
    fn change(
        &mut self,
        path: PathBuf,
        after: &'static str,
        theirs: Option<&str>,
    ) -> Result<bool, BridgeError> {
        let now = match fs::read_to_string(&path) {
            Ok(now) => now.trim().to_owned(),
            // The interface is gone, or has no such family.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(BridgeError::Setting { path, source }),
        };
        self.needed.push((path.clone(), after));
        let known = self.changed.iter().any(|setting| setting.path == path);
        let before = if now == after { theirs.filter(|_| !known) } else { Some(now.as_str()) };
        let Some(before) = before else { return Ok(known) };
        self.changed.retain(|setting| setting.path != path);
        self.changed.push(Setting::new(path.clone(), before, after));
        record::write(&self.file, &self.changed)?;
        if now != after {
            write(&path, after)?;
        }
        Ok(true)
    }
}

/// Gives back what was changed, but for what pods of others need.
pub(super) fn give_back(file: &Path, others: &Uplinks) {
    undo(&known(file), others);
    let _missing_mostly = fs::remove_file(file);
}

/// Gives back what a daemon has changed of which nothing is known but that these interfaces forward for its
/// pods.
pub(super) fn give_back_unknown(uplinks: &Uplinks, others: &Uplinks) {
    let v4 = uplinks.v4.iter().map(|name| Setting::new(of(IPV4, name, "forwarding"), "0", "1"));
    let mut settings: Vec<Setting> = v4.collect();
    for name in &uplinks.v6 {
        if forces(name) {
            settings.push(Setting::new(of(IPV6, name, "force_forwarding"), "0", "1"));
        } else {
            settings.push(Setting::new(of(IPV6, name, "accept_ra"), "1", "2"));
            settings.push(Setting::new(all(IPV6), "0", "1"));
        }
    }
    undo(&settings, others);
}

/// Has an interface believe nothing of what pods may tell it of routers and routes: whoever is on the bridge
/// could otherwise have the traffic of all that are.
pub(super) fn distrust(interface: &str) -> Result<(), BridgeError> {
    let believed = [(IPV6, "accept_ra"), (IPV6, "accept_redirects"), (IPV4, "accept_redirects")];
    for (conf, name) in believed {
        let path = of(conf, interface, name);
        // Without IPv6 there is nothing to be believed.
        if path.exists() {
            write(&path, "0")?;
        }
    }
    Ok(())
}

fn undo(settings: &[Setting], others: &Uplinks) {
    for setting in settings.iter().rev() {
        let now = fs::read_to_string(&setting.path).unwrap_or_default();
        if now.trim() == setting.after
            && setting.path.starts_with("/proc/sys/net")
            && !setting.is_the_hosts()
            && !setting.is_needed_by(others)
            && let Err(error) = fs::write(&setting.path, &setting.before)
        {
            tracing::warn!(path = %setting.path.display(), %error, "setting not given back");
        }
    }
}

fn known(file: &Path) -> Vec<Setting> {
    match record::read(file) {
        Ok(changed) => changed,
        Err(error) => {
            if !error.is_missing() {
                tracing::warn!(%error, "what was changed for pods to be forwarded is not known; it stays");
            }
            Vec::new()
        }
    }
}

fn of(conf: &str, interface: &str, name: &str) -> PathBuf {
    Path::new(conf).join(interface).join(name)
}

fn all(conf: &str) -> PathBuf {
    of(conf, "all", "forwarding")
}

/// Whether single interfaces can forward IPv6.
fn forces(interface: &str) -> bool {
    of(IPV6, interface, "force_forwarding").exists()
}

fn is_on(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
}

fn write(path: &Path, value: &str) -> Result<(), BridgeError> {
    fs::write(path, value).map_err(|source| BridgeError::Setting { path: path.to_owned(), source })
}
