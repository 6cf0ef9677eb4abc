//! What holds for a long time: storms of clients, and many thousand lives of pods.
//!
//! The short forms are tests, the long ones are run by `podhold-soak`. Whatever is found wrong ends the run
//! by a panic that names it.

pub mod cycles;
pub mod dice;
pub mod storm;
pub mod truth;
pub mod usage;
