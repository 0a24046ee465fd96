//! The small files of a language model's tokenizer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use llamavid_models::tokenizer::LlamaTokenizer;

use crate::model_folder::{in_file, read_optional};
use crate::{Error, ErrorCode, Result};

/// SentencePiece's pieces.
pub(crate) const PIECES: &str = "tokenizer.model";
/// Byte pairs of the tokenizers library.
pub(crate) const BYTE_PAIRS: &str = "tokenizer.json";
pub(crate) const CONFIG: &str = "tokenizer_config.json";
pub(crate) const ADDED_TOKENS: &str = "added_tokens.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";

/// What lies beside the first file and belongs to it.
const BESIDE: [&str; 3] = [CONFIG, SPECIAL_TOKENS, ADDED_TOKENS];

/// The files of a tokenizer, wherever they came from.
#[derive(Debug, Clone)]
pub struct TokenizerFiles {
    /// For messages.
    origin: PathBuf,
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl TokenizerFiles {
    /// Reads those of a folder; none where it has neither `tokenizer.model` nor `tokenizer.json`, of which the first counts.
    ///
    /// # Errors
    /// `MODEL_INVALID` for a file that cannot be read.
    pub fn in_folder(folder: &Path) -> Result<Option<Self>> {
        for name in [PIECES, BYTE_PAIRS] {
            let origin = folder.join(name);
            let Some(bytes) = read_optional(&origin)? else { continue };
            let mut files = BTreeMap::from([(name, bytes)]);
            for name in BESIDE {
                files.extend(read_optional(&folder.join(name))?.map(|bytes| (name, bytes)));
            }
            return Ok(Some(Self { origin, files }));
        }
        Ok(None)
    }

    pub(crate) fn new(origin: &Path, files: BTreeMap<&'static str, Vec<u8>>) -> Self {
        Self { origin: origin.to_path_buf(), files }
    }

    /// That a folder has none.
    pub fn missing(folder: &Path) -> Error {
        let message = format!("{}: the language model's tokenizer is missing", folder.join(PIECES).display());
        Error::new(ErrorCode::ModelFileMissing, message)
            .with_hint("Put the tokenizer.model (or tokenizer.json) of the language model there.")
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// `MODEL_INVALID` names what is wrong with which file.
    pub fn read(&self) -> Result<LlamaTokenizer> {
        let file = |name: &str| self.get(name);
        let main = file(PIECES).or(file(BYTE_PAIRS)).unwrap_or_default();
        LlamaTokenizer::from_bytes(main, file(CONFIG), file(ADDED_TOKENS), file(SPECIAL_TOKENS))
            .map_err(|error| in_file(&self.origin, error))
    }

    /// One of the files.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }

    /// Names and contents.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.files.iter().map(|(name, bytes)| (*name, bytes.as_slice()))
    }
}
