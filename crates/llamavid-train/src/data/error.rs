//! What can be wrong with training data, with the facts that name the place.

use std::fmt;
use std::path::{Path, PathBuf};

use llamavid_weights::shown;

/// Result of reading training data.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the training data. A [`Fault`] is one record's; every other variant is a whole file's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file that is no list of records: not JSON, cut short, or something else.
    #[error("{}: {problem}, at byte {offset} (line {line})", file.display())]
    NotRecords {
        /// The file.
        file: PathBuf,
        /// Where, in bytes from the start.
        offset: u64,
        /// The line of that byte, from 1.
        line: u64,
        /// What was expected and what was found.
        problem: String,
    },
    /// A list without a record.
    #[error("{}: the list has no records", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// A list that was written to after it was opened.
    #[error("{}: the file has changed since it was opened", file.display())]
    Changed {
        /// The file.
        file: PathBuf,
    },
    /// A record's number beyond the list.
    #[error("{}: there is no record {record}, the list has {records}", file.display())]
    NoSuchRecord {
        /// The file.
        file: PathBuf,
        /// What was asked for, from 0.
        record: usize,
        /// Records of the list.
        records: usize,
    },
    /// A record that cannot be used.
    #[error("{}: record {record}{}: {fault}", file.display(), named(id.as_deref()))]
    Record {
        /// The list.
        file: PathBuf,
        /// The record's number in the list, from 0.
        record: usize,
        /// Its id, if it has one.
        id: Option<String>,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A record that makes no sample.
    #[error("record `{id}`: {fault}")]
    Sample {
        /// The record's id.
        id: String,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A feature file that cannot be used.
    #[error("{}: {problem}", file.display())]
    Features {
        /// The file.
        file: PathBuf,
        /// What was expected and what was found.
        problem: String,
    },
    /// A feature file that cannot be read.
    #[error(transparent)]
    Weights(#[from] llamavid_weights::Error),
    /// A template that no labels can be made for.
    #[error("template `{name}`: {problem}")]
    Template {
        /// The template's name.
        name: String,
        /// What is missing and what there is.
        problem: String,
    },
    /// The caller cancelled the work.
    #[error("reading the training data was cancelled")]
    Cancelled,
    /// A setting outside its range.
    #[error("{name}: {problem}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What it is and what it should be.
        problem: String,
    },
}

impl Error {
    pub(crate) fn io(file: &Path, source: std::io::Error) -> Self {
        Self::Io { file: file.to_path_buf(), source }
    }

    /// The fault of one record, if this is about one.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Record { fault, .. } | Self::Sample { fault, .. } => Some(fault),
            _ => None,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotRecords { .. } => Some(
                "Expected LLaVA's format: a JSON list of objects with `conversations`, or one such object a line. \
                 If the download was cut short, fetch the file again.",
            ),
            Self::Changed { .. } => Some("Start again; a list must not be written to while it is read."),
            Self::Record { fault, .. } | Self::Sample { fault, .. } => fault.code.hint(),
            Self::Weights(error) => error.hint(),
            _ => None,
        }
    }
}

fn named(id: Option<&str>) -> String {
    id.map(|id| format!(" (id `{}`)", shown(id))).unwrap_or_default()
}

/// What is wrong with one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind of fault it is.
    pub code: FaultCode,
    /// Where in the record, for instance `conversations[3].value`; empty for the record as a whole.
    pub field: String,
    /// What was expected and what was found.
    pub problem: String,
}

impl Fault {
    pub(crate) fn new(code: FaultCode, field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { code, field: field.into(), problem: problem.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => f.write_str(&self.problem),
            field => write!(f, "`{field}`: {}", self.problem),
        }
    }
}

/// The kinds of faults, as programs tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultCode {
    /// An element of the list that is no object, or whose text is not Unicode.
    NotARecord,
    /// A record larger than is read.
    TooLarge,
    /// A field that is missing or of another type.
    WrongType,
    /// No messages, or none behind a greeting.
    EmptyConversation,
    /// A message from somebody who is neither `human` nor `gpt`.
    WrongSpeaker,
    /// Questions and answers do not take turns.
    WrongOrder,
    /// A question without a word or a tag.
    EmptyQuestion,
    /// An answer without a word: there is nothing to learn.
    EmptyAnswer,
    /// `<image>` tags that do not match what the record shows.
    TagMismatch,
    /// Both an image and a video.
    TwoMedia,
    /// A path that leads out of its folder.
    UnsafePath,
    /// A picture, video or feature file that is not there.
    MissingFile,
    /// A picture that cannot be read.
    UnreadablePicture,
    /// A feature file that cannot be read or does not fit.
    UnreadableFeatures,
    /// All labels are masked, so nothing is learned ("tokenization mismatch" in the reference).
    FullyMasked,
    /// More ids than the maximum length.
    Cut,
    /// The template has no place for such a record.
    Template,
}

impl FaultCode {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::NotARecord,
        Self::TooLarge,
        Self::WrongType,
        Self::EmptyConversation,
        Self::WrongSpeaker,
        Self::WrongOrder,
        Self::EmptyQuestion,
        Self::EmptyAnswer,
        Self::TagMismatch,
        Self::TwoMedia,
        Self::UnsafePath,
        Self::MissingFile,
        Self::UnreadablePicture,
        Self::UnreadableFeatures,
        Self::FullyMasked,
        Self::Cut,
        Self::Template,
    ];

    /// The code as reports write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotARecord => "not_a_record",
            Self::TooLarge => "too_large",
            Self::WrongType => "wrong_type",
            Self::EmptyConversation => "empty_conversation",
            Self::WrongSpeaker => "wrong_speaker",
            Self::WrongOrder => "wrong_order",
            Self::EmptyQuestion => "empty_question",
            Self::EmptyAnswer => "empty_answer",
            Self::TagMismatch => "tag_mismatch",
            Self::TwoMedia => "two_media",
            Self::UnsafePath => "unsafe_path",
            Self::MissingFile => "missing_file",
            Self::UnreadablePicture => "unreadable_picture",
            Self::UnreadableFeatures => "unreadable_features",
            Self::FullyMasked => "fully_masked",
            Self::Cut => "cut",
            Self::Template => "template",
        }
    }

    /// What the user can do about it.
    pub fn hint(self) -> Option<&'static str> {
        match self {
            Self::WrongSpeaker => Some("Messages are from `human` or `gpt`."),
            Self::WrongOrder => {
                Some("Questions (`human`) and answers (`gpt`) take turns and end with an answer.")
            }
            Self::TagMismatch => {
                Some("Put one `<image>` into the first question of a record with a picture or a video.")
            }
            Self::TwoMedia => Some("Make two records of it."),
            Self::UnsafePath => {
                Some("Paths are relative to the folder of pictures or videos and stay inside it.")
            }
            Self::MissingFile => Some("Check the folder that was given, or fetch the file."),
            Self::FullyMasked => Some("Look for a separator of the template inside the text."),
            Self::Cut => Some("Split long chats, or raise the maximum length."),
            _ => None,
        }
    }
}

impl fmt::Display for FaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
