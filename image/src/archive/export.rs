//! Exports: an OCI image layout as an archive, with a `manifest.json` for `docker load`.
//!
//! Layers are unpacked when they arrive and their blobs are not kept, and what gzip makes of the same content
//! is not always the same. So an export takes each blob from where it is kept (images that were imported), or
//! fetches it from its registry again, by digest, straight into the archive.
//!
//! Invariant: every blob of a finished archive has its digest. What cannot be had ends the export with an
//! error, and the archive has no end.

use std::{collections::HashSet, io::Read, sync::Arc};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{
    mpsc::{self, Sender},
    watch,
};

use super::writer::{Unwanted, Writer, annotations};
use crate::{
    Inner,
    digest::{Digest, Hasher},
    error::{ErrorKind, ImageError},
    manifest::{self, Blob, Layout, Manifest},
    pull::{LayerStage, Progress, Teller},
    reference::Reference,
    registry::{Document, MAX_MANIFEST, Session, Wish},
    store::Contents,
    unpack::Piece,
};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Bytes of a kept blob read at once.
const PIECE: usize = 256 << 10;
/// Pieces on their way from a registry.
const PIECES: usize = 4;

/// An image, with everything at hand but its layers.
struct Ready {
    name: String,
    contents: Contents,
    /// The configuration, byte for byte.
    config: String,
    /// Index and manifest.
    documents: Vec<Document>,
    layout: Layout,
    session: Option<Session>,
}

/// See [`crate::Images::export`].
pub(crate) async fn export(
    inner: &Arc<Inner>,
    names: &[String],
    out: Sender<Bytes>,
    progress: Option<watch::Sender<Progress>>,
) -> Result<(), ImageError> {
    let mut images = Vec::new();
    for name in names {
        let contents = inner.store.contents(name).ok_or_else(|| {
            ImageError::image(name, ErrorKind::NotFound, "the image is not here; podhold image ls lists them")
        })?;
        images.push(prepare(inner, name, contents).await?);
    }
    let writer = Writer::new(out);
    let written = write(inner, &images, writer, progress).await;
    written.unwrap_or_else(|Unwanted| Err(ImageError::Cancelled(names.join(", "))))
}

/// Finds the documents of an image, and where its layers can be had.
async fn prepare(inner: &Arc<Inner>, name: &str, contents: Contents) -> Result<Ready, ImageError> {
    let mut source = Source { inner, name, image: &contents, session: None, asked: false };
    let top = source.document(&contents.target).await?;
    let mut documents = vec![top];
    let layout = match manifest::read(&name, &documents[0], &inner.platform)? {
        Manifest::Image(layout) => layout,
        Manifest::Index(candidates, _) => {
            let digest = candidates.into_iter().next().map(|blob| blob.digest).ok_or_else(|| {
                ImageError::image(&name, ErrorKind::DataLoss, "its index has no image for this machine")
            })?;
            documents.push(source.document(&digest).await?);
            match manifest::read(&name, &documents[1], &inner.platform)? {
                Manifest::Image(layout) => layout,
                Manifest::Index(..) => {
                    return Err(ImageError::image(
                        &name,
                        ErrorKind::FailedPrecondition,
                        "it came from an index within an index, which is not exported; copy it by skopeo",
                    ));
                }
            }
        }
    };
    if layout.config.digest != contents.id {
        let reason = format!("{} is the manifest of another image", documents[documents.len() - 1].digest);
        return Err(ImageError::image(&name, ErrorKind::DataLoss, reason));
    }
    if layout.layers.iter().any(|layer| inner.store.blobs.get(&layer.digest).is_none()) {
        source.registry().await?;
    }
    let session = source.session.take();
    let (reader, id) = (Arc::clone(inner), contents.id.clone());
    let config = tokio::task::spawn_blocking(move || reader.store.config(&id)).await.unwrap_or_default();
    let config = config.ok_or_else(|| {
        let reason =
            "it was removed meanwhile, or its record is damaged; remove it and pull or import it again";
        ImageError::image(&name, ErrorKind::Unavailable, reason)
    })?;
    Ok(Ready { name: name.to_owned(), contents, config, documents, layout, session })
}

/// Where the blobs of an image can be had.
struct Source<'a> {
    inner: &'a Arc<Inner>,
    name: &'a str,
    image: &'a Contents,
    session: Option<Session>,
    asked: bool,
}

impl Source<'_> {
    async fn document(&mut self, digest: &Digest) -> Result<Document, ImageError> {
        if let Some((file, size)) = self.inner.store.blobs.get(digest) {
            let mut body = Vec::new();
            let read = file.take(MAX_MANIFEST).read_to_end(&mut body);
            read.map_err(ImageError::io(format!("read the kept blob {digest}")))?;
            return match body.len() as u64 == size && digest.matches(&body) {
                true => Ok(Document { digest: digest.clone(), media_type: None, body }),
                false => Err(damaged(self.name, digest)),
            };
        }
        self.registry().await?.manifest_by_digest(digest).await
    }

    /// The registry that has the image: the first of those it is named by that gives its manifest.
    async fn registry(&mut self) -> Result<&Session, ImageError> {
        let mut reason = "it is named by no registry".to_owned();
        if self.session.is_none() && !self.asked {
            self.asked = true;
            for name in &self.image.image.digests {
                let Ok(reference) = Reference::parse(name) else { continue };
                if reference.digest() != Some(&self.image.target) {
                    continue;
                }
                let session = self.inner.registry.session(&reference, None).await?;
                match session.manifest_by_digest(&self.image.target).await {
                    Ok(_) => {
                        self.session = Some(session);
                        break;
                    }
                    Err(error) => reason = error.to_string(),
                }
            }
        }
        self.session.as_ref().ok_or_else(|| {
            let reason = format!(
                "its compressed layers are not kept on this machine, and no registry gives them again: {reason}; \
                 export it where the registry can be reached, or import it from an archive, which keeps them"
            );
            ImageError::image(&self.name, ErrorKind::FailedPrecondition, reason)
        })
    }
}

fn damaged(name: &str, digest: &Digest) -> ImageError {
    let reason = format!("the kept blob {digest} is damaged; remove the image and import it again");
    ImageError::image(&name, ErrorKind::DataLoss, reason)
}

/// The outer result: whether somebody still takes the archive.
type Written = Result<Result<(), ImageError>, Unwanted>;

async fn write(
    inner: &Arc<Inner>,
    images: &[Ready],
    writer: Writer,
    progress: Option<watch::Sender<Progress>>,
) -> Written {
    let mut seen = HashSet::new();
    let layers = images.iter().flat_map(|image| &image.layout.layers);
    let layers = layers.filter(|layer| seen.insert(&layer.digest)).map(|l| (l.digest.clone(), l.size));
    let (teller, mut number) = (Teller::begin(progress, layers), 0);
    writer.entry("oci-layout", LAYOUT).await?;
    let mut written = HashSet::new();
    for image in images {
        for document in &image.documents {
            if written.insert(document.digest.clone()) {
                writer.entry(&path(&document.digest), &document.body).await?;
            }
        }
        if written.insert(image.contents.id.clone()) {
            writer.entry(&path(&image.contents.id), image.config.as_bytes()).await?;
        }
        for layer in &image.layout.layers {
            if written.insert(layer.digest.clone()) {
                writer.begin(&path(&layer.digest), layer.size).await?;
                let moved = |bytes| teller.layer(number, LayerStage::Writing, bytes);
                if let Err(error) = self::layer(inner, (image, layer), &writer, &moved).await? {
                    return Ok(Err(error));
                }
                writer.end(layer.size).await?;
                teller.layer(number, LayerStage::Done, layer.size);
                number += 1;
            }
        }
    }
    writer.entry("index.json", index(images).to_string().as_bytes()).await?;
    writer.entry("manifest.json", for_docker(images).to_string().as_bytes()).await?;
    writer.finish().await?;
    Ok(Ok(()))
}

fn path(digest: &Digest) -> String {
    format!("blobs/{}", digest.as_str().replacen(':', "/", 1))
}

/// The bytes of a layer, verified at its end.
async fn layer(
    inner: &Arc<Inner>,
    (image, layer): (&Ready, &Blob),
    writer: &Writer,
    moved: &(dyn Fn(u64) + Sync),
) -> Written {
    let (pieces, mut arriving) = mpsc::channel::<Piece>(PIECES);
    let kept = inner.store.blobs.get(&layer.digest);
    let name = &image.name;
    let from_registry = kept.is_none();
    let supply = async {
        match (kept, &image.session) {
            (Some((file, _)), _) => {
                let read = tokio::task::spawn_blocking(move || read(file, &pieces)).await;
                read.map_err(|_| ImageError::Cancelled(name.clone()))?
                    .map_err(ImageError::io(format!("read the kept blob {}", layer.digest)))
            }
            (None, Some(session)) => {
                let sources = session.sources();
                let wish = Wish {
                    digest: &layer.digest,
                    size: layer.size,
                    from: 0,
                    sources: &sources,
                    patient: true,
                };
                let supplied = session.download(&wish, &pieces, &|_| {}).await;
                drop(pieces);
                supplied.map(drop)
            }
            (None, None) => {
                drop(pieces);
                Err(ImageError::image(name, ErrorKind::Unavailable, "it was removed while it was exported"))
            }
        }
    };
    // Owns its end of the channel, so that who supplies goes no further when it ends early.
    let take = async move {
        let (mut hasher, mut done) = (Hasher::like(&layer.digest), 0);
        while let Some(Piece::Data(data)) = arriving.recv().await {
            done += data.len() as u64;
            if done > layer.size {
                return Ok(None);
            }
            hasher.update(&data);
            writer.send(data).await?;
            moved(done);
        }
        Ok((done == layer.size).then(|| hasher.finish()))
    };
    let (supplied, taken) = tokio::join!(supply, take);
    let taken = taken?;
    if let Err(error) = supplied {
        return Ok(Err(error));
    }
    if taken.as_ref() == Some(&layer.digest) {
        return Ok(Ok(()));
    }
    if !from_registry {
        return Ok(Err(damaged(name, &layer.digest)));
    }
    let reason = format!("the registry or a proxy serves damaged content for the blob {}", layer.digest);
    Ok(Err(ImageError::image(name, ErrorKind::DataLoss, reason)))
}

fn read(mut file: std::fs::File, pieces: &Sender<Piece>) -> std::io::Result<()> {
    loop {
        let mut piece = vec![0; PIECE];
        let got = file.read(&mut piece)?;
        piece.truncate(got);
        if got == 0 || pieces.blocking_send(Piece::Data(piece.into())).is_err() {
            return Ok(());
        }
    }
}

/// The tags an image is exported with: the one it was asked for by, or all of them.
fn tags(image: &Ready) -> Vec<Reference> {
    let asked = Reference::parse(&image.name).ok().map(|name| name.to_string());
    let all = image.contents.image.tags.iter();
    let tags: Vec<&String> = match all.clone().find(|tag| Some(*tag) == asked.as_ref()) {
        Some(tag) => vec![tag],
        None => all.collect(),
    };
    tags.into_iter().filter_map(|tag| Reference::parse(tag).ok()).collect()
}

fn index(images: &[Ready]) -> Value {
    let mut entries = Vec::new();
    for image in images {
        let top = &image.documents[0];
        let stated: Value = serde_json::from_slice(&top.body).unwrap_or_default();
        let of_kind = match image.documents.len() {
            1 => "application/vnd.oci.image.manifest.v1+json",
            _ => "application/vnd.oci.image.index.v1+json",
        };
        let media_type = stated["mediaType"].as_str().or(top.media_type.as_deref()).unwrap_or(of_kind);
        let entry = json!({"mediaType": media_type, "digest": top.digest, "size": top.body.len()});
        let tags = tags(image);
        for tag in &tags {
            let mut named = entry.clone();
            let short = tag.tag().unwrap_or_default();
            named["annotations"] = json!(annotations(&tag.to_string(), short));
            entries.push(named);
        }
        if tags.is_empty() {
            entries.push(entry);
        }
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries})
}

fn for_docker(images: &[Ready]) -> Value {
    let entry = |image: &Ready| {
        let layers: Vec<String> = image.layout.layers.iter().map(|layer| path(&layer.digest)).collect();
        let tags: Vec<String> = tags(image).iter().map(ToString::to_string).collect();
        json!({"Config": path(&image.contents.id), "RepoTags": tags, "Layers": layers})
    };
    images.iter().map(entry).collect()
}
