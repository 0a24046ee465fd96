//! What can go wrong in training, with the facts that name the cause.

use std::path::PathBuf;

/// Result of the trainer's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of training.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed, for instance because the device has no memory left.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The model refused its input or its configuration.
    #[error(transparent)]
    Model(#[from] llamavid_models::Error),
    /// A weight file could not be read.
    #[error(transparent)]
    Weights(#[from] llamavid_weights::Error),
    /// A setting outside its range.
    #[error("{name}: {problem}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What it is and what it should be.
        problem: String,
    },
    /// Stored training state that does not belong to this run.
    #[error("{}: {problem}", file.display())]
    State {
        /// The file.
        file: PathBuf,
        /// What was expected and what was found.
        problem: String,
    },
    /// The loss or a gradient is no number any more.
    #[error("step {step}: the {quantity} is {value}; samples of the step: {}", ids.join(", "))]
    NotFinite {
        /// The step that failed; the weights are those before it.
        step: u64,
        /// `loss` or `gradient norm`.
        quantity: &'static str,
        /// NaN or an infinity.
        value: f64,
        /// Ids of the step's samples.
        ids: Vec<String>,
    },
    /// No room on the disk; what was there before is untouched.
    #[error("{}: the disk is full; the checkpoints before this one are complete", path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// A file or folder could not be written or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Another run writes to the same folder.
    #[error("{}: {} trains into this folder", folder.display(), process.map_or("another process".to_owned(), |id| format!("process {id}")))]
    Locked {
        /// The output folder.
        folder: PathBuf,
        /// Its process id, where it can be read.
        process: Option<u32>,
    },
    /// The caller cancelled the work.
    #[error("training was cancelled at step {step}")]
    Cancelled {
        /// The step that was not finished.
        step: u64,
    },
}

impl Error {
    /// An input or output error at `path`, a full disk told apart.
    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { path, source },
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotFinite { .. } => Some(
                "Lower the learning rate, clip the gradient norm, or look at the named samples; the last checkpoint is good.",
            ),
            Self::DiskFull { .. } => {
                Some("Make room and resume from the last checkpoint, or keep fewer of them.")
            }
            Self::Locked { .. } => Some("Wait for that run to end, or give another output folder."),
            Self::State { .. } => Some("Resume with the settings that the checkpoint was made with."),
            Self::Weights(error) => error.hint(),
            _ => None,
        }
    }
}
