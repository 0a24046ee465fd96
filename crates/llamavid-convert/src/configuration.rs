//! The one configuration of a converted model: what the inputs say, and the sizes that they leave unsaid.

use llamavid_models::config::{Extension, ModelConfig, Surroundings};
use llamavid_models::token_generation::FeatureKind;
use llamavid_models::visual_encoder::VisualEncoderConfig;
use llamavid_runtime::model_folder::{in_file, parse_json, read_optional, read_processor, read_required};
use llamavid_runtime::{Error, ErrorCode, Result};
use llamavid_weights::{Checkpoint, position_side};
use serde_json::{Map, Value, json};

use crate::inputs::Inputs;
use crate::layout::CONFIG;

/// Blocks of the published visual encoder that are used.
const PUBLISHED_DEPTH: usize = 39;
const BERT_PROJECTION: &str = "model.vlm_att_bert_proj.weight";
const QUERY_MODEL: &str = "model.vlm_att_encoder.bert.";

/// Understands the inputs' configuration.
///
/// # Errors
/// `MODEL_INVALID` and `MODEL_UNSUPPORTED` for what it says.
pub fn understand(inputs: &Inputs) -> Result<ModelConfig> {
    let path = inputs.model.join(CONFIG);
    let processor = inputs.processor.as_deref().map(read_processor).transpose()?;
    let bert = read_optional(&inputs.vocabulary.join(CONFIG))?;
    let clip = match &inputs.vision.clip {
        Some(folder) => Some(read_required(&folder.join(CONFIG), "the visual encoder's configuration")?),
        None => None,
    };
    let bytes = serde_json::to_vec(&inputs.config).map_err(|error| unwritable(&path, &error))?;
    let sizes = sizes(inputs, &path)?;
    // The published processors are named after their size.
    let named = inputs.config.get("image_processor").and_then(Value::as_str);
    let image_size = processor
        .map(|processor| processor.size)
        .or_else(|| named.filter(|name| name.contains("336")).map(|_| 336));
    let projected_width = match inputs.trained.contains(BERT_PROJECTION) {
        true => inputs.trained.shape(BERT_PROJECTION)?.first().copied(),
        false => None,
    };
    let around = Surroundings {
        bert: bert.as_deref(),
        clip: clip.as_deref(),
        image_size,
        position_side: position_side(&inputs.vision.weights)?,
        projected_width,
        sizes: Some(&sizes),
    };
    ModelConfig::parse(&bytes, &around).map_err(|error| in_file(&path, error))
}

/// The block `llamavid` of the inputs' configuration, and where it is silent what the weights show.
fn sizes(inputs: &Inputs, path: &std::path::Path) -> Result<Extension> {
    let mut sizes: Extension = match inputs.config.get("llamavid") {
        Some(block) => {
            let bytes = serde_json::to_vec(block).map_err(|error| unwritable(path, &error))?;
            parse_json(path, &bytes)?
        }
        None => Extension::default(),
    };
    let vision = &inputs.vision.weights;
    let size = |weights: &Checkpoint, name: &str, axis: usize| -> Result<Option<usize>> {
        if !weights.contains(name) {
            return Ok(None);
        }
        Ok(weights.shape(name)?.get(axis).copied())
    };
    let blocks = count(vision, "blocks.");
    let own = &mut sizes.vision;
    own.width = own.width.or(size(vision, "cls_token", 2)?);
    own.patch_size = own.patch_size.or(size(vision, "patch_embed.proj.weight", 2)?);
    own.mlp_width = own.mlp_width.or(size(vision, "blocks.0.mlp.fc1.weight", 0)?);
    own.depth = own.depth.or(match blocks {
        0 => None,
        PUBLISHED_DEPTH.. => Some(PUBLISHED_DEPTH),
        // As the published file does, others of pre-training have one block more than is used.
        blocks => Some(blocks - usize::from(inputs.vision.is_pretraining)),
    });
    let (trained, own) = (&inputs.trained, &mut sizes.query);
    let query = |rest: &str| format!("{QUERY_MODEL}{rest}");
    let words = query("embeddings.word_embeddings.weight");
    own.width = own.width.or(size(trained, &words, 1)?);
    own.vocab_size = own.vocab_size.or(size(trained, &words, 0)?);
    own.max_positions =
        own.max_positions.or(size(trained, &query("embeddings.position_embeddings.weight"), 0)?);
    own.mlp_width =
        own.mlp_width.or(size(trained, &query("encoder.layer.0.intermediate_query.dense.weight"), 0)?);
    own.layers = own.layers.or(Some(count(trained, &query("encoder.layer."))).filter(|layers| *layers > 0));
    Ok(sizes)
}

/// Layers or blocks of a checkpoint, whose weights are named `PREFIX` N `.…`.
fn count(weights: &Checkpoint, prefix: &str) -> usize {
    let number = |name: &str| name.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok();
    weights.names().filter_map(number).max().map_or(0, |last| last + 1)
}

/// The file `config.json` of the result. `dtype` is that of its weights, where they have one.
pub fn write(inputs: &Inputs, model: &ModelConfig, dtype: &str) -> Map<String, Value> {
    let mut config = inputs.config.clone();
    // Where the training's inputs were says nothing here, and would be looked for.
    for key in ["_name_or_path", "mm_vision_tower", "image_processor"] {
        config.remove(key);
    }
    config.insert("torch_dtype".into(), json!(dtype));
    config.insert("mm_hidden_size".into(), json!(model.visual.width()));
    let query = &model.tokens.query;
    let mut block = Map::new();
    if let Some(template) = model.conversation {
        block.insert("conversation".into(), json!(template.name));
    }
    if model.features == FeatureKind::Precomputed {
        block.insert("features".into(), json!("precomputed"));
    }
    let vision = match &model.visual {
        VisualEncoderConfig::Eva(eva) => json!({
            "imageSize": eva.image_size,
            "patchSize": eva.patch_size,
            "width": eva.width,
            "depth": eva.depth,
            "heads": eva.heads,
            "mlpWidth": eva.mlp_width,
            "positionSide": eva.position_side,
        }),
        VisualEncoderConfig::Clip(clip) => json!({
            "kind": "clip",
            "imageSize": clip.image_size,
            "patchSize": clip.patch_size,
            "width": clip.width,
            "depth": clip.depth,
            "heads": clip.heads,
            "mlpWidth": clip.mlp_width,
        }),
    };
    let query = json!({
        "width": query.width,
        "layers": query.layers,
        "heads": query.heads,
        "mlpWidth": query.mlp_width,
        "vocabSize": query.vocab_size,
        "maxPositions": query.max_positions,
    });
    block.insert("vision".into(), vision);
    block.insert("query".into(), query);
    block.insert("files".into(), json!({ "processor": "processor", "queryTokenizer": "bert" }));
    config.insert("llamavid".into(), Value::Object(block));
    config
}

fn unwritable(path: &std::path::Path, error: &serde_json::Error) -> Error {
    Error::new(ErrorCode::Internal, format!("{}: {error}", path.display()))
}
