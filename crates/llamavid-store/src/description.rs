//! What features are of: everything that they depend on.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::VERSION;

/// How a feature's number is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precision {
    /// In 16 bits: as they are where they were computed in 16 bits, else rounded once to f16.
    #[default]
    #[serde(rename = "16bit")]
    Sixteen,
    /// In 8 bits with a scale for each row.
    #[serde(rename = "8bit")]
    Eight,
}

/// What features depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// What the source was called. Nothing depends on it.
    pub source: String,
    /// Hash of the source's bytes.
    pub content: String,
    /// How frames were asked for, in the caller's words.
    pub sampling: String,
    /// Hash of how frames become pixels.
    pub preprocessing: String,
    /// Hash of the encoder's weights, and of how it computes.
    pub encoder: String,
    /// How the numbers are stored.
    pub precision: Precision,
}

impl Description {
    /// The name of the video's folder.
    pub fn key(&self) -> String {
        let precision = match self.precision {
            Precision::Sixteen => "16bit",
            Precision::Eight => "8bit",
        };
        let mut hash = Sha256::new();
        for part in [self.content.as_str(), &self.sampling, &self.preprocessing, &self.encoder, precision] {
            // With their lengths, so that no two lists of parts are the same bytes.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update(VERSION.to_le_bytes());
        hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Whether `key` can be a video's folder.
pub(crate) fn is_key(key: &str) -> bool {
    key.len() == 32 && key.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_depends_on_everything_but_the_name() {
        let one = Description {
            source: "a.mp4".into(),
            content: "1".into(),
            sampling: "1 fps".into(),
            preprocessing: "2".into(),
            encoder: "3".into(),
            precision: Precision::Sixteen,
        };
        assert!(is_key(&one.key()));
        assert_eq!(Description { source: "b.mp4".into(), ..one.clone() }.key(), one.key());
        let others = [
            Description { content: "4".into(), ..one.clone() },
            Description { sampling: "2 fps".into(), ..one.clone() },
            Description { preprocessing: "4".into(), ..one.clone() },
            Description { encoder: "4".into(), ..one.clone() },
            Description { precision: Precision::Eight, ..one.clone() },
        ];
        for other in others {
            assert_ne!(other.key(), one.key());
        }
    }
}
