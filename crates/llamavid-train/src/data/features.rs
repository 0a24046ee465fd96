//! Feature files of long videos: what the visual encoder made of each frame, and the subtitles between the frames.
//!
//! Two formats hold the same. As published, a pickled dict with a numpy array `feats` and a text `inputs`. As
//! safetensors, a tensor `feats` and a text `inputs` in the file's metadata. `feats` is (F, 1+P, V), class row first.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::Tensor;
use llamavid_models::prompt::placeholders::IMAGE_TAG;
use llamavid_weights::{Checkpoint, pickle};

use super::error::{Error, Result};

/// Largest header of a safetensors file that is read; a feature file's holds its subtitles.
const MAX_HEADER_BYTES: u64 = 64 << 20;

/// A long video, ready for training.
#[derive(Debug, Clone)]
pub struct MovieFeatures {
    /// Features (F, P, V) without the class row, in the file's dtype, on the CPU.
    pub tensor: Tensor,
    /// One `<image>` a frame, subtitles between them.
    pub inputs: String,
}

impl MovieFeatures {
    /// Frames of the video.
    pub fn frames(&self) -> usize {
        self.tensor.dims().first().copied().unwrap_or(0)
    }
}

/// Reads a feature file, told apart by its ending: `.safetensors`, or a pickle, from which nothing is run.
///
/// # Errors
/// A file that is missing, damaged, of another shape, with numbers that are not finite, or without one tag a
/// frame in its text.
pub fn read_features(path: &Path) -> Result<MovieFeatures> {
    let (feats, inputs) = if is_safetensors(path) {
        let inputs = safetensors_inputs(path)?;
        (Checkpoint::open_file(path)?.read_finite("feats")?, inputs)
    } else {
        let features = pickle::read_features(path)?;
        (features.feats, features.inputs)
    };
    checked(path, feats.dims(), &inputs)?;
    let tensor =
        feats.narrow(1, 1, feats.dims().get(1).map_or(0, |rows| rows - 1)).and_then(|t| t.contiguous());
    let tensor = tensor.map_err(|error| invalid(path, error.to_string()))?;
    Ok(MovieFeatures { tensor, inputs })
}

/// Frames and text of a feature file, without its numbers.
///
/// # Errors
/// As [`read_features`]; numbers that are not finite are not seen.
pub fn inspect_features(path: &Path) -> Result<(usize, String)> {
    let (shape, inputs) = if is_safetensors(path) {
        (Checkpoint::open_file(path)?.shape("feats")?, safetensors_inputs(path)?)
    } else {
        let summary = pickle::summarise_features(path)?;
        (summary.shape, summary.inputs)
    };
    let frames = checked(path, &shape, &inputs)?;
    Ok((frames, inputs))
}

fn is_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "safetensors")
}

/// Frames of features of this shape, which must fit the text.
fn checked(path: &Path, shape: &[usize], inputs: &str) -> Result<usize> {
    let &[frames, rows, width] = shape else {
        return Err(invalid(path, format!("`feats` is {shape:?}, expected frames, rows and width")));
    };
    if frames == 0 || rows < 2 || width == 0 {
        let problem = format!("`feats` is {shape:?}, expected a frame or more of a class row and patches");
        return Err(invalid(path, problem));
    }
    let tags = inputs.matches(IMAGE_TAG).count();
    if tags != frames {
        return Err(invalid(path, format!("`inputs` has {tags} tags `{IMAGE_TAG}` for {frames} frames")));
    }
    Ok(frames)
}

fn invalid(path: &Path, problem: impl Into<String>) -> Error {
    Error::Features { file: path.to_path_buf(), problem: problem.into() }
}

/// `inputs` of a safetensors file's metadata.
fn safetensors_inputs(path: &Path) -> Result<String> {
    let io = |error| Error::io(path, error);
    // A pipe would wait for a writer.
    if path.exists() && !path.is_file() {
        return Err(invalid(path, "expected a file"));
    }
    let mut file = File::open(path).map_err(io)?;
    let damaged = || invalid(path, "damaged safetensors file: its header cannot be read");
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(|_| damaged())?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER_BYTES {
        return Err(invalid(path, format!("its header would be {size} bytes, more than {MAX_HEADER_BYTES}")));
    }
    let mut header = Vec::new();
    file.take(size).read_to_end(&mut header).map_err(io)?;
    let header: serde_json::Value = serde_json::from_slice(&header).map_err(|_| damaged())?;
    match header.get("__metadata__").and_then(|metadata| metadata.get("inputs")) {
        Some(serde_json::Value::String(inputs)) => Ok(inputs.clone()),
        _ => Err(invalid(path, "its metadata has no `inputs`, the text with a tag for each frame")),
    }
}
