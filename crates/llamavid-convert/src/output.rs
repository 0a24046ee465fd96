//! The output folder: built beside its place under another name, and moved there when it is whole.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use llamavid_runtime::manifest::{ManifestFile, hexadecimal};
use llamavid_runtime::{Cancellation, Error, ErrorCode, Result};
use llamavid_weights::writer::WholePages;
use sha2::{Digest, Sha256};

/// Held by the process that builds, for as long as it lives.
const LOCK: &str = "lock";
/// Room that must stay free: file systems keep some for themselves.
const SPARE_BYTES: u64 = 64 << 20;

/// What is told of the progress, from the thread that works.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Sync);

/// How far a conversion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes written.
    pub done: u64,
    /// Bytes of the result.
    pub total: u64,
}

/// A folder that nobody can take for a model yet. It goes when it is dropped.
#[derive(Debug)]
pub struct Unfinished {
    folder: PathBuf,
    output: PathBuf,
    files: BTreeMap<String, ManifestFile>,
    /// Unlocked by the system too, when the process is killed.
    _lock: File,
    moved: bool,
}

impl Unfinished {
    /// Takes the place beside `output` where it will be built, and removes what a killed process left there.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an output that is there already or cannot be, `STORE_LOCKED` while another process builds it.
    pub fn begin(output: &Path) -> Result<Self> {
        let wrong = |problem: &str| {
            Error::new(ErrorCode::InvalidArgument, format!("{}: {problem}", output.display()))
                .with_hint("Give a folder that is not there yet.")
        };
        // What `.` and `..` stand for has a name.
        let absolute = std::path::absolute(output).map_err(|error| wrong(&error.to_string()))?;
        let (Some(name), Some(parent)) = (absolute.file_name(), absolute.parent()) else {
            return Err(wrong("is no name for a folder"));
        };
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(".converting");
        let folder = parent.join(hidden);
        let lock = lock(&folder, output)?;
        // Only now: the process that had the lock may just have finished.
        let taken = match fs::read_dir(&absolute) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        let begun = Self { folder, output: absolute, files: BTreeMap::new(), _lock: lock, moved: false };
        if taken {
            return Err(wrong("is there already"));
        }
        begun.clear()?;
        Ok(begun)
    }

    /// The folder as it stands.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Fails where the disk has not `bytes` left.
    ///
    /// # Errors
    /// `DISK_FULL` with both numbers.
    pub fn expect_room(&self, bytes: u64) -> Result<()> {
        // A system that does not say is found out by writing.
        let Ok(free) = fs4::available_space(&self.folder) else { return Ok(()) };
        if bytes.saturating_add(SPARE_BYTES) <= free {
            return Ok(());
        }
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        let message = format!(
            "{}: the model needs {:.2} GB, the disk has {:.2} GB left",
            self.output.display(),
            gigabytes(bytes),
            gigabytes(free)
        );
        Err(Error::new(ErrorCode::DiskFull, message).with_hint(DISK_HINT))
    }

    /// Writes a file of the result through `fill`.
    ///
    /// # Errors
    /// `DISK_FULL`, `INVALID_ARGUMENT` for a place that cannot be written to, `ABORTED`.
    pub fn write<T>(
        &mut self,
        name: &str,
        watch: &Watch<'_>,
        fill: impl FnOnce(&mut WholePages<Hashed<'_>>) -> Result<T, WriteError>,
    ) -> Result<T> {
        let path = self.folder.join(name);
        let written = (|| {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let hashed = Hashed { file: File::create(&path)?, hash: Sha256::new(), bytes: 0, watch };
            let mut out = WholePages::new(hashed);
            let value = fill(&mut out)?;
            let hashed = out.finish()?;
            hashed.file.sync_all()?;
            Ok((value, ManifestFile { bytes: hashed.bytes, sha256: hexadecimal(hashed.hash) }))
        })();
        match written {
            Ok((value, file)) => {
                self.files.insert(name.to_owned(), file);
                Ok(value)
            }
            Err(WriteError::Model(error)) => Err(error),
            Err(WriteError::Io(error)) => {
                // The writers know of no other failure than the system's.
                watch.cancellation.check()?;
                Err(self.write_error(name, &error))
            }
        }
    }

    /// Sizes and checksums of the files so far.
    pub fn files(&self) -> &BTreeMap<String, ManifestFile> {
        &self.files
    }

    /// Moves the folder to its place.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when something else is there by now.
    pub fn finish(mut self) -> Result<()> {
        sync(&self.folder);
        fs::rename(&self.folder, &self.output).map_err(|error| self.write_error("", &error))?;
        self.moved = true;
        // Behind the move: whoever waits for the lock finds the old place empty.
        let _ = fs::remove_file(self.output.join(LOCK));
        if let Some(parent) = self.output.parent() {
            sync(parent);
        }
        Ok(())
    }

    /// Removes everything but the lock.
    fn clear(&self) -> Result<()> {
        let failed = |error: io::Error| self.write_error("", &error);
        for entry in fs::read_dir(&self.folder).map_err(failed)?.flatten() {
            if entry.file_name() == LOCK {
                continue;
            }
            let path = entry.path();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.map_err(failed)?;
        }
        Ok(())
    }

    fn write_error(&self, name: &str, error: &io::Error) -> Error {
        write_error(&self.output.join(name), error)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.moved {
            // What is half written is of no use, and fills the disk.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

const DISK_HINT: &str = "Free some space, write to another disk, or quantise to fewer bits.";

fn write_error(path: &Path, error: &io::Error) -> Error {
    use io::ErrorKind;
    let message = format!("{}: {error}", path.display());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Error::new(ErrorCode::DiskFull, message).with_hint(DISK_HINT)
        }
        _ => Error::new(ErrorCode::InvalidArgument, message)
            .with_hint("Give an output folder that can be written to."),
    }
}

/// Makes the folder and locks it.
fn lock(folder: &Path, output: &Path) -> Result<File> {
    let failed = |error: io::Error| write_error(output, &error);
    let path = folder.join(LOCK);
    loop {
        fs::create_dir_all(folder).map_err(failed)?;
        let opened = File::options().write(true).create(true).truncate(false).open(&path);
        let file = match opened {
            // The folder was moved away in between.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(failed)?,
        };
        match file.try_lock() {
            Ok(()) if is_at(&file, &path) => return Ok(file),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!("{}: another process converts to this folder", output.display());
                return Err(Error::new(ErrorCode::StoreLocked, message)
                    .with_hint("Wait for it to end, or give another output folder."));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}

/// Whether `path` still is the file that was opened there.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(opened), Ok(found)) => (opened.dev(), opened.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_file: &File, path: &Path) -> bool {
    path.exists()
}

/// Makes what happened in `folder` outlast a loss of power, where the system can do so.
fn sync(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// Why a file could not be written.
#[derive(Debug)]
pub enum WriteError {
    /// The system refused.
    Io(io::Error),
    /// What should be written cannot be.
    Model(Error),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for WriteError {
    fn from(error: Error) -> Self {
        Self::Model(error)
    }
}

impl From<llamavid_weights::Error> for WriteError {
    fn from(error: llamavid_weights::Error) -> Self {
        Self::Model(error.into())
    }
}

/// Counts what is written, and ends the work when it is cancelled.
pub struct Watch<'a> {
    cancellation: &'a Cancellation,
    on_progress: OnProgress<'a>,
    done: AtomicU64,
    total: u64,
}

impl<'a> Watch<'a> {
    /// Of a result of `total` bytes.
    pub fn new(cancellation: &'a Cancellation, on_progress: OnProgress<'a>, total: u64) -> Self {
        Self { cancellation, on_progress, done: AtomicU64::new(0), total }
    }
}

/// A file whose checksum is worked out while it is written.
pub struct Hashed<'a> {
    file: File,
    hash: Sha256,
    bytes: u64,
    watch: &'a Watch<'a>,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.watch.cancellation.check().is_err() {
            return Err(io::Error::other("cancelled"));
        }
        let count = self.file.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.bytes += count as u64;
        let done = self.watch.done.fetch_add(count as u64, Ordering::Relaxed) + count as u64;
        // The manifest comes on top.
        let total = self.watch.total;
        (self.watch.on_progress)(Progress { done: done.min(total), total });
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
