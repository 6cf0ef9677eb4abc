//! Security modules of the kernel that confine a container beyond its namespaces, capabilities and filter: what
//! the kernel has of them, and what Podhold adds.
//!
//! Decides nothing about containers: what a request asks for and what it gets is `runtime::confinement`.

pub(crate) mod apparmor;
