//! What the fuzz targets (`fuzz/`) reach of this crate. Not there in an ordinary build.

use std::{net::IpAddr, time::SystemTime};

use serde_json::Value;

pub use crate::network::cni::{Dns, Interface};
use crate::{network::cni::answer::Answer, shim::cri_log::Lines};

/// The log in the CRI format of a container that writes these pieces and closes its output.
pub fn write_log<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let (mut lines, mut log) = (Lines::new("stdout"), Vec::new());
    pieces.into_iter().for_each(|piece| lines.take(piece, SystemTime::UNIX_EPOCH, &mut log));
    lines.finish(SystemTime::UNIX_EPOCH, &mut log);
    log
}

/// What is taken from the result of a network plugin, if it is taken at all.
pub struct CniResult {
    /// The addresses of the interface that was asked for.
    pub addresses: Vec<IpAddr>,
    /// All interfaces.
    pub interfaces: Vec<Interface>,
    /// Name servers.
    pub dns: Dns,
}

/// Decodes a result of a network plugin for the pod's interface `name`.
pub fn cni_result(value: &Value, name: &str) -> Option<CniResult> {
    let answer = Answer::parse(value).ok()?;
    let addresses = answer.addresses_of(name);
    Some(CniResult { addresses, interfaces: answer.interfaces, dns: answer.dns })
}
