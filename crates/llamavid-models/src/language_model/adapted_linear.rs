//! Linear layers of the decoder, with a low-rank adapter beside each that has one.
//!
//! Paper: "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685).

use crate::linear::Matrix;
use crate::weight_source::WeightSource;
use candle_core::{Result, Tensor};
use candle_nn::Init;
use llamavid_kernels::{BlockFormat, Dropout, Projection};

/// A linear layer: `x` (…, in) gives (…, out).
#[derive(Debug, Clone)]
pub(super) struct AdaptedLinear {
    /// (out, in).
    weight: Matrix,
    /// (out).
    bias: Option<Tensor>,
    adapter: Option<LowRank>,
}

/// A low-rank adapter: what it gives is added to what its layer gives.
#[derive(Debug, Clone)]
struct LowRank {
    /// (r, in).
    down: Tensor,
    /// (out, r). Begins at zero, so that an adapter changes nothing at first.
    up: Tensor,
    scale: f64,
    dropout: Option<Dropout>,
}

impl AdaptedLinear {
    /// Reads `weight` and, where it has one, `bias`; where they are created, as candle-nn does, with a bias of zero.
    pub(super) fn new(input: usize, output: usize, biased: bool, vb: WeightSource) -> Result<Self> {
        let weight = Matrix::new(output, input, candle_nn::init::DEFAULT_KAIMING_NORMAL, &vb)?;
        let bias = biased.then(|| vb.get_with_hints(output, "bias", Init::Const(0.))).transpose()?;
        Ok(Self { weight, bias, adapter: None })
    }

    /// Its weight, for an operation that it is a part of; none when an adapter makes it more than its weight.
    pub(super) fn projection(&self) -> Option<Projection<'_>> {
        match &self.adapter {
            Some(_) => None,
            None => Some(Projection { weight: self.weight.weight(), bias: self.bias.as_ref() }),
        }
    }

    /// The format of its weights, when they are in blocks.
    pub(super) fn block_format(&self) -> Option<BlockFormat> {
        match &self.weight {
            Matrix::Dense(_) => None,
            Matrix::Blocks(weight) => Some(weight.format()),
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.weight().linear(x, self.bias.as_ref())?;
        match &self.adapter {
            Some(adapter) => y + adapter.forward(x)?,
            None => Ok(y),
        }
    }

    /// Puts an adapter beside this layer: reads `lora_A.weight` and `lora_B.weight`, created as the PEFT library does.
    pub(super) fn adapt(&mut self, rank: usize, scale: f64, vb: WeightSource) -> Result<()> {
        let (output, input) = self.weight.weight().dims2()?;
        let bound = (input as f64).powf(-0.5);
        let init = Init::Uniform { lo: -bound, up: bound };
        let down = vb.pp("lora_A").get_with_hints((rank, input), "weight", init)?;
        let up = vb.pp("lora_B").get_with_hints((output, rank), "weight", Init::Const(0.))?;
        self.adapter = Some(LowRank { down, up, scale, dropout: None });
        Ok(())
    }

    /// Drops some of what its adapter reads, if it has one.
    pub(super) fn set_adapter_dropout(&mut self, dropout: Option<Dropout>) {
        if let Some(adapter) = &mut self.adapter {
            adapter.dropout = dropout;
        }
    }

    /// Adds its adapter to its weight, after which it needs none. Beside a weight in blocks it stays: they would round it
    /// away.
    pub(super) fn merge_adapter(&mut self) -> Result<()> {
        if let (Matrix::Dense(weight), Some(adapter)) = (&self.weight, &self.adapter) {
            self.weight = Matrix::Dense((weight + adapter.weight()?)?);
            self.adapter = None;
        }
        Ok(())
    }
}

impl LowRank {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = match &self.dropout {
            Some(dropout) => dropout.apply(x)?,
            None => x.clone(),
        };
        let inner = llamavid_kernels::linear(&x, &self.down, None)?;
        llamavid_kernels::linear(&inner, &self.up, None)? * self.scale
    }

    /// (out, in): what it adds to the weight of its layer.
    fn weight(&self) -> Result<Tensor> {
        self.up.matmul(&self.down)? * self.scale
    }
}
