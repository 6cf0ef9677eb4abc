//! A pod's network: what attaches it and what it was given.
//!
//! [`cni`] runs the plugins an administrator configured. Owns no namespace: see [`crate::netns`].

pub mod cni;
