//! What one setting takes in each phase of an answer, in bytes.
//!
//! Follows what the modules allocate on the CPU: tensors that live at the same time are added up, those of later steps
//! take the place of earlier ones. A key/value cache is counted as far as it is written: its buffers are mapped zeros,
//! which take no memory before. Letters: F frames, P patches, R rows of a frame, V visual width, Q text queries,
//! L word pieces, N rows that tokens are made of, D language width, S positions.

use candle_core::DType;
use llamavid_kernels::WIDEST_FUSED_HEAD;
use llamavid_models::config::ModelConfig;
use llamavid_models::language_model::{
    CachePrecision, LanguageModelConfig, QUERY_BLOCK, SCORES_AT_ONCE, longest_step,
};
use llamavid_models::token_generation::{FeatureKind, QueryKind};
use llamavid_models::visual_encoder::VisualEncoderConfig;
use llamavid_store::SHARD_FRAMES;
use serde::Serialize;

use super::weights::{Format, Held, PartBytes};
use crate::DeviceKind;
use crate::session::prefill_chunk;
use crate::token_generator::PAIRS_A_STEP;
use crate::visual_encoder::frames_a_step;

/// Frames of a batch that the pipeline hands to the encoder.
const BATCH: u64 = SHARD_FRAMES as u64;
/// Shards that exist at once where features are stored: one that is written, its bytes, and what tokens are made of.
const SHARDS_AT_ONCE: usize = 4;
/// Batches of pixels that exist at once: one that is encoded, two that wait or are being filled.
const PIXEL_BATCHES: u64 = 3;
/// What a decoder takes for a pixel of the source: six pictures with subsampled colours, and one in RGB. Measured on H.264,
/// HEVC and VP9 from 320 to 1920 pixels a row, beyond what opening the file has taken already.
const DECODER_BYTES_A_PIXEL: u64 = 6 * 3 / 2 + 3;
/// What the addon, its threads, packed panels of matrices and the allocator's large pages take once something is computed.
/// Measured.
const ENGINE: u64 = 64 << 20;
/// The same on a graphics processor: the driver's context, the code of all kernels and cuBLAS's workspaces. Measured on an H100.
const CUDA_ENGINE: u64 = 640 << 20;

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct Work {
    /// Frames of each video or picture.
    pub(super) frames: Vec<usize>,
    /// Pixels of the largest source picture.
    pub(super) source_pixels: u64,
    /// Positions of the prompt, visual tokens included.
    pub(super) prompt_tokens: usize,
    /// Word pieces that the query model reads.
    pub(super) query_tokens: usize,
    /// The longest answer.
    pub(super) max_new_tokens: usize,
    /// Frames whose features exist already.
    pub(super) encoded_frames: usize,
    /// Whether features are in a store, and only a few of them in memory.
    pub(super) stored: bool,
    /// How keys and values are held.
    pub(super) kv_cache: CachePrecision,
    /// Whether the weights are in memory already.
    pub(super) loaded: bool,
    /// Devices that share each layer of the language model.
    pub(super) ranks: usize,
}

/// Sizes of the steps that work is done in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Steps {
    /// Frames that the visual encoder takes at once.
    pub(super) encoder_frames: usize,
    /// Frames that the Q-Former takes at once.
    pub(super) token_frames: usize,
    /// Positions of the prompt that the language model reads at once.
    pub(super) prefill_chunk: usize,
}

/// Working memory of the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Activations {
    /// Of the decoder and of pixels that wait.
    pub(super) media: u64,
    /// Of the visual encoder.
    pub(super) visual_encoder: u64,
    /// Of the token generator.
    pub(super) token_generator: u64,
    /// Of a chunk of the prompt behind all others.
    pub(super) prefill: u64,
    /// Of the choice of a token.
    pub(super) logits: u64,
}

/// What a setting takes.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Usage {
    /// By parts, whether in memory already or not.
    pub(super) weights: PartBytes,
    pub(super) kv_cache: u64,
    pub(super) features: u64,
    /// The prompt's embeddings, and the visual tokens that are a part of them.
    pub(super) prompt: u64,
    pub(super) activations: Activations,
    /// What is taken beyond what the process has now, at its highest.
    pub(super) needed: u64,
    /// When that is: `load`, `encode`, `tokens` or `answer`.
    pub(super) peak_phase: &'static str,
}

/// The steps for this model on a device.
pub(super) fn steps(config: &ModelConfig, work: &Work, kind: DeviceKind) -> Steps {
    let longest = work.frames.iter().copied().max().unwrap_or(0);
    Steps {
        encoder_frames: frames_a_step(&config.visual, kind),
        token_frames: PAIRS_A_STEP.min(longest),
        prefill_chunk: longest_step(prefill_chunk(&config.language, kind)).min(work.prompt_tokens.max(1)),
    }
}

/// Bytes of the features of `frames` frames.
pub(super) fn feature_bytes(config: &ModelConfig, frames: usize, element: u64) -> u64 {
    let rows = config.visual.patches() as u64 + class_row(config);
    frames as u64 * rows * config.visual.width() as u64 * element
}

fn class_row(config: &ModelConfig) -> u64 {
    match &config.visual {
        VisualEncoderConfig::Clip(clip) => u64::from(clip.class_token),
        VisualEncoderConfig::Eva(_) => 1,
    }
}

/// What `work` takes in `format`.
pub(super) fn usage(
    config: &ModelConfig,
    held: &Held,
    format: Format,
    work: &Work,
    kind: DeviceKind,
) -> Usage {
    let element = format.dtype.size_in_bytes() as u64;
    let steps = steps(config, work, kind);
    let frames: usize = work.frames.iter().sum();
    let new_frames = frames.saturating_sub(work.encoded_frames);

    let parts = held.bytes;
    let resident = if work.loaded { 0 } else { parts.total() };
    let in_memory =
        |frames: usize| if work.stored { frames.min(SHARDS_AT_ONCE * SHARD_FRAMES) } else { frames };
    let features = feature_bytes(config, in_memory(frames), element);
    let new_features = feature_bytes(config, in_memory(new_frames), element);
    let tokens = frames as u64 * tokens_per_frame(config) * config.language.hidden_size as u64 * element;
    let prompt = work.prompt_tokens as u64 * config.language.hidden_size as u64 * element + tokens;
    let precision = if held.language_in_blocks { work.kv_cache.beside_blocks() } else { work.kv_cache };
    let kv_cache = kv_bytes(&config.language, work, precision, format.dtype);
    let activations = Activations {
        media: if new_frames == 0 { 0 } else { media(config, work, new_frames as u64) },
        visual_encoder: if new_frames == 0 {
            0
        } else {
            let batch = feature_bytes(config, new_frames.min(BATCH as usize), element);
            visual_encoder(config, steps.encoder_frames.min(new_frames) as u64, format.dtype, held, kind)
                // A batch's features in parts and put together, and a copy of the last one among all.
                + 2 * batch
        },
        token_generator: token_generator(
            config,
            steps.token_frames as u64,
            work.query_tokens as u64,
            element,
        ),
        prefill: prefill(config, steps.prefill_chunk as u64, work, element, held, kind),
        // The row, its copy, and the sampler's order of it.
        logits: 4 * 4 * config.language.vocab_size as u64,
    };
    let phases = [
        ("load", if work.loaded { 0 } else { resident + held.loading }),
        ("encode", resident + new_features + activations.media + activations.visual_encoder),
        ("tokens", resident + new_features + 2 * tokens + activations.token_generator),
        ("answer", resident + new_features + prompt + kv_cache + activations.prefill.max(activations.logits)),
    ];
    let (peak_phase, most) =
        phases.into_iter().fold(("load", 0), |most, phase| if phase.1 > most.1 { phase } else { most });
    let engine = match kind {
        _ if work.loaded => 0,
        DeviceKind::Cpu => ENGINE,
        DeviceKind::Cuda => CUDA_ENGINE,
    };
    Usage { weights: parts, kv_cache, features, prompt, activations, needed: most + engine, peak_phase }
}

/// Context and content tokens of a frame.
pub(super) fn tokens_per_frame(config: &ModelConfig) -> u64 {
    let class_row = match config.features {
        FeatureKind::Pixels => class_row(config) as usize,
        FeatureKind::Precomputed => 0,
    };
    config.tokens.tokens_per_frame(config.visual.patches() + class_row) as u64
}

/// Keys and values of the prompt and of the longest answer that the context has room for.
fn kv_bytes(language: &LanguageModelConfig, work: &Work, precision: CachePrecision, dtype: DType) -> u64 {
    let positions = (work.prompt_tokens + work.max_new_tokens).min(language.max_positions);
    // Where there are more devices than key heads, several have the same.
    let rows = 2 * language.layers * language.kv_heads.max(work.ranks) * positions;
    // `Planner` has refused what cannot be held so.
    (rows * precision.row_bytes(language.head_dim, dtype).unwrap_or(0)) as u64
}

/// The decoder's pictures, and pixels (F, 3, S, S) in f32.
fn media(config: &ModelConfig, work: &Work, frames: u64) -> u64 {
    let side = config.visual.image_size() as u64;
    let pixels = frames.min(PIXEL_BATCHES * BATCH) * 3 * side * side * 4;
    pixels + work.source_pixels * DECODER_BYTES_A_PIXEL
}

/// A step of `frames` frames through one block.
fn visual_encoder(config: &ModelConfig, frames: u64, dtype: DType, held: &Held, kind: DeviceKind) -> u64 {
    let (heads, mlp_width, patch_size) = match &config.visual {
        VisualEncoderConfig::Eva(eva) => (eva.heads, eva.mlp_width, eva.patch_size),
        VisualEncoderConfig::Clip(clip) => (clip.heads, clip.mlp_width, clip.patch_size),
    };
    let element = dtype.size_in_bytes() as u64;
    let (side, patches, width) =
        (config.visual.image_size() as u64, config.visual.patches() as u64, config.visual.width() as u64);
    let pixels = frames * 3 * side * side * (4 + element);
    let unfolded = frames * patches * 3 * (patch_size * patch_size) as u64 * element;
    let rows = frames * (patches + 1);
    // Input, result, norm; queries, keys, values and what they attend to; or the hidden layer before and behind its
    // GELU.
    let attention = 7 * rows * width;
    let feed_forward = 3 * rows * width + 2 * rows * mlp_width as u64;
    let block = match dtype {
        // Biases are added where numbers pass anyway, also beside matrices in blocks.
        _ if kind == DeviceKind::Cuda && config.visual.width() / heads.max(1) <= WIDEST_FUSED_HEAD => {
            // A matrix in blocks is unpacked for many rows.
            let unpacked = if held.encoder_in_blocks { width * (mlp_width as u64).max(3 * width) } else { 0 };
            (attention.max(feed_forward) + unpacked) * element
        }
        // Laid out for inference: input, result, norm, queries, keys, values, the hidden layer, and its rows in 8 bits.
        DType::F32 if kind == DeviceKind::Cpu => {
            let rounded = if held.encoder_in_blocks { rows * mlp_width as u64 } else { 0 };
            rows * (6 * width + mlp_width as u64) * 4 + rounded
        }
        // Matrices in blocks are not fused with what is around them, and biases are added to a copy.
        DType::F32 if held.encoder_in_blocks => {
            let copies = (3 * rows * width).max(rows * mlp_width as u64);
            (attention.max(feed_forward) + copies) * 4
        }
        DType::F32 => attention.max(feed_forward) * 4,
        // Without fused operations: heads are copied apart, and all scores exist, also in f32.
        _ => {
            let scores = heads as u64 * rows * (patches + 1) * (2 * element + 2 * 4);
            ((attention + 5 * rows * width) * element + scores).max(2 * feed_forward * element)
        }
    };
    pixels + unfolded.max(block)
}

/// A step of `frames` frames and one question through the query model or the context attention.
fn token_generator(config: &ModelConfig, frames: u64, words: u64, element: u64) -> u64 {
    let query = &config.tokens.query;
    let (width, mlp_width, visual_width) =
        (query.width as u64, query.mlp_width as u64, config.tokens.visual_width as u64);
    let rows = config.visual.patches() as u64 + class_row(config);
    let patches = frames * rows * visual_width;
    let queries = match query.kind {
        QueryKind::QFormer { .. } => query.queries as u64,
        QueryKind::RawBert => 0,
    };
    let looked_at = frames * rows * query.projected_width.map_or(visual_width, |width| width as u64);
    let keys_and_values = 2 * frames * rows * width;
    let between = frames * (queries + words) * (6 * width + 2 * mlp_width);
    let query_model = looked_at + keys_and_values.max(between);
    let scores = 3 * frames * (queries + words) * rows;
    // The context attention's keys are as wide as the patches.
    (patches + query_model.max(patches + scores)) * element
}

/// The last chunk of the prompt, in a layer: what it attends to is longest then.
fn prefill(
    config: &ModelConfig,
    chunk: u64,
    work: &Work,
    element: u64,
    held: &Held,
    kind: DeviceKind,
) -> u64 {
    let (language, positions) = (&config.language, work.prompt_tokens as u64);
    let (width, inner) = (language.hidden_size as u64, language.intermediate_size as u64);
    let projected = ((language.heads + 2 * language.kv_heads) * language.head_dim) as u64;
    let attended = chunk * (language.heads * language.head_dim) as u64 * element;
    let scores = if kind == DeviceKind::Cpu && element == 4 {
        // Scores exist for some keys at a time; what came of the tasks is put together.
        2 * attended
    } else if kind == DeviceKind::Cuda && language.head_dim <= WIDEST_FUSED_HEAD {
        // Scores exist in registers only. Keys and values in blocks are unpacked for many rows.
        let unpacked = match work.kv_cache {
            CachePrecision::EightBit | CachePrecision::FourBit if element < 4 => {
                2 * positions * (language.kv_heads * language.head_dim) as u64 * element
            }
            _ => 0,
        };
        attended + unpacked
    } else {
        let a_row = language.heads as u64 * positions;
        let rows = (SCORES_AT_ONCE as u64 / a_row.max(1)).clamp(1, QUERY_BLOCK as u64).min(chunk);
        // Scores, with what hides the future, and after the softmax; in half precision also as they come and go.
        let halves = if element < 4 { 2 * element } else { 0 };
        rows * a_row * (3 * 4 + halves) + rows * positions * (3 * 4 + 1)
    };
    // What is between the layers is whole on each of several devices.
    let whole = 4 * width * work.ranks as u64;
    // A matrix in blocks is unpacked for many rows: the largest of either half of a layer.
    let unpacked = |columns: u64| match kind {
        DeviceKind::Cuda if held.language_in_blocks => width * columns * element,
        _ => 0,
    };
    let of_heads = (language.heads.max(language.kv_heads) * language.head_dim) as u64;
    let attention = chunk * (whole + 2 * projected) * element + scores + unpacked(of_heads);
    let feed_forward = chunk * (whole + 3 * inner) * element + unpacked(inner);
    attention.max(feed_forward)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use candle_nn::VarBuilder;
    use llamavid_models::language_model::LanguageModel;
    use llamavid_models::observer::Blind;

    use super::*;

    /// What `LanguageModel` makes of a prompt and an answer, in a cache with room for just these.
    fn allocated(
        config: &LanguageModelConfig,
        precision: CachePrecision,
        positions: usize,
        dtype: DType,
    ) -> u64 {
        let device = &Device::Cpu;
        let model = LanguageModel::new(config, VarBuilder::zeros(dtype, device)).unwrap();
        let mut cache = model.new_cache_in(precision, positions);
        for count in [positions - 1, 1] {
            let embeds = Tensor::zeros((1, count, config.hidden_size), dtype, device).unwrap();
            model.forward(&embeds, &mut cache, None, &mut Blind).unwrap();
        }
        assert_eq!((cache.len(), cache.capacity()), (positions, positions));
        cache.bytes() as u64
    }

    #[test]
    fn a_cache_is_planned_as_large_as_it_gets() {
        use CachePrecision::{EightBit, FourBit, Full, Half};
        const PROMPT: usize = 7;
        for (heads, kv_heads, head_dim) in [(3, 3, 6), (2, 1, 32), (6, 2, 64), (2, 2, 96), (3, 1, 160)] {
            let config = serde_json::json!({
                "hidden_size": 48, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
                "intermediate_size": 16, "num_hidden_layers": 3, "vocab_size": 8, "max_position_embeddings": 101,
            });
            let config = LanguageModelConfig::from_json(config.to_string().as_bytes()).unwrap();
            let kinds = [
                (Full, DType::F32),
                (Full, DType::F16),
                (Full, DType::BF16),
                (Half, DType::F32),
                (EightBit, DType::F32),
                (EightBit, DType::F16),
                (FourBit, DType::F32),
                (FourBit, DType::BF16),
            ];
            // Heads of 6 numbers fill no blocks.
            let possible = kinds.into_iter().filter(|(kind, _)| matches!(kind, Full | Half) || head_dim != 6);
            // Answers up to what the context has room for, and beyond.
            for ((precision, dtype), answer) in
                possible.flat_map(|kind| [1, 26, 94, 400].map(|answer| (kind, answer)))
            {
                let work = Work {
                    frames: Vec::new(),
                    source_pixels: 0,
                    prompt_tokens: PROMPT,
                    query_tokens: 0,
                    max_new_tokens: answer,
                    encoded_frames: 0,
                    stored: false,
                    kv_cache: precision,
                    loaded: false,
                    ranks: 1,
                };
                let positions = (PROMPT + answer).min(config.max_positions);
                assert_eq!(
                    kv_bytes(&config, &work, precision, dtype),
                    allocated(&config, precision, positions, dtype),
                    "{precision:?} {dtype:?}, {positions} positions of {kv_heads} heads of {head_dim}"
                );
            }
        }
    }
}
