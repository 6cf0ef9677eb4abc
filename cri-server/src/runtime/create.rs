//! CreateContainer: everything that can fail about a container fails here, not at its start.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use oci_spec::runtime::{LinuxResources, LinuxSeccomp, Spec};
use podhold_cgroups::Version;
use podhold_image::Image;
use podhold_proto::cri;
use podhold_sandbox::{
    ContainerId,
    bundle::{self, BundleError},
    launch::NamespaceOf,
    record,
};
use tokio::time::timeout;
use tracing::info;

use super::{
    Purpose, Runtime, blocking, check, confinement, devices, files, flight::guarded, prepare, users, volumes,
};
use crate::{
    descriptors,
    error::{Error, Result},
    spec::{self, Inputs, User, devices::HostDevice, mounts::HostMount, process::Granted},
    state::{
        Container, ContainerEvent, ContainerPhase, ContainerRecord, ContainerStatusRecord, Pod, PodPhase,
        PodRecord, Reserve, log_path,
    },
};

/// How long the paths that a request names may take to answer, once each has done so before.
const LOOK_UP: Duration = Duration::from_secs(10);

/// A container whose request says nothing of namespaces has those of its pod. The CRI's defaults would
/// contradict a pod in the host's network.
fn in_namespaces_of(pod: &PodRecord, mut config: cri::ContainerConfig) -> cri::ContainerConfig {
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_with(|| pod.namespaces());
    config
}

/// What CreateContainer works on.
struct Order {
    id: ContainerId,
    pod: Pod,
    config: cri::ContainerConfig,
    image: Arc<Image>,
    volumes: Vec<volumes::Wanted>,
}

/// What was looked up on the host.
struct Found {
    mounts: Vec<HostMount>,
    devices: Vec<HostDevice>,
    seccomp: Option<LinuxSeccomp>,
    apparmor: Option<String>,
    capabilities: Granted,
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
        let config = in_namespaces_of(&pod.record, config);
        let image = self.check_container(&pod, &config)?;
        let volumes = self.image_volumes(&config)?;
        let id = ContainerId::parse(&prepare::random_id()?).map_err(Error::doing("container id"))?;
        let mut order = Order { id, pod, config, image, volumes };
        match self.store.add_container(claimed(&order)) {
            Reserve::New => {
                let room = descriptors::has_room().map_err(Error::doing("a new container"));
                room.inspect_err(|_| self.forget_container(&order.id))?;
            }
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
        users::check_mounts(&config.mounts, &pod.record)?;
        check::check_log_path(&pod.record.config.log_directory, &config.log_path)?;
        if !config.cdi_devices.is_empty() {
            return Err(Error::invalid("CDI_devices", "CDI is not built yet; name devices instead"));
        }
        let security = spec::process::security(config);
        check::check_security(&security, &pod.record)?;
        self.check_target(pod, &security)?;
        self.cgroups.check(&pod.record.cgroup, &spec::resources::build(&limits(config), Vec::new())?)?;
        Ok(image)
    }

    /// A container whose processes are joined is one of the same pod.
    fn check_target(&self, pod: &Pod, security: &cri::LinuxContainerSecurityContext) -> Result<()> {
        for join in spec::joins(&security.namespace_options.clone().unwrap_or_default())? {
            let NamespaceOf::Container(target) = join.of else { continue };
            let field = "linux.security_context.namespace_options.target_id";
            match self.store.container(&target) {
                Some(found) if found.record.pod == pod.record.id => {}
                Some(_) => return Err(Error::invalid(field, format!("{target} is in another pod"))),
                None => return Err(Error::not_found("container", target.as_str())),
            }
        }
        Ok(())
    }

    /// The images that the container's mounts name.
    fn image_volumes(&self, config: &cri::ContainerConfig) -> Result<Vec<volumes::Wanted>> {
        let mut found = Vec::new();
        for (index, mount) in config.mounts.iter().enumerate() {
            let Some(name) = spec::mounts::image(mount) else { continue };
            let image = self.images.find(name).ok_or_else(|| Error::not_found("image", name))?;
            found.push(volumes::Wanted { index, image, sub_path: mount.image_sub_path.clone() });
        }
        Ok(found)
    }

    async fn make_container(self: Arc<Self>, order: Order) -> Result<()> {
        let id = order.id.clone();
        let begun = std::time::Instant::now();
        // Nothing but the name is there yet: an error here undoes that alone.
        let record =
            self.container_record(&order, &User::default()).inspect_err(|_| self.forget_container(&id))?;
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
                        self.undone.half_made_container(&id, &rest);
                    }
                }
                Err(error)
            }
        }
    }

    async fn assemble_container(self: &Arc<Self>, order: Order) -> Result<()> {
        let runtime = Arc::clone(self);
        let id = order.id.clone();
        let users = self.users_of(&order.pod).await?.map(Arc::new);
        let found = self.look_up(&order, users.clone()).await?;
        let record = blocking("container", move || runtime.lay_out(&order, found, users.as_deref())).await?;
        self.store.change_container(&id, |container| container.record = Arc::new(record));
        match self.store.container_event(&id, ContainerEvent::CreateDone) {
            Some(result) => {
                result.map(drop).map_err(|error| Error::Precondition(format!("container {id}: {error}")))
            }
            None => Err(Error::not_found("container", id.as_str())),
        }
    }

    /// Success when the paths of the host that a container needs all answer.
    pub(super) async fn reach_paths(&self, config: &cri::ContainerConfig, log: Option<&Path>) -> Result<()> {
        let sources = config.mounts.iter().filter(|mount| spec::mounts::image(mount).is_none());
        let sources = sources.map(|mount| (mount.host_path.clone().into(), Purpose::Source));
        let devices = config.devices.iter().map(|device| (device.host_path.clone().into(), Purpose::Content));
        let profile = confinement::localhost_seccomp(&spec::process::security(config));
        let profile = profile.map(|path| (path.into(), Purpose::Content));
        let log = log.and_then(Path::parent).map(|path| (path.to_owned(), Purpose::Directory));
        let paths: Vec<(PathBuf, Purpose)> = sources.chain(devices).chain(profile).chain(log).collect();
        let reached = paths.iter().filter(|(path, _)| path.is_absolute());
        let reached = reached.map(|(path, purpose)| self.reach.answers(path, *purpose));
        futures::future::try_join_all(reached).await.map(drop)
    }

    /// What the request names on the host.
    async fn look_up(
        self: &Arc<Self>,
        order: &Order,
        users: Option<Arc<podhold_image::IdMap>>,
    ) -> Result<Found> {
        let (runtime, config, log) =
            (Arc::clone(self), order.config.clone(), log_path(&order.pod.record.config, &order.config));
        self.reach_paths(&config, log.as_deref()).await?;
        let apparmor = confinement::apparmor(&spec::process::security(&config), &self.own_profile).await?;
        let look_up = move || {
            let mounts = prepare::mounts(&config.mounts)?;
            users.map_or(Ok(()), |users| users::check_sources(&mounts, &users))?;
            let security = spec::process::security(&config);
            let capabilities = Granted::of(&security, &runtime.bounding)?;
            let devices = devices::asked(&config.devices)?;
            let seccomp = confinement::seccomp(&security, &capabilities)?;
            log.as_deref().and_then(Path::parent).map_or(Ok(()), prepare::public_dir)?;
            Ok(Found { mounts, devices, seccomp, apparmor, capabilities })
        };
        let looked_up = timeout(LOOK_UP, blocking("paths of the host", look_up)).await;
        looked_up.unwrap_or_else(|_| {
            Err(Error::Deadline(format!(
                "one of {:?} (mounts, devices, seccomp profile, log) has not answered for {} s; its file \
                 system hangs",
                host_paths(order),
                LOOK_UP.as_secs()
            )))
        })
    }

    /// Root filesystem, specification, bundle and record of a container. Blocks.
    fn lay_out(
        &self,
        order: &Order,
        mut found: Found,
        users: Option<&podhold_image::IdMap>,
    ) -> Result<ContainerRecord> {
        let pod = &order.pod.record;
        let rootfs = self.layout.rootfs(&pod.id, &order.id);
        prepare::private_dir(&rootfs)?;
        self.images
            .snapshots()
            .mount(order.id.as_str(), &order.image, &rootfs, users)
            .map_err(|error| Error::snapshot("container root", error))?;
        let security = spec::process::security(&order.config);
        let image_user = order.image.config.config().as_ref().and_then(|config| config.user().clone());
        prepare::check_system_directories(&rootfs)?;
        let accounts = prepare::accounts(&rootfs)?;
        let user = spec::user::resolve(&security, image_user.as_deref().unwrap_or(""), &accounts)?;
        users::check_user(&user, pod)?;
        let record = self.container_record(order, &user)?;
        let image_dir = order.image.config.config().as_ref().and_then(|config| config.working_dir().clone());
        let directory = Some(&order.config.working_dir).filter(|dir| !dir.is_empty()).or(image_dir.as_ref());
        prepare::make_working_dir(&rootfs, directory.map_or("/", String::as_str), pod.user_root())?;
        self.mount_volumes(order, &mut found.mounts, users)?;
        let spec = self.specification(order, &record, &user, found)?;
        bundle::create(&self.layout, &pod.id, &order.id, &spec).map_err(|error| match error {
            BundleError::Seccomp { reason, .. } => confinement::unusable(&security, reason),
            other => Error::failed("container bundle", &other),
        })?;
        let path = self.layout.container_record(&pod.id, &order.id);
        prepare::private_dir(path.parent().expect("a record has a directory"))?;
        record::write(&path, &record).map_err(Error::doing("container record"))?;
        let status =
            ContainerStatusRecord { resources: limits(&order.config), started_at: None, ended: None };
        record::write(&self.layout.container_status(&pod.id, &order.id), &status)
            .map_err(Error::doing("container record"))?;
        Ok(record)
    }

    /// Mounts the image volumes, and says in `mounts` where they are.
    fn mount_volumes(
        &self,
        order: &Order,
        mounts: &mut [HostMount],
        users: Option<&podhold_image::IdMap>,
    ) -> Result<()> {
        let snapshots = self.images.snapshots();
        let (pod, container) = (&order.pod.record.id, &order.id);
        let place = volumes::Place { layout: &self.layout, snapshots: snapshots.as_ref(), pod, container };
        for wanted in &order.volumes {
            mounts[wanted.index].source = place.mount(wanted, users)?;
        }
        Ok(())
    }

    fn container_record(&self, order: &Order, user: &User) -> Result<ContainerRecord> {
        let pod = &order.pod.record;
        let image_stop = order.image.config.config().as_ref().and_then(|config| config.stop_signal().clone());
        Ok(ContainerRecord {
            id: order.id.clone(),
            pod: pod.id.clone(),
            image_id: order.image.id.clone(),
            image_ref: order.image.digests.first().unwrap_or(&order.image.id).clone(),
            created_at: SystemTime::now(),
            log_path: log_path(&order.pod.record.config, &order.config),
            cgroup: pod.cgroup.child(order.id.as_str()),
            user: cri::LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: user.groups.iter().map(|group| (*group).into()).collect(),
            },
            stop_signal: spec::signal::stop_signal(&order.config, image_stop.as_deref())?,
            volumes: volume_images(order),
            config: order.config.clone(),
        })
    }

    /// Takes out limits of huge pages where libcontainer finds no controller for them. The kubelet sends
    /// them to every machine that has huge pages, and peers take no notice either.
    pub(super) fn without_foreign_limits(&self, limits: &mut LinuxResources) {
        if self.cgroups.version() == Version::V1 && !self.cgroups.hugepages_on_version_1() {
            limits.set_hugepage_limits(None);
        }
    }

    fn specification(
        &self,
        order: &Order,
        record: &ContainerRecord,
        user: &User,
        found: Found,
    ) -> Result<Spec> {
        let security = spec::process::security(&order.config);
        let Found { mounts, mut devices, seccomp, apparmor, capabilities } = found;
        if security.privileged {
            let mut all = devices::all()?;
            all.retain(|device| devices.iter().all(|asked| asked.target != device.target));
            devices.extend(all);
        }
        let mut spec = spec::build(Inputs {
            config: &order.config,
            image: &order.image.config,
            user,
            descriptors: descriptors::started_with(),
            seccomp,
            apparmor,
            capabilities: &capabilities,
            mounts: &mounts,
            files: &files::of(&self.layout, &order.pod.record),
            users: order.pod.record.user_map().as_ref(),
            devices: &devices,
            cgroup: &record.cgroup,
            cgroup_version: self.cgroups.version(),
            cgroup_directories: &self.cgroups.version_1_directories(&record.cgroup),
        })?;
        if let Some(limits) = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut()) {
            self.without_foreign_limits(limits);
        }
        Ok(spec)
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
        volumes: volume_images(order),
    };
    Container::new(record, ContainerPhase::Creating, limits(&order.config))
}

/// The ids of the images that are mounted, by the index of their mount.
fn volume_images(order: &Order) -> BTreeMap<usize, String> {
    order.volumes.iter().map(|wanted| (wanted.index, wanted.image.id.clone())).collect()
}

/// The paths of the host that a request names.
fn host_paths(order: &Order) -> Vec<String> {
    let mounts = order.config.mounts.iter().map(|mount| mount.host_path.clone());
    let devices = order.config.devices.iter().map(|device| device.host_path.clone());
    let profile = confinement::localhost_seccomp(&spec::process::security(&order.config));
    let log = log_path(&order.pod.record.config, &order.config).map(|path| path.display().to_string());
    mounts.chain(devices).chain(profile).chain(log).filter(|path| !path.is_empty()).collect()
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
