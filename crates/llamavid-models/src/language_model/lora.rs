//! Low-rank adapters beside the decoder's projections.
//!
//! Paper: "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685). Configuration and names of the weights
//! are those of the PEFT library. Letters: r rank.

use serde_json::{Value, json};

use crate::{Error, Result};

/// A projection of a decoder layer that an adapter stands beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum LoraTarget {
    QueryProj,
    KeyProj,
    ValueProj,
    OutputProj,
    GateProj,
    UpProj,
    DownProj,
}

impl LoraTarget {
    /// All of them, in the order of the data.
    pub const ALL: [Self; 7] = [
        Self::QueryProj,
        Self::KeyProj,
        Self::ValueProj,
        Self::OutputProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// The name in files: `q_proj`.
    pub fn name(self) -> &'static str {
        let path = self.path();
        path.rsplit_once('.').map_or(path, |(_, name)| name)
    }

    /// The module's name in its layer.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::QueryProj => "self_attn.q_proj",
            Self::KeyProj => "self_attn.k_proj",
            Self::ValueProj => "self_attn.v_proj",
            Self::OutputProj => "self_attn.o_proj",
            Self::GateProj => "mlp.gate_proj",
            Self::UpProj => "mlp.up_proj",
            Self::DownProj => "mlp.down_proj",
        }
    }

    /// The projection of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.name() == name)
    }
}

/// Which adapters there are and how much they count.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank r.
    pub rank: usize,
    /// What an adapter gives is multiplied by this over the rank.
    pub alpha: f64,
    /// The projections that have one, in every layer.
    pub targets: Vec<LoraTarget>,
}

impl LoraConfig {
    /// What an adapter gives is multiplied by this.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank.max(1) as f64
    }

    /// Checks the numbers. [`Error::Config`] names the one that is wrong.
    pub fn validate(&self) -> Result<()> {
        let wrong = |key: &str, problem: String| Err(Error::Config { key: key.to_owned(), problem });
        if self.rank == 0 || self.rank > 1 << 16 {
            return wrong("r", format!("{} is not between 1 and {}", self.rank, 1 << 16));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.) {
            return wrong("lora_alpha", format!("{} is not a positive number", self.alpha));
        }
        if self.targets.is_empty() {
            return wrong("target_modules", "names no projection".to_owned());
        }
        Ok(())
    }

    /// Reads PEFT's `adapter_config.json`.
    ///
    /// # Errors
    /// [`Error::Config`] for what is missing or wrong, [`Error::Unsupported`] for other kinds of adapters.
    pub fn from_json(bytes: &[u8]) -> Result<Self> {
        let config = |key: &str, problem: String| Error::Config { key: key.to_owned(), problem };
        let unsupported = |key: &str, problem: String| Error::Unsupported { key: key.to_owned(), problem };
        let file: Value = serde_json::from_slice(bytes)
            .map_err(|error| config("adapter_config.json", format!("is not JSON: {error}")))?;
        let kind = file.get("peft_type").and_then(Value::as_str).unwrap_or_default();
        if kind != "LORA" {
            return Err(unsupported("peft_type", format!("`{kind}`; `LORA` is supported")));
        }
        for key in ["use_rslora", "use_dora", "fan_in_fan_out", "lora_bias"] {
            if file.get(key).and_then(Value::as_bool) == Some(true) {
                return Err(unsupported(key, "true is not supported".to_owned()));
            }
        }
        for key in ["modules_to_save", "layers_to_transform", "rank_pattern", "alpha_pattern"] {
            let used = match file.get(key) {
                None | Some(Value::Null) => false,
                Some(Value::Array(list)) => !list.is_empty(),
                Some(Value::Object(map)) => !map.is_empty(),
                Some(_) => true,
            };
            if used {
                return Err(unsupported(key, "is not supported".to_owned()));
            }
        }
        let bias = file.get("bias").and_then(Value::as_str).unwrap_or("none");
        if bias != "none" {
            return Err(unsupported("bias", format!("`{bias}`; `none` is supported")));
        }
        let names = file
            .get("target_modules")
            .and_then(Value::as_array)
            .ok_or_else(|| config("target_modules", "is not a list of names, such as `q_proj`".to_owned()))?;
        let mut targets = Vec::with_capacity(names.len());
        for name in names {
            let name = name.as_str().unwrap_or_default();
            let target = LoraTarget::by_name(name).ok_or_else(|| {
                let known: Vec<_> = LoraTarget::ALL.iter().map(|target| target.name()).collect();
                unsupported("target_modules", format!("`{name}` is none of {}", known.join(", ")))
            })?;
            targets.push(target);
        }
        targets.sort();
        targets.dedup();
        let rank = file.get("r").and_then(Value::as_u64);
        let alpha = file.get("lora_alpha").and_then(Value::as_f64);
        let made = Self {
            rank: rank.ok_or_else(|| config("r", "is missing".to_owned()))? as usize,
            alpha: alpha.ok_or_else(|| config("lora_alpha", "is missing".to_owned()))?,
            targets,
        };
        made.validate()?;
        Ok(made)
    }

    /// PEFT's `adapter_config.json` for the base model of a name.
    pub fn to_json(&self, base: &str, dropout: f64) -> Value {
        json!({
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": self.alpha,
            "lora_dropout": dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.rank,
            "revision": null,
            "target_modules": self.targets.iter().map(|target| target.name()).collect::<Vec<_>>(),
            "task_type": "CAUSAL_LM",
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_goes_there_and_back() {
        let config =
            LoraConfig { rank: 8, alpha: 16., targets: vec![LoraTarget::QueryProj, LoraTarget::DownProj] };
        let written = serde_json::to_vec(&config.to_json("base", 0.05)).unwrap();
        assert_eq!(LoraConfig::from_json(&written).unwrap(), config);
        assert_eq!(config.scale(), 2.);
    }

    #[test]
    fn other_adapters_are_refused_by_name() {
        for (change, told) in [
            (r#""peft_type": "IA3""#, "IA3"),
            (r#""peft_type": "LORA", "use_dora": true"#, "use_dora"),
            (r#""peft_type": "LORA", "target_modules": ["lm_head"]"#, "lm_head"),
            (r#""peft_type": "LORA", "target_modules": ["q_proj"], "lora_alpha": 1"#, "`r`"),
            (r#""peft_type": "LORA", "target_modules": ["q_proj"], "lora_alpha": 1, "r": 0"#, "`r`"),
        ] {
            let error = LoraConfig::from_json(format!("{{{change}}}").as_bytes()).unwrap_err();
            assert!(error.to_string().contains(told), "{error}");
        }
    }
}
