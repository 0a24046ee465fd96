//! The one writer of a video: goes on behind the last whole shard, appends, and finishes.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::description::Description;
use crate::entry::{Complete, Entry};
use crate::error::{Error, Result};
use crate::reader::StoredFeatures;
use crate::shard::{self, Frames, Shard};
use crate::{SHARD_FRAMES, files, store};

/// Writes a video's features. The system lets go of its lock when the process ends, however it ends.
#[derive(Debug)]
pub struct EntryWriter {
    folder: PathBuf,
    key: String,
    entry: Entry,
    shards: usize,
    times: Vec<f64>,
    frame_shape: Option<[usize; 2]>,
    repairs: Vec<String>,
    _lock: File,
}

impl EntryWriter {
    /// Takes the video's folder, whose lock the caller holds. Shards behind one that is damaged go with it.
    pub(crate) fn open(folder: PathBuf, description: Description, lock: File) -> Result<Self> {
        std::fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
        files::remove_unfinished(&folder)?;
        let key = description.key();
        let mut repairs = Vec::new();
        let known = match Entry::read(&folder) {
            Ok(entry) => entry.filter(|entry| entry.description.key() == key),
            Err(Error::Invalid { file, problem }) => {
                repairs.push(format!("{}: {problem}; written again", file.display()));
                None
            }
            Err(error) => return Err(error),
        };
        let mut entry = match known {
            Some(entry) => entry,
            None => {
                let entry = Entry::new(description);
                entry.write(&folder)?;
                entry
            }
        };
        let found = find_shards(&folder, &key, &mut repairs)?;
        if entry.complete.as_ref().is_some_and(|complete| complete.frames != found.times.len()) {
            // First of all: whoever opens the video must not count on shards that are about to go.
            entry.complete = None;
            entry.write(&folder)?;
        }
        store::remove_shards(&folder, found.shards)?;
        let Found { shards, times, frame_shape } = found;
        Ok(Self { folder, key, entry, shards, times, frame_shape, repairs, _lock: lock })
    }

    /// Whether all frames are there already.
    pub fn is_complete(&self) -> bool {
        self.entry.complete.is_some()
    }

    /// Seconds of the frames that are stored.
    pub fn times(&self) -> &[f64] {
        &self.times
    }

    /// What was damaged and will be written again, in words.
    pub fn repairs(&self) -> &[String] {
        &self.repairs
    }

    /// Stores a shard. It is on the disk when this returns.
    ///
    /// # Errors
    /// [`Error::Argument`] for another number of frames than [`SHARD_FRAMES`], but for the last shard of a video; for frames of
    /// another shape than those before, numbers that are not finite, and times that do not rise.
    pub fn append(&mut self, frames: Frames<'_>) -> Result<()> {
        self.check(&frames)?;
        let Frames { shape, times, .. } = frames;
        let precision = self.entry.description.precision;
        let bytes = shard::encode(frames, precision, &self.key, self.shards)?;
        files::write(&store::shard_path(&self.folder, self.shards), &bytes)?;
        self.shards += 1;
        self.times.extend(times);
        self.frame_shape = Some([shape[1], shape[2]]);
        Ok(())
    }

    /// Says that all frames are there, and opens them. `report` says how they were chosen.
    ///
    /// # Errors
    /// [`Error::Argument`] without a frame.
    pub fn finish(mut self, report: String) -> Result<StoredFeatures> {
        if self.times.is_empty() {
            return Err(Error::Argument("features of no frame are no video".to_owned()));
        }
        self.entry.complete = Some(Complete { frames: self.times.len(), report });
        self.entry.write(&self.folder)?;
        StoredFeatures::open(&self.folder, &self.key)?
            .ok_or_else(|| Error::invalid(&self.folder, "the video is not whole"))
    }

    /// Removes what is stored of the video.
    pub fn discard(self) -> Result<()> {
        store::remove_entry(&self.folder)
    }

    fn check(&self, frames: &Frames<'_>) -> Result<()> {
        let Frames { shape, values, times, .. } = frames;
        let [count, rows, width] = *shape;
        let wrong = |problem: String| Err(Error::Argument(problem));
        let stored = self.times.len();
        if self.is_complete() || !stored.is_multiple_of(SHARD_FRAMES) {
            return wrong(format!("the video ended after {stored} frames"));
        }
        if !(1..=SHARD_FRAMES).contains(&count) || rows == 0 || width == 0 {
            return wrong(format!(
                "features of shape {shape:?} are no shard of at most {SHARD_FRAMES} frames"
            ));
        }
        if count * rows * width != values.len() || times.len() != count {
            let (values, times) = (values.len(), times.len());
            return wrong(format!("{values} values and {times} times are not those of the shape {shape:?}"));
        }
        if let Some([stored_rows, stored_width]) = self.frame_shape
            && (stored_rows, stored_width) != (rows, width)
        {
            return wrong(format!(
                "frames of {rows} x {width} numbers do not fit those of {stored_rows} x {stored_width} before them"
            ));
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let frame = stored + index / (rows * width);
            return wrong(format!("a feature of frame {frame} is {}, not a finite number", values[index]));
        }
        let all: Vec<f64> = self.times.last().into_iter().chain(*times).copied().collect();
        if !all.iter().all(|seconds| seconds.is_finite()) || !all.is_sorted_by(|a, b| a < b) {
            return wrong(format!("the times of the frames from {stored} on do not rise"));
        }
        Ok(())
    }
}

/// Whole shards in a row, from the first on.
struct Found {
    shards: usize,
    times: Vec<f64>,
    frame_shape: Option<[usize; 2]>,
}

fn find_shards(folder: &Path, key: &str, repairs: &mut Vec<String>) -> Result<Found> {
    let mut found = Found { shards: 0, times: Vec::new(), frame_shape: None };
    // Nothing comes behind a shard that is not full.
    while found.times.len().is_multiple_of(SHARD_FRAMES) {
        let path = store::shard_path(folder, found.shards);
        let shard = match Shard::open(&path, key, found.shards) {
            Ok(Some(shard)) => shard,
            Ok(None) => break,
            Err(Error::Invalid { file, problem }) => {
                repairs.push(format!("{}: {problem}; encoded again", file.display()));
                break;
            }
            Err(error) => return Err(error),
        };
        let fits = found.frame_shape.is_none_or(|shape| shape == shard.frame_shape())
            && found.times.last().is_none_or(|last| Some(last) < shard.times.first());
        if !fits {
            repairs.push(format!("{}: does not fit the shard before it; encoded again", path.display()));
            break;
        }
        found.shards += 1;
        found.times.extend(&shard.times);
        found.frame_shape = Some(shard.frame_shape());
    }
    Ok(found)
}
