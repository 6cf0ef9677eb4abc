//! RunPodSandbox: a pod's namespaces, network, cgroup, files, shim and pause process.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use podhold_cgroups::{CgroupPath, Driver, Place};
use podhold_proto::cri::{self, NamespaceMode};
use podhold_sandbox::{
    PodId,
    launch::{IdMap, LaunchError, OpenPod, PodSpec},
    netns, record,
};
use tracing::info;

use super::{
    Runtime, blocking, check, files,
    flight::guarded,
    pod_network::{port_mappings, sets_network, without_forbidden},
    pod_resources, prepare, users,
};
use crate::{
    descriptors,
    error::{Error, Result},
    spec::resources,
    state::{Pod, PodEvent, PodPhase, PodRecord, Reserve},
};

impl Runtime {
    /// Runs a pod sandbox. The same request again joins it, or gives the same id; the name with another
    /// configuration is refused.
    pub async fn run_pod(self: &Arc<Self>, config: cri::PodSandboxConfig, handler: String) -> Result<PodId> {
        check(&config)?;
        self.check_handler(&handler)?;
        if let Some(limits) = requested_limits(&config)? {
            self.cgroups.check(&self.cgroup_parent, &limits)?;
        }
        let asked = self.new_record(config, handler)?;
        let record = match self.store.add_pod(reserved(&asked)) {
            Reserve::Taken(pod) => {
                same_pod(&pod, &asked)?;
                (*pod.record).clone()
            }
            Reserve::New | Reserve::NotReady(_) => {
                let room = descriptors::has_room().map_err(Error::doing("a new pod"));
                room.inspect_err(|_| self.store.forget_pod(&asked.id))?;
                asked
            }
        };
        let (runtime, id) = (Arc::clone(self), record.id.clone());
        self.under_way.run.join(id.clone(), || async move { runtime.make_or_find(record).await }).await?;
        Ok(id)
    }

    /// What there is to do for a pod whose name was reserved, by this call or by one before it.
    async fn make_or_find(self: Arc<Self>, record: PodRecord) -> Result<()> {
        match self.store.pod(&record.id).map(|pod| pod.phase) {
            Some(PodPhase::Creating) => self.make_pod(record).await,
            Some(PodPhase::Ready | PodPhase::Unanswered) => Ok(()),
            Some(_) | None => {
                let id = record.id;
                Err(Error::Precondition(format!("pod {id} could not be made or was stopped; ask again")))
            }
        }
    }

    fn new_record(&self, config: cri::PodSandboxConfig, runtime_handler: String) -> Result<PodRecord> {
        let id = PodId::parse(&prepare::random_id()?).map_err(Error::doing("pod id"))?;
        let parent = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
        let (cgroup, owned_cgroup) = self.place(&id, parent)?;
        Ok(PodRecord {
            id,
            config,
            runtime_handler,
            created_at: SystemTime::now(),
            owned_cgroup,
            cgroup,
            complete: false,
            ips: Vec::new(),
            boot: Some(self.boot.id.clone()),
            limits: None,
        })
    }

    /// The cgroup of a pod that is to be in `parent`, and the topmost one that is made for it and goes with it.
    fn place(&self, id: &PodId, parent: &str) -> Result<(CgroupPath, Option<CgroupPath>)> {
        let driver = self.cgroups.driver();
        let given = match parent {
            "" => None,
            parent => Some(driver.parent(parent)?),
        };
        match (driver, given) {
            (Driver::Cgroupfs, given) => {
                let place = given.as_ref().map_or(Place::Beneath(&self.cgroup_parent), Place::Given);
                let cgroup = driver.pod(place, id.as_str());
                let missing = |path: &CgroupPath| *path != self.cgroup_parent && !self.cgroups.exists(path);
                let ancestors = std::iter::successors(Some(cgroup.clone()), CgroupPath::parent);
                let owned = ancestors.take_while(missing).last();
                Ok((cgroup, owned))
            }
            // Slices are whoever's who has named them, and stay. One that nobody has made has no limits.
            (Driver::Systemd, Some(slice)) if self.cgroups.exists(&slice) => {
                Ok((driver.pod(Place::Given(&slice), id.as_str()), None))
            }
            (Driver::Systemd, slice) => {
                let slice = slice.as_ref().unwrap_or(&self.cgroup_parent);
                let cgroup = driver.pod(Place::Beneath(slice), id.as_str());
                Ok((cgroup.clone(), Some(cgroup)))
            }
        }
    }

    fn check_handler(&self, handler: &str) -> Result<()> {
        match handler {
            "" | super::HANDLER => Ok(()),
            other => Err(Error::invalid(
                "runtime_handler",
                format!(
                    "{other:?} is not known; this node has {:?}, which the empty name means too",
                    super::HANDLER
                ),
            )),
        }
    }

    /// Makes the pod, or undoes what it made.
    async fn make_pod(self: Arc<Self>, record: PodRecord) -> Result<()> {
        let begun = std::time::Instant::now();
        let id = record.id.clone();
        match guarded(self.assemble(record)).await {
            Ok(()) => {
                info!(pod = %id, ms = begun.elapsed().as_millis(), "pod ready");
                Ok(())
            }
            Err(error) => {
                tracing::warn!(pod = %id, %error, "pod not made");
                if let Err(rest) = self.teardown_pod(&id).await {
                    tracing::warn!(pod = %id, error = %rest, "pod not undone; remove it");
                    self.store.pod_event(&id, PodEvent::RunFailed);
                    self.undone.half_made_pod(&id, &rest);
                } else {
                    self.store.forget_pod(&id);
                }
                Err(error)
            }
        }
    }

    async fn assemble(self: &Arc<Self>, record: PodRecord) -> Result<()> {
        let id = record.id.clone();
        self.keep_pod(&record).await?;
        match record.user_map() {
            None => self.make_netns(&record).await?,
            Some(map) => self.make_user_namespace(&record, &map).await?,
        }
        // The pod's own settings of its network are for interfaces that are there, and may forbid addresses.
        let attached = match sets_network(&record) {
            true => Some(self.attach_network(&record).await?),
            false => None,
        };
        let attach = async {
            match attached {
                Some(ips) => Ok(without_forbidden(ips, &record)),
                None => self.attach_network(&record).await,
            }
        };
        // Each is awaited to its end even when another fails: a network plugin that is cut off half way
        // may leave what no DEL finds.
        let (ips, open, surroundings) =
            tokio::join!(attach, self.open_shim(&record), self.make_surroundings(&record));
        let open = match open {
            Ok(open) => {
                self.store.change_pod(&id, |pod| pod.live = Some(Arc::clone(&open.pod)));
                open
            }
            Err(error) => return Err(ips.err().unwrap_or(error)),
        };
        let ips = ips?;
        surroundings?;
        if let Some(limits) = pod_resources::limits(&record)? {
            self.limit_pod(&record, limits).await?;
        }
        let complete = PodRecord { complete: true, ips: ips.clone(), ..record };
        self.write_files(&complete).await?;
        self.keep_pod(&complete).await?;
        self.store.change_pod(&id, |pod| {
            pod.record = Arc::new(complete);
            pod.ips = ips;
        });
        match self.store.pod_event(&id, PodEvent::RunDone) {
            Some(Ok(_)) => {
                self.watch(id, open.events);
                Ok(())
            }
            Some(Err(error)) => Err(Error::failed(format!("pod {id}"), &error)),
            None => Err(Error::not_found("pod", id.as_str())),
        }
    }

    pub(super) async fn keep_pod(&self, record: &PodRecord) -> Result<()> {
        let path = self.layout.pod_record(&record.id);
        let record = record.clone();
        blocking("pod record", move || {
            prepare::private_dir(path.parent().expect("a record has a directory"))?;
            record::write(&path, &record).map_err(Error::doing("pod record"))
        })
        .await
    }

    async fn make_netns(&self, record: &PodRecord) -> Result<()> {
        if record.host_network() {
            return Ok(());
        }
        let path = self.layout.netns(&record.id);
        blocking("network namespace", move || {
            prepare::private_dir(path.parent().expect("a namespace has a directory"))?;
            netns::create(&path).map_err(Error::doing("network namespace"))
        })
        .await
    }

    /// The user namespace, and in it the network namespace, which is pinned where others are.
    async fn make_user_namespace(self: &Arc<Self>, record: &PodRecord, map: &IdMap) -> Result<()> {
        if !self.user_namespaces().await {
            return Err(Error::Precondition(
                "linux.security_context.namespace_options.userns_options: this host cannot give a pod users \
                 of its own; the daemon's log says why"
                    .to_owned(),
            ));
        }
        let made = self.launcher.make_namespaces(&record.id, map, !record.host_network()).await?;
        let Some(net) = made.net else { return Ok(()) };
        let path = self.layout.netns(&record.id);
        blocking("network namespace", move || {
            prepare::private_dir(path.parent().expect("a namespace has a directory"))?;
            netns::pin(&net, &path).map_err(Error::doing("network namespace"))
        })
        .await
    }

    async fn open_shim(&self, record: &PodRecord) -> Result<OpenPod> {
        let namespaces = record.namespaces();
        let host_network = record.host_network();
        let sysctls: BTreeMap<String, String> =
            record.config.linux.iter().flat_map(|linux| linux.sysctls.clone()).collect();
        let cgroups = self.cgroups.clone();
        let pause_cgroup = record.pause_cgroup();
        let leaf = pause_cgroup.clone();
        let cgroup = blocking("pod cgroup", move || match cgroups.driver() {
            Driver::Cgroupfs => cgroups.create(&leaf).map_err(Error::from),
            // A scope begins with its first process, which is pause.
            Driver::Systemd => Ok(()),
        });
        let run_dir = self.layout.pod_run(&record.id);
        let dir = blocking("pod directory", move || prepare::private_dir(&run_dir));
        tokio::try_join!(cgroup, dir)?;
        let open = self.launcher.open_pod(PodSpec {
            id: record.id.clone(),
            netns: (!host_network).then(|| self.layout.netns(&record.id)),
            in_user_namespace: record.user_map().is_some(),
            hostname: (!host_network).then(|| files::hostname(&record.config)),
            own_ipc: namespaces.ipc() != NamespaceMode::Node,
            shared_pid: namespaces.pid() == NamespaceMode::Pod,
            sysctls,
            pause_cgroup,
            pause_oom_score_adj: -998,
        });
        open.await.map_err(|error| match error {
            LaunchError::Refused(reason) if reason.starts_with("sysctl ") => {
                Error::invalid("linux.sysctls", reason)
            }
            other => other.into(),
        })
    }

    /// The pod's /dev/shm.
    async fn make_surroundings(&self, record: &PodRecord) -> Result<()> {
        if record.namespaces().ipc() == NamespaceMode::Node {
            return Ok(());
        }
        let (shm, owner) = (self.layout.pod_shm(&record.id), record.user_root());
        blocking("pod shared memory", move || files::mount_shm(&shm, owner)).await
    }

    async fn write_files(&self, record: &PodRecord) -> Result<()> {
        let dir = self.layout.pod_etc(&record.id);
        let record = record.clone();
        blocking("pod files", move || files::write(&dir, &record)).await
    }
}

/// Whether a pod that has the name already was asked for in the same way.
fn same_pod(pod: &Pod, asked: &PodRecord) -> Result<()> {
    let field = if pod.record.runtime_handler == asked.runtime_handler {
        check::first_difference(&pod.record.config, &asked.config)
    } else {
        Some("runtime_handler".to_owned())
    };
    if let Some(field) = field {
        return Err(Error::Exists { object: "pod", id: pod.record.id.to_string(), field });
    }
    match pod.phase {
        PodPhase::Creating | PodPhase::Ready | PodPhase::Unanswered => Ok(()),
        phase => Err(Error::Precondition(format!(
            "pod {} has this name and is {}; remove it or use the next attempt",
            pod.record.id,
            phase.name()
        ))),
    }
}

fn reserved(record: &PodRecord) -> Pod {
    Pod::new(record.clone(), PodPhase::Creating)
}

/// What a pod's configuration may not be.
fn check(config: &cri::PodSandboxConfig) -> Result<()> {
    let metadata = config.metadata.as_ref().ok_or_else(|| Error::invalid("metadata", "is missing"))?;
    for (field, value) in
        [("name", &metadata.name), ("uid", &metadata.uid), ("namespace", &metadata.namespace)]
    {
        if value.is_empty() {
            return Err(Error::invalid(format!("metadata.{field}"), "is empty; a pod needs one"));
        }
        if value.len() > 253 || value.bytes().any(|b| b.is_ascii_control() || matches!(b, b'/' | b';' | b'='))
        {
            return Err(Error::invalid(format!("metadata.{field}"), format!("{value:?} is not a name")));
        }
    }
    files::check(config)?;
    check::check_log_directory(&config.log_directory)?;
    port_mappings(config)?;
    let linux = config.linux.clone().unwrap_or_default();
    if !linux.cgroup_parent.is_empty() && !linux.cgroup_parent.ends_with(".slice") {
        CgroupPath::parse(&linux.cgroup_parent)?;
    }
    let security = linux.security_context.unwrap_or_default();
    check::check_pod_security(&security)?;
    let namespaces = security.namespace_options.unwrap_or_default();
    check::check_modes(&namespaces)?;
    if matches!(namespaces.ipc(), NamespaceMode::Container | NamespaceMode::Target) {
        let reason = "a pod has POD or NODE IPC";
        return Err(Error::invalid("linux.security_context.namespace_options.ipc", reason));
    }
    if namespaces.network() == NamespaceMode::Container || namespaces.network() == NamespaceMode::Target {
        let reason = "a pod has POD or NODE network";
        return Err(Error::invalid("linux.security_context.namespace_options.network", reason));
    }
    if namespaces.pid() == NamespaceMode::Target {
        let reason = "TARGET is for containers; a pod has POD, CONTAINER or NODE";
        return Err(Error::invalid("linux.security_context.namespace_options.pid", reason));
    }
    users::check_pod(&namespaces)?;
    check::check_sysctls(&linux.sysctls, &config_namespaces(config))
}

/// The limits a pod is asked for with.
fn requested_limits(config: &cri::PodSandboxConfig) -> Result<Option<oci_spec::runtime::LinuxResources>> {
    let Some(linux) = &config.linux else { return Ok(None) };
    resources::of_pod(linux.overhead.as_ref(), linux.resources.as_ref())
}

fn config_namespaces(config: &cri::PodSandboxConfig) -> cri::NamespaceOption {
    let linux = config.linux.as_ref();
    let security = linux.and_then(|linux| linux.security_context.as_ref());
    security.and_then(|security| security.namespace_options.clone()).unwrap_or_default()
}
