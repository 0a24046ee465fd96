//! Products of many rows with weights: sums of outer products, as fast as the processor multiplies.
//!
//! Rows of weights are laid out as panels once for all rows of `x`: a number of each row, then the next number of each. A tile
//! of sums stays in the registers while two vectors of a panel meet a number of each row of `x`; a panel's part stays in the
//! first cache. K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), with the roles of
//! the matrices exchanged.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::block_format::decode;
use crate::processor::Processor;
use crate::products::{Layer, Output, Weights};

/// Numbers of a row that are laid out at a time: enough that memory is read in long runs, and a whole number of parts and of
/// blocks of every format.
const LAID_OUT: usize = 1024;
/// Numbers of a row that are multiplied at a time: their part of a panel stays in the first cache.
const PART: usize = 128;
/// Rows of weights that are given to a task together: whole panels of every processor.
const UNIT: usize = 32;
/// Units of a task at most: each part of `x` is read for all of them, and they stay in the second cache.
const TASK_UNITS: usize = 4;
/// Vectors of a panel's step.
const VECTORS: usize = 2;
/// Rows of `x` of a tile at most: its sums, a step of the panel and one number are nearly all of 32 registers.
const X_ROWS: usize = 12;
/// Rows that are laid out at a time.
pub(crate) const TOGETHER: usize = 4;

/// What a layer makes of rows `x` (count, columns).
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub(crate) processor: Processor,
    pub(crate) layer: Layer<'a>,
    pub(crate) x: &'a [f32],
    pub(crate) count: usize,
    /// Whether it is added to what is there.
    pub(crate) add: bool,
}

impl Panels<'_> {
    /// Writes the result, all of it, or adds to it; on all threads when `parallel`.
    ///
    /// # Safety
    /// The result must live, and nobody else may use it.
    pub(crate) unsafe fn multiply(self, output: Output, parallel: bool) {
        let x = &self.parts_of_x(parallel);
        let units = self.layer.rows.div_ceil(UNIT);
        let tasks = units.div_ceil(TASK_UNITS).next_multiple_of(rayon::current_num_threads());
        let task = |index: usize| {
            let [first, last] =
                [index, index + 1].map(|index| (index * units / tasks * UNIT).min(self.layer.rows));
            self.processor.run(Task { panels: self, x, first, last, output });
        };
        match parallel {
            true => (0..tasks).into_par_iter().for_each(task),
            false => (0..tasks).for_each(task),
        }
    }

    /// The first numbers of each row of `x`, then the next ones. Rows as they are would lie a power of two apart, and push each
    /// other out of the cache.
    fn parts_of_x(self, parallel: bool) -> Vec<[f32; PART]> {
        let Self { layer: Layer { columns, .. }, x, count, .. } = self;
        let mut parts = vec![[0f32; PART]; columns.div_ceil(PART) * count];
        let fill = |(index, into): (usize, &mut [[f32; PART]])| {
            for (into, x) in into.iter_mut().zip(x.chunks_exact(columns)) {
                let part = &x[index * PART..columns.min((index + 1) * PART)];
                into[..part.len()].copy_from_slice(part);
            }
        };
        match parallel {
            true => parts.par_chunks_exact_mut(count).enumerate().for_each(fill),
            false => parts.chunks_exact_mut(count).enumerate().for_each(fill),
        }
        parts
    }
}

/// Rows become columns.
#[inline(always)]
fn transposed(rows: [[f32; TOGETHER]; TOGETHER]) -> [[f32; TOGETHER]; TOGETHER] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128, _MM_TRANSPOSE4_PS};
        // SAFETY: four numbers are a vector, of which every x86-64 has the instructions.
        unsafe {
            let [mut a, mut b, mut c, mut d]: [__m128; TOGETHER] = std::mem::transmute(rows);
            _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
            std::mem::transmute([a, b, c, d])
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|column| std::array::from_fn(|row| rows[row][column]))
}

/// The products with some rows of the weights. Whoever makes one promises that nobody else uses their columns of the
/// result.
struct Task<'a> {
    panels: Panels<'a>,
    x: &'a [[f32; PART]],
    first: usize,
    last: usize,
    output: Output,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Panels { layer: Layer { columns, bias, .. }, count, add, .. } = self.panels;
        let panel_rows = VECTORS * S::F32_LANES;
        let length = LAID_OUT.min(columns);
        let rows = |first: usize| first..self.last.min(first + panel_rows);
        let firsts = (self.first..self.last).step_by(panel_rows);
        let mut panels = vec![[simd.splat_f32s(0.0); VECTORS]; firsts.len() * length];
        let mut unpacked = [[0f32; LAID_OUT]; TOGETHER];
        // Of one panel after the other: in the result they lie a power of two apart, and would push each other out of the cache.
        let mut sums = vec![[simd.splat_f32s(0.0); VECTORS]; firsts.len() * count];
        if let Some(bias) = bias {
            for (first, sums) in firsts.clone().zip(sums.chunks_exact_mut(count)) {
                let mut begin = [simd.splat_f32s(0.0); VECTORS];
                let numbers: &mut [f32] = pulp::bytemuck::cast_slice_mut(&mut begin);
                numbers[..rows(first).len()].copy_from_slice(&bias[rows(first)]);
                sums.fill(begin);
            }
        }
        for from in (0..columns).step_by(LAID_OUT) {
            let length = LAID_OUT.min(columns - from);
            for (first, panel) in firsts.clone().zip(panels.chunks_exact_mut(length)) {
                self.lay_out_panel::<S>(rows(first), from, panel, &mut unpacked);
            }
            for start in (0..length).step_by(PART) {
                let x = &self.x[(from + start) / PART * count..][..count];
                for (panel, sums) in panels.chunks_exact(length).zip(sums.chunks_exact_mut(count)) {
                    multiply(simd, &panel[start..length.min(start + PART)], x, sums);
                }
            }
        }
        for (first, sums) in firsts.zip(sums.chunks_exact(count)) {
            for (row, sums) in sums.iter().enumerate() {
                let sums: &[f32] = &pulp::bytemuck::cast_slice(sums)[..rows(first).len()];
                // SAFETY: the columns belong to this task, as whoever made it promised.
                unsafe { self.output.write(row, first, sums, add) };
            }
        }
    }
}

impl Task<'_> {
    /// Lays out numbers of some rows of weights from a column on. What stands for rows that are missing stays: nobody reads its
    /// sums.
    #[inline(always)]
    fn lay_out_panel<S: Simd>(
        &self,
        panel_rows: Range<usize>,
        from: usize,
        panel: &mut [[S::f32s; VECTORS]],
        unpacked: &mut [[f32; LAID_OUT]; TOGETHER],
    ) {
        let Panels { processor, layer: Layer { weights, rows, columns, .. }, .. } = self.panels;
        let (length, step) = (panel.len(), VECTORS * S::F32_LANES);
        let into: &mut [f32] = pulp::bytemuck::cast_slice_mut(panel);
        for first in panel_rows.clone().step_by(TOGETHER) {
            let together = TOGETHER.min(panel_rows.end - first);
            let numbers: [&[f32]; TOGETHER] = match weights {
                // The first stands in for those that are missing.
                Weights::Numbers(values) => std::array::from_fn(|index| {
                    let row = first + if index < together { index } else { 0 };
                    &values[row * columns + from..][..length]
                }),
                Weights::Blocks(format, bytes) => {
                    let row_bytes = bytes.len() / rows;
                    let begin = from / format.block_length() * format.block_bytes();
                    for (row, values) in (first..first + together).zip(unpacked.iter_mut()) {
                        decode(processor, format, &bytes[row * row_bytes + begin..], &mut values[..length]);
                    }
                    unpacked.each_ref().map(|values| &values[..length])
                }
            };
            lay_out(numbers, first - panel_rows.start, into, step);
        }
    }
}

/// Writes a number of each row from place `first` of a step on, the next numbers a step further.
#[inline(always)]
pub(crate) fn lay_out(rows: [&[f32]; TOGETHER], first: usize, into: &mut [f32], step: usize) {
    if first + TOGETHER > step {
        for (row, place) in rows.iter().zip(first..step) {
            into[place..].iter_mut().step_by(step).zip(*row).for_each(|(into, number)| *into = *number);
        }
        return;
    }
    let [a, b, c, d] = rows.map(|row| row.as_chunks::<TOGETHER>());
    let fours = a.0.iter().zip(b.0).zip(c.0).zip(d.0);
    let mut steps = into.chunks_exact_mut(TOGETHER * step);
    for ((((a, b), c), d), into) in fours.zip(&mut steps) {
        for (column, numbers) in transposed([*a, *b, *c, *d]).iter().enumerate() {
            into[column * step + first..][..TOGETHER].copy_from_slice(numbers);
        }
    }
    let rest = a.1.iter().zip(b.1).zip(c.1).zip(d.1);
    for ((((a, b), c), d), into) in rest.zip(steps.into_remainder().chunks_exact_mut(step)) {
        into[first..first + TOGETHER].copy_from_slice(&[*a, *b, *c, *d]);
    }
}

/// Adds the products of rows of `x` with a part of a panel to their sums.
#[inline(always)]
fn multiply<S: Simd>(
    simd: S,
    panel: &[[S::f32s; VECTORS]],
    x: &[[f32; PART]],
    sums: &mut [[S::f32s; VECTORS]],
) {
    let tile_rows = if S::REGISTER_COUNT >= 32 { X_ROWS } else { X_ROWS / 2 };
    for (x, sums) in x.chunks(tile_rows).zip(sums.chunks_mut(tile_rows)) {
        match x.len() {
            1 => tile::<S, 1>(simd, panel, x, sums),
            2 => tile::<S, 2>(simd, panel, x, sums),
            3 => tile::<S, 3>(simd, panel, x, sums),
            4 => tile::<S, 4>(simd, panel, x, sums),
            5 => tile::<S, 5>(simd, panel, x, sums),
            6 => tile::<S, 6>(simd, panel, x, sums),
            7 => tile::<S, 7>(simd, panel, x, sums),
            8 => tile::<S, 8>(simd, panel, x, sums),
            9 => tile::<S, 9>(simd, panel, x, sums),
            10 => tile::<S, 10>(simd, panel, x, sums),
            11 => tile::<S, 11>(simd, panel, x, sums),
            _ => tile::<S, 12>(simd, panel, x, sums),
        }
    }
}

/// Adds the products of `X` rows.
#[inline(always)]
fn tile<S: Simd, const X: usize>(
    simd: S,
    panel: &[[S::f32s; VECTORS]],
    x: &[[f32; PART]],
    sums: &mut [[S::f32s; VECTORS]],
) {
    assert!(x.len() == X && sums.len() == X && panel.len() <= PART, "a tile of another size");
    let mut found = [[simd.splat_f32s(0.0); VECTORS]; X];
    for (step, weights) in panel.iter().enumerate() {
        for (sums, x) in found.iter_mut().zip(x) {
            let x = simd.splat_f32s(x[step]);
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = simd.mul_add_e_f32s(*weights, x, *sum);
            }
        }
    }
    for (sums, found) in sums.iter_mut().zip(found) {
        for (sum, found) in sums.iter_mut().zip(found) {
            *sum = simd.add_f32s(*sum, found);
        }
    }
}
