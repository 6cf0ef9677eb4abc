//! PullImage, RemoveImage, and which images are in use.

use std::sync::Arc;

use podhold_image::{Credentials, Forms, Image, Progress, Reference, is_server_of};
use podhold_proto::cri;
use tokio::sync::watch;
use tracing::{debug, info};

use super::Runtime;
use crate::{
    descriptors,
    error::{Error, Result, chain},
    exhausted,
};

impl Runtime {
    /// Pulls an image. The pull ends when the returned future is dropped and nobody else waits for it.
    pub async fn pull_image(
        &self,
        name: &str,
        credentials: Option<Credentials>,
        progress: Option<watch::Sender<Progress>>,
    ) -> Result<Arc<Image>> {
        if name.is_empty() {
            return Err(Error::invalid("image.image", "is empty; name an image"));
        }
        let reference =
            Reference::parse(name).map_err(|error| Error::invalid("image.image", error.to_string()))?;
        descriptors::has_room().map_err(Error::doing("pull"))?;
        let begun = std::time::Instant::now();
        let pulled = self.images.pull(&reference, credentials, progress).await;
        let image = pulled.map_err(|error| {
            let disk = exhausted::is_disk(&chain(&error));
            let into = self.images.snapshots().root().display().to_string();
            Error::image(if disk { format!("pull into {into}") } else { "pull".to_owned() }, &error)
        })?;
        info!(image = %reference, id = %image.id, ms = begun.elapsed().as_millis(), "image pulled");
        Ok(image)
    }

    /// Removes an image with all its names. Success when it is not known.
    pub async fn remove_image(&self, name: &str) -> Result<()> {
        if name.is_empty() {
            return Err(Error::invalid("image.image", "is empty; name an image"));
        }
        self.images.remove(name).await.map_err(|error| Error::image("remove", &error))
    }
}

/// Credentials of a pull request, in the order in which the CRI prefers them. Those for another server than
/// the image's are not used at all.
pub fn credentials(auth: &cri::AuthConfig, image: &str) -> Result<Option<Credentials>> {
    let server = auth.server_address.as_str();
    let is_meant = Reference::parse(image).is_ok_and(|image| is_server_of(server, image.registry()));
    if !server.is_empty() && !is_meant {
        debug!(image, server, "credentials of the request are for another server: not used");
        return Ok(None);
    }
    let forms = Forms {
        username: &auth.username,
        password: &auth.password,
        auth: &auth.auth,
        identity_token: &auth.identity_token,
        registry_token: &auth.registry_token,
    };
    Credentials::from_forms(forms).map_err(|reason| Error::invalid("auth.auth", reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_auth_is_refused_without_being_told() {
        let auth = |text: &str| cri::AuthConfig { auth: text.into(), ..Default::default() };
        assert!(matches!(
            credentials(&auth("dXNlcjpzZWNyZXQ="), "app").unwrap(),
            Some(Credentials::Basic { username, password }) if username == "user" && password == "secret"
        ));
        let message = credentials(&auth("c2VjcmV0"), "app").unwrap_err().to_string();
        assert!(!message.contains("c2VjcmV0") && message.starts_with("auth.auth: "), "{message}");
        assert!(credentials(&auth(""), "app").unwrap().is_none());
    }
    #[test]
    fn credentials_for_another_server_are_not_used() {
        let used = |server: &str, image: &str| {
            let auth = cri::AuthConfig {
                username: "u".into(),
                password: "p".into(),
                server_address: server.into(),
                ..Default::default()
            };
            credentials(&auth, image).unwrap().is_some()
        };
        assert!(used("", "quay.io/a:1") && used("https://quay.io", "quay.io/a:1"));
        assert!(used("https://index.docker.io/v1/", "busybox") && used("localhost:5000", "localhost:5000/a"));
        assert!(!used("https://gcr.io", "quay.io/a:1") && !used("quay.io", "busybox"));
        assert!(!used("quay.io", "quay.io.evil.test/a") && !used("quay.io", "not an image"));
    }
}
