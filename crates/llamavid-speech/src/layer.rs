//! What encoder and decoder are made of.
//!
//! Reference: `ResidualAttentionBlock` and `MultiHeadAttention` in `whisper/model.py`.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use llamavid_kernels::{Heads, Mask, gelu, layer_norm, linear, multi_head_attention};

use crate::names::Names;

/// PyTorch's default.
const EPS: f64 = 1e-5;

#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    fn new(input: usize, output: usize, bias: bool, vb: VarBuilder) -> Result<Self> {
        let bias = if bias { Some(vb.get(output, "bias")?) } else { None };
        Ok(Self { weight: vb.get((output, input), "weight")?, bias })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    pub fn new(width: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self { weight: vb.get(width, "weight")?, bias: vb.get(width, "bias")? })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, EPS)
    }
}

/// A convolution over time of three rows, as the matrix product that it is.
#[derive(Debug, Clone)]
pub(crate) struct Convolution {
    linear: Linear,
    stride: usize,
}

impl Convolution {
    /// Reads `weight` (W, input, 3) and `bias`.
    pub fn new(input: usize, width: usize, stride: usize, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get((width, input, 3), "weight")?.transpose(1, 2)?.flatten_from(1)?; // (W, 3 · input)
        Ok(Self { linear: Linear { weight, bias: Some(vb.get(width, "bias")?) }, stride })
    }

    /// `x` (1, T, input) gives (1, T / stride, W), with a row of zeros in front and behind.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, rows, input) = x.dims3()?;
        let padded = x.pad_with_zeros(1, 1, 1)?;
        let neighbour = |place: usize| {
            let rows_of = padded.narrow(1, place, rows)?.contiguous()?;
            rows_of.reshape((batch, rows / self.stride, self.stride, input))?.narrow(2, 0, 1)?.squeeze(2)
        };
        self.linear.forward(&Tensor::cat(&[neighbour(0)?, neighbour(1)?, neighbour(2)?], 2)?)
    }
}

/// Keys and values, (1, rows, W) each.
#[derive(Debug, Clone)]
pub(crate) struct KeysValues {
    pub keys: Tensor,
    pub values: Tensor,
}

impl KeysValues {
    /// These rows and the later ones.
    fn with(&self, later: &Self) -> Result<Self> {
        Ok(Self {
            keys: Tensor::cat(&[&self.keys, &later.keys], 1)?,
            values: Tensor::cat(&[&self.values, &later.values], 1)?,
        })
    }
}

#[derive(Debug, Clone)]
struct Attention {
    norm: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: usize,
}

impl Attention {
    fn new(
        width: usize,
        heads: usize,
        names: &Names,
        part: &str,
        norm: &str,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let inner = vb.pp(part);
        let square = |name: &str, bias| Linear::new(width, width, bias, inner.pp(name));
        Ok(Self {
            norm: LayerNorm::new(width, vb.pp(norm))?,
            query: square(names.query, true)?,
            key: square(names.key, false)?,
            value: square(names.value, true)?,
            output: square(names.output, true)?,
            heads,
        })
    }

    fn keys_values(&self, x: &Tensor) -> Result<KeysValues> {
        Ok(KeysValues { keys: self.key.forward(x)?, values: self.value.forward(x)? })
    }

    /// Attention of normalised rows `x` (1, S, W).
    fn attend(&self, x: &Tensor, over: &KeysValues, mask: Mask) -> Result<Tensor> {
        let (_batch, _rows, width) = x.dims3()?;
        let heads = Heads { mask, ..Heads::new(self.heads, width / self.heads) };
        self.output.forward(&multi_head_attention(&self.query.forward(x)?, &over.keys, &over.values, &heads)?)
    }
}

/// A layer of the encoder or of the decoder, which also looks at what the encoder made.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    attention: Attention,
    across: Option<Attention>,
    norm: LayerNorm,
    inner: Linear,
    outer: Linear,
}

impl Layer {
    pub fn new(
        width: usize,
        mlp_width: usize,
        heads: usize,
        across: bool,
        names: &Names,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let attention = |part, norm| Attention::new(width, heads, names, part, norm, vb);
        Ok(Self {
            attention: attention(names.attention, names.attention_norm)?,
            across: across.then(|| attention(names.across, names.across_norm)).transpose()?,
            norm: LayerNorm::new(width, vb.pp(names.mlp_norm))?,
            inner: Linear::new(width, mlp_width, true, vb.pp(names.mlp_inner))?,
            outer: Linear::new(mlp_width, width, true, vb.pp(names.mlp_outer))?,
        })
    }

    /// Rows of sound (1, T, W), each of which sees all.
    pub fn encode(&self, x: &Tensor) -> Result<Tensor> {
        let normed = self.attention.norm.forward(x)?;
        let x = (x + self.attention.attend(&normed, &self.attention.keys_values(&normed)?, Mask::All)?)?;
        self.perceive(&x)
    }

    /// Rows of text (1, S, W) behind those of `past`, to which theirs are added; they see those before them and `sound`.
    pub fn decode(&self, x: &Tensor, past: &mut Option<KeysValues>, sound: &KeysValues) -> Result<Tensor> {
        let normed = self.attention.norm.forward(x)?;
        let new = self.attention.keys_values(&normed)?;
        let all = match past.take() {
            Some(past) => past.with(&new)?,
            None => new,
        };
        let mut x = (x + self.attention.attend(&normed, &all, Mask::Causal { padding: None })?)?;
        *past = Some(all);
        if let Some(across) = &self.across {
            x = (&x + across.attend(&across.norm.forward(&x)?, sound, Mask::All)?)?;
        }
        self.perceive(&x)
    }

    /// Keys and values of the encoder's rows, for [`Layer::decode`].
    pub fn sound(&self, encoded: &Tensor) -> Result<Option<KeysValues>> {
        self.across.as_ref().map(|across| across.keys_values(encoded)).transpose()
    }

    fn perceive(&self, x: &Tensor) -> Result<Tensor> {
        x + self.outer.forward(&gelu(&self.inner.forward(&self.norm.forward(x)?)?)?)?
    }
}
