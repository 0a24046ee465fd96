//! Products of rows with the transpose of a matrix of weights, as linear layers compute them, in every way that a CPU has:
//! [`Layer::forward`] chooses (`docs/design/cpu-kernels.md` has the table).
//!
//! - `block_products`: weights as they lie, multiplied in int8 (`integer`) or, by few rows, in f32 (`float_rows`, and
//!   `formats::dequantise` for blocks);
//! - `panels`: weights that are laid out once for many rows, in f32, in int16 (`int16`) or in bf16 pieces for AMX (`pieces`);
//! - `tiles`: all else, in f32;
//! - `matrix`: matrices in any layout, for gradients and for attention.
//!
//! Weights and rows lie with the numbers of a sum one after the other, so that nothing has to be laid out anew: a tile of
//! sums stays in the registers while its rows go by. Weights in blocks are unpacked a few rows at a time into the L1
//! cache, or, for few rows, as in decoding, multiplied as they are read: that is memory-bound.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod block_products;
#[cfg(target_arch = "x86_64")]
pub(crate) mod float_rows;
#[cfg(target_arch = "x86_64")]
mod int16;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod integer;
pub(crate) mod matrix;
mod output;
pub(crate) mod panels;
#[cfg(target_arch = "x86_64")]
pub(crate) mod pieces;
#[cfg(test)]
mod tests;
mod tiles;
mod weights;

pub(crate) use output::Output;
pub(crate) use weights::{Weights, row_bytes};

use crate::instructions::processor::{Processor, processor};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::products::block_products::{BlockProduct, few_rows_of_each};
use crate::products::panels::Panels;
use crate::threads::shared_floats::SharedFloats;
use crate::threads::tasks::in_tasks;

/// Multiplications below which work is not worth a second thread.
pub(crate) const PARALLEL: usize = 1 << 17;

/// A linear layer: rows `x` (count, columns) give (count, rows), `x` times the transpose of the weights plus the bias.
///
/// The order of a sum depends on the shapes and the processor only.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer<'a> {
    /// (rows, columns).
    pub(crate) weights: Weights<'a>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// (rows).
    pub(crate) bias: Option<&'a [f32]>,
}

impl Layer<'_> {
    /// What it makes of `count` rows. Runs on all threads when `parallel`.
    pub(crate) fn forward(self, x: &[f32], count: usize, parallel: bool) -> Vec<f32> {
        self.forward_on(processor(), x, count, parallel)
    }

    /// What it makes of `count` rows that are never rounded, on all threads.
    pub(crate) fn forward_exactly(self, x: &[f32], count: usize) -> Vec<f32> {
        self.forward_on(processor().without_integer_dot(), x, count, true)
    }

    fn forward_on(self, processor: Processor, x: &[f32], count: usize, parallel: bool) -> Vec<f32> {
        let length = count * self.rows;
        let mut result = Vec::with_capacity(length);
        let output = Output::at(SharedFloats::new(result.as_mut_ptr(), length), self.rows);
        // SAFETY: the vector has room for the result, all of which is written.
        unsafe {
            self.compute(processor, x, count, output, false, parallel);
            result.set_len(length);
        }
        result
    }

    /// What each of some layers makes of the same rows.
    pub(crate) fn forward_each<const N: usize>(
        layers: [Self; N],
        x: &[f32],
        count: usize,
        parallel: bool,
    ) -> [Vec<f32>; N] {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if parallel && let Some(results) = few_rows_of_each(layers, x, count) {
            return results;
        }
        layers.map(|layer| layer.forward(x, count, parallel))
    }

    /// Adds what it makes of rows to `result`. Runs on all threads when `parallel`.
    pub(crate) fn add_to(self, x: &[f32], result: &mut [f32], parallel: bool) {
        let count = result.len() / self.rows.max(1);
        let output = Output::new(result, self.rows);
        // SAFETY: nobody else has the result.
        unsafe { self.compute(processor(), x, count, output, true, parallel) };
    }

    /// Writes what it makes of rows to `result`, on this thread, with rows of `x` that are never rounded.
    pub(crate) fn write_exactly(self, x: &[f32], result: &mut [f32]) {
        let count = result.len() / self.rows.max(1);
        let output = Output::new(result, self.rows);
        // SAFETY: nobody else has the result.
        unsafe { self.compute(processor().without_integer_dot(), x, count, output, false, false) };
    }

    /// Writes the result, all of it, or adds to it.
    ///
    /// # Safety
    /// Nobody else may use the result, which need not be initialised where it is not added to.
    unsafe fn compute(
        self,
        processor: Processor,
        x: &[f32],
        count: usize,
        output: Output,
        add: bool,
        parallel: bool,
    ) {
        let Self { weights, rows, columns, bias } = self;
        assert_eq!(x.len(), count * columns, "rows that do not go with the weights");
        assert_eq!(output.length(), count * rows, "a result of another size");
        assert!(bias.is_none_or(|bias| bias.len() == rows), "a bias of another size");
        if output.length() == 0 {
            return;
        }
        let parallel = parallel && rows * columns * count >= PARALLEL;
        if columns == 0 {
            // SAFETY: as the caller promises.
            return unsafe { output.begin(bias, add, parallel) };
        }
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if let Some(product) = BlockProduct::new(processor, weights, x, columns) {
            // SAFETY: as the caller promises.
            unsafe { output.begin(bias, add, parallel) };
            return in_tasks(rows, product.unit().max(weights.unit()), parallel, |task| {
                // SAFETY: each task has columns of its own.
                unsafe { product.add(weights.part(task.clone(), columns), task.start, output) };
            });
        }
        let panels = Panels { processor, layer: self, x, stride: columns, count, add };
        // SAFETY: as the caller promises.
        unsafe {
            if panels.pay() {
                return panels.multiply(output, parallel);
            }
            output.begin(bias, add, parallel);
            self.add_in_f32(processor, x, output, parallel);
        }
    }
}
