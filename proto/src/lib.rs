//! Wire types only: the Kubernetes CRI v1 API, the protocol between daemon and shim, and what the command line
//! asks of a daemon.
//!
//! Generated at build time from `cri/v1/api.proto`, `shim/v1/shim.proto` and `podhold/v1/images.proto`.

/// The Container Runtime Interface, version 1.
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// The protocol between daemon and shim, version 1.
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod shim {
    tonic::include_proto!("podhold.shim.v1");
}

/// What `podhold image` asks of a daemon, version 1.
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all)]
pub mod images {
    tonic::include_proto!("podhold.v1");
}
