//! Products with weights as they lie in memory, read once: with `x` quantised to int8, or in f32 for a few rows.

#[cfg(target_arch = "x86_64")]
use crate::formats::dequantise::Dots;
use crate::instructions::processor::{Processor, processor};
#[cfg(target_arch = "x86_64")]
use crate::products::float_rows::FloatRows;
use crate::products::integer::IntegerProduct;
use crate::products::{Layer, Output, PARALLEL, Weights};
use crate::threads::tasks::in_tasks;

/// Rows of `x` up to which weights are multiplied in f32 as they are read, and not unpacked.
#[cfg(target_arch = "x86_64")]
const FEW: usize = 8;

/// Rows of `x` that are to be multiplied with weights as they lie.
pub(crate) enum BlockProduct {
    /// In int8.
    Integers(IntegerProduct),
    /// With weights in f32, f16 or bf16.
    #[cfg(target_arch = "x86_64")]
    Floats(FloatRows),
    /// In f32, with weights that are dequantised on the way.
    #[cfg(target_arch = "x86_64")]
    Dequantised(Dots),
}

impl BlockProduct {
    /// `x` (count, columns) for weights of this kind; none where they are to be unpacked.
    pub(crate) fn new(processor: Processor, weights: Weights, x: &[f32], columns: usize) -> Option<Self> {
        if let Some(product) = IntegerProduct::new(processor, weights, x, columns) {
            return Some(Self::Integers(product));
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(rows) = FloatRows::of_weights(processor, weights.format(), x, columns) {
            return Some(Self::Floats(rows));
        }
        #[cfg(target_arch = "x86_64")]
        if x.len() <= FEW * columns {
            return Dots::new(processor, weights.format(), x, columns).map(Self::Dequantised);
        }
        None
    }

    /// Rows of weights that are multiplied together.
    pub(crate) fn unit(&self) -> usize {
        match self {
            Self::Integers(product) => product.unit(),
            #[cfg(target_arch = "x86_64")]
            Self::Floats(_) | Self::Dequantised(_) => 1,
        }
    }

    /// Adds the products with some rows of weights; their results are the columns from `column` on.
    ///
    /// # Safety
    /// The result lives, and nobody else uses these columns.
    pub(crate) unsafe fn add(&self, weights: Weights, column: usize, output: Output) {
        // SAFETY: as the caller promises.
        unsafe {
            match self {
                Self::Integers(product) => product.add(weights, column, output),
                #[cfg(target_arch = "x86_64")]
                Self::Floats(rows) => rows.add(weights.bytes(), column, output),
                #[cfg(target_arch = "x86_64")]
                Self::Dequantised(dots) => {
                    let mut room = Vec::new();
                    dots.add(weights.deinterleaved(dots.columns(), &mut room).bytes(), column, output);
                }
            }
        }
    }
}

/// What each of some layers without bias makes of a few rows. Rows are rounded once for all weights of one kind, and threads
/// wait for each other once. None where the rows are many.
pub(crate) fn few_rows_of_each<const N: usize>(
    layers: [Layer; N],
    x: &[f32],
    count: usize,
) -> Option<[Vec<f32>; N]> {
    let unit = layers.iter().map(|layer| layer.weights.unit()).max()?;
    let mut products: Vec<(Weights, BlockProduct)> = Vec::new();
    for layer in layers {
        assert_eq!(x.len(), count * layer.columns, "rows that do not go with the weights");
        if layer.bias.is_some() || x.is_empty() || layer.rows == 0 || !layer.rows.is_multiple_of(unit) {
            return None;
        }
        if products.iter().all(|(found, _product)| !found.is_like(layer.weights)) {
            let product = BlockProduct::new(processor(), layer.weights, x, layer.columns)?;
            if product.unit() > 1 {
                return None;
            }
            products.push((layer.weights, product));
        }
    }
    let mut results = layers.map(|layer| vec![0f32; count * layer.rows]);
    let mut rows = 0;
    // Of each layer the number that its first row has among the rows of all.
    let mut parts = Vec::with_capacity(N);
    for (layer, result) in layers.iter().zip(&mut results) {
        parts.push((rows, layer, Output::new(result, layer.rows)));
        rows += layer.rows;
    }
    in_tasks(rows, unit, rows * x.len() >= PARALLEL, |task| {
        for (before, layer, output) in &parts {
            let first = task.start.max(*before) - before;
            let last = task.end.saturating_sub(*before).min(layer.rows);
            if first < last
                && let Some((_like, product)) =
                    products.iter().find(|(found, _product)| found.is_like(layer.weights))
            {
                // SAFETY: each task has columns of its own.
                unsafe { product.add(layer.weights.part(first..last, layer.columns), first, *output) };
            }
        }
    });
    Some(results)
}
