//! What can be wrong with a weight file, with the facts and with what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

/// Result of reading weights.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The four ways in which reading weights fails; each is one error code further up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A file that should be there is not.
    Missing,
    /// A file is damaged, hostile, or does not hold what the model needs.
    Invalid,
    /// A file is well-formed, and holds something that cannot be used here.
    Unsupported,
    /// The system refused to read, or the device refused to take the data.
    Io,
}

/// An error of the weight files. [`Display`](fmt::Display) is [`Error::message`] followed by [`Error::hint`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that should be there is not.
    FileMissing {
        /// The path that was looked for.
        file: PathBuf,
        /// Why it is needed.
        needed: String,
    },
    /// The system refused to read.
    Io {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The file as a whole is damaged, hostile or not a checkpoint.
    InvalidFile {
        /// The file.
        file: PathBuf,
        /// What was expected and what was found.
        problem: String,
    },
    /// The file as a whole is of a kind that is not read.
    UnsupportedFile {
        /// The file.
        file: PathBuf,
        /// What was found and what is read.
        problem: String,
    },
    /// One tensor of the file is damaged.
    InvalidTensor {
        /// The file.
        file: PathBuf,
        /// The tensor's name in the file.
        key: String,
        /// What was expected and what was found.
        problem: String,
    },
    /// One tensor of the file is of a kind that is not read.
    UnsupportedTensor {
        /// The file.
        file: PathBuf,
        /// The tensor's name in the file.
        key: String,
        /// What was found and what is read.
        problem: String,
    },
    /// The model needs a tensor that no file has.
    TensorMissing {
        /// The file or folder that was searched.
        file: PathBuf,
        /// The tensor's name in the file.
        key: String,
    },
    /// A tensor has another shape than the configuration asks for.
    ShapeMismatch {
        /// The file.
        file: PathBuf,
        /// The tensor's name in the file.
        key: String,
        /// The shape that the configuration asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor holds a value that is not a finite number.
    NotFinite {
        /// The file.
        file: PathBuf,
        /// The tensor's name in the file.
        key: String,
        /// Position of the first such value, row by row.
        index: usize,
        /// The value in the file.
        value: f64,
        /// Set when the value is finite in the file and only overflows in this dtype.
        overflows: Option<&'static str>,
    },
    /// The files hold tensors that the configured model has no place for.
    Unused {
        /// The file or folder.
        file: PathBuf,
        /// The first such names, ten at most.
        keys: Vec<String>,
        /// How many there are.
        count: usize,
    },
    /// A tensor operation failed, for instance because the device has no memory left.
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// The kind, from which the callers' error code follows.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::FileMissing { .. } => ErrorKind::Missing,
            Self::InvalidFile { .. }
            | Self::InvalidTensor { .. }
            | Self::TensorMissing { .. }
            | Self::ShapeMismatch { .. }
            | Self::NotFinite { overflows: None, .. }
            | Self::Unused { .. } => ErrorKind::Invalid,
            Self::UnsupportedFile { .. }
            | Self::UnsupportedTensor { .. }
            | Self::NotFinite { overflows: Some(_), .. } => ErrorKind::Unsupported,
            Self::Io { .. } | Self::Tensor(_) => ErrorKind::Io,
        }
    }

    /// The facts: file, tensor, what was expected and what was found.
    pub fn message(&self) -> String {
        match self {
            Self::FileMissing { file, needed } => format!("{}: no such file; {needed}", file.display()),
            Self::Io { file, source } => format!("{}: cannot be read: {source}", file.display()),
            Self::InvalidFile { file, problem } | Self::UnsupportedFile { file, problem } => {
                format!("{}: {problem}", file.display())
            }
            Self::InvalidTensor { file, key, problem } | Self::UnsupportedTensor { file, key, problem } => {
                format!("{}: tensor `{key}`: {problem}", file.display())
            }
            Self::TensorMissing { file, key } => {
                format!("{}: tensor `{key}` is needed and not there", file.display())
            }
            Self::ShapeMismatch { file, key, expected, found } => {
                format!("{}: tensor `{key}`: expected shape {expected:?}, found {found:?}", file.display())
            }
            Self::NotFinite { file, key, index, value, overflows: None } => format!(
                "{}: tensor `{key}`: expected finite numbers, found {value} at element {index}",
                file.display()
            ),
            Self::NotFinite { file, key, index, value, overflows: Some(dtype) } => format!(
                "{}: tensor `{key}`: {value} at element {index} is too large for {dtype}",
                file.display()
            ),
            Self::Unused { file, keys, count } => {
                let more = if *count > keys.len() {
                    format!(" and {} more", count - keys.len())
                } else {
                    String::new()
                };
                let names: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
                format!(
                    "{}: the configured model has no place for {}{more}",
                    file.display(),
                    names.join(", ")
                )
            }
            Self::Tensor(error) => error.to_string(),
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::FileMissing { .. } => Some("Download the missing file, or correct the path."),
            Self::Io { .. } => Some("Check the permissions and the disk."),
            Self::InvalidFile { .. } | Self::InvalidTensor { .. } => {
                Some("Download the file again and compare its size and checksum with the source.")
            }
            Self::UnsupportedFile { .. } | Self::UnsupportedTensor { .. } => {
                Some("Save the weights as safetensors, or with torch.save, in f32, f16 or bf16.")
            }
            Self::TensorMissing { .. } => {
                Some("Check that all files of the checkpoint are there and that config.json belongs to them.")
            }
            Self::ShapeMismatch { .. } => {
                Some("Check that config.json belongs to this checkpoint and describes its sizes.")
            }
            Self::NotFinite { overflows: None, .. } => {
                Some("The checkpoint is damaged or its training diverged; use another one.")
            }
            Self::NotFinite { overflows: Some(_), .. } => Some("Load the model as bf16 or f32."),
            Self::Unused { .. } => Some(
                "Check that config.json belongs to this checkpoint: it describes a smaller or another model.",
            ),
            Self::Tensor(_) => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())?;
        match self.hint() {
            Some(hint) => write!(f, ". {hint}"),
            None => Ok(()),
        }
    }
}

/// What a parser found wrong, before the file's name is put to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Damaged or hostile.
    Invalid(String),
    /// Well-formed and not read here.
    Unsupported(String),
}

impl Fault {
    pub(crate) fn invalid(problem: impl Into<String>) -> Self {
        Self::Invalid(problem.into())
    }

    pub(crate) fn unsupported(problem: impl Into<String>) -> Self {
        Self::Unsupported(problem.into())
    }

    /// The same fault, with the place where it was found in front.
    pub(crate) fn at(self, place: impl fmt::Display) -> Self {
        match self {
            Self::Invalid(problem) => Self::Invalid(format!("{place}: {problem}")),
            Self::Unsupported(problem) => Self::Unsupported(format!("{place}: {problem}")),
        }
    }

    pub(crate) fn in_file(self, file: &Path) -> Error {
        let file = file.to_path_buf();
        match self {
            Self::Invalid(problem) => Error::InvalidFile { file, problem },
            Self::Unsupported(problem) => Error::UnsupportedFile { file, problem },
        }
    }

    pub(crate) fn in_tensor(self, file: &Path, key: &str) -> Error {
        let (file, key) = (file.to_path_buf(), key.to_string());
        match self {
            Self::Invalid(problem) => Error::InvalidTensor { file, key, problem },
            Self::Unsupported(problem) => Error::UnsupportedTensor { file, key, problem },
        }
    }
}

/// Text of a file as a message shows it: cut, and with its control characters escaped.
pub fn shown(text: &str) -> String {
    const MOST: usize = 100;
    let mut shown: String = text.chars().take(MOST).flat_map(char::escape_debug).collect();
    if text.chars().nth(MOST).is_some() {
        shown.push('…');
    }
    shown
}
