//! What a model's folder or a file of weights holds, what it lacks, and what does not belong there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use llamavid_models::visual_encoder::VisualEncoderConfig;
use llamavid_runtime::manifest::Manifest;
use llamavid_runtime::model_folder::ModelFolder;
use llamavid_runtime::{Cancellation, Error, ErrorCode, Result};
use llamavid_weights::gguf::layout_name;
use llamavid_weights::{Checkpoint, KeyTable, Loader, Part};
use serde::Serialize;
use serde_json::{Value, json};

use crate::plan::needed;

/// Problems of one part that are listed; a part of another model has hundreds.
const LISTED: usize = 10;

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// The folder or file.
    pub path: PathBuf,
    /// Whether `llamavid convert` made it.
    pub converted: bool,
    /// Whether checksums were compared, and all were right.
    pub verified: bool,
    /// The model's parts; none for a file of weights.
    pub parts: Vec<PartInspection>,
    /// The small files that a model needs.
    pub side_files: Vec<SideFile>,
    /// The weights of a file, by name.
    pub tensors: Vec<TensorInspection>,
    /// What is wrong, and what to do.
    pub problems: Vec<Problem>,
}

/// A part of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartInspection {
    /// Its name.
    pub name: &'static str,
    /// Its sizes.
    pub config: Value,
    /// Numbers of its weights.
    pub parameters: u64,
    /// Bytes of its weights in the files.
    pub bytes: u64,
    /// Weights by dtype, and by how their rows lie.
    pub dtypes: BTreeMap<String, u64>,
    /// The file or folder of its weights.
    pub source: Option<PathBuf>,
}

/// A small file.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SideFile {
    /// What it is.
    pub name: &'static str,
    /// Where it is.
    pub path: Option<PathBuf>,
    /// Whether a model can do without.
    pub optional: bool,
}

/// A weight of a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TensorInspection {
    /// Its name.
    pub name: String,
    /// Its dtype, and how its rows lie; absent for one that cannot be read.
    pub dtype: Option<String>,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The error's code.
    pub code: &'static str,
    /// What is wrong and where.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self { code: error.code.name(), message: error.message, hint: error.hint }
    }
}

/// Looks at a folder or a file; no weight is read unless `verify`, which compares the checksums of a converted folder.
///
/// What is wrong with it is a part of the answer.
///
/// # Errors
/// `MODEL_NOT_FOUND` where there is nothing, `INVALID_ARGUMENT` for checksums of a folder that has none, `ABORTED`.
pub fn inspect(path: &Path, verify: bool, cancellation: &Cancellation) -> Result<Inspection> {
    let mut found = Inspection {
        path: path.to_path_buf(),
        converted: false,
        verified: false,
        parts: Vec::new(),
        side_files: Vec::new(),
        tensors: Vec::new(),
        problems: Vec::new(),
    };
    if path.is_dir() {
        found.look_into(path, verify, cancellation)?;
    } else if path.is_file() {
        match Checkpoint::open_file(path) {
            Ok(weights) => found.tensors = weights.names().map(|name| tensor(&weights, name)).collect(),
            Err(error) => found.blame(error),
        }
    } else {
        return Err(Error::new(ErrorCode::ModelNotFound, format!("{}: there is nothing", path.display()))
            .with_hint("Give a model's folder or a file of weights."));
    }
    Ok(found)
}

/// The same as JSON.
///
/// # Errors
/// Those of [`inspect`].
pub fn inspect_json(path: &Path, verify: bool, cancellation: &Cancellation) -> Result<String> {
    let found = inspect(path, verify, cancellation)?;
    serde_json::to_string(&found)
        .map_err(|error| Error::new(ErrorCode::Internal, format!("JSON cannot be written: {error}")))
}

impl Inspection {
    fn look_into(&mut self, path: &Path, verify: bool, cancellation: &Cancellation) -> Result<()> {
        match Manifest::read(path) {
            Ok(Some(manifest)) => {
                self.converted = true;
                if verify {
                    match manifest.verify(path, cancellation, |_| {}) {
                        Ok(()) => self.verified = true,
                        Err(error) if error.code == ErrorCode::Aborted => return Err(error),
                        Err(error) => self.blame(error),
                    }
                }
            }
            Ok(None) if verify => {
                return Err(Error::new(
                    ErrorCode::InvalidArgument,
                    format!("{}: has no manifest.json to verify it by", path.display()),
                )
                .with_hint("`llamavid convert` writes one."));
            }
            Ok(None) => {}
            Err(error) => self.blame(error),
        }
        let folder = match ModelFolder::open(path) {
            Ok(folder) => folder,
            Err(error) => {
                self.blame(error);
                return Ok(());
            }
        };
        let weights = [
            (Part::VisualEncoder, folder.visual_weights()),
            (Part::TokenGenerator, folder.token_weights()),
            (Part::LanguageModel, folder.language_weights()),
        ];
        for (part, weights) in weights {
            let part = self.part(part, weights, &folder);
            self.parts.push(part);
        }
        let (processor, vocabulary) = folder.side_files();
        let here = |name: &str| Some(path.join(name)).filter(|file| file.is_file());
        let vocabulary = vocabulary.map(|folder| folder.join("vocab.txt")).filter(|file| file.is_file());
        let tokenizers = ["tokenizer.model", "tokenizer.json"].map(|name| (name, here(name)));
        let tokenizer = tokenizers.iter().find(|(_, path)| path.is_some()).unwrap_or(&tokenizers[0]).clone();
        for (name, path, optional) in [
            (tokenizer.0, tokenizer.1, false),
            ("vocab.txt", vocabulary, false),
            ("preprocessor_config.json", processor.map(Path::to_path_buf), true),
            ("generation_config.json", here("generation_config.json"), true),
        ] {
            self.side_files.push(SideFile { name, path, optional });
        }
        if let Err(error) = folder.llama_tokenizer() {
            self.blame(error);
        }
        if let Err(error) = folder.query_tokenizer() {
            self.blame(error);
        }
        Ok(())
    }

    fn part(
        &mut self,
        part: Part,
        weights: Result<(Checkpoint, &'static KeyTable)>,
        folder: &ModelFolder,
    ) -> PartInspection {
        let mut found = PartInspection {
            name: part.title(),
            config: config(part, folder),
            parameters: 0,
            bytes: 0,
            dtypes: BTreeMap::new(),
            source: None,
        };
        let (weights, needed) = match (weights, needed(part, folder.config())) {
            (Ok(weights), Ok(needed)) => (weights, needed),
            (Err(error), _) | (_, Err(error)) => {
                self.blame(error);
                return found;
            }
        };
        let (checkpoint, table) = weights;
        found.source = Some(checkpoint.origin().to_path_buf());
        let loader = Loader::new(checkpoint, table, DType::F32, &Device::Cpu);
        let mut wrong = 0;
        for weight in &needed {
            match loader.find(&weight.name, weight.shape.dims()) {
                Ok(place) => {
                    let count = weight.shape.elem_count() as u64;
                    found.parameters += count;
                    let (name, bytes) = match place.format {
                        Some(format) => {
                            let block = (format.block_length() as u64, format.block_bytes() as u64);
                            (layout_name(format, place.interleaved), count / block.0 * block.1)
                        }
                        None => {
                            let dtype = place.dtype;
                            (dtype.as_str().to_owned(), count * dtype.size_in_bytes() as u64)
                        }
                    };
                    found.bytes += bytes;
                    *found.dtypes.entry(name).or_default() += 1;
                }
                Err(error) => {
                    wrong += 1;
                    if wrong <= LISTED {
                        self.blame(error);
                    }
                }
            }
        }
        if wrong > LISTED {
            let message = format!("{} more weights of the {} are wrong", wrong - LISTED, part.title());
            self.blame(Error::new(ErrorCode::ModelInvalid, message));
        }
        // Weights that were not found as they should be are no strangers.
        if wrong == 0
            && let Err(error) = loader.finish()
        {
            self.blame(error);
        }
        found
    }

    fn blame(&mut self, error: impl Into<Error>) {
        let problem = Problem::from(error.into());
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

fn tensor(weights: &Checkpoint, name: &str) -> TensorInspection {
    TensorInspection {
        name: name.to_owned(),
        dtype: match weights.format(name) {
            Ok(Some(format)) => Some(layout_name(format, weights.is_interleaved(name).unwrap_or(false))),
            _ => weights.dtype(name).ok().map(|dtype| dtype.as_str().to_owned()),
        },
        shape: weights.shape(name).unwrap_or_default(),
    }
}

fn config(part: Part, folder: &ModelFolder) -> Value {
    let config = folder.config();
    match part {
        Part::VisualEncoder => match &config.visual {
            VisualEncoderConfig::Eva(eva) => json!({
                "kind": "eva", "imageSize": eva.image_size, "patchSize": eva.patch_size, "width": eva.width,
                "depth": eva.depth, "heads": eva.heads, "mlpWidth": eva.mlp_width,
            }),
            VisualEncoderConfig::Clip(clip) => json!({
                "kind": "clip", "imageSize": clip.image_size, "patchSize": clip.patch_size, "width": clip.width,
                "depth": clip.depth, "heads": clip.heads, "mlpWidth": clip.mlp_width,
            }),
        },
        Part::TokenGenerator => {
            let query = &config.tokens.query;
            json!({
                "kind": if folder.uses_q_former() { "qformer" } else { "bert" }, "width": query.width,
                "layers": query.layers, "heads": query.heads, "queries": query.queries,
                "tokensPerFrame": folder.tokens_per_frame(),
            })
        }
        Part::LanguageModel => {
            let language = &config.language;
            json!({
                "width": language.hidden_size, "layers": language.layers, "heads": language.heads,
                "kvHeads": language.kv_heads, "mlpWidth": language.intermediate_size,
                "vocabSize": language.vocab_size, "contextLength": language.max_positions,
            })
        }
    }
}
