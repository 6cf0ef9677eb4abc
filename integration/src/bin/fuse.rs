//! `podhold-fuse`: a mount that can be made to hang. USR1: answers nothing; USR2: answers; TERM: ends.

use std::{path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: podhold-fuse DIRECTORY");
        return ExitCode::FAILURE;
    };
    match podhold_integration::fuse::serve(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podhold-fuse: {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}
