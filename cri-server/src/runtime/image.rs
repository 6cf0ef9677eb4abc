//! PullImage, RemoveImage, and which images are in use.

use std::sync::Arc;

use podhold_image::{Credentials, Image, Progress, Reference};
use podhold_proto::cri;
use tokio::sync::watch;
use tracing::info;

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

/// Credentials of a pull request, in the order in which the CRI prefers them.
pub fn credentials(auth: &cri::AuthConfig) -> Result<Option<Credentials>> {
    if !auth.registry_token.is_empty() {
        return Ok(Some(Credentials::RegistryToken(auth.registry_token.clone())));
    }
    if !auth.identity_token.is_empty() {
        return Ok(Some(Credentials::IdentityToken(auth.identity_token.clone())));
    }
    if !auth.username.is_empty() {
        return Ok(Some(Credentials::Basic {
            username: auth.username.clone(),
            password: auth.password.clone(),
        }));
    }
    if !auth.auth.is_empty() {
        return decode(&auth.auth).map(Some);
    }
    Ok(None)
}

/// `user:password` in base64, as in a Docker configuration file.
fn decode(auth: &str) -> Result<Credentials> {
    use base64::Engine as _;
    let refuse = || Error::invalid("auth.auth", "is not base64 of user:password");
    let bytes = base64::engine::general_purpose::STANDARD.decode(auth.trim()).map_err(|_| refuse())?;
    let text = String::from_utf8(bytes).map_err(|_| refuse())?;
    let (username, password) = text.split_once(':').ok_or_else(refuse)?;
    Ok(Credentials::Basic {
        username: username.to_owned(),
        password: password.trim_end_matches('\0').to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_auth_is_refused_without_being_told() {
        let auth = |text: &str| cri::AuthConfig { auth: text.into(), ..Default::default() };
        assert!(matches!(
            credentials(&auth("dXNlcjpzZWNyZXQ=")).unwrap(),
            Some(Credentials::Basic { username, password }) if username == "user" && password == "secret"
        ));
        let message = credentials(&auth("c2VjcmV0")).unwrap_err().to_string();
        assert!(!message.contains("c2VjcmV0") && message.starts_with("auth.auth: "), "{message}");
        assert!(credentials(&auth("")).unwrap().is_none());
    }
}
