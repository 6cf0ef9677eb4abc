//! `podhold-fixtures`: builds our test images and serves or stores them, for scripts.

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use podhold_integration::{
    images::{Catalogue, archive},
    programs,
    registry::{Access, Registry},
    store,
};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(about = "Builds Podhold's test images and serves or stores them")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve all images from a private registry on 127.0.0.1 until TERM or INT; print its address first
    Serve {
        /// Port to listen on; 0 takes any free one
        #[arg(long, default_value_t = 0)]
        port: u16,
    },
    /// Write every image as an OCI archive NAME_TAG.tar
    Archives {
        /// Directory to write into; made if missing
        directory: PathBuf,
    },
    /// Print every image with the digest that its tag points at
    List,
    /// Make the images that tests serve, unless they are there, and print where: for who will run them elsewhere
    Store,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse().verb).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podhold-fixtures: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(verb: Verb) -> Result<(), Box<dyn Error>> {
    match verb {
        Verb::Serve { port } => serve(port).await,
        Verb::Archives { directory } => {
            std::fs::create_dir_all(&directory)?;
            for named in catalogue()?.images {
                let name = format!("{}_{}.tar", named.repository.replace('/', "_"), named.tag);
                let path = directory.join(name);
                std::fs::write(&path, archive::archive(&named.image, named.tag))?;
                println!("{}", path.display());
            }
            Ok(())
        }
        Verb::Store => {
            println!("{}", store::directory().await?.display());
            Ok(())
        }
        Verb::List => {
            for named in catalogue()?.images {
                println!("{}:{} {}", named.repository, named.tag, named.image.top.digest());
            }
            Ok(())
        }
    }
}

fn catalogue() -> std::io::Result<Catalogue> {
    Catalogue::build(&programs::find("podhold-probe")?)
}

async fn serve(port: u16) -> Result<(), Box<dyn Error>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let registry = Registry::start(&store::directory().await?, port, Access::Read).await?;
    println!("{}", registry.address());
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(registry.stop().await?)
}
