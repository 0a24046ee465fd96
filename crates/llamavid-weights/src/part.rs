//! The parts of a model and how their weights are named, in memory and in the published files.

use crate::key_table::{KeyTable, LANGUAGE, TOKENS, VISION_TOWER, VISUAL};
use crate::{Checkpoint, Result};

/// A part of the model. Its weights' names begin with [`Part::name`] and a dot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Pixels to visual features.
    VisualEncoder,
    /// Visual features and questions to visual tokens.
    TokenGenerator,
    /// The decoder.
    LanguageModel,
}

impl Part {
    /// All of them, in the order of the data.
    pub const ALL: [Self; 3] = [Self::VisualEncoder, Self::TokenGenerator, Self::LanguageModel];

    /// What stands in front of the names of its weights.
    pub fn name(self) -> &'static str {
        match self {
            Self::VisualEncoder => "visual_encoder",
            Self::TokenGenerator => "token_generator",
            Self::LanguageModel => "language_model",
        }
    }

    /// What it is called in messages.
    pub fn title(self) -> &'static str {
        match self {
            Self::VisualEncoder => "visual encoder",
            Self::TokenGenerator => "token generator",
            Self::LanguageModel => "language model",
        }
    }

    /// The names in a checkpoint that holds only this part, or several parts side by side.
    pub fn table(self) -> &'static KeyTable {
        match self {
            Self::VisualEncoder => &VISUAL,
            Self::TokenGenerator => &TOKENS,
            Self::LanguageModel => &LANGUAGE,
        }
    }

    /// The part of a weight and the weight's name in it.
    pub fn split(name: &str) -> Option<(Self, &str)> {
        let (part, rest) = name.split_once('.')?;
        Self::ALL.into_iter().find(|candidate| candidate.name() == part).map(|part| (part, rest))
    }

    /// The name in a published checkpoint of the whole model; none for a weight that such a checkpoint has no
    /// place for.
    pub fn published(name: &str) -> Option<String> {
        let (part, rest) = Self::split(name)?;
        part.upstream(rest)
    }

    /// The same of a weight by its name in this part.
    pub fn upstream(self, name: &str) -> Option<String> {
        let upstream = self.table().upstream(name)?;
        Some(match self {
            Self::VisualEncoder => format!("{VISION_TOWER}{upstream}"),
            Self::TokenGenerator | Self::LanguageModel => upstream,
        })
    }

    /// Our name for one of a published checkpoint of the whole model.
    pub fn ours(published: &str) -> Option<String> {
        if let Some(rest) = published.strip_prefix(VISION_TOWER) {
            return Some(format!("{}.{rest}", Self::VisualEncoder.name()));
        }
        [Self::TokenGenerator, Self::LanguageModel].into_iter().find_map(|part| {
            let table = part.table();
            let ours = if table.claims(published) { table.ours(published) } else { None };
            ours.map(|rest| format!("{}.{rest}", part.name()))
        })
    }
}

/// Side of the position table in patches, of an EVA ViT's weights under their published names; none where the table is missing, which
/// the strict search for weights names, or is no square with a class row.
///
/// # Errors
/// A table of a kind that is not read.
pub fn position_side(vision: &Checkpoint) -> Result<Option<usize>> {
    const TABLE: &str = "pos_embed"; // (1, P + 1, V)
    if !vision.contains(TABLE) {
        return Ok(None);
    }
    let rows = vision.shape(TABLE)?.get(1).copied().unwrap_or(0);
    let side = rows.saturating_sub(1).isqrt();
    Ok((side > 0 && side * side + 1 == rows).then_some(side))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for (ours, published) in [
            ("visual_encoder.blocks.3.attn.q_bias", "model.vision_tower.vision_tower.blocks.3.attn.q_bias"),
            ("token_generator.context.key_proj.weight", "model.vlm_att_key_projector.weight"),
            ("token_generator.projector.0.bias", "model.mm_projector.0.bias"),
            ("token_generator.query_tokens", "model.vlm_att_query"),
            ("language_model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
            ("language_model.lm_head.weight", "lm_head.weight"),
        ] {
            assert_eq!(Part::published(ours).unwrap(), published);
            assert_eq!(Part::ours(published).unwrap(), ours);
        }
        assert_eq!(Part::published("heads.colour.weight"), None);
    }
}
