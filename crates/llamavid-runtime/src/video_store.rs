//! The feature store: what a video's features depend on, where they are kept, and who writes them.
//!
//! The files are `llamavid-store`'s. Here are the hashes that name a video's features, and the way of features from a device to a
//! shard: one shard's worth of numbers at a time, written on a thread of its own while the device goes on.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use candle_core::DType;
use llamavid_store::{Description, EntryWriter, Frames, Precision, Store, StoredFeatures};

use crate::source_digest::{SourceState, digest};
use crate::{
    Cancellation, Device, Error, ErrorCode, FeatureKind, Reply, VisualEncoder, VisualFeatures, run_aside,
};

/// How often a writer looks whether another one is done.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// A folder of features.
#[derive(Debug, Clone)]
pub struct VideoStore {
    store: Store,
    /// Where hashes of large files are remembered; none where nothing may be written.
    digests: Option<PathBuf>,
}

/// A video of a store, as `cache ls` shows it.
#[derive(Debug, Clone)]
pub struct StoredVideo {
    /// Its name in the store.
    pub key: String,
    /// What the source was called; absent where the store's file about it cannot be read.
    pub source: Option<String>,
    /// How frames were asked for.
    pub sampling: Option<String>,
    /// `16bit` or `8bit`.
    pub precision: Option<Precision>,
    /// Frames, once all are there.
    pub frames: Option<usize>,
    /// Size on the disk.
    pub bytes: u64,
    /// When it was written or read last, in milliseconds since 1970.
    pub used: f64,
}

impl VideoStore {
    /// Opens a folder, which need not be there yet. Hashes of large files are remembered in the folder `digests`.
    pub fn open(folder: PathBuf, digests: Option<PathBuf>) -> Reply<Self> {
        run_aside("llamavid store", move || Ok(Self { store: Store::open(&folder)?, digests }))
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.store.root()
    }

    /// All videos, the one that was used last first.
    pub fn list(&self) -> Reply<Vec<StoredVideo>> {
        let store = self.store.clone();
        run_aside("llamavid store", move || Ok(store.list()?.into_iter().map(StoredVideo::from).collect()))
    }

    /// Removes a video. Whoever has its features open keeps them.
    pub fn remove(&self, key: String) -> Reply<()> {
        let store = self.store.clone();
        run_aside("llamavid store", move || Ok(store.remove(&key)?))
    }

    /// Removes the videos that were not used for longest until the rest takes at most `limit` bytes, and gives what went.
    pub fn prune(&self, limit: u64) -> Reply<Vec<StoredVideo>> {
        let store = self.store.clone();
        run_aside("llamavid store", move || {
            Ok(store.prune(limit)?.into_iter().map(StoredVideo::from).collect())
        })
    }

    /// The report of how the frames of `source` that `sampling` names were chosen, if all that any encoder makes of them is here.
    /// A source of which nothing is here with this sampling is not read.
    ///
    /// # Errors
    /// `MEDIA_UNREADABLE` for a source that changes while it is read, `ABORTED`.
    pub fn report(
        &self,
        source: PathBuf,
        sampling: String,
        cancellation: Cancellation,
    ) -> Reply<Option<String>> {
        let Self { store, digests } = self.clone();
        run_aside("llamavid store", move || {
            let whole = store.list()?.into_iter().filter(|video| video.frames.is_some());
            let mut alike = whole.filter_map(|video| video.description).collect::<Vec<_>>();
            alike.retain(|description| description.sampling == sampling);
            if alike.is_empty() {
                return Ok(None);
            }
            let source = std::path::absolute(&source).unwrap_or(source);
            let (content, _) = digest(&source, digests.as_deref(), &cancellation)?;
            alike.retain(|description| description.content == content);
            let found = alike.iter().find_map(|description| store.find(description).ok().flatten());
            Ok(found.map(|features| features.report().to_owned()))
        })
    }

    /// Looks for what `encoder` makes of the frames of the file or folder `source` that `sampling` names, in words of the caller.
    ///
    /// # Errors
    /// `MEDIA_UNREADABLE` for a source that changes while it is read, `ABORTED`.
    pub fn entry(
        &self,
        encoder: Arc<VisualEncoder>,
        source: PathBuf,
        sampling: String,
        precision: Precision,
        cancellation: Cancellation,
    ) -> Reply<StoreEntry> {
        let Self { store, digests } = self.clone();
        run_aside("llamavid store", move || {
            let source = std::path::absolute(&source).unwrap_or(source);
            let digests = digests.as_deref();
            let (content, state) = digest(&source, digests, &cancellation)?;
            let description = Description {
                source: source
                    .file_name()
                    .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
                content,
                sampling,
                preprocessing: encoder.preprocessing_digest(),
                encoder: encoder.digest(digests, &cancellation)?,
                precision,
            };
            let (found, problem) = match store.find(&description) {
                Ok(found) => (found.map(Arc::new), None),
                Err(error @ llamavid_store::Error::Invalid { .. }) => (None, Some(Error::from(error))),
                Err(error) => return Err(error.into()),
            };
            let device = encoder.device().clone();
            Ok(StoreEntry { store, description, source, state, device, found, problem })
        })
    }
}

impl From<llamavid_store::Summary> for StoredVideo {
    fn from(video: llamavid_store::Summary) -> Self {
        let used = video.used.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let described = video.description.as_ref();
        Self {
            source: described.map(|description| description.source.clone()),
            sampling: described.map(|description| description.sampling.clone()),
            precision: described.map(|description| description.precision),
            key: video.key,
            frames: video.frames,
            bytes: video.bytes,
            used: used.as_secs_f64() * 1e3,
        }
    }
}

/// Where a video's features are, or will be.
#[derive(Debug)]
pub struct StoreEntry {
    store: Store,
    description: Description,
    source: PathBuf,
    state: SourceState,
    device: Arc<Device>,
    found: Option<Arc<StoredFeatures>>,
    problem: Option<Error>,
}

impl StoreEntry {
    /// Its name in the store.
    pub fn key(&self) -> String {
        self.description.key()
    }

    /// The features, if all are there; read from the store a few frames at a time.
    pub fn features(&self) -> Option<VisualFeatures> {
        let device = || self.device.clone();
        self.found.as_ref().map(|found| VisualFeatures::stored(found.clone(), FeatureKind::Pixels, device()))
    }

    /// The report of how their frames were chosen, as [`StoreWriter::finish`] got it, if all are there.
    pub fn report(&self) -> Option<&str> {
        self.found.as_ref().map(|found| found.report())
    }

    /// What is damaged about what is there.
    pub fn problem(&self) -> Option<&Error> {
        self.problem.as_ref()
    }

    /// Becomes the video's writer; with `wait` as soon as no other process is.
    ///
    /// # Errors
    /// `STORE_LOCKED` without `wait`, `DISK_FULL`, `STORE_INVALID` where nothing can be written, `ABORTED`.
    pub fn writer(&self, wait: bool, cancellation: Cancellation) -> Reply<StoreWriter> {
        let (store, description) = (self.store.clone(), self.description.clone());
        let (source, state, device) = (self.source.clone(), self.state.clone(), self.device.clone());
        run_aside("llamavid store", move || {
            loop {
                cancellation.check()?;
                match store.writer(description.clone()) {
                    Ok(writer) => return Ok(StoreWriter::new(writer, source, state, device)),
                    Err(llamavid_store::Error::Locked { .. }) if wait => std::thread::sleep(LOCK_INTERVAL),
                    Err(error) => return Err(error.into()),
                }
            }
        })
    }
}

/// What a writer found when it began.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Seconds of the frames that are stored.
    pub times: Vec<f64>,
    /// Whether they are all.
    pub is_complete: bool,
    /// What was damaged and will be made anew, in words.
    pub repairs: Vec<String>,
}

/// Writes a video's features, until it is finished or dropped.
#[derive(Debug)]
pub struct StoreWriter {
    /// None once finished.
    writer: Arc<Mutex<Option<EntryWriter>>>,
    progress: Progress,
    source: PathBuf,
    state: SourceState,
    device: Arc<Device>,
}

impl StoreWriter {
    fn new(writer: EntryWriter, source: PathBuf, state: SourceState, device: Arc<Device>) -> Self {
        let progress = Progress {
            times: writer.times().to_vec(),
            is_complete: writer.is_complete(),
            repairs: writer.repairs().to_vec(),
        };
        Self { writer: Arc::new(Mutex::new(Some(writer))), progress, source, state, device }
    }

    /// What was there when it began.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Stores the features of the next frames, a shard of them. They are on the disk when the reply comes. One call at a time.
    pub fn append(&self, features: Arc<VisualFeatures>, times: Vec<f64>) -> Reply<()> {
        let writer = self.writer.clone();
        let shape = features.shape();
        let from_bf16 = features.dtype() == DType::BF16;
        let values = features.values();
        run_aside("llamavid store", move || {
            let values = values.wait()?;
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            let writer = writer.as_mut().ok_or_else(finished)?;
            Ok(writer.append(Frames { shape, values: &values, from_bf16, times: &times })?)
        })
    }

    /// Says that all frames are there, and opens them. `report` says how they were chosen.
    ///
    /// # Errors
    /// `MEDIA_UNREADABLE` for a source that changed while its frames were read: its features are removed then.
    pub fn finish(&self, report: String) -> Reply<VisualFeatures> {
        let (writer, device) = (self.writer.clone(), self.device.clone());
        let (source, state) = (self.source.clone(), self.state.clone());
        run_aside("llamavid store", move || {
            let writer = writer.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(finished)?;
            if let Err(error) = state.check(&source) {
                writer.discard()?;
                return Err(error);
            }
            Ok(VisualFeatures::stored(Arc::new(writer.finish(report)?), FeatureKind::Pixels, device))
        })
    }
}

fn finished() -> Error {
    Error::argument("the features of this video are written already")
}

impl From<llamavid_store::Error> for Error {
    fn from(error: llamavid_store::Error) -> Self {
        use llamavid_store::Error as Stored;
        let message = error.to_string();
        let (code, hint) = match error {
            Stored::Invalid { .. } => (
                ErrorCode::StoreInvalid,
                "Give another folder, or remove the video with `llamavid cache rm` to have it encoded again.",
            ),
            Stored::Locked { .. } => {
                (ErrorCode::StoreLocked, "Wait until it is done; what it has stored by then is used.")
            }
            Stored::DiskFull { .. } => (
                ErrorCode::DiskFull,
                "Make room, with `llamavid cache prune` for instance, and go on: what is stored stays. Or take no store (`none`).",
            ),
            Stored::Io { .. } => {
                (ErrorCode::StoreInvalid, "Give a folder that can be written to, or take no store (`none`).")
            }
            Stored::Argument(_) => return Self::argument(message),
        };
        Self::new(code, message).with_hint(hint)
    }
}
