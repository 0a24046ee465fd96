//! A file's bytes without a copy: the pages are read when a tensor is.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

use crate::error::{Error, Result};

/// A regular file, mapped into memory for as long as this value lives.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    /// Absent for an empty file, which cannot be mapped everywhere.
    map: Option<Mmap>,
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let io_error = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => {
                Error::FileMissing { file: path.to_path_buf(), needed: "it holds weights".to_string() }
            }
            _ => Error::Io { file: path.to_path_buf(), source },
        };
        // Before opening: opening a pipe would wait for a writer.
        let metadata = fs::metadata(path).map_err(io_error)?;
        if !metadata.is_file() {
            let found = if metadata.is_dir() { "a folder" } else { "a device or a pipe" };
            let problem = format!("expected a file, found {found}");
            return Err(Error::InvalidFile { file: path.to_path_buf(), problem });
        }
        let file = File::open(path).map_err(io_error)?;
        let map = if metadata.len() == 0 {
            None
        } else {
            // SAFETY: the map is only read, and every read is checked against its length. As with any mapped file,
            // another process must not cut the file short while it is in use.
            let map = unsafe { Mmap::map(&file) }.map_err(io_error)?;
            // What is read from the disk comes in the pages that `writer::WholePages` writes. A system that has none keeps to small ones.
            #[cfg(target_os = "linux")]
            let _ = map.advise(Advice::HugePage);
            Some(map)
        };
        Ok(Self { path: path.to_path_buf(), map })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// Gives the memory of these bytes back to the system, which reads them from the file again when they are asked for.
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some(map) = &self.map
            && range.end <= map.len()
        {
            // SAFETY: the map is shared with an unchanged file and only read, so its pages come back as they were.
            // Where the system refuses, they stay.
            let _ =
                unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
