//! Sub-layers of a visual encoder for inference on a CPU, and layers of a query model where that has tiles ([`piece_layers`]). Their
//! weights never change, so they are laid out once and for all, the way the products read them, and what is in between is written the way
//! the next product reads it.
//!
//! Letters: F frames, R rows of a frame, V width.

mod attention;
#[cfg(target_arch = "x86_64")]
pub(crate) mod attention_in_tiles;
#[cfg(target_arch = "x86_64")]
mod groups;
mod int8;
#[cfg(target_arch = "x86_64")]
mod layers_in_tiles;
mod linear;
#[cfg(target_arch = "x86_64")]
pub(crate) mod matrices;
pub(crate) mod parts;
#[cfg_attr(not(target_arch = "x86_64"), path = "no_piece_layers.rs")]
mod piece_layers;
#[cfg(target_arch = "x86_64")]
mod row_vectors;
mod tasks;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tile_rows;
mod tiles;

use std::ops::Range;

use candle_core::{Device, Result, Tensor, bail};

pub use piece_layers::{FrozenProjection, frozen_gelu};

use attention::{Packed, Precision};
use int8::Int8Rows;
use linear::{Ending, FrozenLinear, Input};
use parts::{Parts, Target};
use tasks::ThreadScratch;
use tiles::Rows;

use crate::instructions::processor::{Processor, processor};
use crate::operations::rows::{fusible, with_values};
use crate::{Norm, Projection};

/// Memory for what is in between, which one sub-layer leaves to the next. Nothing in it lasts.
#[derive(Debug, Default)]
pub struct FrozenScratch {
    /// Rows after the norm, and then what they took from each other.
    normed: Parts,
    /// Queries, keys and values.
    packed: Vec<f32>,
    hidden: Parts,
    rounded: Int8Rows,
    /// Of each thread.
    scratches: Vec<ThreadScratch>,
}

/// What follows the first layer of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// The exact [`crate::gelu`], to some 2e-7.
    Gelu,
    /// [`crate::quick_gelu`].
    QuickGelu,
}

/// Some rows of each sequence of a tensor (B, R, h), which are read where they lie.
#[derive(Debug, Clone)]
pub struct SomeRows<'a> {
    /// All of them.
    pub of: &'a Tensor,
    /// Which of each sequence.
    pub range: Range<usize>,
}

impl SomeRows<'_> {
    /// Sequences, rows of each and their width, which is to be this.
    #[cfg(target_arch = "x86_64")]
    fn check(&self, width: usize) -> Result<(usize, usize, usize)> {
        let (batch, rows, found) = self.of.dims3()?;
        if found != width || self.range.end > rows || self.range.is_empty() || !fusible(&[self.of]) {
            bail!("rows {:?} of {:?} are no rows of {width} f32 on the CPU", self.range, self.of);
        }
        Ok((batch, self.range.len(), width))
    }
}

/// A feed-forward layer and the rows that it reads: `norm(x + second(gelu(first(x))))`.
#[derive(Debug)]
pub struct FrozenGelu<'a> {
    /// To the hidden width.
    pub first: &'a FrozenProjection,
    /// And back.
    pub second: &'a FrozenProjection,
    /// Behind the residual.
    pub norm: Norm<'a>,
    /// What it reads.
    pub x: SomeRows<'a>,
}

/// A norm and two layers.
#[derive(Debug)]
struct SubLayer {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
    first: FrozenLinear,
    second: FrozenLinear,
}

impl SubLayer {
    fn new(norm: Norm, first: &[Projection], second: Projection) -> Result<Self> {
        let numbers = |tensor: &Tensor| with_values([tensor], |[values]| Ok(values.to_vec()));
        let weight = numbers(norm.weight)?;
        let bias = norm.bias.map_or_else(|| Ok(vec![0.0; weight.len()]), numbers)?;
        let (first, second) = (FrozenLinear::new(first)?, FrozenLinear::new(&[second])?);
        if first.columns() != weight.len() || second.rows() != weight.len() || bias.len() != weight.len() {
            bail!(
                "layers of {} and {} do not go with rows of {}",
                first.columns(),
                second.rows(),
                weight.len()
            );
        }
        Ok(Self { weight, bias, eps: norm.eps as f32, first, second })
    }

    /// Whether `x` (F, R, V) are rows that it reads.
    fn check(&self, x: &Tensor) -> Result<()> {
        let (_frames, _rows, width) = x.dims3()?;
        if width != self.weight.len() || !fusible(&[x]) {
            bail!("a frozen layer for rows of {} f32 on the CPU does not read {x:?}", self.weight.len());
        }
        Ok(())
    }

    /// Rows of `x` after the norm, as the first layer multiplies them; on all threads.
    fn norm<'a>(
        &'a self,
        processor: Processor,
        x: &[f32],
        normed: &'a mut Parts,
        rounded: &'a mut Int8Rows,
        scratches: &mut Vec<ThreadScratch>,
    ) -> Input<'a> {
        let width = self.weight.len();
        let make = |row: usize, into: &mut [f32]| {
            let x = &x[row * width..][..width];
            match processor {
                // SAFETY: the processor has AVX-512.
                #[cfg(target_arch = "x86_64")]
                Processor::Avx512(..) => unsafe {
                    row_vectors::normalise(x, &self.weight, &self.bias, self.eps, into);
                },
                _ => crate::operations::layer_norm::normalise(x, &self.weight, &self.bias, self.eps, into),
            }
        };
        self.first.made_input(processor, x.len() / width, make, normed, rounded, scratches)
    }

    /// What the second layer makes of rows, with rows `x` added to it.
    fn end(
        &self,
        processor: Processor,
        hidden: (&Parts, Precision),
        x: &[f32],
        rounded: &mut Int8Rows,
        scratches: &mut Vec<ThreadScratch>,
    ) -> Vec<f32> {
        let mut result = Vec::with_capacity(x.len());
        let target = Target::rows(result.as_mut_ptr(), x.len(), self.weight.len());
        let hidden = self.second.input(processor, hidden, rounded, scratches);
        // SAFETY: the target has a row for each of `hidden`, and is borrowed for this, which writes all of it.
        unsafe {
            let others = Rows { values: x, stride: self.weight.len() };
            self.second.forward(processor, hidden, scratches, target, Ending::Added(others));
            result.set_len(x.len());
        }
        result
    }
}

/// Self-attention with layer norm and residual, for inference: [`crate::attention_block`] with the norm before it.
#[derive(Debug)]
pub struct FrozenAttention {
    layer: SubLayer,
    heads: usize,
}

impl FrozenAttention {
    /// `packed` makes queries, keys and values of `heads` heads, one after the other: a layer, or one for each.
    ///
    /// Weights in blocks are quantised anew: to int8 with one scale for each output. Others stay as they are, in f16 where
    /// those are all of them exactly.
    ///
    /// # Errors
    /// Shapes that do not go together, and tensors that are not on the CPU.
    pub fn new(norm: Norm, packed: &[Projection], output: Projection, heads: usize) -> Result<Self> {
        let layer = SubLayer::new(norm, packed, output)?;
        let width = layer.second.columns();
        if layer.first.rows() != 3 * width || heads == 0 || !width.is_multiple_of(heads) {
            bail!("rows of {} do not hold queries, keys and values of {heads} heads", layer.first.rows());
        }
        Ok(Self { layer, heads })
    }

    /// `x` (F, R, V) in f32 gives (F, R, V). No gradient flows through it.
    ///
    /// # Errors
    /// An `x` of another shape, dtype or device.
    pub fn forward(&self, x: &Tensor, scratch: &mut FrozenScratch) -> Result<Tensor> {
        self.compute(processor(), x, scratch)
    }

    fn compute(&self, processor: Processor, x: &Tensor, scratch: &mut FrozenScratch) -> Result<Tensor> {
        self.layer.check(x)?;
        let (frames, rows, _width) = x.dims3()?;
        let SubLayer { first, second, .. } = &self.layer;
        let FrozenScratch { normed, packed, rounded, scratches, .. } = scratch;
        let result = with_values([x], |[x]| {
            let input = self.layer.norm(processor, x, normed, rounded, scratches);
            let (heads, width) = (self.heads, second.columns() / self.heads);
            // What is quantised to int8 before and after may be bf16 in between.
            let rounds = |layer: &FrozenLinear| layer.rounds(processor);
            #[cfg(target_arch = "x86_64")]
            let in_tiles = layers_in_tiles::pay(processor, rows);
            #[cfg(not(target_arch = "x86_64"))]
            let in_tiles = false;
            let precision = if rounds(first) { Precision::of(processor, width) } else { Precision::F32 };
            let row = precision.room(first.rows());
            packed.resize(frames * rows * row, 0.0);
            let target = Target::rows(packed.as_mut_ptr(), packed.len(), row);
            // SAFETY: the target has a row for each of `x`, and is borrowed for this.
            unsafe { first.forward(processor, input, scratches, target, Ending::Written(precision)) };
            let attention = Packed { values: packed, precision, frames, rows, heads, width };
            let precision = if in_tiles && rounds(second) { precision } else { Precision::F32 };
            normed.reshape(frames * rows, precision.room(second.columns()));
            // SAFETY: as above, and where there are tiles the process may use them.
            unsafe {
                match in_tiles {
                    #[cfg(target_arch = "x86_64")]
                    true => attention.attend_in_tiles(scratches, normed.target(), precision),
                    _ => attention.attend(processor, scratches, normed.target()),
                }
            }
            Ok(self.layer.end(processor, (normed, precision), x, rounded, scratches))
        })?;
        Tensor::from_vec(result, x.shape(), &Device::Cpu)
    }
}

/// A feed-forward layer with layer norm and residual, for inference: [`crate::gelu_block`] with the norm before it.
#[derive(Debug)]
pub struct FrozenFeedForward {
    layer: SubLayer,
    activation: Activation,
}

impl FrozenFeedForward {
    /// Weights are held as in [`FrozenAttention::new`].
    ///
    /// # Errors
    /// Shapes that do not go together, and tensors that are not on the CPU.
    pub fn new(norm: Norm, first: Projection, activation: Activation, second: Projection) -> Result<Self> {
        let layer = SubLayer::new(norm, &[first], second)?;
        if layer.first.rows() != layer.second.columns() {
            bail!("{} hidden numbers, but a layer for {}", layer.first.rows(), layer.second.columns());
        }
        Ok(Self { layer, activation })
    }

    /// `x` (F, R, V) in f32 gives (F, R, V). No gradient flows through it.
    ///
    /// # Errors
    /// An `x` of another shape, dtype or device.
    pub fn forward(&self, x: &Tensor, scratch: &mut FrozenScratch) -> Result<Tensor> {
        self.compute(processor(), x, scratch)
    }

    fn compute(&self, processor: Processor, x: &Tensor, scratch: &mut FrozenScratch) -> Result<Tensor> {
        let Self { layer, activation } = self;
        layer.check(x)?;
        let (frames, rows, _width) = x.dims3()?;
        let FrozenScratch { normed, hidden, rounded, scratches, .. } = scratch;
        let result = with_values([x], |[x]| {
            let input = layer.norm(processor, x, normed, rounded, scratches);
            let precision = layer.second.input_precision(processor);
            hidden.reshape(frames * rows, precision.room(layer.first.rows()));
            let (target, ending) = (hidden.target(), Ending::Activated(*activation, precision));
            // SAFETY: the target has a row for each of `x`, and is borrowed for this.
            unsafe { layer.first.forward(processor, input, scratches, target, ending) };
            Ok(layer.end(processor, (hidden, precision), x, rounded, scratches))
        })?;
        Tensor::from_vec(result, x.shape(), &Device::Cpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockFormat, Heads, NormPlace, QuantisedMatrix, Weight, attention_block, gelu_block, noise};

    /// Frames, rows, heads, width of a head and hidden width: odd ones, one of each, and those of a published model.
    const SHAPES: [[usize; 5]; 6] = [
        [1, 1, 1, 1, 1],
        [3, 17, 3, 7, 50],
        [2, 37, 4, 32, 512],
        [1, 49, 2, 130, 33],
        [1, 300, 2, 20, 257],
        [1, 257, 2, 88, 600],
    ];

    /// Numbers without a pattern around 0.
    fn noise(shape: impl Into<candle_core::Shape>, seed: u32, size: f32) -> Tensor {
        let shape = shape.into();
        let values = noise::noise(shape.elem_count(), seed).into_iter().map(|number| size * number);
        Tensor::from_vec(values.collect(), shape, &Device::Cpu).unwrap()
    }

    /// A layer from rows of `columns` to `rows`.
    struct Layer {
        weight: Tensor,
        blocks: Option<QuantisedMatrix>,
        bias: Tensor,
    }

    impl Layer {
        fn new(rows: usize, columns: usize, seed: u32) -> Self {
            let weight = noise((rows, columns), seed, (3.0 / columns as f32).sqrt());
            Self { weight, blocks: None, bias: noise(rows, seed + 1, 0.5) }
        }

        /// With weights that f16 stand for.
        fn halved(self) -> Self {
            let weight = self.weight.to_dtype(candle_core::DType::F16).unwrap();
            Self { weight: weight.to_dtype(candle_core::DType::F32).unwrap(), ..self }
        }

        /// With weights in blocks.
        fn rounded(self) -> Self {
            let blocks = QuantisedMatrix::quantise(&self.weight, BlockFormat::Q8_0).unwrap();
            Self { blocks: Some(blocks), ..self }
        }

        fn projection(&self) -> Projection<'_> {
            let weight = match &self.blocks {
                Some(blocks) => Weight::Blocks(blocks),
                None => Weight::Dense(&self.weight),
            };
            Projection { weight, bias: Some(&self.bias) }
        }

        /// As it was before it was rounded.
        fn exact(&self) -> Projection<'_> {
            Projection { weight: Weight::Dense(&self.weight), bias: Some(&self.bias) }
        }
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Differences by what they differ from, as lengths.
    fn distance(actual: &Tensor, expected: &Tensor) -> f64 {
        assert_eq!(actual.dims(), expected.dims());
        let (mut difference, mut length) = (0.0, 0.0);
        for (actual, expected) in values(actual).iter().zip(values(expected)) {
            difference += f64::from(actual - expected).powi(2);
            length += f64::from(expected).powi(2);
        }
        (difference / length).sqrt()
    }

    /// Both sub-layers with layers that `make` changes, on every path of this processor, beside the same put together from
    /// other operations. What was left from other shapes is in the way.
    fn check(make: impl Fn(Layer) -> Layer, shapes: &[[usize; 5]], most: f64) {
        let mut scratch = FrozenScratch::default();
        for &[frames, rows, heads, head_width, inner] in shapes {
            let width = heads * head_width;
            let x = noise((frames, rows, width), 1, 2.0);
            // A channel that is far larger than the others.
            let mut scales = vec![1f32; width];
            scales[width / 3] = 60.0;
            let x = x.broadcast_mul(&Tensor::new(scales, &Device::Cpu).unwrap()).unwrap();
            let (weight, bias) = ((noise(width, 2, 0.5) + 1.0).unwrap(), noise(width, 3, 0.5));
            let norm = Norm { weight: &weight, bias: Some(&bias), eps: 1e-6 };
            let before = (norm, NormPlace::Before);
            let [packed, output, first, second] =
                [(3 * width, width), (width, width), (inner, width), (width, inner)]
                    .map(|(rows, columns)| make(Layer::new(rows, columns, 4)));
            let expected_attention = attention_block(
                &x,
                before,
                &[packed.exact()],
                output.exact(),
                &Heads::new(heads, head_width),
            )
            .unwrap();
            let expected_feed_forward = gelu_block(&x, before, first.exact(), second.exact()).unwrap();
            let attention =
                FrozenAttention::new(norm, &[packed.projection()], output.projection(), heads).unwrap();
            let feed_forward =
                FrozenFeedForward::new(norm, first.projection(), Activation::Gelu, second.projection())
                    .unwrap();
            for processor in Processor::tested() {
                let actual = attention.compute(processor, &x, &mut scratch).unwrap();
                let error = distance(&actual, &expected_attention);
                assert!(error <= most, "attention, {processor:?} {frames} {rows} {width}: {error:e}");
                let actual = feed_forward.compute(processor, &x, &mut scratch).unwrap();
                let error = distance(&actual, &expected_feed_forward);
                assert!(error <= most, "feed forward, {processor:?} {frames} {rows} {inner}: {error:e}");
            }
        }
    }

    #[test]
    fn gives_what_the_operations_give() {
        check(|layer| layer, &SHAPES, 1e-6);
    }

    #[test]
    fn gives_the_same_from_halves() {
        check(Layer::halved, &SHAPES, 1e-6);
    }

    #[test]
    fn errs_little_in_eight_bits() {
        check(Layer::rounded, &[[2, 37, 4, 32, 512], [1, 257, 2, 96, 608]], 1e-2);
    }

    #[test]
    fn what_is_not_finite_spoils_its_frame_only() {
        let width = 160;
        let weight = Tensor::ones(width, candle_core::DType::F32, &Device::Cpu).unwrap();
        let norm = Norm { weight: &weight, bias: None, eps: 1e-6 };
        for rounded in [false, true] {
            let [packed, output] = [(3 * width, width), (width, width)].map(|(rows, columns)| {
                let layer = Layer::new(rows, columns, 4);
                if rounded { layer.rounded() } else { layer }
            });
            let attention =
                FrozenAttention::new(norm, &[packed.projection()], output.projection(), 2).unwrap();
            for wrong in [f32::NAN, f32::INFINITY] {
                let mut numbers = values(&noise((2, 9, width), 1, 2.0));
                numbers[3 * width + 5] = wrong;
                let x = Tensor::from_vec(numbers, (2, 9, width), &Device::Cpu).unwrap();
                for processor in Processor::tested() {
                    let result = attention.compute(processor, &x, &mut FrozenScratch::default()).unwrap();
                    let (first, second) = (result.get(0).unwrap(), result.get(1).unwrap());
                    assert!(values(&first).iter().all(|value| !value.is_finite()), "{processor:?} {wrong}");
                    assert!(values(&second).iter().all(|value| value.is_finite()), "{processor:?} {wrong}");
                }
            }
        }
    }

    #[test]
    fn nothing_gives_nothing_and_what_does_not_fit_is_refused() {
        let weight = Tensor::ones(8, candle_core::DType::F32, &Device::Cpu).unwrap();
        let norm = Norm { weight: &weight, bias: None, eps: 1e-6 };
        let layer = |rows, columns| Layer::new(rows, columns, 4);
        let (packed, output, other) = (layer(24, 8), layer(8, 8), layer(8, 9));
        let [packed, output, other] = [&packed, &output, &other].map(Layer::projection);
        let attention = FrozenAttention::new(norm, &[packed], output, 2).unwrap();
        let mut scratch = FrozenScratch::default();
        for shape in [(0, 5, 8), (2, 0, 8)] {
            let x = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
            assert_eq!(attention.forward(&x, &mut scratch).unwrap().dims3().unwrap(), shape);
        }
        let x = Tensor::zeros((1, 5, 9), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(attention.forward(&x, &mut scratch).is_err());
        let x = Tensor::zeros((1, 5, 8), candle_core::DType::F16, &Device::Cpu).unwrap();
        assert!(attention.forward(&x, &mut scratch).is_err());
        assert!(FrozenAttention::new(norm, &[packed], output, 3).is_err());
        assert!(FrozenAttention::new(norm, &[output], output, 2).is_err());
        assert!(FrozenFeedForward::new(norm, packed, Activation::Gelu, output).is_err());
        assert!(FrozenFeedForward::new(norm, output, Activation::Gelu, other).is_err());
        assert!(FrozenFeedForward::new(norm, output, Activation::Gelu, output).is_ok());
    }
}
