//! Linear layers of the decoder, with a low-rank adapter beside each that has one.
//!
//! Paper: "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685).

use std::ops::Range;

use candle_core::{Device, Result, Tensor};
use candle_nn::Init;
use llamavid_kernels::{BlockFormat, Dropout, Projection};

use crate::linear::Matrix;
use crate::weight_source::WeightSource;

/// A linear layer: `x` (…, in) gives (…, out).
#[derive(Debug, Clone)]
pub(super) struct AdaptedLinear {
    /// (out, in).
    weight: Matrix,
    /// (out).
    bias: Option<Tensor>,
    adapter: Option<LowRank>,
    /// Which part of a layer this is, if it is not all of it.
    part: Option<Part>,
}

/// Some outputs of a layer, or what some of its inputs add to each of them.
#[derive(Debug, Clone)]
struct Part {
    /// Outputs, rows of the weight.
    rows: Range<usize>,
    /// Inputs, columns of the weight.
    columns: Range<usize>,
    /// Outputs and inputs of the layer.
    of: (usize, usize),
    /// Where it is computed.
    device: Device,
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
        Ok(Self { weight, bias, adapter: None, part: None })
    }

    /// A part of this layer, which is a whole one.
    ///
    /// # Errors
    /// Columns of a weight in blocks that do not begin and end with blocks.
    pub(super) fn part(&self, rows: Range<usize>, columns: Range<usize>, device: &Device) -> Result<Self> {
        // Of the addends of an output one has the bias.
        let bias = self.bias.as_ref().filter(|_| columns.start == 0);
        let bias =
            bias.map(|bias| bias.narrow(0, rows.start, rows.len())?.force_contiguous()?.to_device(device));
        let part = Part { rows, columns, of: self.dims()?, device: device.clone() };
        Ok(Self {
            weight: self.weight.part(&part.rows, &part.columns)?.to_device(device)?,
            bias: bias.transpose()?,
            adapter: self.adapter.as_ref().map(|adapter| adapter.part(&part)).transpose()?,
            part: Some(part),
        })
    }

    /// Outputs and inputs of the whole layer.
    pub(super) fn dims(&self) -> Result<(usize, usize)> {
        match &self.part {
            Some(part) => Ok(part.of),
            None => self.weight.weight().dims2(),
        }
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
    pub(super) fn adapt(&mut self, rank: usize, scale: f64, vb: &WeightSource) -> Result<()> {
        let (output, input) = self.dims()?;
        let bound = (input as f64).powf(-0.5);
        let init = Init::Uniform { lo: -bound, up: bound };
        let down = vb.pp("lora_A").get_with_hints((rank, input), "weight", init)?;
        let up = vb.pp("lora_B").get_with_hints((output, rank), "weight", Init::Const(0.))?;
        let whole = LowRank { down, up, scale, dropout: None };
        self.adapter = Some(match &self.part {
            Some(part) => whole.part(part)?,
            None => whole,
        });
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

    /// What goes with a part of its layer.
    fn part(&self, Part { rows, columns, device, .. }: &Part) -> Result<Self> {
        let down = self.down.narrow(1, columns.start, columns.len())?.force_contiguous()?;
        let up = self.up.narrow(0, rows.start, rows.len())?.force_contiguous()?;
        Ok(Self { down: down.to_device(device)?, up: up.to_device(device)?, ..self.clone() })
    }

    /// (out, in): what it adds to the weight of its layer.
    fn weight(&self) -> Result<Tensor> {
        self.up.matmul(&self.down)? * self.scale
    }
}
