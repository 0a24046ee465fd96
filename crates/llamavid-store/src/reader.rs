//! Features of a whole video, read from its mapped shards a block at a time.

use std::fs::File;
use std::path::Path;
use std::time::SystemTime;

use half::f16;

use crate::description::Description;
use crate::entry::Entry;
use crate::error::{Error, Result};
use crate::shard::Shard;
use crate::{SHARD_FRAMES, store};

/// Numbers of some frames, row-major of (F, R, V).
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// As they are stored.
    Half(Vec<f16>),
    /// Unpacked.
    Single(Vec<f32>),
}

/// The features of a video, all of them. They stay readable when the video is removed from the store.
#[derive(Debug)]
pub struct StoredFeatures {
    description: Description,
    report: String,
    shards: Vec<Shard>,
    frames: usize,
}

impl StoredFeatures {
    /// Opens the video in `folder`; none where it is not there or not whole.
    pub(crate) fn open(folder: &Path, key: &str) -> Result<Option<Self>> {
        let Some(Entry { description, complete: Some(complete), .. }) = Entry::read(folder)? else {
            return Ok(None);
        };
        if description.key() != key {
            return Err(Error::invalid(&Entry::path(folder), "describes another video than its folder"));
        }
        let mut shards: Vec<Shard> = Vec::with_capacity(complete.frames.div_ceil(SHARD_FRAMES).min(1 << 20));
        let mut frames = 0;
        while frames < complete.frames {
            let path = store::shard_path(folder, shards.len());
            let shard = Shard::open(&path, key, shards.len())?
                .ok_or_else(|| Error::invalid(&path, "is missing; the video has more frames"))?;
            if shards.first().is_some_and(|first| first.frame_shape() != shard.frame_shape()) {
                return Err(Error::invalid(&path, "has frames of another shape than the first shard"));
            }
            let rises = shards.last().is_none_or(|last| last.times.last() < shard.times.first());
            if !rises {
                return Err(Error::invalid(&path, "has times before those of the shard before it"));
            }
            frames += shard.frames();
            let full = shard.frames() == SHARD_FRAMES || frames == complete.frames;
            if !full || frames > complete.frames {
                let problem = format!("has {} frames, which do not fit {}", shard.frames(), complete.frames);
                return Err(Error::invalid(&path, problem));
            }
            shards.push(shard);
        }
        if shards.is_empty() {
            return Err(Error::invalid(&Entry::path(folder), "says that the video has no frames"));
        }
        // Whoever keeps a store within its limit removes what was not used for longest. A store that cannot be written to keeps
        // everything anyway.
        let used = File::options().write(true).open(Entry::path(folder));
        let _ = used.and_then(|file| file.set_modified(SystemTime::now()));
        Ok(Some(Self { description, report: complete.report, shards, frames }))
    }

    /// What the features are of.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The report that came with the last frame.
    pub fn report(&self) -> &str {
        &self.report
    }

    /// F, R, V.
    pub fn shape(&self) -> [usize; 3] {
        let [rows, width] = self.shards.first().map_or([0, 0], Shard::frame_shape);
        [self.frames, rows, width]
    }

    /// Seconds of the frames.
    pub fn times(&self) -> impl Iterator<Item = f64> {
        self.shards.iter().flat_map(|shard| shard.times.iter().copied())
    }

    /// Reads `count` frames from `start` on, and leaves none of their pages in memory.
    ///
    /// # Errors
    /// [`Error::Argument`] for frames that are not there.
    pub fn read(&self, start: usize, count: usize) -> Result<Block> {
        let end = start.checked_add(count).filter(|end| *end <= self.frames && count > 0);
        let Some(end) = end else {
            let frames = self.frames;
            return Err(Error::Argument(format!(
                "{count} frames from {start} on are not among the {frames} that are stored"
            )));
        };
        let [_, rows, width] = self.shape();
        let shards = start / SHARD_FRAMES..end.div_ceil(SHARD_FRAMES);
        let parts = || {
            self.shards[shards.clone()].iter().zip(shards.clone()).map(|(shard, number)| {
                let first = number * SHARD_FRAMES;
                let from = start.saturating_sub(first);
                (shard, from, (end - first).min(shard.frames()) - from)
            })
        };
        if let Some(next) = self.shards.get(shards.end) {
            next.prefetch();
        }
        let length = count * rows * width;
        let block = if parts().all(|(shard, ..)| shard.is_half()) {
            let mut out = Vec::with_capacity(length);
            parts().for_each(|(shard, from, count)| shard.read_half(from, count, &mut out));
            Block::Half(out)
        } else {
            let mut out = Vec::with_capacity(length);
            parts().for_each(|(shard, from, count)| shard.read(from, count, &mut out));
            Block::Single(out)
        };
        parts().for_each(|(shard, ..)| shard.release());
        Ok(block)
    }
}
