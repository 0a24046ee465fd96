//! The configuration of a model, parsed once from the `config.json` of a checkpoint.
//!
//! The reference hard-codes the sizes of the visual encoder and of the query model; here they may stand
//! in the file under `llamavid`, and the published sizes are the defaults.

use serde::Deserialize;

use crate::language_model::LanguageModelConfig;
use crate::prompt::conversation::Template;
use crate::token_generation::{
    Compression, FeatureKind, Projector, QueryKind, QueryModelConfig, TokenGenerationConfig, TokenRows,
};
use crate::visual_encoder::{ClipConfig, EvaConfig, VisualEncoderConfig};
use crate::{Error, Result};

/// Everything that is known of a model before a weight is read.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The visual encoder.
    pub visual: VisualEncoderConfig,
    /// The query model, the two tokens and the projector.
    pub tokens: TokenGenerationConfig,
    /// The decoder.
    pub language: LanguageModelConfig,
    /// What the model expects of features: `Precomputed` for the published long-video models' own files.
    pub features: FeatureKind,
    /// Whether each picture stands between `<im_start>` and `<im_end>`.
    pub image_start_end: bool,
    /// The conversation template that the model was trained with, where the file names one.
    pub conversation: Option<&'static Template>,
    /// Where the side files are, as written in the file.
    pub files: SideFiles,
}

/// Paths of the files beside the checkpoint, relative to the model's folder or to the folder above it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SideFiles {
    /// The visual encoder's weights: a file, or the folder of a CLIP model.
    pub vision: Option<String>,
    /// The folder with `preprocessor_config.json`.
    pub processor: Option<String>,
    /// The folder with the query model's `vocab.txt`.
    pub query_tokenizer: Option<String>,
}

/// The block `llamavid` of `config.json`: what the reference has in its code. Absent values are the published ones.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Extension {
    /// Sizes of the visual encoder.
    pub vision: VisionSizes,
    /// Sizes of the query model.
    pub query: QuerySizes,
    /// Where the side files are.
    pub files: SideFiles,
    /// `pixels` or `precomputed`: whether features come with their class row (SPEC quirk 1).
    pub features: Option<FeatureSource>,
    /// Name of the conversation template that the model was trained with, for example `vicuna_v1`.
    pub conversation: Option<String>,
}

/// Where features come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeatureSource {
    /// From the visual encoder, with the class row.
    Pixels,
    /// From a file, without the class row.
    Precomputed,
}

/// Which visual encoder a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VisionKind {
    /// EVA ViT.
    Eva,
    /// The vision part of CLIP.
    Clip,
}

/// Kind and sizes of the visual encoder; `None` is the published EVA ViT-g, and of CLIP ViT-L/14.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct VisionSizes {
    pub kind: Option<VisionKind>,
    pub image_size: Option<usize>,
    pub patch_size: Option<usize>,
    pub width: Option<usize>,
    pub depth: Option<usize>,
    pub heads: Option<usize>,
    pub mlp_width: Option<usize>,
    pub position_side: Option<usize>,
}

/// Sizes of the query model; `None` is what the BERT folder's `config.json` says, or bert-base.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct QuerySizes {
    pub width: Option<usize>,
    pub layers: Option<usize>,
    pub heads: Option<usize>,
    pub mlp_width: Option<usize>,
    pub vocab_size: Option<usize>,
    pub max_positions: Option<usize>,
}

/// What other files say and `config.json` does not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings<'a> {
    /// `config.json` of the query model's BERT folder.
    pub bert: Option<&'a [u8]>,
    /// `config.json` of a CLIP folder, when the visual encoder is one.
    pub clip: Option<&'a [u8]>,
    /// Side of the pictures that the image processor makes, in pixels.
    pub image_size: Option<usize>,
    /// Side of the position table in the visual encoder's file, in patches.
    pub position_side: Option<usize>,
    /// Width that visual features are projected to before the query model, when the checkpoint holds such a projection
    /// in front of a Q-Former.
    pub projected_width: Option<usize>,
    /// Sizes that are known from elsewhere (a parity case's `sizes`) and win over the file's.
    pub sizes: Option<&'a Extension>,
}

#[derive(Debug, Deserialize)]
struct ConfigFile {
    hidden_size: usize,
    mm_hidden_size: Option<usize>,
    mm_projector_type: Option<String>,
    mm_vision_tower: Option<String>,
    mm_vision_select_feature: Option<String>,
    mm_vision_select_layer: Option<i64>,
    #[serde(default)]
    mm_use_im_start_end: bool,
    image_processor: Option<String>,
    bert_type: Option<String>,
    num_query: Option<usize>,
    compress_type: Option<String>,

    #[serde(default)]
    llamavid: Extension,
}

#[derive(Debug, Default, Deserialize)]
struct BertFile {
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    intermediate_size: Option<usize>,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct ClipFile {
    vision_config: Option<ClipVisionFile>,
    #[serde(flatten)]
    flat: ClipVisionFile,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ClipVisionFile {
    image_size: Option<usize>,
    patch_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_attention_heads: Option<usize>,
    num_hidden_layers: Option<usize>,
}

/// Largest size that is believed: hostile files must not make later arithmetic overflow.
const LARGEST: usize = 1 << 24;

impl ModelConfig {
    /// Parses `config.json`, with what the files around it say.
    ///
    /// # Errors
    /// [`Error::Config`] names the key that is missing or wrong; [`Error::Unsupported`] what is valid elsewhere only.
    pub fn parse(config: &[u8], around: &Surroundings<'_>) -> Result<Self> {
        let file: ConfigFile = from_json(config, "config.json")?;
        let side = side_files(&file);
        let overrides = around.sizes.cloned().unwrap_or_default();
        let visual = visual_config(&file, &overrides, around)?;
        let visual_width = visual.width();
        if let Some(width) = file.mm_hidden_size
            && width != visual_width
        {
            return Err(bad(
                "mm_hidden_size",
                format!("is {width}, the visual encoder's width is {visual_width}"),
            ));
        }
        let tokens = TokenGenerationConfig {
            query: query_config(&file, &overrides, around)?,
            visual_width,
            language_width: positive("hidden_size", file.hidden_size)?,
            projector: Projector::parse(file.mm_projector_type.as_deref().unwrap_or("linear"))?,
            compression: Compression::parse(file.compress_type.as_deref())?,
            rows: TokenRows::parse(file.mm_vision_select_feature.as_deref().unwrap_or("patch"))?,
        };
        let features = overrides.features.or(file.llamavid.features).unwrap_or(FeatureSource::Pixels);
        Ok(Self {
            visual,
            tokens,
            language: LanguageModelConfig::from_json(config)?,
            features: match features {
                FeatureSource::Pixels => FeatureKind::Pixels,
                FeatureSource::Precomputed => FeatureKind::Precomputed,
            },
            image_start_end: file.mm_use_im_start_end,
            conversation: file.llamavid.conversation.as_deref().map(template).transpose()?,
            files: side,
        })
    }

    /// The side files alone: they must be found before the rest can be parsed.
    pub fn side_files(config: &[u8]) -> Result<SideFiles> {
        Ok(side_files(&from_json(config, "config.json")?))
    }
}

fn template(name: &str) -> Result<&'static Template> {
    Template::by_name(name).map_err(|error| bad("llamavid.conversation", error.to_string()))
}

fn side_files(file: &ConfigFile) -> SideFiles {
    let own = file.llamavid.files.clone();
    SideFiles {
        vision: own.vision.or_else(|| file.mm_vision_tower.clone()),
        processor: own.processor.or_else(|| file.image_processor.clone()),
        query_tokenizer: own.query_tokenizer,
    }
}

fn visual_config(
    file: &ConfigFile,
    over: &Extension,
    around: &Surroundings<'_>,
) -> Result<VisualEncoderConfig> {
    let (over, own) = (&over.vision, &file.llamavid.vision);
    let clip = match around.clip {
        Some(clip) => {
            let clip: ClipFile = from_json(clip, "the visual encoder's config.json")?;
            Some(clip.vision_config.unwrap_or(clip.flat))
        }
        None if over.kind.or(own.kind) == Some(VisionKind::Clip) => Some(ClipVisionFile {
            image_size: over.image_size.or(own.image_size),
            patch_size: over.patch_size.or(own.patch_size),
            hidden_size: over.width.or(own.width),
            intermediate_size: over.mlp_width.or(own.mlp_width),
            num_attention_heads: over.heads.or(own.heads),
            num_hidden_layers: over.depth.or(own.depth),
        }),
        None => None,
    };
    match clip {
        Some(sizes) => clip_config(file, sizes).map(VisualEncoderConfig::Clip),
        None => eva_config(file, over, own, around).map(VisualEncoderConfig::Eva),
    }
}

fn clip_config(file: &ConfigFile, sizes: ClipVisionFile) -> Result<ClipConfig> {
    let patch_size = positive("patch_size", sizes.patch_size.unwrap_or(14))?;
    let image_size = positive("image_size", sizes.image_size.unwrap_or(224))?;
    Ok(ClipConfig {
        image_size,
        patch_size,
        width: positive("vision_config.hidden_size", sizes.hidden_size.unwrap_or(1024))?,
        depth: positive("vision_config.num_hidden_layers", sizes.num_hidden_layers.unwrap_or(24))?,
        heads: positive("vision_config.num_attention_heads", sizes.num_attention_heads.unwrap_or(16))?,
        mlp_width: positive("vision_config.intermediate_size", sizes.intermediate_size.unwrap_or(4096))?,
        select_layer: file.mm_vision_select_layer.unwrap_or(-2),
        class_token: match file.mm_vision_select_feature.as_deref() {
            None | Some("patch") => false,
            Some("cls_patch") => true,
            Some(other) => {
                let problem = format!("`{other}` is neither `patch` nor `cls_patch`");
                return Err(bad("mm_vision_select_feature", problem));
            }
        },
        position_side: image_size / patch_size,
    })
}

fn eva_config(
    file: &ConfigFile,
    over: &VisionSizes,
    own: &VisionSizes,
    around: &Surroundings<'_>,
) -> Result<EvaConfig> {
    let patch_size = positive("patchSize", over.patch_size.or(own.patch_size).unwrap_or(14))?;
    let image_size = over.image_size.or(own.image_size).or(around.image_size).unwrap_or(224);
    if image_size < patch_size || !image_size.is_multiple_of(patch_size) || image_size > 8192 {
        let problem = format!("{image_size} is not a multiple of the patch size {patch_size} up to 8192");
        return Err(bad("imageSize", problem));
    }
    let width = over.width.or(own.width).or(file.mm_hidden_size).unwrap_or(1408);
    let heads = positive("heads", over.heads.or(own.heads).unwrap_or(16))?;
    divisible("the visual encoder's width", width, heads)?;
    Ok(EvaConfig {
        image_size,
        patch_size,
        width: positive("width", width)?,
        depth: positive("depth", over.depth.or(own.depth).unwrap_or(39))?,
        heads,
        // The reference's own rounding of 4.3637 times the width: 6144 for ViT-g.
        mlp_width: over.mlp_width.or(own.mlp_width).unwrap_or((width as f64 * 4.3637) as usize),
        position_side: around
            .position_side
            .or(over.position_side)
            .or(own.position_side)
            .unwrap_or(image_size / patch_size),
    })
}

fn query_config(file: &ConfigFile, over: &Extension, around: &Surroundings<'_>) -> Result<QueryModelConfig> {
    let bert: BertFile = match around.bert {
        Some(bytes) => from_json(bytes, "the query model's config.json")?,
        None => BertFile::default(),
    };
    let kind = QueryKind::parse(file.bert_type.as_deref().unwrap_or("qformer_pretrain"))?;
    let (over, own) = (&over.query, &file.llamavid.query);
    let width = positive("query width", over.width.or(own.width).or(bert.hidden_size).unwrap_or(768))?;
    let heads = positive("query heads", over.heads.or(own.heads).or(bert.num_attention_heads).unwrap_or(12))?;
    divisible("the query model's width", width, heads)?;
    let words = bert.vocab_size.unwrap_or(30522);
    // The table has one row more: [DEC], added to the tokenizer and never used.
    let rows = words.saturating_add(1);
    Ok(QueryModelConfig {
        kind,
        width,
        layers: positive(
            "query layers",
            over.layers.or(own.layers).or(bert.num_hidden_layers).unwrap_or(12),
        )?,
        heads,
        mlp_width: positive(
            "query mlpWidth",
            over.mlp_width.or(own.mlp_width).or(bert.intermediate_size).unwrap_or(3072),
        )?,
        queries: positive("num_query", file.num_query.unwrap_or(32))?,
        vocab_size: positive("query vocabSize", over.vocab_size.or(own.vocab_size).unwrap_or(rows))?,
        max_positions: positive(
            "query maxPositions",
            over.max_positions.or(own.max_positions).or(bert.max_position_embeddings).unwrap_or(512),
        )?,
        type_vocab_size: 2,
        projected_width: around.projected_width.filter(|_| matches!(kind, QueryKind::QFormer { .. })),
    })
}

fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| bad(what, error.to_string()))
}

fn positive(key: &str, value: usize) -> Result<usize> {
    if value == 0 || value > LARGEST {
        return Err(bad(key, format!("{value} is not between 1 and {LARGEST}")));
    }
    Ok(value)
}

fn divisible(key: &str, value: usize, by: usize) -> Result<()> {
    if !value.is_multiple_of(by) {
        return Err(bad(key, format!("{value} does not divide by {by}")));
    }
    Ok(())
}

fn bad(key: &str, problem: String) -> Error {
    Error::Config { key: key.to_owned(), problem }
}
