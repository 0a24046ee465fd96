//! The format of a folder of recorded cases (`fixtures/oracle/README.md`).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use llamavid_models::config::{Extension, FeatureSource, QuerySizes, VisionSizes};
use serde::Deserialize;

/// `cases.json` of a folder with a model.
#[derive(Debug, Deserialize)]
pub struct ModelCases {
    /// Sizes that the reference has in its code.
    pub sizes: Sizes,
    /// The cases.
    pub cases: Vec<Case>,
    /// Training steps by stage, `stage1`.
    #[serde(default)]
    pub training: BTreeMap<String, StageCase>,
}

/// One training step of the reference.
#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct StageCase {
    pub argv: Vec<String>,
    pub trainable: Vec<String>,
    pub frozen_prefixes: Vec<String>,
    pub optimizer: OptimizerCase,
    pub prompts: Vec<Vec<String>>,
    /// Coins of the template: 0 puts the tag in front.
    pub randint_draws: Vec<u32>,
    pub loss: f64,
    pub grad_norms: BTreeMap<String, f64>,
    pub grad_norm_total: f64,
    pub grad_none: Vec<String>,
    pub lr_of_the_recorded_step: f64,
    pub loss_after_step: f64,
    pub tensors: Vec<String>,
}

/// The reference's optimiser.
#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct OptimizerCase {
    pub groups: Vec<GroupCase>,
}

/// Weights that are updated alike.
#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct GroupCase {
    pub lr: f64,
    pub params: Vec<String>,
}

/// The sizes that are needed to build the parts.
#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Sizes {
    pub image_size: usize,
    pub pos_side: usize,
    pub vit_dim: usize,
    pub vit_depth: usize,
    pub vit_heads: usize,
    pub vit_mlp_hidden: usize,
    pub bert_dim: usize,
    pub bert_heads: usize,
    pub bert_layers: usize,
    pub bert_inter: usize,
}

impl Sizes {
    /// The same as the block that our `config.json` has.
    pub fn extension(&self, long_video: bool) -> Extension {
        Extension {
            vision: VisionSizes {
                kind: None,
                image_size: Some(self.image_size),
                patch_size: None,
                width: Some(self.vit_dim),
                depth: Some(self.vit_depth),
                heads: Some(self.vit_heads),
                mlp_width: Some(self.vit_mlp_hidden),
                position_side: Some(self.pos_side),
            },
            query: QuerySizes {
                width: Some(self.bert_dim),
                layers: Some(self.bert_layers),
                heads: Some(self.bert_heads),
                mlp_width: Some(self.bert_inter),
                ..QuerySizes::default()
            },
            features: Some(if long_video { FeatureSource::Precomputed } else { FeatureSource::Pixels }),
            ..Extension::default()
        }
    }
}

impl Sizes {
    /// The block `llamavid` of a configuration with these sizes.
    pub fn extension_block(&self) -> serde_json::Value {
        serde_json::json!({
            "vision": {
                "imageSize": self.image_size,
                "width": self.vit_dim,
                "depth": self.vit_depth,
                "heads": self.vit_heads,
                "mlpWidth": self.vit_mlp_hidden,
                "positionSide": self.pos_side,
            },
            "query": {
                "width": self.bert_dim,
                "layers": self.bert_layers,
                "heads": self.bert_heads,
                "mlpWidth": self.bert_inter,
            },
        })
    }
}

/// One picture, video, feature file or text with a question.
#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Case {
    pub id: String,
    pub conversation: String,
    #[serde(default)]
    pub turns: Vec<(String, Option<String>)>,
    pub prompt: String,
    /// A list of questions for the one sample.
    pub qformer_prompts: Option<Vec<Vec<String>>>,
    pub stop: Option<String>,
    #[serde(default)]
    pub long_video: bool,
    pub input_ids: Vec<i64>,
    pub spliced_length: Option<usize>,
    pub greedy_ids: Option<Vec<u32>>,
    pub text: Option<String>,
    pub text_cli: Option<String>,
    pub file: Option<String>,
    pub preprocess: Option<String>,
    pub fps: Option<f64>,
    pub frame_index: Option<Vec<usize>>,
    pub feats_tensor: Option<String>,
    pub feats_file: Option<String>,
    #[serde(default)]
    pub tensors: Vec<String>,
}

/// `cases.json` of a folder with pictures and what resize and crop make of them.
#[derive(Debug, Deserialize)]
pub struct PreprocessCases {
    /// Colour of the padding; tells this kind of folder from the other.
    #[allow(dead_code)]
    pub pad_colour: [u8; 3],
    /// The cases.
    pub cases: Vec<PreprocessCase>,
}

/// One picture at one size in one mode.
#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct PreprocessCase {
    pub picture: String,
    pub size: usize,
    pub mode: String,
    pub tensors: String,
}

/// The two kinds of folders.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Cases {
    /// A model and its cases.
    Model(Box<ModelCases>),
    /// Pictures.
    Preprocess(PreprocessCases),
}

/// Recorded tensors by name.
pub type Recorded = HashMap<String, Tensor>;

/// Reads `cases.json` and `tensors.safetensors` of a folder.
pub fn read(folder: &Path) -> Result<(Cases, Recorded), String> {
    let path = folder.join("cases.json");
    let text = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let cases = serde_json::from_slice(&text).map_err(|error| {
        format!("{}: neither cases of a model nor of preprocessing: {error}", path.display())
    })?;
    let path = folder.join("tensors.safetensors");
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    Ok((cases, tensors))
}
