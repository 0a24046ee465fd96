//! The sizes of the embedded model: the published architecture, small.

use llamavid_models::language_model::{AttentionBias, LanguageModelConfig};
use llamavid_models::token_generation::{
    Compression, Projector, QueryKind, QueryModelConfig, TokenGenerationConfig, TokenRows,
};
use llamavid_models::visual_encoder::EvaConfig;

/// Side of the pictures in pixels.
pub const IMAGE_SIZE: usize = 84;
/// Side of a patch in pixels.
pub const PATCH_SIZE: usize = 14;
/// Patches along a side.
pub const PATCH_SIDE: usize = IMAGE_SIZE / PATCH_SIZE;
/// Rows of a frame: its patches and the class row.
pub const ROWS: usize = PATCH_SIDE * PATCH_SIDE + 1;
/// Visual width V.
pub const VISUAL_WIDTH: usize = 128;
/// Language width D.
pub const LANGUAGE_WIDTH: usize = 128;
/// Positions of the language model's context.
pub const POSITIONS: usize = 4096;
/// Visual tokens of a frame.
pub const TOKENS_PER_FRAME: usize = 2;

/// The visual encoder.
pub fn eva() -> EvaConfig {
    EvaConfig {
        image_size: IMAGE_SIZE,
        patch_size: PATCH_SIZE,
        width: VISUAL_WIDTH,
        depth: 3,
        heads: 4,
        mlp_width: 4 * VISUAL_WIDTH,
        position_side: PATCH_SIDE,
    }
}

/// Q-Former, context attention and projector. `vocabulary` counts the word pieces of `vocab.txt`.
pub fn tokens(vocabulary: usize) -> TokenGenerationConfig {
    TokenGenerationConfig {
        query: QueryModelConfig {
            kind: QueryKind::QFormer { visual_norm: true },
            width: 128,
            layers: 2,
            heads: 4,
            mlp_width: 512,
            queries: 4,
            vocab_size: vocabulary + 1,
            max_positions: 64,
            type_vocab_size: 2,
            projected_width: None,
        },
        visual_width: VISUAL_WIDTH,
        language_width: LANGUAGE_WIDTH,
        projector: Projector::MlpGelu { layers: 2 },
        compression: Compression::Mean,
        rows: TokenRows::Patches,
    }
}

/// The decoder. `vocabulary` counts the pieces of `tokenizer.model`.
pub fn language(vocabulary: usize) -> LanguageModelConfig {
    LanguageModelConfig {
        vocab_size: vocabulary,
        hidden_size: LANGUAGE_WIDTH,
        intermediate_size: 384,
        layers: 5,
        heads: 4,
        kv_heads: 4,
        head_dim: LANGUAGE_WIDTH / 4,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.,
        rope_scaling: None,
        max_positions: POSITIONS,
        tie_word_embeddings: false,
        attention_bias: AttentionBias::None,
        bos_id: 1,
        eos_ids: vec![2],
        pad_id: Some(0),
    }
}
