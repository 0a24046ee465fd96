//! From the parts of a model to one folder, tensor by tensor.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use llamavid_runtime::manifest::{Manifest, ManifestFile, TensorOrigin};
use llamavid_runtime::model_folder::ModelFolder;
use llamavid_runtime::{Cancellation, Error, Result};
use llamavid_weights::gguf::layout_name;
use llamavid_weights::writer::{GgufWriter, SafetensorsWriter, WholePages};
use llamavid_weights::{Part, Quantisation, interleaving_pays};

use crate::inputs::Inputs;
use crate::language_gguf;
use crate::layout::CONFIG;
use crate::output::{Hashed, OnProgress, Unfinished, Watch, WriteError};
use crate::plan::{Body, Plan, PlannedFile, Weight, json_bytes, safetensors_metadata};

/// Bytes of a file that is copied as it is that are read at a time.
const COPIED_AT_ONCE: usize = 1 << 20;

/// What to convert, and to what.
#[derive(Debug, Clone, Default)]
pub struct ConvertOptions {
    /// Files and folders in any order.
    pub inputs: Vec<PathBuf>,
    /// The folder to make.
    pub output: PathBuf,
    /// The dtype of the weights; absent, each keeps its own.
    pub dtype: Option<DType>,
    /// The block format of the language model; absent, it stays as it is.
    pub quantize: Option<Quantisation>,
    /// Whether the rows of the language model's matrices in blocks are interleaved, as this project's kernels read them quickest and no
    /// other program does.
    pub interleave: bool,
    /// Whether visual encoder and token generator are written in 8 bits.
    pub quantize_vision: bool,
    /// Bytes of a file of weights at most, unless one weight is larger; absent, 5 GB.
    pub shard_bytes: Option<u64>,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// The folder.
    pub folder: PathBuf,
    /// Bytes of all files.
    pub bytes: u64,
    /// Weights.
    pub tensors: usize,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Makes one folder of the inputs.
///
/// Nothing is at `output` until all of it is. At most the memory of some weights is used, whatever the model's size.
///
/// # Errors
/// Those of [`Inputs::recognise`]; `MODEL_INVALID` for weights that are missing, of another shape or not finite and for
/// such that the model has no place for; `DISK_FULL`; `STORE_LOCKED` while another process writes the same folder;
/// `INVALID_ARGUMENT` for an output that is there already; `ABORTED`.
pub fn convert(
    options: &ConvertOptions,
    cancellation: &Cancellation,
    on_progress: OnProgress<'_>,
) -> Result<Converted> {
    let mut inputs = Inputs::recognise(&options.inputs)?;
    let mut output = Unfinished::begin(&options.output)?;
    let mut plan = Plan::new(&inputs, options)?;
    let total = plan.bytes()?;
    output.expect_room(total)?;
    if options.interleave && !interleaving_pays() {
        let note = "interleaved rows are for x86-64 with AVX2 or newer; this processor may read them slower than others";
        inputs.notes.push(note.to_owned());
    }
    let watch = Watch::new(cancellation, on_progress, total);

    let mut tensors = BTreeMap::new();
    for file in &plan.files {
        output.write(&file.name, &watch, |out| write_weights(&plan, file, out))?;
        tensors.extend(file.weights.iter().map(|weight| (weight.name.clone(), origin(file, weight))));
    }
    let config = plan.small_files.remove(CONFIG).unwrap_or_default();
    for (name, bytes) in &plan.small_files {
        output.write(name, &watch, |out| Ok(out.write_all(bytes)?))?;
    }
    let mut files = output.files().clone();
    files.insert(CONFIG.to_owned(), ManifestFile::of(&config));
    let made = Converted {
        folder: options.output.clone(),
        bytes: files.values().map(|file| file.bytes).sum(),
        tensors: tensors.len(),
        notes: inputs.notes,
    };
    let manifest = json_bytes(&Manifest { version: Manifest::VERSION, files, tensors })?;
    output.write(Manifest::NAME, &watch, |out| Ok(out.write_all(&manifest)?))?;
    // Last: without it, no folder is a model.
    output.write(CONFIG, &watch, |out| Ok(out.write_all(&config)?))?;
    // What will load it must understand it.
    let (built, wanted) = (output.folder().display().to_string(), options.output.display().to_string());
    ModelFolder::open(output.folder())
        .map_err(|error| Error { message: error.message.replace(&built, &wanted), ..error })?;
    output.finish()?;
    Ok(made)
}

fn write_weights(
    plan: &Plan,
    file: &PlannedFile,
    out: &mut WholePages<Hashed<'_>>,
) -> Result<(), WriteError> {
    match &file.body {
        Body::Safetensors => {
            let mut writer = SafetensorsWriter::new(out, file.headers(), &safetensors_metadata())?;
            for weight in &file.weights {
                writer.write(&plan.read(weight)?)?;
            }
            writer.finish()?;
        }
        Body::Copy(file) => {
            std::io::copy(&mut BufReader::with_capacity(COPIED_AT_ONCE, File::open(file)?), out)?;
        }
        Body::Interleaved(copy) => copy.write(out)?,
        Body::Gguf { metadata, computed } => {
            let mut writer = GgufWriter::new(out, metadata, file.blocks())?;
            for weight in &file.weights {
                writer.write(&read_for_blocks(plan, weight)?)?;
            }
            for (_name, values) in computed {
                let tensor = Tensor::new(values.as_slice(), &Device::Cpu);
                writer.write(&tensor.map_err(std::io::Error::other)?)?;
            }
            writer.finish()?;
        }
    }
    Ok(())
}

fn read_for_blocks(plan: &Plan, weight: &Weight) -> Result<Tensor> {
    let tensor = plan.read(weight)?;
    match weight.part {
        Part::LanguageModel => Ok(language_gguf::ordered(&weight.ours, tensor, &plan.config.language)?),
        Part::VisualEncoder | Part::TokenGenerator => Ok(tensor),
    }
}

fn origin(file: &PlannedFile, weight: &Weight) -> TensorOrigin {
    let source = weight.found.file.file_name().unwrap_or_default();
    let format = match (&file.body, weight.found.format) {
        (Body::Copy(_) | Body::Interleaved(_), Some(format)) => format,
        _ => weight.format,
    };
    TensorOrigin {
        file: file.name.clone(),
        dtype: layout_name(format, weight.interleaved),
        source: source.to_string_lossy().into_owned(),
        key: weight.found.key.clone(),
    }
}
