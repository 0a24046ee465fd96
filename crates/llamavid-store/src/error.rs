//! What can go wrong with a store.

use std::io;
use std::path::{Path, PathBuf};

/// Result of the store's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and with which file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is damaged, of another version, or not what its name says.
    #[error("{}: {problem}", file.display())]
    Invalid {
        /// The file or folder.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Another writer has the video.
    #[error("{}: another process writes the features of this video", folder.display())]
    Locked {
        /// The video's folder.
        folder: PathBuf,
    },
    /// The system has no room for a file.
    #[error("{}: the disk is full", file.display())]
    DiskFull {
        /// The file that was written.
        file: PathBuf,
    },
    /// The system refuses to read or write.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// What the caller gave does not fit.
    #[error("{0}")]
    Argument(String),
}

impl Error {
    pub(crate) fn io(file: &Path, source: io::Error) -> Self {
        let file = file.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { file },
            _ => Self::Io { file, source },
        }
    }

    pub(crate) fn invalid(file: &Path, problem: impl Into<String>) -> Self {
        Self::Invalid { file: file.to_path_buf(), problem: problem.into() }
    }
}
