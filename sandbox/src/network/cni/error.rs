//! Why a network operation failed. No I/O.

use std::{io, path::PathBuf, time::Duration};

use crate::PodId;

/// Why a network operation failed. Commands are told as `ADD of plugin bridge from /etc/cni/net.d/10-x.conflist`.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// There is no usable configuration.
    #[error("no valid CNI configuration in {}: put a .conflist there{}", dir.display(), refused(refused_files))]
    NoNetwork {
        /// Where it was looked for.
        dir: PathBuf,
        /// Files that were found and refused, with the reason.
        refused_files: Vec<String>,
    },
    /// A plugin is not installed.
    #[error("CNI plugin {plugin:?} of {} is in none of {dirs:?}: install it, or add its directory to bin_dirs", file.display())]
    PluginMissing {
        /// The configuration that names it.
        file: PathBuf,
        /// The plugin.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// A plugin could not be started, or talked to.
    #[error("CNI {call}: cannot {operation}")]
    Process {
        /// The command.
        call: String,
        /// What was attempted.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A plugin reported an error.
    #[error("CNI {call} failed: {message}")]
    Failed {
        /// The command.
        call: String,
        /// CNI's error code, where the plugin gave one. 11 means "try again later".
        code: Option<u64>,
        /// The plugin's message and details, or what it wrote to standard error.
        message: String,
    },
    /// A plugin took too long and was killed.
    #[error("CNI {call} took longer than {timeout:?} and was killed{}", wrote(stderr))]
    TimedOut {
        /// The command.
        call: String,
        /// How long it was allowed to take.
        timeout: Duration,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// A plugin wrote too much.
    #[error("CNI {call} wrote more than {limit} bytes and was killed")]
    TooMuchOutput {
        /// The command.
        call: String,
        /// How much it was allowed to write.
        limit: u64,
    },
    /// A plugin succeeded with a result that makes no sense.
    #[error("CNI {call} gave a result that cannot be used: {reason}")]
    BadResult {
        /// The command.
        call: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The plugins succeeded without giving the pod an address.
    #[error("the network of {} gave {interface} no address: add an ipam section to it", file.display())]
    NoAddress {
        /// The configuration.
        file: PathBuf,
        /// The interface in the pod.
        interface: &'static str,
    },
    /// The request itself cannot be passed to plugins.
    #[error("pod {pod}: {field} {value:?} cannot be passed to CNI plugins: {reason}")]
    BadRequest {
        /// The pod.
        pod: PodId,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The pod is not connected.
    #[error("pod {0} is not connected to a network")]
    NotAttached(PodId),
    /// A record could not be read or written.
    #[error("network record {}: cannot {operation}", path.display())]
    Cache {
        /// What was attempted.
        operation: &'static str,
        /// The record.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn refused(files: &[String]) -> String {
    if files.is_empty() { String::new() } else { format!(" (refused: {})", files.join("; ")) }
}

fn wrote(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(" (it wrote: {stderr})") }
}
