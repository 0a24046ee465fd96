//! The one error type that leaves Rust: a code that programs act on, a message and a hint for people.

use std::fmt;

/// Result of the runtime's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! error_codes {
    ($($variant:ident = $name:literal: $meaning:literal,)*) => {
        /// What went wrong, for programs. The names never change; new ones may come.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $(#[doc = $meaning] $variant,)*
        }

        impl ErrorCode {
            /// All codes, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The code's name, `MEDIA_NOT_FOUND`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

error_codes! {
    MediaNotFound = "MEDIA_NOT_FOUND": "There is no such video, picture or folder.",
    MediaUnreadable = "MEDIA_UNREADABLE": "The bytes are not a video or picture that can be read.",
    MediaNoVideo = "MEDIA_NO_VIDEO": "The file has no pictures, only sound for instance.",
    MediaNoAudio = "MEDIA_NO_AUDIO": "The file has no sound.",
    MediaTruncated = "MEDIA_TRUNCATED": "The file ends too early.",
    MediaTooLarge = "MEDIA_TOO_LARGE": "The picture or file is over the limit.",
    ModelNotFound = "MODEL_NOT_FOUND": "There is no such model.",
    ModelFileMissing = "MODEL_FILE_MISSING": "The model's folder lacks a file.",
    ModelInvalid = "MODEL_INVALID": "A file of the model is damaged or contradicts another.",
    ModelUnsupported = "MODEL_UNSUPPORTED": "The model is of a kind that is not supported.",
    ContextOverflow = "CONTEXT_OVERFLOW": "The prompt does not fit the model's context.",
    OutOfMemory = "OUT_OF_MEMORY": "The device or the machine has no memory left.",
    DeviceUnavailable = "DEVICE_UNAVAILABLE": "The device does not exist or this build cannot use it.",
    StoreInvalid = "STORE_INVALID": "The feature store holds something else.",
    StoreLocked = "STORE_LOCKED": "Another process writes to the feature store or to the output folder.",
    DataInvalid = "DATA_INVALID": "A data file or record is wrong.",
    TrainingDiverged = "TRAINING_DIVERGED": "The loss or a gradient is no number any more.",
    DiskFull = "DISK_FULL": "The disk is full.",
    HubError = "HUB_ERROR": "The model hub did not answer as expected.",
    InvalidArgument = "INVALID_ARGUMENT": "An argument is outside its range.",
    HandleClosed = "HANDLE_CLOSED": "The object was used after `close`.",
    Aborted = "ABORTED": "The caller cancelled the work.",
    Internal = "INTERNAL": "A bug.",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// An error with its code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// For programs.
    pub code: ErrorCode,
    /// What happened and where: path, key, shape, frame.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Error {
    /// An error without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// The same error with advice.
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// What a device says in words, which is all that candle keeps of its errors.
    pub(crate) fn of_device(message: String) -> Self {
        let lower = message.to_lowercase();
        // The driver, the runtime, cuBLAS.
        let full = ["out_of_memory", "out of memory", "cublas_status_alloc_failed"];
        if full.iter().any(|text| lower.contains(text)) {
            return Self::new(ErrorCode::OutOfMemory, message)
                .with_hint("Close what is not needed, take fewer frames, or load with a smaller dtype.");
        }
        Self::new(ErrorCode::Internal, message)
    }

    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::of_device(error.to_string())
    }
}

impl From<llamavid_weights::Error> for Error {
    fn from(error: llamavid_weights::Error) -> Self {
        use llamavid_weights::{Error as Weights, ErrorKind};
        let code = match error.kind() {
            ErrorKind::Missing => ErrorCode::ModelFileMissing,
            ErrorKind::Invalid => ErrorCode::ModelInvalid,
            ErrorKind::Unsupported => ErrorCode::ModelUnsupported,
            ErrorKind::Io => match error {
                Weights::Tensor(error) => return error.into(),
                _ => ErrorCode::ModelInvalid,
            },
        };
        Self { code, message: error.message(), hint: error.hint().map(str::to_owned) }
    }
}

impl From<llamavid_models::Error> for Error {
    fn from(error: llamavid_models::Error) -> Self {
        use llamavid_models::Error as Model;
        let message = error.to_string();
        match error {
            Model::Tensor(error) => error.into(),
            Model::Config { .. } | Model::Tokenizer(_) => Self::new(ErrorCode::ModelInvalid, message)
                .with_hint("Correct the file, or download the model again."),
            Model::Unsupported { .. } => Self::new(ErrorCode::ModelUnsupported, message)
                .with_hint("Use a checkpoint of the kind that the message names."),
            Model::Prompt(_) | Model::Argument(_) => Self::new(ErrorCode::InvalidArgument, message),
            Model::Shares { .. } => Self::new(ErrorCode::InvalidArgument, message)
                .with_hint("Take another number of devices, or let each have whole layers (split: layers)."),
            Model::ContextOverflow { .. } => Self::new(ErrorCode::ContextOverflow, message)
                .with_hint("Take fewer frames, a shorter conversation, or a model with a longer context."),
        }
    }
}

impl From<llamavid_train::Error> for Error {
    fn from(error: llamavid_train::Error) -> Self {
        use llamavid_train::Error as Train;
        let (mut message, hint) = (error.to_string(), error.hint());
        if let Train::NotFinite { step, quantity, value, ids } = &error {
            // Reports count steps from 1.
            message = format!("step {}: the {quantity} is {value}; records: {}", step + 1, ids.join(", "));
        }
        let code = match error {
            Train::Tensor(error) => return error.into(),
            Train::Model(error) => return error.into(),
            Train::Weights(error) => return error.into(),
            Train::Setting { .. } => ErrorCode::InvalidArgument,
            Train::State { .. } => ErrorCode::ModelInvalid,
            Train::NotFinite { .. } => ErrorCode::TrainingDiverged,
            Train::DiskFull { .. } => ErrorCode::DiskFull,
            Train::Io { ref source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                ErrorCode::ModelFileMissing
            }
            Train::Io { .. } => ErrorCode::ModelInvalid,
            Train::Locked { .. } => ErrorCode::StoreLocked,
            Train::Cancelled { .. } => ErrorCode::Aborted,
        };
        Self { code, message, hint: hint.map(str::to_owned) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_variants_in_capitals() {
        for code in ErrorCode::ALL {
            let mut name = String::new();
            for letter in format!("{code:?}").chars() {
                if letter.is_uppercase() && !name.is_empty() {
                    name.push('_');
                }
                name.extend(letter.to_uppercase());
            }
            assert_eq!(code.name(), name);
        }
    }

    #[test]
    fn a_full_device_has_its_own_code() {
        for text in [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "CublasError(CUBLAS_STATUS_ALLOC_FAILED)",
        ] {
            let error = candle_core::Error::Msg(text.into());
            assert_eq!(Error::from(error).code, ErrorCode::OutOfMemory, "{text}");
        }
        assert_eq!(Error::from(candle_core::Error::Msg("rank".into())).code, ErrorCode::Internal);
    }
}
