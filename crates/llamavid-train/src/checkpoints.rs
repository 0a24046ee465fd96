//! Folders `checkpoint-N` that are whole or not there.
//!
//! A checkpoint is written under another name, synchronised with the disk, and then moved; older ones go only after
//! that. So at any moment, power failures and full disks included, the last complete one can be resumed from.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files;

const PREFIX: &str = "checkpoint-";
const UNFINISHED: &str = ".unfinished-checkpoint-";
const LOCK: &str = "training.lock";

/// The checkpoints of one run's output folder.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: Option<usize>,
}

impl Checkpoints {
    /// Checkpoints in `folder`, which is made if need be. Of those that are complete, the last `keep` stay, or all.
    ///
    /// Hold an [`OutputLock`]: what another run left unfinished is removed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(folder: &Path, keep: Option<usize>) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        let opened = Self { folder: folder.to_path_buf(), keep };
        for entry in opened.entries(UNFINISHED)? {
            fs::remove_dir_all(&entry.1).map_err(|error| Error::io(&entry.1, error))?;
        }
        Ok(opened)
    }

    /// Complete checkpoints with their steps, the oldest first.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>> {
        self.entries(PREFIX)
    }

    /// The last complete checkpoint.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn latest(&self) -> Result<Option<PathBuf>> {
        Ok(self.list()?.pop().map(|(_, path)| path))
    }

    /// Makes `checkpoint-STEP` of the files that `fill` writes into the folder it is given, and removes what is too old.
    ///
    /// # Errors
    /// [`Error::DiskFull`], [`Error::Io`], and those of `fill`. The checkpoints before are untouched then.
    pub fn save(&self, step: u64, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let unfinished = self.folder.join(format!("{UNFINISHED}{step}"));
        let complete = self.folder.join(format!("{PREFIX}{step}"));
        let write = || -> Result<()> {
            remove_if_there(&unfinished)?;
            fs::create_dir_all(&unfinished).map_err(|error| Error::io(&unfinished, error))?;
            fill(&unfinished)?;
            files::sync_folder(Some(&unfinished));
            // One of the same step is of a run that was resumed from before it.
            remove_if_there(&complete)?;
            fs::rename(&unfinished, &complete).map_err(|error| Error::io(&complete, error))
        };
        if let Err(error) = write() {
            // What is half written may be what fills the disk.
            let _ = fs::remove_dir_all(&unfinished);
            return Err(error);
        }
        files::sync_folder(Some(&self.folder));
        self.remove_old()?;
        Ok(complete)
    }

    fn remove_old(&self) -> Result<()> {
        let Some(keep) = self.keep else { return Ok(()) };
        let mut checkpoints = self.list()?;
        checkpoints.truncate(checkpoints.len().saturating_sub(keep.max(1)));
        checkpoints.iter().try_for_each(|(_, path)| remove_if_there(path))
    }

    fn entries(&self, prefix: &str) -> Result<Vec<(u64, PathBuf)>> {
        let read = fs::read_dir(&self.folder).map_err(|error| Error::io(&self.folder, error))?;
        let mut found: Vec<(u64, PathBuf)> = read
            .flatten()
            .filter_map(|entry| {
                let step = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
                entry.path().is_dir().then(|| (step, entry.path()))
            })
            .collect();
        found.sort();
        Ok(found)
    }
}

/// Removes a folder under another name first, so that a complete checkpoint never loses single files.
fn remove_if_there(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let step = folder.file_name().and_then(|name| name.to_str()?.rsplit('-').next()).unwrap_or("0");
    let doomed = folder.with_file_name(format!("{UNFINISHED}{step}"));
    if doomed != folder {
        if doomed.exists() {
            // Being written right now, to take this one's place.
            return fs::remove_dir_all(folder).map_err(|error| Error::io(folder, error));
        }
        fs::rename(folder, &doomed).map_err(|error| Error::io(folder, error))?;
    }
    fs::remove_dir_all(&doomed).map_err(|error| Error::io(&doomed, error))
}

/// Holds an output folder for one run. The system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct OutputLock {
    _file: File,
}

impl OutputLock {
    /// Takes the folder, which is made if need be.
    ///
    /// # Errors
    /// [`Error::Locked`] while another process has it.
    pub fn acquire(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        let path = folder.join(LOCK);
        let failed = |error| Error::io(&path, error);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut process = String::new();
                let _ = file.read_to_string(&mut process);
                let process = process.trim().parse().ok();
                return Err(Error::Locked { folder: folder.to_path_buf(), process });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}
