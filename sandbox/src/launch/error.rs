//! Why requests to what holds a pod fail.

use crate::{ContainerId, PodId};

/// Why a request to a pod's holder failed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Nothing holds the pod (any more).
    #[error("pod {pod}: its shim is gone")]
    Gone {
        /// The pod.
        pod: PodId,
    },
    /// The holder knows no such container, or it does not run.
    #[error("container {container}: {reason}")]
    NotRunning {
        /// The container.
        container: ContainerId,
        /// Why, in words.
        reason: String,
    },
    /// The request cannot be met, and repeating it will not help: what and why, in words for the user.
    #[error("{0}")]
    Refused(String),
    /// A file or process operation of ours failed.
    #[error("{operation}")]
    Io {
        /// What was attempted, with its object.
        operation: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The holder is of a build that cannot do this.
    #[error(
        "pod {pod}: its shim is of an older build that cannot {what}; it can after the pod has been made anew"
    )]
    TooOld {
        /// The pod.
        pod: PodId,
        /// What was asked for.
        what: &'static str,
    },
    /// The holder is of a build that this one cannot talk to. It runs on, and so does what it holds.
    #[error(
        "pod {pod}: its shim speaks protocol version {version}, this podhold {oldest} to {newest}; the pod \
         runs on; start a podhold that speaks version {version}, or remove the pod"
    )]
    Foreign {
        /// The pod.
        pod: PodId,
        /// The holder's version.
        version: u32,
        /// The oldest version that is spoken here.
        oldest: u32,
        /// The newest one.
        newest: u32,
    },
    /// The holder is there and says nothing. What it was asked for may still be done when it goes on.
    #[error(
        "pod {pod}: its shim (process {shim}) has not answered for {seconds} s: it is stopped, or the machine is \
         overloaded; if it is stopped, kill -CONT {shim} lets it go on"
    )]
    Silent {
        /// The pod.
        pod: PodId,
        /// The holder's process; 0 when it has never said.
        shim: u32,
        /// For how long.
        seconds: u64,
    },
    /// The holder lives, and the connection to it is lost. What it was asked for may still be done.
    #[error(
        "pod {pod}: its shim lives, but the connection to it is lost: {reason}; it is asked again and again; call \
         again"
    )]
    Lost {
        /// The pod.
        pod: PodId,
        /// What happened to the connection.
        reason: String,
    },
    /// The holder answered something that is not in the protocol.
    #[error("pod {pod}: shim protocol: {reason}")]
    Protocol {
        /// The pod.
        pod: PodId,
        /// What was wrong.
        reason: String,
    },
}
