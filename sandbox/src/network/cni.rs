//! A client of the Container Network Interface (CNI specification 1.1.0 and those before it).
//!
//! Life of an attachment: an *attempt* is written to the cache -> ADD of every plugin in turn -> the
//! result is written to the cache -> DEL of every plugin in reverse -> the record is removed. Whatever
//! happens in between, the record on disk is enough to give everything back, without the namespace, the
//! pod or the configuration it was made with.
//!
//! Invariants: a record goes only after a DEL that succeeded; plugins' answers are bounded and checked
//! before anybody sees them; no plugin outlives its time or a caller that gave up. One operation per pod
//! at a time is the caller's duty; a plugin that an earlier daemon has left at work is waited for (`lock`).

pub(crate) mod answer;
mod attachment;
mod cache;
mod conf;
mod error;
mod lock;
mod plugin;
mod process;
mod turns;

#[cfg(test)]
mod tests;

use std::{net::IpAddr, path::PathBuf, time::Duration};

use serde_json::{Map, Value, json};
use tokio::{sync::OnceCell, time::Instant};

use self::{
    answer::Answer,
    cache::{Cache, Record},
    conf::{Loader, NetworkList, Version},
    lock::{Held, Locks},
    plugin::{Call, Command, Runner},
    turns::Turns,
};
pub use self::{
    answer::{Dns, Interface},
    attachment::{Attachment, Bandwidth, PortMapping, Protocol},
    error::CniError,
};
use crate::{PodId, netns};

/// The interface plugins make in the pod.
const INTERFACE: &str = "eth0";
/// How long GC may take: all other commands wait for it.
const GC_TIME: Duration = Duration::from_secs(10);
/// Name of GC's lock; no pod can have it.
const GC_LOCK: &str = "GC";

/// Where things are and how long they may take.
#[derive(Debug, Clone)]
pub struct CniConfig {
    /// Directory of network configurations; the first valid one in lexical order is used.
    pub conf_dir: PathBuf,
    /// Directories that are searched for plugins, in this order.
    pub bin_dirs: Vec<PathBuf>,
    /// Directory of records, [`crate::Layout::cni_cache`].
    pub cache_dir: PathBuf,
    /// How long one plugin may take for one command.
    pub timeout: Duration,
    /// Directory in which every pod's namespace is pinned under the pod's id: a record that names another
    /// one is not believed. `None` believes all.
    pub netns_dir: Option<PathBuf>,
}

impl CniConfig {
    /// The usual directories, with records in `cache_dir`, and a minute per plugin.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cache_dir: cache_dir.into(),
            timeout: Duration::from_secs(60),
            netns_dir: None,
        }
    }
}

/// What a pod was given.
#[derive(Debug, Clone, PartialEq)]
pub struct Attached {
    /// The pod's addresses, the primary one first. Never empty.
    pub ips: Vec<IpAddr>,
    /// All interfaces the plugins made, on the host's side too.
    pub interfaces: Vec<Interface>,
    /// Name servers the network asks for.
    pub dns: Dns,
    /// The last plugin's result as it was cached.
    pub result: Value,
}

/// The client. One per daemon.
#[derive(Debug)]
pub struct Cni {
    loader: Loader,
    cache: Cache,
    runner: Runner,
    locks: Locks,
    turns: Turns,
    /// Set once no GC of an earlier daemon is at work: it would take new attachments for old ones.
    no_foreign_gc: OnceCell<()>,
}

impl Cni {
    /// A client that reads its configuration when it is first needed.
    pub fn new(config: CniConfig) -> Self {
        Self {
            loader: Loader::new(config.conf_dir),
            locks: Locks::new(config.cache_dir.clone(), config.timeout),
            cache: Cache::new(config.cache_dir, config.netns_dir),
            runner: Runner::new(config.bin_dirs, config.timeout),
            turns: Turns::default(),
            no_foreign_gc: OnceCell::new(),
        }
    }

    /// Connects the pod's namespace to the network.
    ///
    /// What an earlier attempt left is given back first. When a plugin fails, DEL has been run before the
    /// error is returned; should that fail too, the record stays and [`Self::del`] tries again.
    pub async fn add(&self, attachment: &Attachment) -> Result<Attached, CniError> {
        attachment.check()?;
        let pod = &attachment.pod;
        let _shared = self.turns.shared().await;
        self.no_foreign_gc
            .get_or_try_init(async || self.locks.take(GC_LOCK).await.map(Held::discard))
            .await?;
        let lock = self.locks.take(pod.as_str()).await?;
        self.give_back(pod, &lock).await?;
        let list = self.loader.current().await?;
        let record = Record::attempt(attachment, &list);
        self.cache.write(&record).await?;
        let added = self.add_all(&record, &lock).await;
        if let Err(error) = &added {
            tracing::warn!(%pod, %error, "network ADD failed");
            match self.give_back(pod, &lock).await {
                Ok(()) => lock.discard(),
                Err(again) => tracing::warn!(%pod, error = %again, "network DEL after failed ADD failed"),
            }
        }
        added
    }

    /// Gives back all that ADD made, from the pod's record. A pod without a record is a success; for a
    /// record that cannot be read the configuration in force has to do.
    ///
    /// Every plugin is run even when one fails; then the first error is returned and the record stays.
    pub async fn del(&self, pod: &PodId) -> Result<(), CniError> {
        if !self.cache.has(pod) && !self.locks.exists(pod.as_str()) {
            return Ok(());
        }
        let _shared = self.turns.shared().await;
        let lock = self.locks.take(pod.as_str()).await?;
        self.give_back(pod, &lock).await?;
        lock.discard();
        Ok(())
    }

    /// Asks the plugins whether the attachment is as ADD left it. Networks that cannot be asked (before
    /// 0.4.0, or with `disableCheck`) are taken to be well.
    pub async fn check(&self, pod: &PodId) -> Result<(), CniError> {
        let _shared = self.turns.shared().await;
        let lock = self.locks.take(pod.as_str()).await?;
        let Some(record) = self.cache.read(pod).await? else {
            return Err(CniError::NotAttached(pod.clone()));
        };
        let Some(result) = &record.result else { return Err(CniError::NotAttached(pod.clone())) };
        let list = record.list()?;
        if list.version < Version::V0_4 || list.disable_check {
            return Ok(());
        }
        for plugin in &list.plugins {
            let netconf = list.netconf(plugin, &record.capabilities, Some(result));
            self.runner.run(&record.call(&list, plugin, Command::Check), &netconf, Some(&lock)).await?;
        }
        Ok(())
    }

    /// Whether pods can be connected: a valid configuration is there and so are its plugins; those that
    /// speak 1.1.0 are asked.
    pub async fn status(&self) -> Result<(), CniError> {
        self.status_within(self.runner.timeout()).await
    }

    /// [`Self::status`], with a time limit of its own for each plugin.
    pub async fn status_within(&self, limit: Duration) -> Result<(), CniError> {
        let list = self.loader.current().await?;
        for plugin in &list.plugins {
            self.runner.find(&list.file, &plugin.kind)?;
        }
        if list.version < Version::V1_1 {
            return Ok(());
        }
        for plugin in &list.plugins {
            let netconf = list.netconf(plugin, &Map::new(), None);
            let call = Call::of_list(&list, plugin, Command::Status);
            self.runner.run_within(&call, &netconf, None, limit.min(self.runner.timeout())).await?;
        }
        Ok(())
    }

    /// Has the plugins, where the network speaks 1.1.0, give back whatever is not of a pod that has a record:
    /// what was lost with its record. Goes on after an error and returns the first.
    ///
    /// It waits for a moment in which nothing else is under way, and may take [`GC_TIME`] then.
    pub async fn gc(&self) -> Result<(), CniError> {
        let _alone = self.turns.alone().await;
        let list = match self.loader.current().await {
            Ok(list) if list.version >= Version::V1_1 && !list.disable_gc => list,
            // A network that is not configured (any more) cannot be told.
            _ => return Ok(()),
        };
        let lock = self.locks.take(GC_LOCK).await?;
        let valid = self.cache.pods().into_iter();
        let valid: Vec<Value> =
            valid.map(|pod| json!({"containerID": pod.as_str(), "ifname": INTERFACE})).collect();
        let (mut first, begun) = (Ok(()), Instant::now());
        for plugin in &list.plugins {
            let mut netconf = list.netconf(plugin, &Map::new(), None);
            netconf.insert("cni.dev/valid-attachments".to_owned(), Value::from(valid.clone()));
            let call = Call::of_list(&list, plugin, Command::Gc);
            let runner = self.runner.at_most(GC_TIME.saturating_sub(begun.elapsed()));
            first = first.and(runner.run(&call, &netconf, Some(&lock)).await.map(drop));
        }
        lock.discard();
        first
    }

    /// Whether somebody has put a configuration where it is looked for, usable or not.
    pub async fn is_configured(&self) -> bool {
        match self.loader.current().await {
            Err(CniError::NoNetwork { refused_files, .. }) => !refused_files.is_empty(),
            _ => true,
        }
    }

    /// Why records cannot be read, for each that cannot.
    pub async fn damaged(&self) -> Vec<(PodId, CniError)> {
        let mut damaged = Vec::new();
        for pod in self.cache.pods() {
            if let Err(error) = self.cache.read(&pod).await {
                damaged.push((pod, error));
            }
        }
        damaged
    }

    /// The pods that have a record: connected, or left half-way.
    pub fn cached(&self) -> Vec<PodId> {
        self.cache.pods()
    }

    /// What the pod was given, from its record; `None` when it has none, or ADD did not end.
    pub async fn attached(&self, pod: &PodId) -> Result<Option<Attached>, CniError> {
        let Some(record) = self.cache.read(pod).await? else { return Ok(None) };
        let Some(result) = record.result.clone() else { return Ok(None) };
        let answer = Answer::parse(&result).map_err(|reason| record.bad_result(&reason))?;
        Ok(Some(self.attached_from(&record, answer, result)?))
    }

    async fn add_all(&self, record: &Record, lock: &Held) -> Result<Attached, CniError> {
        let list = record.list()?;
        let mut result: Option<Value> = None;
        for plugin in &list.plugins {
            let netconf = list.netconf(plugin, &record.capabilities, result.as_ref());
            let call = record.call(&list, plugin, Command::Add);
            let output = self.runner.run(&call, &netconf, Some(lock)).await?;
            let bad = |reason: String| CniError::BadResult { call: call.to_string(), reason };
            let mut value: Value =
                serde_json::from_slice(&output).map_err(|error| bad(format!("it is not JSON ({error})")))?;
            Answer::parse(&value).map_err(bad)?;
            if let Some(object) = value.as_object_mut() {
                object.insert("cniVersion".to_owned(), Value::from(list.version_text.clone()));
            }
            result = Some(value);
        }
        let result = result.unwrap_or(Value::Null);
        let answer = Answer::parse(&result).map_err(|reason| record.bad_result(&reason))?;
        let attached = self.attached_from(record, answer, result.clone())?;
        self.cache.write(&record.ended(result)).await?;
        Ok(attached)
    }

    fn attached_from(&self, record: &Record, answer: Answer, result: Value) -> Result<Attached, CniError> {
        let ips = answer.addresses_of(INTERFACE);
        if ips.is_empty() {
            return Err(CniError::NoAddress { file: record.file.clone(), interface: INTERFACE });
        }
        Ok(Attached { ips, interfaces: answer.interfaces, dns: answer.dns, result })
    }

    async fn give_back(&self, pod: &PodId, lock: &Held) -> Result<(), CniError> {
        let mut record = match self.cache.read(pod).await {
            // What an earlier daemon was about to write when it died.
            Ok(None) => return self.cache.remove(pod).await,
            Ok(Some(record)) => record,
            Err(damage) => {
                tracing::warn!(%pod, %damage, "network given back by the configuration in force");
                let list = self.loader.current().await.map_err(|_| damage)?;
                Record::lost(pod, self.cache.netns(pod).unwrap_or_default(), &list)
            }
        };
        if !netns::exists(&record.netns) {
            // Plugins take an empty name for "gone", and stumble over a plain file.
            record.netns = PathBuf::new();
        }
        let list: NetworkList = record.list()?;
        let mut first = Ok(());
        for plugin in list.plugins.iter().rev() {
            let result = record.result.as_ref().filter(|_| list.version >= Version::V0_4);
            let netconf = list.netconf(plugin, &record.capabilities, result);
            let call = record.call(&list, plugin, Command::Del);
            first = first.and(self.runner.run(&call, &netconf, Some(lock)).await.map(drop));
        }
        first?;
        self.cache.remove(pod).await
    }
}
