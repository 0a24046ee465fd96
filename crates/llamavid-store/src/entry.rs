//! `entry.json` of a video: what its features are of and, once all are there, how its frames were chosen.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::description::Description;
use crate::error::{Error, Result};
use crate::{VERSION, files};

/// The times of a day's frames are 2 MB; what is far larger is something else.
const LARGEST: usize = 256 << 20;

/// The file's content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) version: u32,
    #[serde(flatten)]
    pub(crate) description: Description,
    /// Set when all frames are there.
    pub(crate) complete: Option<Complete>,
}

/// What is known once all frames are there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Complete {
    /// F.
    pub(crate) frames: usize,
    /// How they were chosen, in the caller's words: numbers in them stay the same to the last digit.
    pub(crate) report: String,
}

impl Entry {
    pub(crate) fn new(description: Description) -> Self {
        Self { version: VERSION, description, complete: None }
    }

    /// The file of a video's folder.
    pub(crate) fn path(folder: &Path) -> PathBuf {
        folder.join("entry.json")
    }

    /// Reads it; none where there is none.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>> {
        let path = Self::path(folder);
        let Some(bytes) = files::map(&path)? else { return Ok(None) };
        let damaged = |problem: String| Error::invalid(&path, problem);
        if bytes.len() > LARGEST {
            return Err(damaged(format!("{} bytes; such a file has at most {LARGEST}", bytes.len())));
        }
        let entry: Self = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if entry.version != VERSION {
            return Err(damaged(format!("is of version {}, only {VERSION} is read", entry.version)));
        }
        Ok(Some(entry))
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let path = Self::path(folder);
        let mut bytes =
            serde_json::to_vec_pretty(self).map_err(|error| Error::invalid(&path, error.to_string()))?;
        bytes.push(b'\n');
        files::write(&path, &bytes)
    }
}
