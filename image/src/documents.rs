//! Fetches the documents that describe an image: index, manifest, configuration.
//!
//! An index may hold further indexes (OCI image specification, "Image Index"); they are followed to a small
//! depth, in the order of what fits this machine best.
//!
//! Invariant: a document that another one names has the digest and the size that are given there.

use std::sync::Arc;

use crate::{
    Inner,
    error::{ErrorKind, ImageError},
    manifest::{self, Blob, Configuration, Layout, Manifest},
    platform::Platform,
    registry::{self, Document, Session},
};

/// Indexes that may stand above a manifest.
const MAX_DEPTH: usize = 4;
/// Documents that are fetched in search of the manifest.
const MAX_FETCHED: usize = 32;

/// The manifest of this platform's image.
pub(crate) async fn image_manifest(
    session: &Session,
    platform: &Platform,
    top: Document,
) -> Result<(Document, Layout), ImageError> {
    let unusable =
        |reason: String| ImageError::image(&session.reference, ErrorKind::FailedPrecondition, reason);
    // What is still to be looked at, with the number of indexes above it; the best last.
    let mut open: Vec<(Blob, usize)> = Vec::new();
    let mut made_for: Vec<String> = Vec::new();
    let (mut document, mut above) = (top, 0);
    for _ in 0..MAX_FETCHED {
        match manifest::read(&session.reference, &document, platform)? {
            Manifest::Image(layout) => return Ok((document, layout)),
            Manifest::Index(candidates, names) => {
                if above == MAX_DEPTH {
                    return Err(unusable(format!(
                        "index {}: there are more than {MAX_DEPTH} indexes within each other",
                        document.digest
                    )));
                }
                open.extend(candidates.into_iter().rev().map(|blob| (blob, above + 1)));
                made_for.extend(names);
            }
        }
        let Some((next, depth)) = open.pop() else {
            made_for.sort();
            made_for.dedup();
            made_for.truncate(30);
            return Err(unusable(format!(
                "there is no image for {platform}; it is made for: {}",
                made_for.join(", ")
            )));
        };
        document = session.manifest_by_digest(&next.digest).await?;
        sized(session, "manifest", &next, document.body.len())?;
        above = depth;
    }
    Err(unusable(format!("its index leads to more than {MAX_FETCHED} manifests and indexes")))
}

/// The image's configuration; asked for only when it is not here.
pub(crate) async fn configuration(
    session: &Session,
    inner: &Arc<Inner>,
    layout: &Layout,
) -> Result<(String, Configuration), ImageError> {
    let digest = &layout.config.digest;
    let corrupt = |reason: String| {
        let reason = format!("{digest}: {reason}");
        ImageError::image(&session.reference, ErrorKind::DataLoss, reason)
    };
    let (reader, id) = (Arc::clone(inner), digest.clone());
    let here = tokio::task::spawn_blocking(move || reader.store.config(&id)).await;
    let raw = match here.unwrap_or_default() {
        Some(raw) => raw,
        None => {
            let bytes = session.small_blob(digest, registry::MAX_CONFIG).await?;
            String::from_utf8(bytes)
                .map_err(|_| corrupt("the image configuration is not UTF-8 text".to_owned()))?
        }
    };
    sized(session, "image configuration", &layout.config, raw.len())?;
    let configuration = manifest::configuration(raw.as_bytes()).map_err(corrupt)?;
    Ok((raw, configuration))
}

/// Checks the size that a document promises for another.
fn sized(session: &Session, what: &str, promised: &Blob, length: usize) -> Result<(), ImageError> {
    if promised.size == length as u64 {
        return Ok(());
    }
    let Blob { digest, size } = promised;
    let reason = format!(
        "{what} {digest}: it has {length} bytes, and {size} are promised; push the image again with a tool that tells the truth"
    );
    Err(ImageError::image(&session.reference, ErrorKind::DataLoss, reason))
}
