//! The folder of a store: what is in it, who writes to what, and what goes when it grows too large.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::description::{Description, is_key};
use crate::entry::Entry;
use crate::error::{Error, Result};
use crate::reader::StoredFeatures;
use crate::writer::EntryWriter;
use crate::{VERSION, files};

/// A folder of features. Opening it writes nothing.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// A video of a store.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The name of its folder.
    pub key: String,
    /// What the features are of; absent where `entry.json` cannot be read.
    pub description: Option<Description>,
    /// Frames, once all are there.
    pub frames: Option<usize>,
    /// Size on the disk.
    pub bytes: u64,
    /// When it was written or read last.
    pub used: SystemTime,
}

/// `store.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Format {
    version: u32,
}

impl Store {
    /// Opens a folder, which need not be there yet.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a folder that holds something else, or a store of another version.
    pub fn open(root: &Path) -> Result<Self> {
        let path = root.join("store.json");
        match files::map(&path)? {
            Some(bytes) => {
                let format: Format = serde_json::from_slice(&bytes)
                    .map_err(|error| Error::invalid(&path, error.to_string()))?;
                if format.version != VERSION {
                    let problem = format!("a store of version {}, only {VERSION} is read", format.version);
                    return Err(Error::invalid(root, problem));
                }
            }
            None => match fs::read_dir(root) {
                // A process may have been killed before it wrote the file: then there is nothing else either.
                Ok(mut entries) => {
                    let foreign = |name: &str| !name.starts_with('.');
                    let foreign = entries
                        .any(|entry| entry.is_ok_and(|entry| foreign(&entry.file_name().to_string_lossy())));
                    if foreign {
                        return Err(Error::invalid(
                            root,
                            "holds something else than features (no store.json)",
                        ));
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io(root, error)),
            },
        }
        Ok(Self { root: root.to_path_buf() })
    }

    /// Its folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The features of a video; none where they are not there or not whole.
    ///
    /// # Errors
    /// [`Error::Invalid`] for damaged ones, which [`Store::writer`] repairs.
    pub fn find(&self, description: &Description) -> Result<Option<StoredFeatures>> {
        let key = description.key();
        StoredFeatures::open(&self.folder(&key), &key)
    }

    /// The features of the video at `path`, whatever they are of: the folder of a video in a store, or of a store with no other.
    ///
    /// # Errors
    /// [`Error::Invalid`] for damaged ones, for a video that is not whole, and for a store of no or several whole videos.
    pub fn find_at(path: &Path) -> Result<StoredFeatures> {
        let path = fs::canonicalize(path).map_err(|error| Error::io(path, error))?;
        let key = path.file_name().and_then(|name| name.to_str()).filter(|name| is_key(name));
        if let Some(key) = key.filter(|_| !path.join("store.json").exists()) {
            return StoredFeatures::open(&path, key)?
                .ok_or_else(|| Error::invalid(&path, "the video is not whole"));
        }
        let store = Self::open(&path)?;
        let videos: Vec<Summary> = store.list()?.into_iter().filter(|video| video.frames.is_some()).collect();
        match videos.as_slice() {
            [video] => Self::find_at(&store.folder(&video.key)),
            [] => Err(Error::invalid(&path, "no whole video is stored here")),
            several => {
                const SHOWN: usize = 5;
                let mut named: Vec<String> = several
                    .iter()
                    .take(SHOWN)
                    .map(|video| {
                        let source = video.description.as_ref().map_or("unreadable", |of| of.source.as_str());
                        format!("{} ({source})", store.folder(&video.key).display())
                    })
                    .collect();
                if several.len() > SHOWN {
                    named.push("…".to_owned());
                }
                let (count, named) = (several.len(), named.join(", "));
                Err(Error::invalid(
                    &path,
                    format!("{count} videos are stored here, so one has to be named: {named}"),
                ))
            }
        }
    }

    /// The writer of a video, which begins it or goes on with it.
    ///
    /// # Errors
    /// [`Error::Locked`] while another writer has it.
    pub fn writer(&self, description: Description) -> Result<EntryWriter> {
        let key = description.key();
        let lock = self.lock(&key)?;
        EntryWriter::open(self.folder(&key), description, lock)
    }

    /// All videos, the one that was used last first.
    pub fn list(&self) -> Result<Vec<Summary>> {
        let videos = self.root.join("videos");
        let entries = match fs::read_dir(&videos) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(&videos, error)),
        };
        let keys = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut found: Vec<Summary> =
            keys.filter(|key| is_key(key)).filter_map(|key| self.summary(key)).collect();
        found.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.key.cmp(&b.key)));
        Ok(found)
    }

    /// Removes a video. Whoever has its features open keeps them.
    ///
    /// # Errors
    /// [`Error::Locked`] while a writer has it, [`Error::Argument`] for a key that is none.
    pub fn remove(&self, key: &str) -> Result<()> {
        let folder = self.folder(key);
        if !is_key(key) || !folder.is_dir() {
            return Err(Error::Argument(format!("{}: no video {key:?} is stored here", self.root.display())));
        }
        let _lock = self.lock(key)?;
        remove_entry(&folder)
    }

    /// Removes the videos that were not used for longest until the rest takes at most `limit` bytes, and gives what went. A video
    /// that is being written stays.
    pub fn prune(&self, limit: u64) -> Result<Vec<Summary>> {
        let mut total = 0u64;
        let mut removed = Vec::new();
        for video in self.list()? {
            total = total.saturating_add(video.bytes);
            if total <= limit {
                continue;
            }
            match self.remove(&video.key) {
                Ok(()) => {
                    total -= video.bytes;
                    removed.push(video);
                }
                Err(Error::Locked { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    fn folder(&self, key: &str) -> PathBuf {
        self.root.join("videos").join(key)
    }

    /// Lock files stay when their videos go: who waits for one must not get a file that is no longer there.
    fn lock(&self, key: &str) -> Result<File> {
        fs::create_dir_all(&self.root).map_err(|error| Error::io(&self.root, error))?;
        // Before anything else: what makes a folder a store.
        let format = self.root.join("store.json");
        if !format.is_file() {
            let bytes = serde_json::to_vec(&Format { version: VERSION })
                .map_err(|error| Error::invalid(&format, error.to_string()))?;
            // Another process may do the same, and remove this one's unfinished file.
            if let Err(error) = files::write(&format, &bytes)
                && !format.is_file()
            {
                return Err(error);
            }
        }
        files::remove_unfinished(&self.root)?;
        let locks = self.root.join("locks");
        fs::create_dir_all(&locks).map_err(|error| Error::io(&locks, error))?;
        let path = locks.join(format!("{key}.lock"));
        let failed = |error| Error::io(&path, error);
        let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { folder: self.folder(key) }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// None for a video that went meanwhile.
    fn summary(&self, key: String) -> Option<Summary> {
        let folder = self.folder(&key);
        let mut used = fs::metadata(&folder).and_then(|facts| facts.modified()).ok()?;
        let mut bytes = 0;
        for entry in fs::read_dir(&folder).ok()?.flatten() {
            let Ok(facts) = entry.metadata() else { continue };
            bytes += facts.len();
            used = used.max(facts.modified().unwrap_or(used));
        }
        let entry = Entry::read(&folder).ok().flatten();
        let frames = entry.as_ref().and_then(|entry| entry.complete.as_ref()).map(|complete| complete.frames);
        Some(Summary { key, description: entry.map(|entry| entry.description), frames, bytes, used })
    }
}

/// The file of shard `number`.
pub(crate) fn shard_path(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("{number:05}.safetensors"))
}

/// Removes the shards from `number` on.
pub(crate) fn remove_shards(folder: &Path, number: usize) -> Result<()> {
    let failed = |error| Error::io(folder, error);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let shard =
            path.file_name().and_then(|name| name.to_str()?.strip_suffix(".safetensors")?.parse().ok());
        if shard.is_some_and(|shard: usize| shard >= number) {
            files::remove(&path)?;
        }
    }
    Ok(())
}

/// Removes a video's folder; first what says that the video is whole.
pub(crate) fn remove_entry(folder: &Path) -> Result<()> {
    files::remove(&Entry::path(folder))?;
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder, error)),
        _ => Ok(()),
    }
}
