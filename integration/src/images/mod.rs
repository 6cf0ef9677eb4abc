//! Our own test images, built from Debian's busybox-static and from `podhold-probe`.
//!
//! Invariant: the same input files give the same digests, on every machine and at every time.

pub mod archive;
pub mod blob;
pub mod catalogue;
pub mod conformance;
pub mod hostile;
pub mod image;
pub mod layer;
pub mod nasty;

pub use blob::Blob;
pub use catalogue::{Catalogue, Named};
pub use image::{Image, ImageBuilder, index};
pub use layer::{Compression, Layer, LayerBuilder};
