//! Power cuts: a disk whose unsynced writes are lost, and what the daemon makes of what is left.
//!
//! ```text
//! podhold serve ─ ext4 ─ loop ─ one file in FUSE ─ device: keeps the disk, records every write and flush
//! record + moment + dice ─ cut image ─ mount ─ podhold serve ─ judge
//! ```
//! A disk with a volatile cache owes what was written before the last flush. Of what came after it, a power cut
//! may leave any part, down to single sectors. From one recording any number of such disks are made, without
//! running anything again.

pub mod device;
pub mod judge;
pub mod life;
pub mod recording;
pub mod stage;
pub mod table;
pub mod tree;
pub mod unsynced;
