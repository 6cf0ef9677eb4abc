//! A pod's network: what attaches it and what it was given.
//!
//! [`cni`] runs the plugins an administrator configured; [`bridge`] does without any. [`Networks`] chooses
//! between the two when a pod is made; afterwards each knows by its own records which pods are its, so a pod
//! leaves the network that it has joined, whatever is configured by then. Owns no namespace: see
//! [`crate::netns`].

pub mod bridge;
pub mod cni;

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

pub use self::cni::{Attachment, PortMapping, Protocol};
use self::{
    bridge::{Bridge, BridgeConfig, BridgeError},
    cni::{Cni, CniConfig, CniError},
};
use crate::PodId;

/// Which network new pods join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// CNI's where a configuration is there, otherwise the built-in one.
    Auto,
    /// CNI's; pods wait until there is a configuration.
    Cni,
    /// The built-in one.
    Bridge,
}

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Of CNI's network.
    #[error(transparent)]
    Cni(#[from] CniError),
    /// Of the built-in network.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
}

/// A record of a pod's network that cannot be used.
#[derive(Debug)]
pub struct Damaged {
    /// The pod.
    pub pod: PodId,
    /// The record.
    pub path: PathBuf,
    /// What is wrong with it.
    pub error: NetworkError,
}

/// The networks of this host. One per daemon.
#[derive(Debug)]
pub struct Networks {
    kind: Kind,
    cni: Cni,
    cni_records: PathBuf,
    bridge: Arc<Bridge>,
}

impl Networks {
    /// Networks that are made when they are first needed.
    pub fn new(kind: Kind, cni: CniConfig, bridge: BridgeConfig) -> Self {
        let cni_records = cni.cache_dir.clone();
        Self { kind, cni: Cni::new(cni), cni_records, bridge: Arc::new(Bridge::new(bridge)) }
    }

    /// Connects a pod to the network that new pods join, and answers its addresses, the primary one first.
    pub async fn add(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, NetworkError> {
        if self.is_built_in().await {
            // One that is made again may have been elsewhere.
            self.cni.del(&attachment.pod).await?;
            return Ok(self.bridge.add(attachment).await?);
        }
        self.bridge.del(&attachment.pod).await?;
        Ok(self.cni.add(attachment).await?.ips)
    }

    /// Disconnects a pod from whichever network it is in. One that is in none is a success.
    pub async fn del(&self, pod: &PodId) -> Result<(), NetworkError> {
        let (cni, bridge) = tokio::join!(self.cni.del(pod), self.bridge.del(pod));
        cni?;
        Ok(bridge?)
    }

    /// Takes up what an earlier daemon has made. `is_known` knows the beginnings of the ids of pods that
    /// exist. Answers the records that cannot be used.
    pub async fn recover(&self, is_known: impl Fn(&str) -> bool + Send + 'static) -> Vec<Damaged> {
        let bridge = self.bridge.recover(is_known).await.into_iter();
        let mut damaged: Vec<Damaged> = bridge.map(|(pod, error)| self.damaged_bridge(pod, error)).collect();
        damaged.extend(self.damaged_cni().await);
        damaged
    }

    /// The records that cannot be used now.
    pub async fn damaged(&self) -> Vec<Damaged> {
        let mut damaged = self.damaged_cni().await;
        let bridge = self.bridge.damaged().await.into_iter();
        damaged.extend(bridge.map(|(pod, error)| self.damaged_bridge(pod, error)));
        damaged
    }

    /// Where the records of a pod are, whether they exist or not.
    pub fn records(&self, pod: &PodId) -> [PathBuf; 2] {
        [self.cni_records.join(format!("{pod}.json")), self.bridge.record_path(pod)]
    }

    /// The pods that have a record: connected, or left half-way.
    pub fn recorded(&self) -> Vec<PodId> {
        let mut pods = [self.cni.cached(), self.bridge.recorded()].concat();
        pods.sort();
        pods.dedup();
        pods
    }

    /// Whether new pods can be connected. Each plugin may take as long as `limit` to say so.
    pub async fn status_within(&self, limit: Duration) -> Result<(), NetworkError> {
        if self.is_built_in().await {
            return Ok(self.bridge.status().await?);
        }
        Ok(self.cni.status_within(limit).await?)
    }

    /// Makes again what somebody has removed beneath pods of the built-in network.
    pub async fn keep_up(&self) -> Result<(), NetworkError> {
        Ok(self.bridge.keep_up().await?)
    }

    /// Has plugins give back what is nobody's.
    pub async fn gc(&self) -> Result<(), NetworkError> {
        Ok(self.cni.gc().await?)
    }

    /// From now on what the built-in network has made for pods in general goes with the last pod.
    pub fn close_with_last(&self) {
        self.bridge.close_with_last();
    }

    /// Removes what the built-in network has made for all pods, unless one is connected.
    pub async fn close(&self) -> Result<(), NetworkError> {
        Ok(self.bridge.close().await?)
    }

    /// Whether new pods join the built-in network. A configuration that cannot be used is an error to be
    /// told, not one that is missing.
    async fn is_built_in(&self) -> bool {
        match self.kind {
            Kind::Bridge => true,
            Kind::Cni => false,
            Kind::Auto => !self.cni.is_configured().await,
        }
    }

    async fn damaged_cni(&self) -> Vec<Damaged> {
        let damaged = self.cni.damaged().await.into_iter();
        let path = |pod: &PodId| self.cni_records.join(format!("{pod}.json"));
        damaged.map(|(pod, error)| Damaged { path: path(&pod), pod, error: error.into() }).collect()
    }

    fn damaged_bridge(&self, pod: PodId, error: BridgeError) -> Damaged {
        Damaged { path: self.bridge.record_path(&pod), pod, error: error.into() }
    }
}
