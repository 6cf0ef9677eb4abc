//! What the fuzz targets (`fuzz/`) reach of this crate. Not there in an ordinary build.

use std::os::fd::OwnedFd;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{
    Digest, Limits,
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
