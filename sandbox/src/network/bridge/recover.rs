//! What an earlier daemon of the same directories has made: taken up as it stands, and mended.

use super::{
    Bridge, base,
    error::BridgeError,
    ledger::HostPort,
    links::{Link, Links},
    record::{self, Record},
    rules,
};
use crate::PodId;

impl Bridge {
    /// Takes note of all pods' records, and answers those that cannot be read. Blocks.
    pub(super) fn take_up(&self, is_known: &dyn Fn(&str) -> bool) -> Vec<(PodId, BridgeError)> {
        record::remove_unfinished(&self.config.dir);
        let mut damaged = Vec::new();
        for pod in self.recorded() {
            match Record::read(&self.config.dir, &pod) {
                Ok(record) => {
                    let place = record.place().expect("a record is checked when it is read");
                    self.ledger().note(pod, place, record.ports);
                }
                Err(error) => damaged.push((pod, error.into())),
            }
        }
        if let Err(error) = self.mend(is_known) {
            tracing::warn!(%error, "built-in network not looked through; the next pod tries again");
        }
        damaged
    }

    /// Counts in or removes links that no record tells of, and makes what is missing.
    fn mend(&self, is_known: &dyn Fn(&str) -> bool) -> Result<(), BridgeError> {
        let links = Links::open()?;
        let standing = base::standing(&self.names, &links)?;
        if let Some((bridge, pools)) = &standing {
            let recorded = self.own_links();
            let open = rules::open_now(&self.names.table)?;
            let ours = |link: &Link| link.master == Some(bridge.index) && link.kind == "veth";
            for link in links.list()?.into_iter().filter(ours) {
                if recorded.contains(&link.name) {
                    continue;
                }
                if !link.name.strip_prefix("pod").is_some_and(is_known) {
                    tracing::warn!(link = link.name, "belongs to no pod; removed");
                    links.remove(&link.name)?;
                    continue;
                }
                let address = link.alias.split(' ').next().and_then(|first| first.parse().ok());
                if let Some(place) = address.and_then(|address| pools.v4.place(address)) {
                    let addresses = pools.at(place);
                    let mut ports: Vec<HostPort> = Vec::new();
                    for (port, _) in open.iter().filter(|(_, to)| addresses.contains(to)) {
                        if !ports.contains(port) {
                            ports.push(port.clone());
                        }
                    }
                    self.ledger().note_stray(link.name, place, ports);
                }
            }
        }
        if standing.is_some() || !self.ledger().is_empty() {
            self.ready(&links)?;
        }
        Ok(())
    }
}
