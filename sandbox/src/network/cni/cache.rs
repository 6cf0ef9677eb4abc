//! What ADD was told and what it answered, by pod, on disk.
//!
//! Invariant: a record is replaced as a whole (temporary file, rename). Files that are no records are
//! left alone and harm no other pod.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Attachment, CniError, INTERFACE,
    conf::{NetworkList, Plugin},
    plugin::{Call, Command},
};
use crate::{PodId, record};

const LARGEST: u64 = 8 << 20;

/// Everything a later DEL or CHECK needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// Form of this record.
    version: u32,
    pub(super) pod: PodId,
    /// The configuration's file, to name it in errors.
    pub(super) file: PathBuf,
    /// The configuration itself, as it was at ADD.
    list: Value,
    pub(super) netns: PathBuf,
    args: String,
    pub(super) capabilities: Map<String, Value>,
    /// The last plugin's result; `None` until ADD has ended.
    pub(super) result: Option<Value>,
}

impl Record {
    pub(super) fn attempt(attachment: &Attachment, list: &NetworkList) -> Self {
        Self {
            version: 1,
            pod: attachment.pod.clone(),
            file: list.file.clone(),
            list: list.raw.clone(),
            netns: attachment.netns.clone(),
            args: attachment.args(),
            capabilities: attachment.capabilities(&list.name),
            result: None,
        }
    }

    /// In place of a record that was lost: what DEL can be told from the configuration in force. Most
    /// plugins find what they made by the pod's id.
    pub(super) fn lost(pod: &PodId, netns: PathBuf, list: &NetworkList) -> Self {
        Self {
            version: 1,
            pod: pod.clone(),
            file: list.file.clone(),
            list: list.raw.clone(),
            netns,
            args: format!("IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID={pod}"),
            capabilities: Map::new(),
            result: None,
        }
    }

    /// The same record with the last plugin's result.
    pub(super) fn ended(&self, result: Value) -> Self {
        Self { result: Some(result), ..self.clone() }
    }

    /// The network as it was at ADD.
    pub(super) fn list(&self) -> Result<NetworkList, CniError> {
        NetworkList::parse(&self.file, self.list.clone()).map_err(|reason| self.bad_result(&reason))
    }

    pub(super) fn call(&self, list: &NetworkList, plugin: &Plugin, command: Command) -> Call {
        Call {
            container: self.pod.to_string(),
            netns: self.netns.clone(),
            interface: INTERFACE.to_owned(),
            args: self.args.clone(),
            ..Call::of_list(list, plugin, command)
        }
    }

    pub(super) fn bad_result(&self, reason: &str) -> CniError {
        CniError::BadResult { call: format!("record of pod {}", self.pod), reason: reason.to_owned() }
    }
}

/// The directory of records.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    /// Where the namespaces of all pods are pinned, by id; `None` where they may be anywhere.
    netns_dir: Option<PathBuf>,
}

impl Cache {
    pub(super) fn new(dir: PathBuf, netns_dir: Option<PathBuf>) -> Self {
        Self { dir, netns_dir }
    }

    /// Where the pod's namespace must be pinned.
    pub(super) fn netns(&self, pod: &PodId) -> Option<PathBuf> {
        self.netns_dir.as_ref().map(|dir| dir.join(pod.as_str()))
    }

    pub(super) async fn read(&self, pod: &PodId) -> Result<Option<Record>, CniError> {
        let path = self.path(pod);
        let expected = self.netns(pod);
        let pod = pod.clone();
        blocking("read", path, move |path| {
            let text = match record::read_bytes(path, LARGEST) {
                Err(error) if error.is_missing() => return Ok(None),
                read => read.map_err(io::Error::other)?,
            };
            let record: Record = serde_json::from_slice(&text)?;
            let refuse = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            if record.version != 1 {
                return refuse(format!("its version is {}, this build reads version 1", record.version));
            }
            if record.pod != pod {
                return refuse(format!("it is of another pod, {}", record.pod));
            }
            // A plugin would take down the network of whatever namespace it is told.
            if expected.is_some_and(|expected| record.netns != expected) {
                return refuse(format!("it names a foreign network namespace, {}", record.netns.display()));
            }
            Ok(Some(record))
        })
        .await
    }

    pub(super) async fn write(&self, record: &Record) -> Result<(), CniError> {
        let dir = self.dir.clone();
        let record = record.clone();
        blocking("write", self.path(&record.pod), move |path| {
            make_directory(&dir)?;
            let temporary = path.with_extension("new");
            // What a crash left would make the exclusive creation fail for ever.
            clear(&temporary)?;
            let mut file =
                fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(&serde_json::to_vec(&record)?)?;
            fs::rename(&temporary, path)
        })
        .await
    }

    pub(super) async fn remove(&self, pod: &PodId) -> Result<(), CniError> {
        blocking("remove", self.path(pod), clear).await
    }

    /// Whether the pod has a record, readable or not.
    pub(super) fn has(&self, pod: &PodId) -> bool {
        self.path(pod).symlink_metadata().is_ok()
    }

    pub(super) fn pods(&self) -> Vec<PodId> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let names = entries.filter_map(Result::ok).filter_map(|entry| entry.file_name().into_string().ok());
        let mut pods: Vec<PodId> =
            names.filter_map(|name| PodId::parse(name.strip_suffix(".json")?).ok()).collect();
        pods.sort();
        pods
    }

    fn path(&self, pod: &PodId) -> PathBuf {
        self.dir.join(format!("{pod}.json"))
    }
}

/// A directory for us alone.
pub(super) fn make_directory(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Removes whatever is at `path`, which may be damaged in any way.
pub(super) fn clear(path: &Path) -> io::Result<()> {
    let removed = fs::remove_file(path).or_else(|error| match error.kind() {
        io::ErrorKind::IsADirectory => fs::remove_dir_all(path),
        _ => Err(error),
    });
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    path: PathBuf,
    work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> Result<T, CniError> {
    let at = path.clone();
    let done = tokio::task::spawn_blocking(move || work(&at)).await;
    let done = done.unwrap_or_else(|error| Err(io::Error::other(error)));
    done.map_err(|source| CniError::Cache { operation, path, source })
}
