//! Where the parts of a model are that its folder does not hold under fixed names.

use std::path::{Component, Path, PathBuf};

use llamavid_models::language_model::LoraConfig;
use llamavid_weights::Checkpoint;
use serde::Deserialize;

use super::{VISION_FILE, in_file, language_weights, read_optional};
use crate::{Error, ErrorCode, Result};

/// Where the visual encoder's weights are.
#[derive(Debug, Clone)]
pub enum VisionWeights {
    /// One file: EVA's, or what `llamavid convert` made of either kind.
    File(PathBuf),
    /// A folder of a CLIP model.
    ClipFolder(PathBuf),
    /// The checkpoint's own shards, as stages 2 and 3 write them.
    Shards,
}

/// Adapters in the PEFT library's files.
#[derive(Debug)]
pub(super) struct Adapter {
    pub(super) config: LoraConfig,
    pub(super) weights: PathBuf,
}

/// The places where a path from `config.json` may be: never outside the model's folder and the one above it.
fn candidates(root: &Path, written: &str) -> Vec<PathBuf> {
    let path = Path::new(written);
    let plain: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let leaves = path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir));
    let mut tails = Vec::new();
    if !leaves {
        tails.push(plain.clone());
    }
    if let Some(name) = plain.file_name() {
        tails.push(PathBuf::from(name));
    }
    let absolute = std::path::absolute(root).unwrap_or_else(|_| root.to_path_buf());
    let bases = [Some(absolute.as_path()), absolute.parent()];
    bases.into_iter().flatten().flat_map(|base| tails.iter().map(move |tail| base.join(tail))).collect()
}

/// Where a model's visual encoder is; `written` is what its configuration says.
///
/// # Errors
/// `MODEL_FILE_MISSING` names the places that were looked at.
pub fn find_vision(root: &Path, written: Option<&str>) -> Result<VisionWeights> {
    let converted = root.join(VISION_FILE);
    if converted.is_file() {
        return Ok(VisionWeights::File(converted));
    }
    let written = written.unwrap_or("eva_vit_g.pth");
    let places = candidates(root, written);
    for place in &places {
        if place.is_file() {
            return Ok(VisionWeights::File(place.clone()));
        }
        if place.join("config.json").is_file() && place != root {
            return Ok(VisionWeights::ClipFolder(place.clone()));
        }
    }
    if let Ok(shards) = Checkpoint::open_folder(root)
        && shards.contains("model.vision_tower.vision_tower.patch_embed.proj.weight")
    {
        return Ok(VisionWeights::Shards);
    }
    let looked: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
    Err(Error::new(
        ErrorCode::ModelFileMissing,
        format!(
            "{}: the visual encoder's weights `{written}` are missing (looked for {})",
            root.display(),
            looked.join(", ")
        ),
    )
    .with_hint("Put the file (eva_vit_g.pth of LAVIS for the published models) beside config.json."))
}

/// Adapters in the folder, and the folder of the base model that it names, if it is beside it.
pub(super) fn find_adapter(root: &Path, config: &[u8]) -> Result<(Option<Adapter>, Option<PathBuf>)> {
    #[derive(Default, Deserialize)]
    struct Named {
        #[serde(alias = "_name_or_path")]
        base_model_name_or_path: Option<String>,
    }
    let name =
        |bytes: &[u8]| serde_json::from_slice::<Named>(bytes).unwrap_or_default().base_model_name_or_path;
    let path = root.join("adapter_config.json");
    let described = read_optional(&path)?;
    let adapter = match &described {
        None => None,
        Some(bytes) => {
            let files = ["adapter_model.safetensors", "adapter_model.bin"].map(|file| root.join(file));
            let Some(weights) = files.iter().find(|file| file.is_file()).cloned() else {
                let message = format!("{}: adapter_model.safetensors is missing", root.display());
                return Err(Error::new(ErrorCode::ModelFileMissing, message)
                    .with_hint("Copy the whole folder of the adapter."));
            };
            let config = LoraConfig::from_json(bytes).map_err(|error| in_file(&path, error))?;
            Some(Adapter { config, weights })
        }
    };
    let names = [described.as_deref().and_then(name), name(config)];
    let mut places = names.into_iter().flatten().flat_map(|name| candidates(root, &name));
    let base = places.find(|place| place != root && language_weights(place).is_ok());
    Ok((adapter, base))
}

/// The folder of the query model's vocabulary.
pub fn find_query_folder(root: &Path, written: Option<&str>) -> Option<PathBuf> {
    let names = [written, Some("bert"), Some("bert-base-uncased")];
    let mut places: Vec<PathBuf> =
        names.into_iter().flatten().flat_map(|name| candidates(root, name)).collect();
    places.push(root.to_path_buf());
    places.into_iter().find(|place| place.join("vocab.txt").is_file())
}

/// The image processor's file.
pub fn find_processor(root: &Path, written: Option<&str>, vision: Option<&VisionWeights>) -> Option<PathBuf> {
    let mut places: Vec<PathBuf> =
        [written, Some("processor")].into_iter().flatten().flat_map(|name| candidates(root, name)).collect();
    places.push(root.to_path_buf());
    if let Some(VisionWeights::ClipFolder(folder)) = vision {
        places.push(folder.clone());
    }
    places.into_iter().map(|place| place.join("preprocessor_config.json")).find(|file| file.is_file())
}
