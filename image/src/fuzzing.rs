//! What the fuzz targets (`fuzz/`) reach of this crate. Not there in an ordinary build.

use std::os::fd::OwnedFd;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    Credentials, Digest, Limits, Platform, Reference, archive, credentials, hosts, manifest,
    registry::{
        Document,
        challenge::{self, Bearer, Challenge},
    },
    unpack::{Arriving, Expected, KeepNothing, Piece, Want, unpack},
};

/// Unpacks `blob`, whose decompressed archive is `archive`, into the empty directory `root`; answers
/// whether it was taken as a layer. Needs root.
pub fn unpack_layer(blob: &[u8], archive: &[u8], root: OwnedFd) -> bool {
    let limits = Limits { entries: 1000, bytes: 1 << 20, expansion: 100 };
    let (digest, diff_id) = (Digest::of(blob), Digest::of(archive));
    let expected = Expected { digest, size: blob.len() as u64, diff_id, limits };
    let (sender, pieces) = mpsc::channel(2);
    let sent = sender.try_send(Piece::Data(Bytes::copy_from_slice(blob)));
    let ended = sender.try_send(Piece::End);
    let want = Want::default();
    let arriving = Arriving { pieces, kept: &mut KeepNothing };
    sent.is_ok() && ended.is_ok() && unpack(arriving, root, &expected, &want.watched()).is_ok()
}

/// A store in which archives are taken apart.
pub struct Archives(crate::store::Store);

impl Archives {
    /// Makes a store in `dir`. Needs root.
    pub fn open(dir: &std::path::Path) -> Self {
        Self(crate::store::Store::open(dir, &[]).expect("a new store").0)
    }

    /// The images of an archive: ids and names; `None` when it is refused. Checks that a refusal is fit for a message.
    pub fn look(&self, archive: Vec<u8>) -> Option<Vec<(String, Vec<String>)>> {
        let limits = Limits { entries: 1000, bytes: 1 << 20, expansion: 100 };
        let staging = self.0.stage().expect("there is room");
        match archive::look(archive, staging, &limits, &Platform::default()) {
            Ok(images) => {
                let names = |names: Vec<Reference>| names.iter().map(ToString::to_string).collect();
                Some(images.into_iter().map(|(id, all)| (id, names(all))).collect())
            }
            Err(error) => {
                assert!(error.to_string().len() < 100_000, "a message without end");
                None
            }
        }
    }
}

/// What a manifest or index leads to: digests and sizes; `None` when it is refused. Checks that a refusal is
/// fit for a message.
pub fn manifest(body: &[u8], media_type: Option<&str>) -> Option<Vec<(String, u64)>> {
    let reference = Reference::parse("registry.test/app:1").expect("a plain reference");
    let document =
        Document { digest: Digest::of(body), media_type: media_type.map(str::to_owned), body: body.to_vec() };
    let blobs = match manifest::read(&reference, &document, &Platform::default()) {
        Ok(manifest::Manifest::Index(blobs, names)) => {
            assert!(names.iter().all(|name| !name.chars().any(char::is_control)), "{names:?}");
            blobs
        }
        Ok(manifest::Manifest::Image(layout)) => {
            let mut blobs = layout.layers;
            blobs.push(layout.config);
            blobs
        }
        Err(error) => {
            assert!(error.to_string().len() < 10_000, "a message without end");
            return None;
        }
    };
    Some(blobs.into_iter().map(|blob| (blob.digest.to_string(), blob.size)).collect())
}

/// How many diff ids and chain ids an image configuration has; `None` when it is refused.
pub fn image_config(raw: &[u8]) -> Option<(usize, usize)> {
    let configuration = manifest::configuration(raw).ok()?;
    let reread = serde_json::to_vec(&configuration.parsed).expect("what was read can be written");
    let reread = manifest::configuration(&reread).ok();
    assert_eq!(reread.map(|again| again.chain), Some(configuration.chain.clone()));
    Some((configuration.diff_ids.len(), configuration.chain.len()))
}

/// The hosts of a `hosts.toml`: their URLs, and whether the caller's credentials go there.
pub fn hosts_toml(text: &str, registry: &str, own: bool) -> Result<Vec<(String, bool)>, String> {
    // No file is there, whatever it names.
    let hosts = hosts::parse(text, registry, std::path::Path::new("/proc/fuzz/none"), own)?;
    Ok(hosts.iter().map(|h| (format!("{}://{}{}", h.scheme, h.authority, h.path), h.upstream)).collect())
}

/// What a credentials file says for an image: the helper with the server it is asked about, and whether there
/// are credentials in the file itself.
#[allow(clippy::type_complexity, reason = "for one test")]
pub fn docker_config(
    json: &[u8],
    registry: &str,
    repository: &str,
) -> Result<(Option<(String, String)>, Result<Option<Credentials>, String>), String> {
    let file = credentials::ConfigFile::read(json)?;
    Ok((file.helper(registry, repository), file.entry(registry, repository)))
}

/// The credentials in a helper's answer.
pub fn helper_answer(json: &[u8]) -> Option<Credentials> {
    credentials::read_answer(json).flatten()
}

/// Realm, service and scope of the bearer challenge to answer; `Some(None)` for a basic one.
#[allow(clippy::type_complexity, reason = "for one test")]
pub fn challenge(headers: &[String]) -> Option<Option<(String, Option<String>, Option<String>)>> {
    Challenge::choose(headers).map(|challenge| match challenge {
        Challenge::Bearer(Bearer { realm, service, scope }) => Some((realm, service, scope)),
        Challenge::Basic => None,
    })
}

/// The token in a token service's answer.
pub fn token(json: &[u8]) -> Option<String> {
    challenge::read_token(json)
}
