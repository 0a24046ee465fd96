//! Training low-rank adapters of the language model instead of the language model.
//!
//! Paper: LoRA (arXiv 2106.09685). Files are those of the PEFT library, `adapter_config.json` and
//! `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use llamavid_models::language_model::{LoraConfig, LoraTarget};
use llamavid_weights::key_table::LORA;

use crate::error::Result;
use crate::files;
use crate::parameters::Parameters;

/// What stands in front of the names of adapters' weights.
pub(crate) const PREFIX: &str = "lora";

/// Adapters in training.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSettings {
    /// Rank, scale and places.
    pub config: LoraConfig,
    /// Share of what an adapter reads that is dropped in training.
    pub dropout: f32,
}

impl LoraSettings {
    /// Adapters beside every projection.
    pub fn everywhere(rank: usize, alpha: f64, dropout: f32) -> Self {
        Self { config: LoraConfig { rank, alpha, targets: LoraTarget::ALL.to_vec() }, dropout }
    }
}

/// Writes the adapters in PEFT's format.
pub(crate) fn write(
    folder: &Path,
    parameters: &Parameters,
    settings: &LoraSettings,
    base: &str,
    dtype: DType,
) -> Result<()> {
    let mut tensors = BTreeMap::new();
    for (name, tensor) in parameters.tensors() {
        let published = name.strip_prefix(PREFIX).and_then(|rest| LORA.upstream(rest.strip_prefix('.')?));
        if let Some(published) = published {
            tensors.insert(published, tensor.to_dtype(dtype)?);
        }
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    files::write_safetensors(&folder.join("adapter_model.safetensors"), &tensors, &metadata)?;
    let config = settings.config.to_json(base, f64::from(settings.dropout));
    files::write_json(&folder.join("adapter_config.json"), &config)
}

/// The language model's weights with the adapters added to them, by our names.
pub(crate) fn merged(parameters: &Parameters, config: &LoraConfig) -> Result<BTreeMap<String, Tensor>> {
    let mut merged = BTreeMap::new();
    let tensors = parameters.tensors();
    for (name, down) in &tensors {
        let Some(module) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(".lora_A.weight"))
        else {
            continue;
        };
        let base = format!("language_model{module}.weight");
        let up = tensors.get(&format!("{PREFIX}{module}.lora_B.weight"));
        let (Some(up), Some(weight)) = (up, tensors.get(&base)) else { continue };
        let added = (up.matmul(down)? * config.scale())?;
        merged.insert(base, (weight.to_dtype(DType::F32)? + added)?);
    }
    Ok(merged)
}
