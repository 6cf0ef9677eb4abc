//! CreateContainer: everything that can fail about a container fails here, not at its start.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use oci_spec::runtime::{LinuxSeccomp, Spec};
use podhold_image::Image;
use podhold_proto::cri;
use podhold_sandbox::{ContainerId, bundle, record};
use tokio::time::timeout;
use tracing::info;

use super::{Runtime, blocking, check, files, flight::guarded, prepare};
use crate::{
    error::{Error, Result},
    spec::{self, Inputs, User, mounts::HostMount, process::Granted},
    state::{
        Container, ContainerEvent, ContainerPhase, ContainerRecord, ContainerStatusRecord, Pod, PodPhase,
        Reserve,
    },
};

/// How long the sources of mounts may take to answer.
const LOOK_UP: Duration = Duration::from_secs(30);

/// What CreateContainer works on.
struct Order {
    id: ContainerId,
    pod: Pod,
    config: cri::ContainerConfig,
    image: Arc<Image>,
}

impl Runtime {
    /// Creates a container in a pod. The same request again joins it, or gives the same id as long as
    /// the container was not started; the name with another configuration is refused.
    pub async fn create_container(
        self: &Arc<Self>,
        pod: &str,
        config: cri::ContainerConfig,
    ) -> Result<ContainerId> {
        let pod = self.store.find_pod(pod).ok_or_else(|| Error::not_found("pod", pod))?;
        let image = self.check_container(&pod, &config)?;
        let id = ContainerId::parse(&prepare::random_id()?).map_err(Error::doing("container id"))?;
        let mut order = Order { id, pod, config, image };
        match self.store.add_container(claimed(&order)) {
            Reserve::New => {}
            Reserve::Taken(container) => {
                same_container(&container, &order.config)?;
                order.id = container.record.id.clone();
            }
            Reserve::NotReady(phase) => {
                let phase = phase.map_or("gone", PodPhase::name);
                let id = &order.pod.record.id;
                return Err(Error::Precondition(format!("pod {id} is {phase}; it takes no containers")));
            }
        }
        let (runtime, id) = (Arc::clone(self), order.id.clone());
        let flights = &self.under_way.create;
        flights.join(id.clone(), || async move { runtime.make_or_find_container(order).await }).await?;
        Ok(id)
    }

    /// What there is to do for a container whose name was reserved, by this call or by one before it.
    async fn make_or_find_container(self: Arc<Self>, order: Order) -> Result<()> {
        match self.store.container(&order.id).map(|container| container.phase) {
            Some(ContainerPhase::Creating) => self.make_container(order).await,
            Some(ContainerPhase::Created) => Ok(()),
            Some(_) | None => {
                let id = order.id;
                Err(Error::Precondition(format!(
                    "container {id} could not be made or was started; ask again"
                )))
            }
        }
    }

    /// What can be told from the request alone, and the image.
    fn check_container(&self, pod: &Pod, config: &cri::ContainerConfig) -> Result<Arc<Image>> {
        let metadata = config.metadata.as_ref().ok_or_else(|| Error::invalid("metadata", "is missing"))?;
        if metadata.name.is_empty() || metadata.name.len() > 253 || metadata.name.contains(['/', '\0', '\n'])
        {
            let reason = format!("{:?} is not a name", metadata.name);
            return Err(Error::invalid("metadata.name", reason));
        }
        let asked = config.image.as_ref().map_or("", |image| image.image.as_str());
        if asked.is_empty() {
            return Err(Error::invalid("image.image", "is empty; name an image that was pulled"));
        }
        let image = self.images.find(asked).ok_or_else(|| Error::not_found("image", asked))?;
        for (index, mount) in config.mounts.iter().enumerate() {
            spec::mounts::check(index, mount)?;
        }
        check::check_log_path(&pod.record.config.log_directory, &config.log_path)?;
        if !config.cdi_devices.is_empty() {
            return Err(Error::invalid("CDI_devices", "CDI is not built yet; name devices instead"));
        }
        check::check_security(&spec::process::security(config), &pod.record)?;
        Ok(image)
    }

    async fn make_container(self: Arc<Self>, order: Order) -> Result<()> {
        let id = order.id.clone();
        let begun = std::time::Instant::now();
        let record = self.container_record(&order, &User::default())?;
        match guarded(self.assemble_container(order)).await {
            Ok(()) => {
                info!(container = %id, pod = %record.pod, ms = begun.elapsed().as_millis(), "container created");
                Ok(())
            }
            Err(error) => {
                tracing::warn!(container = %id, pod = %record.pod, %error, "container not created");
                match self.teardown_container(&record).await {
                    Ok(()) => self.forget_container(&id),
                    Err(rest) => {
                        tracing::warn!(container = %id, error = %rest, "container not undone; remove it");
                        self.store.container_event(&id, ContainerEvent::CreateDone);
                    }
                }
                Err(error)
            }
        }
    }

    async fn assemble_container(self: &Arc<Self>, order: Order) -> Result<()> {
        let runtime = Arc::clone(self);
        let id = order.id.clone();
        let mounts = look_up_mounts(&order.config).await?;
        let record = blocking("container", move || runtime.lay_out(&order, &mounts)).await?;
        self.store.change_container(&id, |container| container.record = Arc::new(record));
        match self.store.container_event(&id, ContainerEvent::CreateDone) {
            Some(result) => {
                result.map(drop).map_err(|error| Error::Precondition(format!("container {id}: {error}")))
            }
            None => Err(Error::not_found("container", id.as_str())),
        }
    }

    /// Root filesystem, specification, bundle and record of a container. Blocks.
    fn lay_out(&self, order: &Order, mounts: &[HostMount]) -> Result<ContainerRecord> {
        let pod = &order.pod.record;
        let rootfs = self.layout.rootfs(&pod.id, &order.id);
        prepare::private_dir(&rootfs)?;
        self.images
            .snapshots()
            .mount(order.id.as_str(), &order.image, &rootfs, None)
            .map_err(Error::doing("container root"))?;
        let security = spec::process::security(&order.config);
        let image_user = order.image.config.config().as_ref().and_then(|config| config.user().clone());
        let accounts = prepare::accounts(&rootfs)?;
        let user = spec::user::resolve(&security, image_user.as_deref().unwrap_or(""), &accounts)?;
        let record = self.container_record(order, &user)?;
        let image_dir = order.image.config.config().as_ref().and_then(|config| config.working_dir().clone());
        let directory = Some(&order.config.working_dir).filter(|dir| !dir.is_empty()).or(image_dir.as_ref());
        prepare::make_working_dir(&rootfs, directory.map_or("/", String::as_str))?;
        let spec = self.specification(order, &record, &user, mounts)?;
        if let Some(log) = record.log_path.as_deref().and_then(std::path::Path::parent) {
            prepare::public_dir(log)?;
        }
        bundle::create(&self.layout, &pod.id, &order.id, &spec).map_err(Error::doing("container bundle"))?;
        let path = self.layout.container_record(&pod.id, &order.id);
        prepare::private_dir(path.parent().expect("a record has a directory"))?;
        record::write(&path, &record).map_err(Error::doing("container record"))?;
        let status =
            ContainerStatusRecord { resources: limits(&order.config), started_at: None, ended: None };
        record::write(&self.layout.container_status(&pod.id, &order.id), &status)
            .map_err(Error::doing("container record"))?;
        Ok(record)
    }

    fn container_record(&self, order: &Order, user: &User) -> Result<ContainerRecord> {
        let pod = &order.pod.record;
        let image_stop = order.image.config.config().as_ref().and_then(|config| config.stop_signal().clone());
        let log = !order.config.log_path.is_empty() && !pod.config.log_directory.is_empty();
        Ok(ContainerRecord {
            id: order.id.clone(),
            pod: pod.id.clone(),
            image_id: order.image.id.clone(),
            image_ref: order.image.digests.first().unwrap_or(&order.image.id).clone(),
            created_at: SystemTime::now(),
            log_path: log.then(|| PathBuf::from(&pod.config.log_directory).join(&order.config.log_path)),
            cgroup: pod.cgroup.child(order.id.as_str()),
            user: cri::LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: user.groups.iter().map(|group| (*group).into()).collect(),
            },
            stop_signal: spec::signal::stop_signal(&order.config, image_stop.as_deref())?,
            config: order.config.clone(),
        })
    }

    fn specification(
        &self,
        order: &Order,
        record: &ContainerRecord,
        user: &User,
        mounts: &[HostMount],
    ) -> Result<Spec> {
        let security = spec::process::security(&order.config);
        let capabilities = Granted::of(&security, &self.bounding)?;
        let devices = if security.privileged {
            prepare::all_devices()?
        } else {
            prepare::devices(&order.config.devices)?
        };
        spec::build(Inputs {
            config: &order.config,
            image: &order.image.config,
            user,
            seccomp: seccomp(&security, &capabilities)?,
            capabilities: &capabilities,
            mounts,
            files: &files::of(&self.layout, &order.pod.record),
            devices: &devices,
            cgroup: &record.cgroup,
            cgroup_version: self.cgroups.version(),
            cgroup_directories: &self.cgroups.version_1_directories(&record.cgroup),
        })
    }
}

/// The container as it stands in the store while it is made.
fn claimed(order: &Order) -> Container {
    let record = ContainerRecord {
        id: order.id.clone(),
        pod: order.pod.record.id.clone(),
        config: order.config.clone(),
        image_id: order.image.id.clone(),
        image_ref: String::new(),
        created_at: SystemTime::now(),
        log_path: None,
        cgroup: order.pod.record.cgroup.child(order.id.as_str()),
        user: cri::LinuxContainerUser::default(),
        stop_signal: libc::SIGTERM,
    };
    Container {
        record: Arc::new(record),
        phase: ContainerPhase::Creating,
        resources: limits(&order.config),
        updating: Arc::default(),
    }
}

/// The sources of the mounts. A source whose file system does not answer costs a thread, not the verb.
async fn look_up_mounts(config: &cri::ContainerConfig) -> Result<Vec<HostMount>> {
    let mounts = config.mounts.clone();
    let looked_up = timeout(LOOK_UP, blocking("mounts", move || prepare::mounts(&mounts))).await;
    looked_up.unwrap_or_else(|_| {
        let sources: Vec<&str> = config.mounts.iter().map(|mount| mount.host_path.as_str()).collect();
        Err(Error::Deadline(format!(
            "mounts: one of {sources:?} has not answered for {} s; its file system hangs",
            LOOK_UP.as_secs()
        )))
    })
}

/// Whether a container that has the name already was asked for in the same way and not started yet.
fn same_container(container: &Container, asked: &cri::ContainerConfig) -> Result<()> {
    let id = &container.record.id;
    match (check::first_difference(&container.record.config, asked), &container.phase) {
        (Some(field), _) => Err(Error::Exists { object: "container", id: id.to_string(), field }),
        (None, ContainerPhase::Creating | ContainerPhase::Created) => Ok(()),
        (None, phase) => Err(Error::Precondition(format!(
            "container {id} has this name and is {}; remove it or use the next attempt",
            phase.name()
        ))),
    }
}

fn limits(config: &cri::ContainerConfig) -> cri::LinuxContainerResources {
    config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default()
}

/// The seccomp profile the request names; none is unconfined, as peers do.
fn seccomp(security: &cri::LinuxContainerSecurityContext, granted: &Granted) -> Result<Option<LinuxSeccomp>> {
    use cri::security_profile::ProfileType;
    let Some(profile) = &security.seccomp else { return Ok(None) };
    if security.privileged {
        return Ok(None);
    }
    match profile.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => spec::seccomp::default_profile(&granted.set).map(Some),
        ProfileType::Localhost => {
            let path = &profile.localhost_ref;
            let text = prepare::read_profile(path)?;
            spec::seccomp::localhost_profile(path, &text).map(Some)
        }
    }
}
