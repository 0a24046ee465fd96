//! The small files of a model's folder.

use std::path::Path;

use llamavid_models::preprocess::{Fit, Preprocessing};
use llamavid_models::token_generation::QueryModelConfig;
use llamavid_models::tokenizer::WordPieceTokenizer;
use serde::Deserialize;

use crate::{Error, ErrorCode, Result};

/// Side files are small; a larger one is not what its name says.
const LARGEST_SIDE_FILE: u64 = 64 << 20;

/// Reads a CLIP image processor's file; only what the reference's settings can express is accepted.
pub fn read_processor(path: &Path) -> Result<Preprocessing> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Side(usize),
        Shortest { shortest_edge: usize },
        Both { height: usize, width: usize },
    }
    #[derive(Deserialize)]
    struct Processor {
        crop_size: Option<Size>,
        size: Option<Size>,
        image_mean: Option<[f32; 3]>,
        image_std: Option<[f32; 3]>,
        resample: Option<u32>,
    }
    let bytes = read_required(path, "the image processor's configuration")?;
    let processor: Processor = parse_json(path, &bytes)?;
    let invalid =
        |problem: String| Error::new(ErrorCode::ModelInvalid, format!("{}: {problem}", path.display()));
    let side = |size: &Size| match *size {
        Size::Side(side) | Size::Shortest { shortest_edge: side } => Ok(side),
        Size::Both { height, width } if height == width => Ok(height),
        Size::Both { height, width } => Err(invalid(format!("{height} x {width} is not a square"))),
    };
    let crop = processor.crop_size.as_ref().map(side).transpose()?;
    let size = processor.size.as_ref().map(side).transpose()?;
    let size = match (crop, size) {
        (Some(crop), Some(size)) if crop != size => {
            return Err(invalid(format!(
                "crop_size {crop} and size {size} differ; the reference has them equal"
            )));
        }
        (Some(size), _) | (None, Some(size)) => size,
        (None, None) => 224,
    };
    if size == 0 || size > 8192 {
        return Err(invalid(format!("a picture of {size} pixels is not between 1 and 8192")));
    }
    if processor.resample.is_some_and(|filter| filter != 3) {
        return Err(invalid(
            "resample is not 3 (bicubic), the only filter that the reference uses".to_owned(),
        ));
    }
    let usual = Preprocessing::clip(size, Fit::Crop);
    let (mean, std) = (processor.image_mean.unwrap_or(usual.mean), processor.image_std.unwrap_or(usual.std));
    if !mean.iter().all(|value| value.is_finite())
        || !std.iter().all(|value| value.is_finite() && *value > 0.0)
    {
        return Err(invalid("image_mean and image_std must be finite, and image_std above 0".to_owned()));
    }
    Ok(Preprocessing { size, mean, std, fit: Fit::Crop })
}

/// Reads the query model's tokenizer.
///
/// # Errors
/// `MODEL_FILE_MISSING` without a `vocab.txt`, `MODEL_INVALID` for one that is cut or another model's.
pub fn read_query_tokenizer(folder: &Path, query: &QueryModelConfig) -> Result<WordPieceTokenizer> {
    let path = folder.join("vocab.txt");
    let vocabulary = read_required(&path, "the query model's vocabulary")?;
    #[derive(Default, Deserialize)]
    struct TokenizerConfig {
        do_lower_case: Option<bool>,
    }
    let config: TokenizerConfig = match read_optional(&folder.join("tokenizer_config.json"))? {
        Some(bytes) => parse_json(&folder.join("tokenizer_config.json"), &bytes)?,
        None => TokenizerConfig::default(),
    };
    let tokenizer = WordPieceTokenizer::from_vocab(&vocabulary, config.do_lower_case.unwrap_or(true))
        .map_err(|error| in_file(&path, error))?;
    // The Q-Former has a row for `[DEC]`, which the tokenizer adds; raw BERT has none.
    let (words, rows) = (tokenizer.vocab_size(), query.vocab_size);
    if rows != words && rows + 1 != words {
        let message = format!("{}: {words} words with [DEC], the query model knows {rows}", path.display());
        return Err(Error::new(ErrorCode::ModelInvalid, message)
            .with_hint("Take the vocabulary that belongs to this query model: it may be cut."));
    }
    Ok(tokenizer.within(query.max_positions))
}

/// Reads a small file that must be there; `what` says what it is.
///
/// # Errors
/// `MODEL_FILE_MISSING`, and `MODEL_INVALID` for one that cannot be read or is no small file.
pub fn read_required(path: &Path, what: &str) -> Result<Vec<u8>> {
    read_optional(path)?.ok_or_else(|| {
        Error::new(ErrorCode::ModelFileMissing, format!("{}: {what} is missing", path.display()))
            .with_hint("Download the whole model again, or give another folder.")
    })
}

/// Reads a small file, if it is there.
///
/// # Errors
/// `MODEL_INVALID` for one that cannot be read or is no small file.
pub fn read_optional(path: &Path) -> Result<Option<Vec<u8>>> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorCode::ModelInvalid, format!("{}: cannot be read: {error}", path.display()))
    };
    let length = match std::fs::metadata(path) {
        Ok(facts) if facts.is_file() => facts.len(),
        Ok(_) => {
            return Err(Error::new(ErrorCode::ModelInvalid, format!("{}: is not a file", path.display())));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if length > LARGEST_SIDE_FILE {
        let problem =
            format!("{}: {length} bytes; such a file has at most {LARGEST_SIDE_FILE}", path.display());
        return Err(Error::new(ErrorCode::ModelInvalid, problem));
    }
    std::fs::read(path).map(Some).map_err(failed)
}

/// Parses a file's JSON.
///
/// # Errors
/// `MODEL_INVALID` names the file.
pub fn parse_json<'a, T: Deserialize<'a>>(path: &Path, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::new(ErrorCode::ModelInvalid, format!("{}: {error}", path.display())))
}

/// An error of the models about a file's content.
pub fn in_file(path: &Path, error: llamavid_models::Error) -> Error {
    let error = Error::from(error);
    Error { message: format!("{}: {}", path.display(), error.message), ..error }
}
