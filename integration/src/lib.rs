//! Black-box tests of Podhold: what they need to run real pods, and to see that nothing is left.
//!
//! Knows the daemon by its command line and its socket only. Nothing here is part of the product.

pub mod alone;
pub mod bad_registry;
pub mod cgroup;
pub mod configs;
pub mod conformance;
pub mod cri;
pub mod crowd;
pub mod daemon;
pub mod footprint;
pub mod fuse;
pub mod images;
pub mod kills;
pub mod leaks;
pub mod log;
pub mod machine;
pub mod needs;
pub mod old_shims;
pub mod power;
pub mod processes;
pub mod programs;
pub mod raw;
pub mod registry;
pub mod rig;
pub mod soak;
pub mod steps;
pub mod store;
pub mod streams;

/// Starts a [`rig::Rig`], or returns from the test, saying why, where the machine lacks something.
#[macro_export]
macro_rules! rig {
    () => {{
        $crate::require!(
            root,
            program "docker-registry",
            program "nft",
            program "iptables",
            program "ip",
            plugin "bridge",
            plugin "portmap",
        );
        $crate::rig::Rig::start().await
    }};
}
