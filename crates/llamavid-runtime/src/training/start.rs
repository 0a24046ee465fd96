//! Which files a stage starts from, found as a model's folder is read elsewhere.

use std::path::{Path, PathBuf};

use llamavid_models::config::ModelConfig;
use llamavid_models::language_model::{LoraConfig, LoraTarget};
use llamavid_models::preprocess::{Fit, Preprocessing};
use llamavid_train::{LoraSettings, Stage, StageFiles, StageSettings, VisionFiles};
use serde_json::{Map, Value, json};

use super::config::{AspectRatio, Inputs, Recipe};
use crate::model_folder::{self, VisionWeights};
use crate::{Error, ErrorCode, Result};

/// What a stage starts from.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) files: StageFiles,
    pub(crate) settings: StageSettings,
    /// The image processor's own, where there is one.
    pub(crate) processor: Option<Preprocessing>,
}

impl Start {
    /// Finds the files. Nothing is read but small ones.
    ///
    /// # Errors
    /// `MODEL_NOT_FOUND`, `MODEL_FILE_MISSING`, `MODEL_INVALID` for what is there, `INVALID_ARGUMENT` for a recipe that
    /// contradicts its stage.
    pub(crate) fn find(recipe: &Recipe, inputs: &Inputs) -> Result<Self> {
        let stage = Stage::from_number(usize::from(recipe.stage))
            .ok_or_else(|| Error::argument(format!("stage {} is none of 1, 2, 3", recipe.stage)))?;
        if recipe.model.bert_type != stage.bert_type() {
            return Err(Error::argument(format!(
                "bertType {:?} is not that of stage {}, {:?}",
                recipe.model.bert_type,
                recipe.stage,
                stage.bert_type()
            )));
        }
        let base = match (&inputs.model, &inputs.language_model) {
            (Some(folder), None) | (None, Some(folder)) => folder.clone(),
            _ => return Err(Error::argument("give either a model's folder or a base language model's")),
        };
        let config_path = base.join("config.json");
        let config_bytes = model_folder::read_required(&config_path, "the model's configuration")?;
        let config: Map<String, Value> = model_folder::parse_json(&config_path, &config_bytes)?;
        let side = ModelConfig::side_files(&config_bytes)
            .map_err(|error| model_folder::in_file(&config_path, error))?;

        let vision = vision_files(&base, inputs, side.vision.as_deref())?;
        let processor = match &inputs.processor {
            Some(place) if place.is_dir() => Some(place.join("preprocessor_config.json")),
            Some(file) => Some(file.clone()),
            None => near(&base, inputs)
                .find_map(|folder| model_folder::find_processor(folder, side.processor.as_deref(), None)),
        };
        let bert = query_folder(&base, inputs, side.query_tokenizer.as_deref())?;
        let preprocessing = processor.as_deref().map(model_folder::read_processor).transpose()?;
        let settings = settings(stage, recipe, &config, &vision, processor.as_deref(), &base);
        let adapter = inputs.adapter.as_deref().map(adapter_file).transpose()?.or_else(|| {
            let beside = base.join("mm_projector.bin");
            (stage != Stage::Alignment && beside.is_file()).then_some(beside)
        });
        let files =
            StageFiles { base, vision, query_model: inputs.query_model.clone(), adapter, bert, processor };
        Ok(Self { files, settings, processor: preprocessing })
    }

    /// How pictures become pixels of `size`, which the model's configuration says.
    pub(crate) fn preprocessing(&self, size: usize) -> Result<Preprocessing> {
        match &self.processor {
            Some(processor) if processor.size != size => Err(Error::new(
                ErrorCode::ModelInvalid,
                format!(
                    "the visual encoder reads pictures of {size} pixels, the image processor makes {}",
                    processor.size
                ),
            )
            .with_hint("Name the image processor of this recipe with --processor <folder>.")),
            Some(processor) => Ok(processor.clone()),
            None => Ok(Preprocessing::clip(size, Fit::Crop)),
        }
    }
}

/// The visual encoder: what was given, else what lies in the base model's folder or beside it; `written` is what its configuration
/// says.
fn vision_files(base: &Path, inputs: &Inputs, written: Option<&str>) -> Result<VisionFiles> {
    match &inputs.vision_tower {
        Some(place) if place.is_file() => Ok(VisionFiles::Eva(place.clone())),
        Some(place) if place.join("config.json").is_file() => Ok(VisionFiles::Clip(place.clone())),
        Some(place) => Err(Error::new(
            ErrorCode::ModelFileMissing,
            format!("{}: neither an EVA file nor the folder of a CLIP model", place.display()),
        )
        .with_hint("The published models read eva_vit_g.pth of LAVIS.")),
        None => Ok(match model_folder::find_vision(base, written)? {
            VisionWeights::File(file) => VisionFiles::Eva(file),
            VisionWeights::ClipFolder(folder) => VisionFiles::Clip(folder),
            VisionWeights::Shards => VisionFiles::Base,
        }),
    }
}

/// The folder of the query model's vocabulary, found in the same way.
fn query_folder(base: &Path, inputs: &Inputs, written: Option<&str>) -> Result<PathBuf> {
    let given = inputs.query_tokenizer.clone();
    let found = || near(base, inputs).find_map(|folder| model_folder::find_query_folder(folder, written));
    given.or_else(found).ok_or_else(|| {
        let base = base.display();
        Error::new(
            ErrorCode::ModelFileMissing,
            format!("{base}: the query model's vocabulary (vocab.txt of bert-base-uncased) is missing"),
        )
        .with_hint("Put it into a folder `bert` beside the model, or name it with --bert <folder>.")
    })
}

/// Folders in and beside which side files are looked for.
fn near<'a>(base: &'a Path, inputs: &'a Inputs) -> impl Iterator<Item = &'a Path> {
    let parts = [&inputs.vision_tower, &inputs.query_model];
    std::iter::once(base).chain(parts.into_iter().filter_map(|part| part.as_deref()?.parent()))
}

/// Stage 1's file, or the folder that it wrote.
fn adapter_file(place: &Path) -> Result<PathBuf> {
    let file = if place.is_dir() { place.join("mm_projector.bin") } else { place.to_path_buf() };
    if file.is_file() {
        return Ok(file);
    }
    Err(Error::new(ErrorCode::ModelFileMissing, format!("{}: there is no such file", file.display()))
        .with_hint("Stage 1 writes mm_projector.bin at its end."))
}

/// The reference's flags. Where the recipe is silent, the base model's configuration speaks.
fn settings(
    stage: Stage,
    recipe: &Recipe,
    config: &Map<String, Value>,
    vision: &VisionFiles,
    processor: Option<&Path>,
    base: &Path,
) -> StageSettings {
    let said = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_owned);
    let model = &recipe.model;
    let compression = match model.compression.as_deref() {
        None => said("compress_type"),
        Some("none") => None,
        Some(name) => Some(name.to_owned()),
    };
    let queries = model.query_count.or_else(|| {
        config.get("num_query").and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok())
    });
    let written = |path: &Path| path.display().to_string();
    let vision_name = match vision {
        VisionFiles::Eva(path) | VisionFiles::Clip(path) => written(path),
        VisionFiles::Base => said("mm_vision_tower").unwrap_or_else(|| written(base)),
    };
    let processor_name = processor
        .and_then(Path::parent)
        .map(written)
        .or_else(|| said("image_processor"))
        .unwrap_or_else(|| "processor".to_owned());
    let aspect_ratio = match recipe.data.image_aspect_ratio {
        AspectRatio::Square => "square",
        AspectRatio::Pad => "pad",
    };
    StageSettings {
        stage,
        bert_type: None,
        projector: model
            .projector
            .clone()
            .or_else(|| said("mm_projector_type"))
            .unwrap_or_else(|| "mlp2x_gelu".to_owned()),
        compression,
        queries: queries.unwrap_or(32),
        image_start_end: model.image_start_end,
        image_patch: model.image_patch_token,
        image_aspect_ratio: aspect_ratio.to_owned(),
        max_length: recipe.data.max_length,
        vision_name,
        processor_name,
        extension: extension(recipe, config, processor.is_some()),
        lora: recipe.lora.as_ref().map(|lora| LoraSettings {
            config: LoraConfig {
                rank: lora.rank,
                alpha: lora.alpha,
                // `TrainingConfig::parse` knows all of them.
                targets: lora.targets.iter().filter_map(|name| LoraTarget::by_name(name)).collect(),
            },
            dropout: lora.dropout as f32,
        }),
    }
}

/// The block `llamavid` of the configuration: that of the base model with the recipe's sizes in it.
fn extension(recipe: &Recipe, config: &Map<String, Value>, has_processor: bool) -> Option<Value> {
    let mut block = config.get("llamavid").and_then(Value::as_object).cloned().unwrap_or_default();
    // The table is written for the size of the pictures, whatever it was in the file.
    if let Some(vision) = block.get_mut("vision").and_then(Value::as_object_mut) {
        vision.remove("positionSide");
    }
    let mut put = |group: &str, name: &str, value: &Value| {
        let group = block.entry(group).or_insert_with(|| json!({}));
        if let Some(group) = group.as_object_mut() {
            group.insert(name.to_owned(), value.clone());
        }
    };
    if let Some(sizes) = recipe.model.sizes.as_ref().and_then(Value::as_object) {
        for (group, values) in sizes {
            for (name, value) in values.as_object().into_iter().flatten() {
                put(group, name, value);
            }
        }
    }
    // An image processor says the size; without one only the published 224 needs no word.
    if let Some(size) = recipe.model.image_size
        && !has_processor
        && size != 224
    {
        put("vision", "imageSize", &json!(size));
    }
    (!block.is_empty()).then_some(Value::Object(block))
}
