//! The feature store.

use std::sync::Arc;

use llamavid_runtime::{self as runtime, SHARD_FRAMES, StorePrecision};
use napi::Env;
use napi::bindgen_prelude::AsyncBlock;
use napi_derive::napi;

use crate::arguments::{whole, word};
use crate::device::{Cancellation, flag};
use crate::handle::Handle;
use crate::promise::{call, promise};
use crate::vision::{VisualEncoder, VisualFeatures};

const PRECISIONS: [(&str, StorePrecision); 2] =
    [("16bit", StorePrecision::Sixteen), ("8bit", StorePrecision::Eight)];

/// Frames that are stored in one piece.
#[napi]
pub fn shard_frames() -> u32 {
    SHARD_FRAMES as u32
}

/// A folder of features.
#[napi]
pub struct VideoStore {
    store: Arc<runtime::VideoStore>,
}

/// A video of a store.
#[napi(object, object_from_js = false)]
pub struct StoredVideo {
    /// Its name in the store.
    pub key: String,
    /// What the source was called; absent where the store's file about it cannot be read.
    pub source: Option<String>,
    /// How frames were asked for.
    pub sampling: Option<String>,
    /// How numbers are stored.
    #[napi(ts_type = "'16bit' | '8bit'")]
    pub precision: Option<String>,
    /// Frames, once all are there.
    pub frames: Option<u32>,
    /// Size on the disk.
    pub bytes: f64,
    /// When it was written or read last, in milliseconds since 1970.
    pub used: f64,
}

impl From<runtime::StoredVideo> for StoredVideo {
    fn from(video: runtime::StoredVideo) -> Self {
        let name = |precision| PRECISIONS.iter().find(|(_, known)| *known == precision);
        Self {
            key: video.key,
            source: video.source,
            sampling: video.sampling,
            precision: video.precision.and_then(name).map(|(name, _)| (*name).to_owned()),
            frames: video.frames.map(|frames| frames as u32),
            bytes: video.bytes as f64,
            used: video.used,
        }
    }
}

#[napi]
impl VideoStore {
    /// Opens a folder, which need not be there yet. Hashes of large files are remembered in the folder `digests`.
    #[napi]
    pub fn open(env: &Env, folder: String, digests: Option<String>) -> napi::Result<AsyncBlock<VideoStore>> {
        promise(
            env,
            || Ok(runtime::VideoStore::open(folder.into(), digests.map(Into::into))),
            |store| Self { store: Arc::new(store) },
        )
    }

    /// All videos, the one that was used last first.
    #[napi]
    pub fn list(&self, env: &Env) -> napi::Result<AsyncBlock<Vec<StoredVideo>>> {
        promise(env, || Ok(self.store.list()), |videos| videos.into_iter().map(Into::into).collect())
    }

    /// Removes a video.
    #[napi]
    pub fn remove(&self, env: &Env, key: String) -> napi::Result<AsyncBlock<()>> {
        promise(env, || Ok(self.store.remove(key)), |()| ())
    }

    /// Removes what was not used for longest until the rest takes at most `limit` bytes, and gives what went.
    #[napi]
    pub fn prune(&self, env: &Env, limit: f64) -> napi::Result<AsyncBlock<Vec<StoredVideo>>> {
        promise(
            env,
            || Ok(self.store.prune(whole("limit", limit)?)),
            |videos| videos.into_iter().map(Into::into).collect(),
        )
    }

    /// The report of how the frames of a file or folder were chosen, if all that any encoder makes of them is here.
    #[napi]
    pub fn report(
        &self,
        env: &Env,
        source: String,
        sampling: String,
        c: Option<&Cancellation>,
    ) -> napi::Result<AsyncBlock<Option<String>>> {
        promise(env, || Ok(self.store.report(source.into(), sampling, flag(c))), |report| report)
    }

    /// Looks for what `encoder` makes of a file or folder.
    #[napi]
    pub fn entry(
        &self,
        env: &Env,
        encoder: &VisualEncoder,
        source: String,
        sampling: String,
        #[napi(ts_arg_type = "'16bit' | '8bit'")] precision: String,
        c: Option<&Cancellation>,
    ) -> napi::Result<AsyncBlock<StoreEntry>> {
        promise(
            env,
            || {
                let precision = word("precision", &precision, &PRECISIONS)?;
                Ok(self.store.entry(encoder.get()?, source.into(), sampling, precision, flag(c)))
            },
            |entry| StoreEntry { entry: Arc::new(entry) },
        )
    }
}

/// Where a video's features are, or will be.
#[napi]
pub struct StoreEntry {
    entry: Arc<runtime::StoreEntry>,
}

#[napi]
impl StoreEntry {
    /// Its name in the store.
    #[napi(getter)]
    pub fn key(&self) -> String {
        self.entry.key()
    }

    /// What is damaged about what is there, in words.
    #[napi(getter)]
    pub fn problem(&self) -> Option<String> {
        self.entry.problem().map(|error| error.message.clone())
    }

    /// The features, if all are there.
    #[napi]
    pub fn features(&self) -> Option<VisualFeatures> {
        self.entry.features().map(VisualFeatures::new)
    }

    /// The report of how their frames were chosen, if all are there.
    #[napi(getter)]
    pub fn report(&self) -> Option<String> {
        self.entry.report().map(str::to_owned)
    }

    /// Becomes the video's writer; with `wait` as soon as no other process is.
    #[napi]
    pub fn writer(
        &self,
        env: &Env,
        wait: bool,
        c: Option<&Cancellation>,
    ) -> napi::Result<AsyncBlock<StoreWriter>> {
        promise(
            env,
            || Ok(self.entry.writer(wait, flag(c))),
            |writer| StoreWriter { handle: Handle::new("writer of a store", writer) },
        )
    }
}

/// Writes a video's features. Nobody else can until it is closed.
#[napi]
pub struct StoreWriter {
    handle: Handle<runtime::StoreWriter>,
}

#[napi]
impl StoreWriter {
    /// Seconds of the frames that were stored when it began.
    #[napi(getter)]
    pub fn times(&self) -> napi::Result<Vec<f64>> {
        call(|| Ok(self.handle.open()?.progress().times.clone()))
    }

    /// Whether they were all.
    #[napi(getter)]
    pub fn is_complete(&self) -> napi::Result<bool> {
        call(|| Ok(self.handle.open()?.progress().is_complete))
    }

    /// What was damaged and is made anew, in words.
    #[napi(getter)]
    pub fn repairs(&self) -> napi::Result<Vec<String>> {
        call(|| Ok(self.handle.open()?.progress().repairs.clone()))
    }

    /// Stores the features of the next frames, a shard of them. The features stay open.
    #[napi]
    pub fn append(
        &self,
        env: &Env,
        features: &VisualFeatures,
        times: Vec<f64>,
    ) -> napi::Result<AsyncBlock<()>> {
        promise(env, || Ok(self.handle.open()?.append(features.get()?, times)), |()| ())
    }

    /// Says that all frames are there and how they were chosen, and gives their features.
    #[napi]
    pub fn finish(&self, env: &Env, report: String) -> napi::Result<AsyncBlock<VisualFeatures>> {
        promise(env, || Ok(self.handle.open()?.finish(report)), VisualFeatures::new)
    }

    /// Lets others write. Closing twice does nothing.
    #[napi]
    pub fn close(&self) {
        drop(self.handle.close());
    }
}
