//! One record of LLaVA's format: a conversation and what it is about.

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// `human`, who asks.
    Human,
    /// `gpt`, whose answers are learned.
    Gpt,
}

impl Speaker {
    /// The speaker as records write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Gpt => "gpt",
        }
    }

    /// The speaker of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        [Self::Human, Self::Gpt].into_iter().find(|speaker| speaker.name() == name)
    }
}

/// A question or an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub from: Speaker,
    /// What is said, with `<image>` where the picture or video belongs.
    pub value: String,
}

/// What a conversation is about. Paths are as the record writes them, relative to the folder of their kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Media {
    /// Nothing: text alone.
    None,
    /// A picture.
    Image(String),
    /// A video file.
    Video(String),
    /// Features of a long video that were computed before (`.pkl` or `.safetensors`).
    Features(String),
}

impl Media {
    /// A video's path, told apart from features by its ending.
    pub fn video(path: String) -> Self {
        let ending = path.rsplit_once('.').map(|(_, ending)| ending);
        match ending {
            Some("pkl" | "safetensors") => Self::Features(path),
            _ => Self::Video(path),
        }
    }

    /// The path, if there is something to look at.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Image(path) | Self::Video(path) | Self::Features(path) => Some(path),
        }
    }
}

/// A conversation and what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The record's id, which need not be unique; `#` and the record's number where it has none.
    pub id: String,
    /// What the conversation is about.
    pub media: Media,
    /// Questions and answers.
    pub turns: Vec<Message>,
}
