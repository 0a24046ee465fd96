//! The sizes of the published models, and smaller ones of the same build.

use llamavid_models::config::{ModelConfig, Surroundings};
use serde_json::{Value, json};

use crate::Result;

/// A model's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Vicuna 7B with EVA ViT-g and a Q-Former of 12 layers.
    Seven,
    /// The same with Vicuna 13B.
    Thirteen,
    /// About a gigabyte in half precision: the same build for measurements that take a minute.
    Small,
    /// Megabytes, for tests.
    Smallest,
    /// The visual encoder and the Q-Former of the published models, and behind them a language model of one small layer: for
    /// measurements of those two.
    Vision,
}

impl Size {
    /// What the command line calls them.
    pub const NAMES: [&str; 5] = ["7b", "13b", "small", "smallest", "vision"];

    /// The size of that name.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "7b" => Ok(Self::Seven),
            "13b" => Ok(Self::Thirteen),
            "small" => Ok(Self::Small),
            "smallest" => Ok(Self::Smallest),
            "vision" => Ok(Self::Vision),
            other => Err(format!("the size {other:?} is none of {}", Self::NAMES.join(", ")).into()),
        }
    }

    /// Bytes of a shard, as `save_pretrained` of the Hugging Face library cuts them.
    pub fn shard_bytes(self) -> u64 {
        match self {
            Self::Seven | Self::Thirteen | Self::Vision => 10_000_000_000,
            Self::Small => 500_000_000,
            Self::Smallest => 2_000_000,
        }
    }

    /// `config.json`.
    pub fn config(self) -> Value {
        let (width, inner, layers, heads) = match self {
            Self::Seven => (4096, 11008, 32, 32),
            Self::Thirteen => (5120, 13824, 40, 40),
            Self::Small => (1024, 2816, 16, 16),
            Self::Smallest => (64, 160, 2, 2),
            Self::Vision => (4096, 128, 1, 32),
        };
        let mut config = json!({
            "_name_or_path": "./work_dirs/llama-vid", "architectures": ["LlavaLlamaAttForCausalLM"],
            "bert_type": "qformer_pretrain", "bos_token_id": 1, "compress_type": "mean", "eos_token_id": 2,
            "freeze_mm_mlp_adapter": false, "hidden_act": "silu", "hidden_size": width, "image_aspect_ratio": "pad",
            "image_grid_pinpoints": null, "image_processor": "./llamavid/processor/clip-patch14-224",
            "initializer_range": 0.02, "intermediate_size": inner, "max_position_embeddings": 4096,
            "max_token": 2048, "mm_hidden_size": 1408, "mm_projector_type": "mlp2x_gelu",
            "mm_use_im_patch_token": false, "mm_use_im_start_end": false, "mm_vision_select_feature": "patch",
            "mm_vision_select_layer": -2, "mm_vision_tower": "./model_zoo/LAVIS/eva_vit_g.pth",
            "model_type": "llava", "num_attention_heads": heads, "num_hidden_layers": layers,
            "num_key_value_heads": heads, "num_query": 32, "pad_token_id": 0, "pretraining_tp": 1,
            "rms_norm_eps": 1e-5, "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float16",
            "transformers_version": "4.31.0", "tune_mm_mlp_adapter": false, "use_cache": true,
            "use_mm_proj": true, "vocab_size": 32000,
        });
        let smaller = match self {
            Self::Seven | Self::Thirteen | Self::Vision => None,
            Self::Small => Some((704, 8, 8, 3072, 384, 4, 6, 1536)),
            Self::Smallest => Some((32, 2, 2, 64, 32, 2, 2, 64)),
        };
        if let Some((width, depth, heads, mlp_width, query_width, query_layers, query_heads, query_mlp)) =
            smaller
        {
            config["mm_hidden_size"] = width.into();
            config["llamavid"] = json!({
                "vision": { "width": width, "depth": depth, "heads": heads, "mlpWidth": mlp_width },
                "query": { "width": query_width, "layers": query_layers, "heads": query_heads, "mlpWidth": query_mlp },
            });
        }
        config
    }

    /// The same, understood.
    pub fn model(self) -> Result<ModelConfig> {
        let around = Surroundings { image_size: Some(224), ..Surroundings::default() };
        Ok(ModelConfig::parse(&serde_json::to_vec(&self.config())?, &around)?)
    }
}
