//! `podhold image import`. The archive goes to the service as bytes, so that a daemon opens no path of its
//! client.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use podhold_proto::images::{ImportOptions, ImportRequest, import_request::What};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client::{Client, said};
use crate::cli::Failure;

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
    let options =
        ImportOptions { origin: path.display().to_string(), tag: arguments.tag.clone().unwrap_or_default() };
    let first = ImportRequest { what: Some(What::Options(options)) };
    let sending = tokio::task::spawn_blocking(move || {
        let mut sender = Sender { out };
        sender.send(first).and_then(|()| source.send(&mut sender))
    });
    let answered = client.import(ReceiverStream::new(messages)).await;
    let answer = match answered {
        Ok(answer) => answer.into_inner(),
        Err(status) => {
            // What could not be read here says more than what did not arrive there.
            let unread = sending.await?.err().filter(|error| error.kind() != io::ErrorKind::BrokenPipe);
            return Err(unread.map_or_else(|| said(&status), at));
        }
    };
    for image in &answer.images {
        let names = if image.tags.is_empty() { image.id.clone() } else { image.tags.join(" ") };
        println!("imported {names} ({})", image.id);
    }
    for left_out in &answer.skipped {
        println!("skipped {left_out}");
    }
    Ok(())
}

enum Source {
    Stream(Box<dyn Read + Send>),
    Directory(PathBuf),
}

impl Source {
    fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stream(Box::new(io::stdin())));
        }
        match fs::metadata(path)?.is_dir() {
            true => Ok(Self::Directory(path.to_owned())),
            false => Ok(Self::Stream(Box::new(fs::File::open(path)?))),
        }
    }

    fn send(self, out: &mut Sender) -> io::Result<()> {
        match self {
            Self::Directory(path) => {
                let mut pieces = io::BufWriter::with_capacity(PIECE, out);
                podhold_image::pack_directory(&path, &mut pieces)
            }
            Self::Stream(mut stream) => loop {
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
}

impl Sender {
    fn send(&mut self, message: ImportRequest) -> io::Result<()> {
        self.out.blocking_send(message).map_err(|_| io::ErrorKind::BrokenPipe.into())
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
