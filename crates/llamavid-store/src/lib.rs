//! Visual features of videos on disk, so that a video is encoded once.
//!
//! A store is a folder. Each video that was encoded in some way has a folder of its own in it, named after the hash of
//! everything that its features depend on (a [`Description`]). In there are shards of [`SHARD_FRAMES`] frames, safetensors
//! files that stay as they are once they have their name, and `entry.json`, which says what the video is and, in the end, how
//! its frames were chosen:
//!
//! ```text
//! store.json                         the format's version
//! videos/<key>/entry.json
//! videos/<key>/00000.safetensors     features (F, R, V), times (F)
//! locks/<key>.lock                   held by the one process that writes the video
//! ```
//!
//! A file gets its name when all of it is on the disk. Whatever moment a process is killed at, what has a name is whole, and the
//! next [`EntryWriter`] goes on behind the last shard. The bytes do not depend on how often that happened.
//!
//! Letters: F frames, R rows of a frame, V visual width.

mod description;
mod entry;
mod error;
mod files;
mod reader;
mod shard;
mod store;
mod writer;

pub use description::{Description, Precision};
pub use error::{Error, Result};
pub use reader::{Block, StoredFeatures};
pub use shard::Frames;
pub use store::{Store, Summary};
pub use writer::EntryWriter;

/// Frames of a shard; the last one of a video may have fewer. The encoder gets the same frames at once, so that its numbers do
/// not depend on where a run was interrupted.
pub const SHARD_FRAMES: usize = 32;

/// The format that is written and read.
pub const VERSION: u32 = 1;
