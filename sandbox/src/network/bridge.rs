//! The built-in network: a bridge on the host, a pair of links for each pod, addresses from a pool, and rules
//! for what leaves the pool and for ports of the host. All by netlink: no plugin and no other program.
//!
//! Life of an attachment: a place in the pool and the ports are claimed -> the record is written -> links,
//! addresses, routes -> ports are opened; and back again in the reverse order. Everything is named after the
//! pod's id, so whatever is half made can be undone.
//!
//! Invariants: no address and no port is given twice, also after a crash (`ledger`, `record`, and what stands
//! on the links themselves); nothing of the host's is touched but what `base` makes and the settings that
//! `forwarding` remembers. One operation per pod at a time is the caller's duty.

mod base;
mod error;
mod flows;
mod forwarding;
mod ledger;
mod left_over;
mod links;
mod nft;
mod pool;
mod ports;
mod record;
mod recover;
mod rules;
#[cfg(test)]
mod tests;
mod turn;

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use self::{
    base::{Base, Names, link_of, mac_of},
    error::{denial, taken_by},
    ledger::{HostPort, Ledger},
    links::{Address, Links, Pair},
    ports::host_ports,
    record::{Pools, Record},
    rules::Mapping,
};
pub use self::{
    error::BridgeError,
    left_over::{LeftOver, left_over, remove, try_out},
    pool::Subnet,
};
use super::Attachment;
use crate::{PodId, netns};

/// What the network is made of.
#[derive(Debug, Clone)]
pub struct BridgeConfig {
    /// Directory of records, [`crate::Layout::bridge`].
    pub dir: PathBuf,
    /// A directory that no other daemon has: names derive from it.
    pub owner: PathBuf,
    /// Name of the bridge; empty: derived.
    pub name: String,
    /// The IPv4 addresses, or where the search for free ones begins.
    pub v4: Subnet,
    /// The same for IPv6, if pods are to have it.
    pub v6: Option<Subnet>,
    /// Largest packet; 0 is the kernel's choice.
    pub mtu: u32,
}

/// The built-in network. One per daemon.
#[derive(Debug)]
pub struct Bridge {
    config: BridgeConfig,
    names: Names,
    ledger: Mutex<Ledger>,
    /// The bridge, once it is needed. Held by whoever makes or removes it, on a thread that may block.
    base: tokio::sync::Mutex<Option<Base>>,
    /// Whether the bridge goes with its last pod.
    closing: AtomicBool,
}

impl Bridge {
    /// A network of which nothing is made until a pod needs it.
    pub fn new(config: BridgeConfig) -> Self {
        let names = Names::of(&config);
        let (ledger, base, closing) = Default::default();
        Self { config, names, ledger, base, closing }
    }

    /// Connects the pod's namespace, and answers its addresses. What an earlier attempt left is given back
    /// first; what a failed one made is given back before the error is returned.
    pub async fn add(self: &Arc<Self>, attachment: &Attachment) -> Result<Vec<IpAddr>, BridgeError> {
        let ports = host_ports(attachment)?;
        let (bridge, attachment) = (Arc::clone(self), attachment.clone());
        blocking(move || {
            bridge.give_back(&attachment.pod)?;
            let added = bridge.connect(&attachment, ports);
            if added.is_err()
                && let Err(error) = bridge.give_back(&attachment.pod)
            {
                tracing::warn!(pod = %attachment.pod, %error, "network not given back after a failed start");
            }
            added
        })
        .await
    }

    /// Gives back all that [`add`](Self::add) made. A pod that has nothing is a success.
    pub async fn del(self: &Arc<Self>, pod: &PodId) -> Result<(), BridgeError> {
        let (bridge, pod) = (Arc::clone(self), pod.clone());
        blocking(move || bridge.give_back(&pod)).await
    }

    /// Takes up what an earlier daemon made, mends what of it is missing, and removes the links of pods that
    /// `is_known` does not know. Answers the records that cannot be read.
    pub async fn recover(
        self: &Arc<Self>,
        is_known: impl Fn(&str) -> bool + Send + 'static,
    ) -> Vec<(PodId, BridgeError)> {
        let bridge = Arc::clone(self);
        let taken = blocking(move || Ok(bridge.take_up(&is_known))).await;
        taken.unwrap_or_default()
    }

    /// Why records cannot be read, for each that cannot.
    pub async fn damaged(self: &Arc<Self>) -> Vec<(PodId, BridgeError)> {
        let bridge = Arc::clone(self);
        let read = move |pod: PodId| {
            let error = Record::read(&bridge.config.dir, &pod).err()?;
            Some((pod, BridgeError::from(error)))
        };
        let pods = self.recorded();
        blocking(move || Ok(pods.into_iter().filter_map(read).collect())).await.unwrap_or_default()
    }

    /// The pods that have a record.
    pub fn recorded(&self) -> Vec<PodId> {
        record::pods(&self.config.dir)
    }

    /// Where a pod's record is.
    pub fn record_path(&self, pod: &PodId) -> PathBuf {
        record::path(&self.config.dir, pod)
    }

    /// Whether pods can be connected, as far as can be told without making anything. What somebody has removed
    /// beneath pods that are connected is made again.
    pub async fn status(self: &Arc<Self>) -> Result<(), BridgeError> {
        let bridge = Arc::clone(self);
        blocking(move || {
            let links = Links::open()?;
            if !bridge.ledger().is_empty() {
                return bridge.mend_for_pods(&links);
            }
            if base::standing(&bridge.names, &links)?.is_none() {
                base::check_name(&bridge.names, &links)?;
            }
            rules::tables().map(drop)
        })
        .await
    }

    /// Makes again what somebody has removed beneath pods that are connected: bridge, rules, settings.
    pub async fn keep_up(self: &Arc<Self>) -> Result<(), BridgeError> {
        if self.ledger().is_empty() {
            return Ok(());
        }
        let bridge = Arc::clone(self);
        blocking(move || bridge.mend_for_pods(&Links::open()?)).await
    }

    /// From now on the bridge, the rules and the settings go with the last pod, in no more time than that pod's
    /// link takes.
    pub fn close_with_last(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Removes the bridge, the rules and the settings, unless a pod is connected.
    pub async fn close(self: &Arc<Self>) -> Result<(), BridgeError> {
        let bridge = Arc::clone(self);
        blocking(move || {
            let mut base = bridge.base.blocking_lock();
            let links = Links::open()?;
            let nobody = bridge.ledger().is_empty() && bridge.recorded().is_empty();
            if !nobody {
                return Ok(());
            }
            if base.is_some() || base::standing(&bridge.names, &links)?.is_some() {
                bridge.remove_base(&mut base, &links)?;
            }
            let _in_use = fs::remove_dir(&bridge.config.dir);
            Ok(())
        })
        .await
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no code panics while it holds the ledger")
    }

    /// Blocks, as all that follows.
    fn connect(&self, attachment: &Attachment, ports: Vec<HostPort>) -> Result<Vec<IpAddr>, BridgeError> {
        let links = Links::open()?;
        let (base, place) = self.claim(attachment, &ports, &links)?;
        let pod = &attachment.pod;
        let record = Record::new(pod, place, base.pools, ports.clone());
        let full = || BridgeError::Full { pool: base.pools.v4, count: base.pools.last() - 1 };
        record.ok_or_else(full)?.write(&self.config.dir)?;
        let addresses = base.pools.at(place);
        let alias = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let link = link_of(pod);
        let mac = mac_of(base.pools.v4.nth(place));
        let (mtu, group) = (self.config.mtu, self.names.group);
        let pair = Pair { name: &link, alias: &alias, master: base.index, mac, mtu, group };
        links.make_pair(pair, netns::open(&attachment.netns)?)?;
        let inside: Vec<Address> = base.pools.all().map(|pool| Address::at(pool, place)).collect();
        netns::run_in(&attachment.netns, || {
            forwarding::distrust(links::INTERFACE)?;
            Links::open()?.address_pod(&inside)
        })??;
        let mappings = mappings(&ports, &addresses);
        if !mappings.is_empty() && !rules::open_ports(&self.names.table, &mappings)? {
            tracing::warn!(table = self.names.table, "somebody has removed the rules; they are made again");
            base.replace_rules(&self.names, &self.all_mappings(base.pools))?;
        }
        flows::forget(&ports);
        Ok(addresses)
    }

    /// The bridge and the pod's place on it, which is the pod's from now on.
    fn claim(
        &self,
        attachment: &Attachment,
        ports: &[HostPort],
        links: &Links,
    ) -> Result<(Base, u32), BridgeError> {
        let mut held = self.base.blocking_lock();
        let base = self.make_ready(&mut held, links)?;
        let pod = &attachment.pod;
        if let Some(ip) = ports.iter().filter_map(|port| port.ip).find(|ip| ip.is_ipv6())
            && base.pools.v6.is_none()
        {
            let (pod, value) = (pod.clone(), ip.to_string());
            let reason = "pods have no IPv6 here: set network.ipv6_pool, or use an IPv4 address";
            return Err(BridgeError::BadRequest { pod, field: "host_ip", value, reason });
        }
        self.check_ports(ports, base.pools)?;
        let claimed = self.ledger().claim(pod, ports, base.pools.last());
        let place = claimed.map_err(|denied| denial(denied, base.pools))?;
        Ok((base, place))
    }

    /// Refuses ports that a program or another daemon's pod has.
    fn check_ports(&self, ports: &[HostPort], pools: Pools) -> Result<(), BridgeError> {
        if ports.is_empty() {
            return Ok(());
        }
        if let Some(taken) = ports.iter().find(|port| ports::is_taken(port)) {
            return Err(taken_by(taken, "a program of this host"));
        }
        let elsewhere = rules::open_elsewhere(&self.names.table, &mappings(ports, &pools.at(1)))?;
        elsewhere.map_or(Ok(()), |(port, table)| {
            let by = "a pod of another daemon, or of one that is gone (podhold doctor knows)";
            Err(taken_by(&port, &format!("{by}: nftables table {table}")))
        })
    }

    /// The bridge, made or mended when it has to be.
    fn ready(&self, links: &Links) -> Result<Base, BridgeError> {
        self.make_ready(&mut self.base.blocking_lock(), links)
    }

    /// As [`ready`](Self::ready), unless the last pod has gone meanwhile.
    fn mend_for_pods(&self, links: &Links) -> Result<(), BridgeError> {
        let mut base = self.base.blocking_lock();
        if self.ledger().is_empty() {
            return Ok(());
        }
        self.make_ready(&mut base, links).map(drop)
    }

    fn make_ready(&self, held: &mut Option<Base>, links: &Links) -> Result<Base, BridgeError> {
        if let Some(base) = held.as_ref()
            && base.is_current(&self.names, links)?
        {
            return Ok(base.clone());
        }
        let _turn = turn::wait();
        let kept = match held.as_ref() {
            Some(base) if !self.ledger().is_empty() => Some(base.pools),
            _ => self.recorded_pools(),
        };
        let kept = match kept {
            None if !self.ledger().is_empty() => base::standing(&self.names, links)?.map(|(_, pools)| pools),
            kept => kept,
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.config.dir).map_err(|source| {
            let path = self.config.dir.clone();
            crate::record::RecordError::Io { path, operation: "make the directory", source }
        })?;
        let base = base::make(&self.config, &self.names, links, kept)?;
        base.replace_rules(&self.names, &self.all_mappings(base.pools))?;
        for link in self.own_links() {
            links.connect(&link, base.index)?;
        }
        *held = Some(base.clone());
        Ok(base)
    }

    fn recorded_pools(&self) -> Option<Pools> {
        let dir = &self.config.dir;
        self.recorded().iter().find_map(|pod| Record::read(dir, pod).ok()).map(|record| record.pools)
    }

    fn all_mappings(&self, pools: Pools) -> Vec<Mapping> {
        self.ledger().all().flat_map(|(place, ports)| mappings(ports, &pools.at(place))).collect()
    }

    /// The links that there should be.
    fn own_links(&self) -> Vec<String> {
        let ledger = self.ledger();
        ledger.pods().map(link_of).chain(ledger.strays().cloned()).collect()
    }

    fn give_back(&self, pod: &PodId) -> Result<(), BridgeError> {
        let link = link_of(pod);
        let ports = {
            let ledger = self.ledger();
            if !ledger.has(pod) && !ledger.has_stray(&link) && !self.record_path(pod).exists() {
                return Ok(());
            }
            ledger.ports(pod, &link)
        };
        let links = Links::open()?;
        let Some(mut base) = self.base_of_last(pod, &link) else {
            let none = [IpAddr::from([0; 4]), IpAddr::from([0; 16])];
            let mappings = mappings(&ports, &none);
            if !mappings.is_empty() {
                rules::close_ports(&self.names.table, &mappings)?;
            }
            links.remove(&link)?;
            return self.forget(pod, &link, &ports);
        };
        self.remove_base(&mut base, &links)?;
        links.remove(&link)?;
        self.forget(pod, &link, &ports)
    }

    /// The bridge, when it is to go with its last pod and this is the one. As long as it is held nobody connects
    /// another pod, nor makes again what is missing.
    fn base_of_last(&self, pod: &PodId, link: &str) -> Option<tokio::sync::MutexGuard<'_, Option<Base>>> {
        let base = self.closing.load(Ordering::Relaxed).then(|| self.base.blocking_lock())?;
        let others = self.own_links().into_iter().any(|other| other != link);
        let recorded = self.recorded().iter().any(|other| other != pod);
        (!others && !recorded).then_some(base)
    }

    /// What is known of a pod that is not connected any more.
    fn forget(&self, pod: &PodId, link: &str, ports: &[HostPort]) -> Result<(), BridgeError> {
        flows::forget(ports);
        record::remove(&self.config.dir, pod)?;
        self.ledger().release(pod, link);
        Ok(())
    }

    fn remove_base(&self, held: &mut Option<Base>, links: &Links) -> Result<(), BridgeError> {
        *held = None;
        let _turn = turn::wait();
        base::remove(&self.config, &self.names, links)
    }
}

/// Chains of others that drop what is forwarded unless a rule of theirs lets it through, as far as nftables
/// tells of them: nothing in a table of ours can undo that.
pub fn in_the_way() -> std::io::Result<Vec<String>> {
    rules::in_the_way()
}

fn mappings(ports: &[HostPort], addresses: &[IpAddr]) -> Vec<Mapping> {
    ports.iter().map(|port| Mapping { port: port.clone(), to: addresses.to_vec() }).collect()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BridgeError> + Send + 'static,
) -> Result<T, BridgeError> {
    let failed = |error: tokio::task::JoinError| BridgeError::Link {
        operation: "work on",
        link: "the bridge".to_owned(),
        source: std::io::Error::other(error),
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(failed(error)))
}
