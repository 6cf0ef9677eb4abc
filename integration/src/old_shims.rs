//! Shims of earlier releases, kept in `integration/old-shims`, to be taken over by the daemon of today.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The shim that speaks the first version of the protocol.
const FIRST: &[u8] = include_bytes!("../old-shims/podhold-shim-v1.zst");

/// Unpacks the shim of protocol version 1 into `directory`. `None` where it does not run: it was built for
/// x86-64 alone.
pub fn first(directory: &Path) -> io::Result<Option<PathBuf>> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(None);
    }
    let path = directory.join("podhold-shim-v1");
    let mut unpacked = ruzstd::decoding::StreamingDecoder::new(FIRST).map_err(io::Error::other)?;
    let mut file = fs::File::options().write(true).create_new(true).mode(0o755).open(&path)?;
    io::copy(&mut unpacked, &mut file)?;
    Ok(Some(path))
}
