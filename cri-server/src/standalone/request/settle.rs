//! The last step of a container's request: what is known only once the pod runs. Blocks.

use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use podhold_proto::cri;

use super::{ContainerRequest, PodFacts, Requests, SubPath};
use crate::{
    error::{Error, Result},
    standalone::volume,
};

impl Requests {
    /// What is known of the pod now that it runs; its hosts file is written. `addresses` are the pod's own.
    pub(in crate::standalone) fn learn(&self, addresses: &[IpAddr]) -> Result<PodFacts> {
        let addresses = if self.host_network { &self.place.host.addresses } else { addresses };
        let facts = PodFacts { addresses: addresses.iter().map(ToString::to_string).collect() };
        let path = self.place.hosts_file();
        write(&path, &self.hosts.text(&facts), 0o644)
            .map_err(Error::doing(format!("writing {}", path.display())))?;
        Ok(facts)
    }

    /// The parts of volumes that a container sees, each with its field in the manifest.
    pub(in crate::standalone) fn parts(
        &self,
        request: &ContainerRequest,
        facts: &PodFacts,
    ) -> Vec<(String, PathBuf)> {
        let part = |sub: &SubPath| (sub.field.clone(), sub.root.join(facts.fill(&sub.path)));
        request.sub_paths.iter().map(part).collect()
    }

    /// The configuration to create a container with, each time it is created. `image_user` is the `USER` of its
    /// image.
    pub(in crate::standalone) fn settled(
        &self,
        request: &ContainerRequest,
        facts: &PodFacts,
        image_user: &str,
    ) -> Result<cri::ContainerConfig> {
        let mut config = request.config.clone();
        facts.fill_all(&mut config);
        set_user(&mut config, request, image_user)?;
        let name = config.metadata.clone().unwrap_or_default().name;
        for sub in &request.sub_paths {
            let at = self.place.dir.join("parts").join(&name).join(sub.mount.to_string());
            let path = facts.fill(&sub.path);
            let mount = config.mounts.get(sub.mount);
            let part = volume::Sub {
                root: &sub.root,
                path: &path,
                make: sub.make,
                propagation: mount.map(cri::Mount::propagation).unwrap_or_default(),
                at: at.clone(),
                field: &sub.field,
            };
            volume::settle(&part)?;
            if let Some(mount) = config.mounts.get_mut(sub.mount) {
                mount.host_path = at.display().to_string();
            }
        }
        let words = &request.termination_message;
        // Whoever the container runs as leaves its last words there.
        write(words, "", 0o666).map_err(Error::doing(format!("making {}", words.display())))?;
        Ok(config)
    }
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    io::Write::write_all(&mut file, text.as_bytes())
}

/// Decides what the manifest leaves to the image: a container that must not be root is not, and a group has a
/// user beside it.
fn set_user(config: &mut cri::ContainerConfig, request: &ContainerRequest, image_user: &str) -> Result<()> {
    let image = config.image.clone().unwrap_or_default().image;
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    if security.run_as_user.is_some() {
        return Ok(());
    }
    let user = image_user.split(':').next().unwrap_or_default();
    let number = if user.is_empty() { Some(0) } else { user.parse::<i64>().ok() };
    if request.non_root && number.is_none_or(|number| number == 0) {
        let who = match number {
            Some(_) => "runs as root".to_owned(),
            None => format!("runs as {user:?}, of whom it cannot be told before"),
        };
        return Err(Error::Precondition(format!(
            "{}.securityContext.runAsNonRoot: is true, and image {image} {who}; set runAsUser as well",
            request.field
        )));
    }
    if security.run_as_group.is_some() {
        match number {
            Some(value) => security.run_as_user = Some(cri::Int64Value { value }),
            None => security.run_as_username = user.to_owned(),
        }
    }
    Ok(())
}
