//! Low-rank adapters that become part of the weights beside which they were trained.
//!
//! Paper: "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685).

use candle_core::{DType, Device, Tensor};
use llamavid_models::language_model::LoraConfig;
use llamavid_runtime::Result;
use llamavid_weights::key_table::LORA;
use llamavid_weights::{Checkpoint, Loader};

/// Adapters of the decoder.
#[derive(Debug)]
pub struct Adapter {
    config: LoraConfig,
    weights: Loader,
}

impl Adapter {
    /// Adapters in the PEFT library's files.
    pub fn new(config: LoraConfig, weights: Checkpoint) -> Self {
        Self { config, weights: Loader::new(weights, &LORA, DType::F32, &Device::Cpu) }
    }

    /// Looks up what is added to a weight of the decoder, if anything is.
    ///
    /// # Errors
    /// `MODEL_INVALID` for an adapter that is missing or of another shape.
    pub fn find(&self, ours: &str, shape: &[usize]) -> Result<()> {
        let (Some([down, up]), &[output, input]) = (self.names(ours), shape) else { return Ok(()) };
        self.weights.find(&down, &[self.config.rank, input])?;
        self.weights.find(&up, &[output, self.config.rank])?;
        Ok(())
    }

    /// Ends the search.
    ///
    /// # Errors
    /// `MODEL_INVALID` for adapters of weights that the decoder has not.
    pub fn finish(self) -> Result<()> {
        Ok(self.weights.finish()?)
    }

    /// Whether something is added to a weight of the decoder.
    pub fn changes(&self, ours: &str) -> bool {
        self.names(ours).is_some()
    }

    /// The weight (out, in) in f32, with its adapter added.
    ///
    /// # Errors
    /// An adapter with numbers that are not finite.
    pub fn add(&self, ours: &str, weight: Tensor) -> Result<Tensor> {
        let Some(names) = self.names(ours) else { return Ok(weight) };
        let [down, up] = names.map(|name| self.weights.read(&name, DType::F32));
        Ok((weight + (up?.matmul(&down?)? * self.config.scale())?)?)
    }

    /// What is read (r, in), and what is given (out, r).
    fn names(&self, ours: &str) -> Option<[String; 2]> {
        let module = ours.strip_suffix(".weight")?;
        let (_, projection) = module.rsplit_once('.')?;
        let adapted = self.config.targets.iter().any(|target| target.name() == projection);
        adapted.then(|| ["A", "B"].map(|side| format!("{module}.lora_{side}.weight")))
    }
}
