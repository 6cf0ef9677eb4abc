//! `podhold image export`. A file appears under its name when it is whole.

use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
};

use podhold_proto::images::{ExportRequest, ExportResponse};
use tonic::Streaming;

use super::{
    client::{Client, said},
    progress::Shown,
};
use crate::{cli::Failure, output::Unwritten};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// References or ids of the images
    #[arg(required = true)]
    names: Vec<String>,
    /// The file to be written; `-` for standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

pub(super) async fn run(mut client: Client, arguments: &Arguments) -> Result<(), Failure> {
    let output = &arguments.output;
    let at = |error: io::Error| Failure(format!("{}: {error}", output.display()));
    if output == Path::new("-") {
        if io::stdout().is_terminal() {
            return Err(Failure("an archive is nothing for a terminal; give --output a file".to_owned()));
        }
        let pieces = begin(&mut client, arguments).await?;
        return Ok(copy(pieces, &mut io::stdout()).await?.map_err(Unwritten)?);
    }
    if fs::metadata(output).is_ok_and(|there| !there.is_file()) {
        // A device or a FIFO is written to and never replaced.
        let pieces = begin(&mut client, arguments).await?;
        return copy(pieces, &mut fs::OpenOptions::new().write(true).open(output).map_err(at)?)
            .await?
            .map_err(at);
    }
    // A link is followed: what it leads to is replaced, and not the link.
    let target = fs::canonicalize(output).unwrap_or_else(|_| output.clone());
    let output = &target;
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = output.with_file_name(name);
    let pieces = begin(&mut client, arguments).await?;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&part).map_err(at)?;
    let copied = tokio::select! {
        copied = copy(pieces, &mut file) => copied,
        _ = tokio::signal::ctrl_c() => Err(Failure("interrupted; nothing was written".to_owned())),
    };
    let written = copied.and_then(|copied| {
        copied.and_then(|()| file.sync_all()).and_then(|()| fs::rename(&part, output)).map_err(at)
    });
    if written.is_err() {
        // The failure matters, not whether its traces can be removed.
        let _left = fs::remove_file(&part);
    }
    written
}

async fn begin(client: &mut Client, arguments: &Arguments) -> Result<Streaming<ExportResponse>, Failure> {
    let request = ExportRequest { names: arguments.names.clone() };
    Ok(client.export(request).await.map_err(|status| said(&status))?.into_inner())
}

/// The outer error is the service's, the inner one that of `out`.
async fn copy(
    pieces: Streaming<ExportResponse>,
    out: &mut (dyn Write + Send),
) -> Result<io::Result<()>, Failure> {
    let shown = Shown::begin();
    let copied = copy_shown(pieces, out, &shown).await;
    shown.end().await?;
    copied
}

async fn copy_shown(
    mut pieces: Streaming<ExportResponse>,
    out: &mut (dyn Write + Send),
    shown: &Shown,
) -> Result<io::Result<()>, Failure> {
    while let Some(piece) = pieces.message().await.map_err(|status| said(&status))? {
        if let Some(now) = piece.progress {
            shown.tell(now);
        }
        if let Err(error) = out.write_all(&piece.data) {
            return Ok(Err(error));
        }
    }
    Ok(out.flush())
}
