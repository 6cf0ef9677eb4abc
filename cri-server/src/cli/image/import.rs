//! `podhold image import`. The archive goes to the service as bytes, so that a daemon opens no path of its
//! client.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Weak,
};

use bytes::Bytes;
use podhold_image::Progress;
use podhold_proto::images::{ImportOptions, ImportRequest, ImportResponse, import_request::What};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    client::{Client, said},
    progress::Shown,
};
use crate::{cli::Failure, output};

/// Bytes of one message, and messages on their way.
const PIECE: usize = 256 << 10;
const AHEAD: usize = 4;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A file, plain or compressed (gzip, zstd); a directory that is an OCI layout; `-` for standard input
    archive: PathBuf,
    /// The tag to be given, in place of the names in the archive, which must hold one image
    #[arg(long, value_name = "REFERENCE")]
    tag: Option<String>,
}

pub(super) async fn run(mut client: Client, arguments: &Arguments) -> Result<(), Failure> {
    let path = arguments.archive.clone();
    let at = |error: io::Error| Failure(format!("{}: {error}", path.display()));
    let source = Source::open(&path).map_err(at)?;
    let (out, messages) = mpsc::channel(AHEAD);
    let (origin, tag) = (path.display().to_string(), arguments.tag.clone().unwrap_or_default());
    let options = ImportOptions { origin, tag, progress: true };
    let shown = Shown::begin();
    let (tell, size) = (shown.teller(), source.size());
    let first = ImportRequest { what: Some(What::Options(options)) };
    let sending = tokio::task::spawn_blocking(move || {
        let mut sender = Sender { out, tell, sent: 0, size };
        sender.send(first).and_then(|()| source.send(&mut sender))
    });
    let answered = follow(&mut client, ReceiverStream::new(messages), &shown).await;
    shown.end().await?;
    let answer = match answered {
        // What comes after the archive's end is not waited for.
        Ok(answer) => answer,
        Err(status) => {
            // What could not be read here says more than what did not arrive there.
            let unread = sending.await?.err().filter(|error| error.kind() != io::ErrorKind::BrokenPipe);
            return Err(unread.map_or_else(|| said(&status), at));
        }
    };
    for image in &answer.images {
        if image.tags.is_empty() {
            output::line(format_args!("imported {}; give it a name by podhold image tag", image.id))?;
        } else {
            output::line(format_args!("imported {} ({})", image.tags.join(" "), image.id))?;
        }
    }
    for left_out in &answer.skipped {
        output::line(format_args!("skipped {left_out}"))?;
    }
    Ok(())
}

/// Shows how far the import is, until its end.
async fn follow(
    client: &mut Client,
    messages: ReceiverStream<ImportRequest>,
    shown: &Shown,
) -> Result<ImportResponse, Status> {
    let mut answer = client.import(messages).await?.into_inner();
    while let Some(message) = answer.message().await? {
        match message.progress {
            Some(now) => shown.tell(now),
            None => return Ok(message),
        }
    }
    Err(Status::unavailable("the daemon ended before the import did; import the archive again"))
}

enum Source {
    /// With its size.
    Stream(Box<dyn Read + Send>, u64),
    Directory(PathBuf),
}

impl Source {
    fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stream(Box::new(io::stdin()), 0));
        }
        let found = fs::metadata(path)?;
        match found.is_dir() {
            true => Ok(Self::Directory(path.to_owned())),
            false => Ok(Self::Stream(Box::new(fs::File::open(path)?), found.len())),
        }
    }

    /// In bytes; 0 when that is not known.
    fn size(&self) -> u64 {
        match self {
            Self::Stream(_, size) => *size,
            Self::Directory(_) => 0,
        }
    }

    fn send(self, out: &mut Sender) -> io::Result<()> {
        match self {
            Self::Directory(path) => {
                let mut pieces = io::BufWriter::with_capacity(PIECE, out);
                podhold_image::pack_directory(&path, &mut pieces)
            }
            Self::Stream(mut stream, _) => loop {
                let mut piece = vec![0; PIECE];
                let got = stream.read(&mut piece)?;
                if got == 0 {
                    return Ok(());
                }
                piece.truncate(got);
                out.send(ImportRequest { what: Some(What::Data(piece.into())) })?;
            },
        }
    }
}

/// Messages to the service. A broken pipe is one that takes no more.
struct Sender {
    out: mpsc::Sender<ImportRequest>,
    tell: Weak<watch::Sender<Progress>>,
    /// Bytes of the archive that went, of how many.
    sent: u64,
    size: u64,
}

impl Sender {
    fn send(&mut self, message: ImportRequest) -> io::Result<()> {
        if let Some(What::Data(data)) = &message.what {
            self.sent += data.len() as u64;
        }
        self.out.blocking_send(message).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        if let Some(tell) = self.tell.upgrade() {
            tell.send_modify(|now| now.archive = Some((self.sent, self.size)));
        }
        Ok(())
    }
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        self.send(ImportRequest { what: Some(What::Data(Bytes::copy_from_slice(piece))) })?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
