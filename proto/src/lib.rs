//! Wire types only: the Kubernetes CRI v1 API and the protocol between daemon and shim.
//!
//! Generated at build time from `cri/v1/api.proto` and `shim/v1/shim.proto`.

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
