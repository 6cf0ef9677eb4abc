//! Who has which address and which ports of the host. No I/O.
//!
//! Invariant: no two pods have the same place in the pool, and no two have a port of the host that a packet
//! could reach both by.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::{PodId, network::Protocol};

/// The first place in a pool that a pod may have: the one before it is the bridge's.
const FIRST: u32 = 2;

/// A port of the host that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HostPort {
    pub(super) protocol: Protocol,
    /// The host's address; `None` is all.
    pub(super) ip: Option<IpAddr>,
    pub(super) port: u16,
    /// The port in the pod.
    pub(super) to: u16,
}

impl HostPort {
    /// Whether a packet could be meant for both.
    fn clashes(&self, other: &Self) -> bool {
        let same_ip = self.ip.is_none() || other.ip.is_none() || self.ip == other.ip;
        (self.protocol, self.port) == (other.protocol, other.port) && same_ip
    }
}

/// Why a pod cannot have what it asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// All addresses are taken.
    Full,
    /// Another pod, or the pod itself, has the port already.
    Taken { port: HostPort, by: String },
}

/// What all pods have.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pods: BTreeMap<PodId, (u32, Vec<HostPort>)>,
    /// Links that nobody has a record of: the places, and the ports that lead there.
    strays: BTreeMap<String, (u32, Vec<HostPort>)>,
    /// Where the search for a free place begins: one that was given back is not given away at once.
    next: u32,
}

impl Ledger {
    /// Gives a pod a place up to `last`, and its ports.
    pub(super) fn claim(&mut self, pod: &PodId, ports: &[HostPort], last: u32) -> Result<u32, Denied> {
        for (index, port) in ports.iter().enumerate() {
            if ports[..index].iter().any(|other| other.clashes(port)) {
                return Err(Denied::Taken { port: port.clone(), by: pod.to_string() });
            }
            let others = self.pods.iter().filter(|(other, _)| *other != pod);
            let others = others.map(|(other, (_, held))| (other.as_str(), held));
            let strays = self.strays.iter().map(|(link, (_, held))| (link.as_str(), held));
            let clash = |held: &Vec<HostPort>| held.iter().any(|held| held.clashes(port));
            if let Some((by, _)) = others.chain(strays).find(|(_, held)| clash(held)) {
                return Err(Denied::Taken { port: port.clone(), by: by.to_owned() });
            }
        }
        let taken: BTreeSet<u32> =
            self.pods.values().chain(self.strays.values()).map(|(place, _)| *place).collect();
        let begin = if (FIRST..=last).contains(&self.next) { self.next } else { FIRST };
        let place = (begin..=last).chain(FIRST..begin).find(|place| !taken.contains(place));
        let place = place.ok_or(Denied::Full)?;
        self.next = place + 1;
        self.pods.insert(pod.clone(), (place, ports.to_vec()));
        Ok(place)
    }

    /// Takes note of what a pod was given by an earlier daemon.
    pub(super) fn note(&mut self, pod: PodId, place: u32, ports: Vec<HostPort>) {
        self.next = self.next.max(place + 1);
        self.pods.insert(pod, (place, ports));
    }

    /// Takes note of a link whose record is not known, and of the ports that lead there.
    pub(super) fn note_stray(&mut self, link: String, place: u32, ports: Vec<HostPort>) {
        self.strays.insert(link, (place, ports));
    }

    pub(super) fn has(&self, pod: &PodId) -> bool {
        self.pods.contains_key(pod)
    }

    pub(super) fn has_stray(&self, link: &str) -> bool {
        self.strays.contains_key(link)
    }

    /// The ports of a pod, or of its link when nobody has a record of it.
    pub(super) fn ports(&self, pod: &PodId, link: &str) -> Vec<HostPort> {
        let held = self.pods.get(pod).or_else(|| self.strays.get(link));
        held.map(|(_, ports)| ports.clone()).unwrap_or_default()
    }

    pub(super) fn release(&mut self, pod: &PodId, link: &str) {
        self.pods.remove(pod);
        self.strays.remove(link);
    }

    /// Whether nobody has anything.
    pub(super) fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.strays.is_empty()
    }

    /// The pods.
    pub(super) fn pods(&self) -> impl Iterator<Item = &PodId> {
        self.pods.keys()
    }

    /// The links that nobody has a record of.
    pub(super) fn strays(&self) -> impl Iterator<Item = &String> {
        self.strays.keys()
    }

    /// The places of all, with their ports.
    pub(super) fn all(&self) -> impl Iterator<Item = (u32, &[HostPort])> {
        self.pods.values().chain(self.strays.values()).map(|(place, ports)| (*place, ports.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(n: u8) -> PodId {
        PodId::parse(&format!("{n:064x}")).unwrap()
    }

    fn port(ip: Option<&str>, port: u16, protocol: Protocol) -> HostPort {
        HostPort { protocol, ip: ip.map(|ip| ip.parse().unwrap()), port, to: 80 }
    }

    #[test]
    fn no_place_is_given_twice_and_a_full_pool_says_so() {
        let mut ledger = Ledger::default();
        let places: BTreeSet<u32> = (0..5).map(|n| ledger.claim(&pod(n), &[], 6).unwrap()).collect();
        assert_eq!(places, (2..=6).collect());
        assert_eq!(ledger.claim(&pod(9), &[], 6), Err(Denied::Full));
        ledger.release(&pod(1), "");
        assert_eq!(ledger.claim(&pod(9), &[], 6), Ok(3));
    }

    #[test]
    fn a_place_rests_before_it_is_given_again() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.claim(&pod(1), &[], 10), Ok(2));
        ledger.release(&pod(1), "");
        assert_eq!(ledger.claim(&pod(2), &[], 10), Ok(3));
        ledger.note_stray("pod000".into(), 4, vec![port(None, 1, Protocol::Tcp)]);
        assert_eq!(ledger.claim(&pod(3), &[], 10), Ok(5));
        let taken = ledger.claim(&pod(4), &[port(None, 1, Protocol::Tcp)], 10);
        assert!(matches!(taken, Err(Denied::Taken { by, .. }) if by == "pod000"));
    }

    #[test]
    fn ports_clash_where_a_packet_could_be_meant_for_both() {
        use Protocol::{Tcp, Udp};
        let clash = |a: HostPort, b: HostPort| {
            let mut ledger = Ledger::default();
            ledger.claim(&pod(1), &[a], 10).unwrap();
            ledger.claim(&pod(2), &[b], 10).is_err()
        };
        assert!(clash(port(None, 1, Tcp), port(None, 1, Tcp)));
        assert!(clash(port(None, 1, Tcp), port(Some("10.0.0.1"), 1, Tcp)));
        assert!(clash(port(Some("::1"), 1, Tcp), port(None, 1, Tcp)));
        assert!(!clash(port(Some("10.0.0.2"), 1, Tcp), port(Some("10.0.0.1"), 1, Tcp)));
        assert!(!clash(port(None, 1, Tcp), port(None, 1, Udp)));
        assert!(!clash(port(None, 1, Tcp), port(None, 2, Tcp)));
        let twice = [port(None, 1, Tcp), port(Some("10.0.0.1"), 1, Tcp)];
        assert!(Ledger::default().claim(&pod(1), &twice, 10).is_err());
    }

    #[test]
    fn a_denied_pod_has_nothing() {
        let mut ledger = Ledger::default();
        ledger.claim(&pod(1), &[port(None, 1, Protocol::Tcp)], 10).unwrap();
        ledger.claim(&pod(2), &[port(None, 1, Protocol::Tcp)], 10).unwrap_err();
        assert!(!ledger.has(&pod(2)));
    }
}
