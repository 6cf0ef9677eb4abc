//! `podhold.v1.Images`: what `podhold image` asks for and the CRI has no call for. For root, as the socket is.

use std::{
    io::{self, Read},
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures::{StreamExt, stream};
use podhold_image::{
    Finding, Image, ImportOptions, LayerProgress, LayerStage, Progress, Reference, Verified,
};
use podhold_proto::images::{
    self as wire, images_server::Images, import_request, layer_progress::Stage, pull_response, verified_layer,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Batches;
use crate::{
    error::{Error, chain},
    runtime::Runtime,
};

type Answer<T> = Result<Response<T>, Status>;

/// Messages of a stream between who makes and who sends them.
const AHEAD: usize = 4;
/// How often a client is told how far its work is.
const PACE: Duration = Duration::from_millis(100);

/// The service over a runtime.
pub(super) struct OwnImages {
    pub(super) runtime: Arc<Runtime>,
}

fn image(image: &Image) -> wire::Image {
    wire::Image {
        id: image.id.clone(),
        tags: image.tags.clone(),
        digests: image.digests.clone(),
        size: image.size,
        pinned: image.pinned,
        config: serde_json::to_string(&image.config).unwrap_or_default(),
        layers: image.layers.iter().map(ToString::to_string).collect(),
    }
}

fn progress(now: &Progress) -> wire::Progress {
    wire::Progress {
        layers: now.layers as u64,
        layers_done: now.layers_done as u64,
        bytes: now.bytes,
        bytes_done: now.bytes_done,
        each: now.each.iter().map(layer).collect(),
    }
}

fn layer(now: &LayerProgress) -> wire::LayerProgress {
    let stage = match now.stage {
        LayerStage::Waiting => Stage::Waiting,
        LayerStage::Downloading => Stage::Downloading,
        LayerStage::Unpacking => Stage::Unpacking,
        LayerStage::Done => Stage::Done,
        LayerStage::AlreadyHere => Stage::AlreadyHere,
        LayerStage::Reading => Stage::Reading,
        LayerStage::Writing => Stage::Writing,
    };
    wire::LayerProgress {
        digest: now.digest.to_string(),
        size: now.size,
        received: now.received,
        resumed: now.resumed,
        stage: stage.into(),
    }
}

fn verified(layer: &Verified) -> wire::VerifiedLayer {
    let mut told = wire::VerifiedLayer {
        chain: layer.chain.to_string(),
        blob: layer.blob.as_ref().map(ToString::to_string).unwrap_or_default(),
        images: layer.images.clone(),
        ..Default::default()
    };
    match &layer.finding {
        Finding::Whole => told.set_finding(verified_layer::Finding::Whole),
        Finding::Unknown(reason) => told.reason.clone_from(reason),
        Finding::Wrong { differences, count } => {
            told.set_finding(verified_layer::Finding::Wrong);
            let difference = |found: &podhold_image::Difference| wire::Difference {
                path: found.path.clone(),
                what: found.what.clone(),
            };
            told.differences = differences.iter().map(difference).collect();
            told.count = *count;
        }
    }
    match &layer.repair {
        None => {}
        Some(Ok(())) => told.set_repair(verified_layer::Repair::FetchedAgain),
        Some(Err(error)) => {
            told.set_repair(verified_layer::Repair::Failed);
            told.failure = chain(error);
        }
    }
    told
}

fn unknown(name: &str) -> Status {
    Error::not_found("image", name).into()
}

#[tonic::async_trait]
impl Images for OwnImages {
    type PullStream = Batches<wire::PullResponse>;

    async fn pull(&self, request: Request<wire::PullRequest>) -> Answer<Self::PullStream> {
        let (reference, runtime) = (request.into_inner().reference, Arc::clone(&self.runtime));
        let (tell, told) = watch::channel(Progress::default());
        let pull = async move {
            let pulled = runtime.pull_image(&reference, None, Some(tell)).await?;
            Ok(vec![wire::PullResponse { what: Some(pull_response::What::Image(image(&pulled))) }])
        };
        let message =
            |now: &Progress| wire::PullResponse { what: Some(pull_response::What::Progress(progress(now))) };
        Ok(Response::new(follow(pull, Some(told), message)))
    }

    type ListStream = Batches<wire::Image>;

    async fn list(&self, request: Request<wire::ListRequest>) -> Answer<Self::ListStream> {
        let name = request.into_inner().name;
        let images = self.runtime.images();
        let mut found = match name.is_empty() {
            true => images.list(),
            false => vec![images.find(&name).ok_or_else(|| unknown(&name))?],
        };
        found.sort_by(|a, b| (&a.tags, &a.digests, &a.id).cmp(&(&b.tags, &b.digests, &b.id)));
        Ok(Response::new(stream::iter(found).map(|found| Ok(image(&found))).boxed()))
    }

    async fn remove(&self, request: Request<wire::RemoveRequest>) -> Answer<wire::RemoveResponse> {
        let name = request.into_inner().name;
        let found = self.runtime.images().find(&name).ok_or_else(|| unknown(&name))?;
        self.runtime.remove_image(&name).await?;
        Ok(Response::new(wire::RemoveResponse { id: found.id.clone() }))
    }

    async fn tag(&self, request: Request<wire::TagRequest>) -> Answer<wire::TagResponse> {
        let wire::TagRequest { name, tag } = request.into_inner();
        let tagged = self.runtime.tag_image(&name, &tag).await?;
        Ok(Response::new(wire::TagResponse { id: tagged.id.clone() }))
    }

    type ImportStream = Batches<wire::ImportResponse>;

    async fn import(&self, request: Request<Streaming<wire::ImportRequest>>) -> Answer<Self::ImportStream> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.and_then(|message| message.what);
        let Some(import_request::What::Options(options)) = first else {
            return Err(Status::invalid_argument("the first message of an import has its options"));
        };
        let tag = match options.tag.as_str() {
            "" => None,
            tag => {
                let parsed = Reference::parse(tag).map_err(|error| Error::invalid("tag", error.to_string()));
                Some(parsed.map_err(Status::from)?)
            }
        };
        let (tell, told) = asked(options.progress);
        let origin = options.origin.chars().take(300).collect();
        let options = ImportOptions { origin, tag, progress: tell };
        let runtime = Arc::clone(&self.runtime);
        let work = async move {
            let (pieces, arriving) = mpsc::channel(AHEAD);
            let reader = Arriving { pieces: arriving, current: Bytes::new() };
            let import = runtime.import_images(Box::new(reader), options);
            let pump = async move {
                receive(messages, &pieces).await;
                drop(pieces);
                std::future::pending::<()>().await;
            };
            // An archive that is refused need not arrive to its end.
            let imported = tokio::select! {
                imported = import => imported?,
                () = pump => return Err(Status::internal("the import has no end")),
            };
            let images = imported.images.iter().map(|found| image(found)).collect();
            Ok(vec![wire::ImportResponse { images, skipped: imported.skipped, progress: None }])
        };
        let message =
            |now: &Progress| wire::ImportResponse { progress: Some(progress(now)), ..Default::default() };
        Ok(Response::new(follow(work, told, message)))
    }

    type ExportStream = Batches<wire::ExportResponse>;

    async fn export(&self, request: Request<wire::ExportRequest>) -> Answer<Self::ExportStream> {
        let (names, runtime) = (request.into_inner().names, Arc::clone(&self.runtime));
        let (out, pieces) = mpsc::channel(AHEAD);
        let (tell, told) = asked(true);
        let export = async move { Ok(runtime.export_images(&names, out, tell).await.map(|()| Vec::new())?) };
        let message =
            |now: &Progress| wire::ExportResponse { progress: Some(progress(now)), ..Default::default() };
        // Its errors come last: what is told is over then, and so are the pieces.
        let told = follow(export, told, message);
        let pieces =
            ReceiverStream::new(pieces).map(|data| Ok(wire::ExportResponse { data, progress: None }));
        Ok(Response::new(stream::select(pieces, told).boxed()))
    }

    async fn prune(&self, _: Request<wire::PruneRequest>) -> Answer<wire::PruneResponse> {
        let pruned = self.runtime.prune_images().await?;
        let removed = pruned.removed.iter().map(|removed| image(removed)).collect();
        Ok(Response::new(wire::PruneResponse { removed, kept: pruned.kept }))
    }

    type VerifyStream = Batches<wire::VerifiedLayer>;

    async fn verify(&self, request: Request<wire::VerifyRequest>) -> Answer<Self::VerifyStream> {
        let wire::VerifyRequest { names, repair, progress: wanted } = request.into_inner();
        let runtime = Arc::clone(&self.runtime);
        let (tell, told) = asked(wanted);
        let verify = async move {
            let layers = runtime.verify_images(&names, repair, tell).await?;
            Ok(layers.iter().map(verified).collect())
        };
        let message =
            |now: &Progress| wire::VerifiedLayer { progress: Some(progress(now)), ..Default::default() };
        Ok(Response::new(follow(verify, told, message)))
    }
}

/// Both ends of what is told of work under way, if it is wanted.
fn asked(wanted: bool) -> (Option<watch::Sender<Progress>>, Option<watch::Receiver<Progress>>) {
    let (tell, told) = watch::channel(Progress::default());
    (wanted.then_some(tell), wanted.then_some(told))
}

/// How far work is, as messages, then what came of it. The work ends when nobody takes them any more.
fn follow<M: Send + 'static>(
    work: impl Future<Output = Result<Vec<M>, Status>> + Send + 'static,
    told: Option<watch::Receiver<Progress>>,
    message: impl Fn(&Progress) -> M + Send + Sync + 'static,
) -> Batches<M> {
    let (out, messages) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        tokio::pin!(work);
        let mut told = told;
        loop {
            let now = async {
                if let Some(told) = &mut told
                    && told.changed().await.is_ok()
                {
                    return message(&told.borrow_and_update());
                }
                // Nothing more is told.
                std::future::pending().await
            };
            let now = tokio::select! {
                // Nobody waits for it: the work ends here.
                () = out.closed() => return,
                done = &mut work => return send_all(&out, done).await,
                now = now => now,
            };
            // A client that is behind is told the next time.
            let _full = out.try_send(Ok(now));
            tokio::select! {
                () = out.closed() => return,
                done = &mut work => return send_all(&out, done).await,
                () = tokio::time::sleep(PACE) => {}
            }
        }
    });
    ReceiverStream::new(messages).boxed()
}

async fn send_all<M>(out: &mpsc::Sender<Result<M, Status>>, done: Result<Vec<M>, Status>) {
    match done {
        Ok(messages) => {
            for message in messages {
                if out.send(Ok(message)).await.is_err() {
                    return;
                }
            }
        }
        Err(status) => drop(out.send(Err(status)).await),
    }
}

/// Hands the bytes of an archive on, until its end or the client's.
async fn receive(mut messages: Streaming<wire::ImportRequest>, pieces: &mpsc::Sender<Result<Bytes, Status>>) {
    loop {
        let piece = match messages.message().await {
            Ok(Some(wire::ImportRequest { what: Some(import_request::What::Data(data)) })) => Ok(data),
            Ok(Some(_)) => Err(Status::invalid_argument("after the options an import has data only")),
            Ok(None) => return,
            Err(status) => Err(status),
        };
        let last = piece.is_err();
        if pieces.send(piece).await.is_err() || last {
            return;
        }
    }
}

/// An archive as it arrives, for a thread that may block.
struct Arriving {
    pieces: mpsc::Receiver<Result<Bytes, Status>>,
    current: Bytes,
}

impl Read for Arriving {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) => self.current = piece,
                Some(Err(status)) => return Err(io::Error::other(status.message().to_owned())),
                None => return Ok(0),
            }
        }
        let taken = self.current.len().min(out.len());
        self.current.copy_to_slice(&mut out[..taken]);
        Ok(taken)
    }
}
