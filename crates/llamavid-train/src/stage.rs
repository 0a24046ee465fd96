//! The three stages of the paper, section 3.3: what each trains, and with which of the reference's flags.

use llamavid_models::config::ModelConfig;
use serde::{Deserialize, Serialize};

use crate::batch::EmbeddingGradient;
use crate::freeze_plan::FreezePlan;
use crate::optimizer::{ParameterGroup, Update};
use crate::parameters::Parameters;

/// A stage of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// 1: the new layers learn to speak to the language model.
    Alignment,
    /// 2: everything but the visual encoder learns to answer.
    Instruction,
    /// 3: the language model learns to read hours of video.
    LongVideo,
}

impl Stage {
    /// All of them in order.
    pub const ALL: [Self; 3] = [Self::Alignment, Self::Instruction, Self::LongVideo];

    /// 1, 2 or 3.
    pub fn number(self) -> usize {
        match self {
            Self::Alignment => 1,
            Self::Instruction => 2,
            Self::LongVideo => 3,
        }
    }

    /// The stage of a number.
    pub fn from_number(number: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.number() == number)
    }

    /// What trains in the published recipes: projector and context attention, with `<im_start>` and `<im_end>` also the input
    /// embeddings; everything but the visual encoder; the language model and the projector.
    pub fn plan(self, image_start_end: bool) -> FreezePlan {
        FreezePlan::of_flags(self == Self::Alignment, self.bert_type(), image_start_end)
    }

    /// Which input embeddings learn.
    pub fn embedding_gradient(self, config: &ModelConfig) -> EmbeddingGradient {
        match self {
            Self::Alignment if config.image_start_end => EmbeddingGradient::BesideImages,
            _ => EmbeddingGradient::All,
        }
    }

    /// The reference's `bert_type` of the published recipes; what stands in a checkpoint's configuration.
    pub fn bert_type(self) -> &'static str {
        match self {
            Self::Alignment => "qformer_pretrain_freeze",
            Self::Instruction => "qformer_pretrain",
            Self::LongVideo => "qformer_pretrain_freeze_all",
        }
    }

    /// The conversation template of the published recipes.
    pub fn template(self) -> &'static str {
        match self {
            Self::Alignment => "plain_guided",
            Self::Instruction | Self::LongVideo => "imgsp_v1",
        }
    }
}

/// A factor of the learning rate for the weights whose published name contains a word (the reference's `lr_multi`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateFactor {
    /// What the name contains.
    pub name: String,
    /// Times the learning rate.
    pub factor: f64,
}

/// The groups of the reference's AdamW: weights, which decay, and biases and layer norms, which do not; each again by
/// the first of `factors` that fits. Groups without a weight are left out.
pub fn adamw_groups(
    parameters: &Parameters,
    learning_rate: f64,
    weight_decay: f64,
    factors: &[RateFactor],
) -> Vec<ParameterGroup> {
    let mut groups: Vec<ParameterGroup> = Vec::new();
    for decaying in [true, false] {
        for factor in [None].into_iter().chain(factors.iter().map(Some)) {
            let variables = parameters.trainable().into_iter().filter(|(name, _)| {
                let published = llamavid_weights::Part::published(name).unwrap_or_else(|| name.clone());
                let own = factors.iter().find(|factor| published.contains(&factor.name));
                decays(name) == decaying && own == factor
            });
            let group = ParameterGroup {
                variables: variables.collect(),
                update: Update::adamw(),
                learning_rate: learning_rate * factor.map_or(1., |factor| factor.factor),
                weight_decay: if decaying { weight_decay } else { 0. },
            };
            if !group.variables.is_empty() {
                groups.push(group);
            }
        }
    }
    groups
}

/// Whether weight decay touches a weight. The reference spares biases and torch's `LayerNorm`s, and not the
/// decoder's root-mean-square norms, which are of another class.
pub fn decays(name: &str) -> bool {
    let layer_norm = name.contains(".LayerNorm.")
        || name.starts_with("token_generator.query_norm.")
        || name.starts_with("visual_encoder.") && (name.contains(".norm1.") || name.contains(".norm2."));
    !(layer_norm || name.ends_with("bias"))
}
