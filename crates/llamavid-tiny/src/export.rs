//! The finished model as a folder in the published layout, half precision, everything in it.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use llamavid_models::preprocess::{Fit, Preprocessing};
use llamavid_models::tokenizer::{LlamaTokenizer, WordPieceTokenizer};
use llamavid_train::{Parameters, Part};
use serde_json::json;

use crate::Result;
use crate::sizes::{IMAGE_SIZE, PATCH_SIDE, PATCH_SIZE, eva, language, tokens};
use crate::tokenizers::write_json;

/// Writes `model/` below `folder`.
pub fn write(
    folder: &Path,
    parameters: &Parameters,
    vision: &Parameters,
    tokenizer: &LlamaTokenizer,
    query_tokenizer: &WordPieceTokenizer,
) -> Result<()> {
    let out = folder.join("model");
    std::fs::create_dir_all(out.join("bert"))?;
    std::fs::create_dir_all(out.join("processor"))?;
    let mut weights: HashMap<String, Tensor> = HashMap::new();
    for (name, tensor) in parameters.tensors().into_iter().chain(vision.tensors()) {
        // Heads of the pre-training have no place in the model.
        if let Some(published) = Part::published(&name) {
            weights.insert(published, tensor.to_dtype(DType::F16)?);
        }
    }
    candle_core::safetensors::save(&weights, out.join("model.safetensors"))?;
    for name in [
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "bert/vocab.txt",
        "bert/tokenizer_config.json",
    ] {
        std::fs::copy(folder.join(name), out.join(name))?;
    }
    let (eva, language) = (eva(), language(tokenizer.vocab_size()));
    let tokens = tokens(query_tokenizer.vocab_size() - 1);
    write_json(
        &out.join("config.json"),
        &json!({
            "architectures": ["LlavaLlamaAttForCausalLM"], "model_type": "llama", "torch_dtype": "float16",
            "bos_token_id": language.bos_id, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu",
            "hidden_size": language.hidden_size, "intermediate_size": language.intermediate_size,
            "num_hidden_layers": language.layers, "num_attention_heads": language.heads,
            "num_key_value_heads": language.kv_heads, "vocab_size": language.vocab_size,
            "max_position_embeddings": language.max_positions, "rms_norm_eps": language.rms_norm_eps,
            "rope_scaling": null, "tie_word_embeddings": false, "use_cache": true,
            "bert_type": "qformer_pretrain", "num_query": tokens.query.queries, "compress_type": "mean",
            "mm_hidden_size": eva.width, "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch", "mm_use_im_start_end": false, "mm_use_im_patch_token": false,
            "image_aspect_ratio": "square", "image_processor": "./processor", "max_token": language.max_positions,
            "llamavid": {
                "conversation": "vicuna_v1",
                "vision": { "imageSize": eva.image_size, "patchSize": PATCH_SIZE, "width": eva.width, "depth": eva.depth,
                    "heads": eva.heads, "mlpWidth": eva.mlp_width, "positionSide": PATCH_SIDE },
                "query": { "width": tokens.query.width, "layers": tokens.query.layers, "heads": tokens.query.heads,
                    "mlpWidth": tokens.query.mlp_width, "vocabSize": tokens.query.vocab_size,
                    "maxPositions": tokens.query.max_positions },
            },
        }),
    )?;
    write_json(
        &out.join("generation_config.json"),
        &json!({ "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0 }),
    )?;
    let clip = Preprocessing::clip(IMAGE_SIZE, Fit::Crop);
    write_json(
        &out.join("processor/preprocessor_config.json"),
        &json!({ "crop_size": IMAGE_SIZE, "size": IMAGE_SIZE, "do_center_crop": true, "do_normalize": true,
            "do_resize": true, "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": clip.mean,
            "image_std": clip.std, "resample": 3 }),
    )?;
    Ok(())
}
