//! Products of many rows with weights: sums of outer products, as fast as the processor multiplies.
//!
//! Rows of weights are laid out as panels (packed, in GotoBLAS's words) once for all rows of `x`: a number of each row, then
//! the next number of each. A tile of sums stays in the registers while two vectors of a panel meet a number of each row of
//! `x`; a panel's part stays in the L1 cache. K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
//! (2008), with the roles of the matrices exchanged. Weights that are not stored in f32 are multiplied in int16 where that is
//! quicker ([`crate::products::int16`]): in the same panels, of another [`Kind`] of numbers. AMX has a way of its own (`pieces`), of
//! which only the tasks are the same.

use std::ops::Range;
use std::sync::OnceLock;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use crate::formats::block_format::BlockFormat;
use crate::formats::block_format::decode;
#[cfg(target_arch = "x86_64")]
use crate::instructions::processor::IntegerDot;
use crate::instructions::processor::Processor;
use crate::instructions::vector::with_rows;
#[cfg(target_arch = "x86_64")]
use crate::products::int16::{Avx2, Avx512Vnni, AvxVnni};
#[cfg(target_arch = "x86_64")]
use crate::products::pieces;
use crate::products::{Layer, Output, Weights, row_bytes};

/// Numbers of a row that are laid out at a time: enough that memory is read in long runs, and a whole number of parts and of
/// blocks of every format.
const LAID_OUT: usize = 1024;
/// Numbers of a row that are multiplied at a time: their part of a panel stays in the L1 cache.
pub(crate) const PART: usize = 128;
/// Rows of weights that are given to a task together: whole panels of every processor.
const UNIT: usize = 32;
/// Units of a task at most: each part of `x` is read for all of them, and they stay in the L2 cache.
const TASK_UNITS: usize = 4;
/// Vectors of a panel's step.
pub(crate) const VECTORS: usize = 2;
/// Rows of `x` of a tile at most: its sums, a step of the panel and one number are nearly all of 32 registers.
const X_ROWS: usize = 12;
/// Rows of `x` from which it is worth it to lay out the weights: as they are, the parts of fewer stay in the L2 cache.
const MANY: usize = 48;
/// The same for weights that are quantised as well, which takes as long as the products of fifty rows.
#[cfg(target_arch = "x86_64")]
const MANY_ROUNDED: usize = 24;
/// Rows that are laid out at a time.
pub(crate) const TOGETHER: usize = 4;

/// A kind of numbers that panels are made of, in words of 32 bits.
pub(crate) trait Kind {
    /// Numbers of a word.
    const OF_A_WORD: usize;
    /// [`PART`] numbers of a row of `x`.
    type Part: Copy + Send + Sync;
    const ZEROS: Self::Part;

    /// Up to [`PART`] numbers of a row of `x`; none if this kind cannot stand for them.
    fn part(x: &[f32]) -> Option<Self::Part>;

    /// Makes words of a part of a panel of f32, a row in each place of a step, and finds what those of each row are to be multiplied
    /// with; false if this kind cannot stand for them. Not for a kind of which a word is a number.
    fn convert<S: Simd>(
        simd: S,
        steps: &[[S::f32s; VECTORS]],
        words: &mut [[S::f32s; VECTORS]],
        scales: &mut [S::f32s; VECTORS],
    ) -> bool;

    /// Adds the products of `X` rows of `x` with a part of a panel, which has these scales, to their sums.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn tile<S: Simd, const X: usize>(
        simd: S,
        panel: (&[[S::f32s; VECTORS]], &[S::f32s; VECTORS]),
        x: &[Self::Part],
        sums: &mut [[S::f32s; VECTORS]],
    );
}

/// What a layer makes of rows `x` (count, columns).
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub(crate) processor: Processor,
    pub(crate) layer: Layer<'a>,
    pub(crate) x: &'a [f32],
    /// Numbers from the start of a row of `x` to that of the next one.
    pub(crate) stride: usize,
    pub(crate) count: usize,
    /// Whether it is added to what is there.
    pub(crate) add: bool,
}

impl Panels<'_> {
    /// Whether the rows are worth laying out the weights for.
    pub(crate) fn pay(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.in_pieces() {
            return true;
        }
        #[cfg(target_arch = "x86_64")]
        if self.rounds() {
            return self.count >= MANY_ROUNDED;
        }
        self.count >= MANY
    }

    /// Whether weights and rows are multiplied in bf16 pieces.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn in_pieces(&self) -> bool {
        pieces::pay(self.processor, self.layer.weights.format(), self.count)
    }

    /// Whether weights and rows are multiplied in int16. AMX tiles are quicker ([`pieces`]), and vectors of AVX-512 without VNNI
    /// take as long for that as for f32: products of pairs are to be added, and both are done by the same two units.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn rounds(&self) -> bool {
        let quicker = match self.processor {
            Processor::Avx512(_, dot) => dot == IntegerDot::Quads,
            Processor::Avx2(_, dot) => dot != IntegerDot::None,
            Processor::Portable => false,
        };
        quicker && !matches!(self.layer.weights.format(), BlockFormat::F32)
    }

    /// Writes the result, all of it, or adds to it; on all threads when `parallel`.
    ///
    /// # Safety
    /// The result must live, and nobody else may use it.
    pub(crate) unsafe fn multiply(self, output: Output, parallel: bool) {
        // SAFETY: as the caller promises; the processor has the instructions of its kind of numbers.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            match self.processor {
                _ if self.in_pieces() => return pieces::multiply(self, output, parallel),
                Processor::Avx512(..) if self.rounds() => {
                    return self.multiply_as::<Avx512Vnni>(output, parallel);
                }
                Processor::Avx2(_, IntegerDot::Quads) if self.rounds() => {
                    return self.multiply_as::<AvxVnni>(output, parallel);
                }
                Processor::Avx2(..) if self.rounds() => return self.multiply_as::<Avx2>(output, parallel),
                _ => {}
            }
            self.multiply_as::<InF32>(output, parallel);
        }
    }

    /// The same in a kind of numbers, and in f32 what this kind cannot stand for.
    ///
    /// # Safety
    /// As [`Self::multiply`], and the processor has the kind's instructions.
    unsafe fn multiply_as<K: Kind>(self, output: Output, parallel: bool) {
        let x = self.parts_of_x::<K>(parallel);
        self.in_tasks(TASK_UNITS, output, parallel, |rows| {
            x.as_ref().is_some_and(|x| self.task::<K>(x, rows, output))
        });
    }

    /// Runs `task` on all rows of the weights, up to `units` times [`UNIT`] each time, and multiplies in f32 what it gives false for. It
    /// may only use the columns of these rows.
    pub(crate) fn in_tasks(
        self,
        units: usize,
        output: Output,
        parallel: bool,
        task: impl Fn(Range<usize>) -> bool + Sync,
    ) {
        let singles = OnceLock::new();
        let all = self.layer.rows.div_ceil(UNIT);
        let tasks = all.div_ceil(units).next_multiple_of(rayon::current_num_threads());
        let task = |index: usize| {
            let [first, last] =
                [index, index + 1].map(|index| (index * all / tasks * UNIT).min(self.layer.rows));
            if first < last && !task(first..last) {
                let x = singles.get_or_init(|| self.parts_of_x::<InF32>(false).unwrap_or_default());
                self.task::<InF32>(x, first..last, output);
            }
        };
        match parallel {
            true => (0..tasks).into_par_iter().for_each(task),
            false => (0..tasks).for_each(task),
        }
    }

    /// Multiplies some rows of the weights; false, and nothing is written, if the kind cannot stand for those.
    fn task<K: Kind>(self, x: &[K::Part], rows: Range<usize>, output: Output) -> bool {
        let (columns, mut room) = (self.layer.columns, Vec::new());
        let weights = self.layer.weights.part(rows.clone(), columns).deinterleaved(columns, &mut room);
        self.processor.run(Task::<K> { panels: self, x, weights, rows, output })
    }

    /// The first numbers of each row of `x`, then the next ones; none if the kind cannot stand for them. Rows as they are would lie a
    /// power of two apart, and push each other out of the cache.
    fn parts_of_x<K: Kind>(self, parallel: bool) -> Option<Vec<K::Part>> {
        let Self { layer: Layer { columns, .. }, x, stride, count, .. } = self;
        let mut parts = vec![K::ZEROS; columns.div_ceil(PART) * count];
        let fill = |(index, into): (usize, &mut [K::Part])| {
            into.iter_mut().zip(x.chunks(stride)).try_for_each(|(into, x)| {
                *into = K::part(&x[index * PART..columns.min((index + 1) * PART)])?;
                Some(())
            })
        };
        match parallel {
            true => parts.par_chunks_exact_mut(count).enumerate().try_for_each(fill),
            false => parts.chunks_exact_mut(count).enumerate().try_for_each(fill),
        }?;
        Some(parts)
    }
}

/// Rows become columns.
#[inline(always)]
pub(crate) fn transposed(rows: [[f32; TOGETHER]; TOGETHER]) -> [[f32; TOGETHER]; TOGETHER] {
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

/// The products with some rows of the weights; false, and nothing is written, if the kind cannot stand for those. Whoever makes
/// one promises that nobody else uses their columns of the result, and that the processor has the kind's instructions.
struct Task<'a, K: Kind> {
    panels: Panels<'a>,
    x: &'a [K::Part],
    /// Those of the rows, none of them interleaved.
    weights: Weights<'a>,
    rows: Range<usize>,
    output: Output,
}

impl<K: Kind> WithSimd for Task<'_, K> {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> bool {
        let Panels { layer: Layer { columns, bias, .. }, count, add, .. } = self.panels;
        let zeros = [simd.splat_f32s(0.0); VECTORS];
        let panel_rows = VECTORS * S::F32_LANES;
        let rows = |first: usize| first..self.rows.end.min(first + panel_rows);
        let firsts = self.rows.clone().step_by(panel_rows);
        let [words, parts] = [K::OF_A_WORD, PART].map(|unit| LAID_OUT.min(columns).div_ceil(unit));
        let mut panels = vec![zeros; firsts.len() * words];
        let mut scales = vec![zeros; firsts.len() * parts];
        let mut steps = vec![zeros; if K::OF_A_WORD == 1 { 0 } else { LAID_OUT.min(columns) }];
        let mut unpacked = [[0f32; LAID_OUT]; TOGETHER];
        // Of one panel after the other: in the result they lie a power of two apart, and would push each other out of the cache.
        let mut sums = vec![zeros; firsts.len() * count];
        if let Some(bias) = bias {
            for (first, sums) in firsts.clone().zip(sums.chunks_exact_mut(count)) {
                let mut begin = zeros;
                let numbers: &mut [f32] = pulp::bytemuck::cast_slice_mut(&mut begin);
                numbers[..rows(first).len()].copy_from_slice(&bias[rows(first)]);
                sums.fill(begin);
            }
        }
        for from in (0..columns).step_by(LAID_OUT) {
            let length = LAID_OUT.min(columns - from);
            let [words, parts] = [K::OF_A_WORD, PART].map(|unit| length.div_ceil(unit));
            let panels_and_scales = panels.chunks_exact_mut(words).zip(scales.chunks_exact_mut(parts));
            for (first, (panel, scales)) in firsts.clone().zip(panels_and_scales) {
                if K::OF_A_WORD == 1 {
                    self.lay_out_panel::<S>(rows(first), from, panel, &mut unpacked);
                    continue;
                }
                let steps = &mut steps[..length];
                self.lay_out_panel::<S>(rows(first), from, steps, &mut unpacked);
                let words = panel.chunks_mut(PART / K::OF_A_WORD);
                for ((steps, words), scales) in steps.chunks(PART).zip(words).zip(scales) {
                    if !K::convert(simd, steps, words, scales) {
                        return false;
                    }
                }
            }
            for part in 0..parts {
                let x = &self.x[(from / PART + part) * count..][..count];
                let [start, end] = [part, part + 1].map(|part| (part * PART / K::OF_A_WORD).min(words));
                for ((panel, scales), sums) in panels
                    .chunks_exact(words)
                    .zip(scales.chunks_exact(parts))
                    .zip(sums.chunks_exact_mut(count))
                {
                    multiply::<S, K>(simd, (&panel[start..end], &scales[part]), x, sums);
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
        true
    }
}

impl<K: Kind> Task<'_, K> {
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
        let Panels { processor, layer: Layer { columns, .. }, .. } = self.panels;
        let (length, step) = (panel.len(), VECTORS * S::F32_LANES);
        let into: &mut [f32] = pulp::bytemuck::cast_slice_mut(panel);
        for first in panel_rows.clone().step_by(TOGETHER) {
            let together = TOGETHER.min(panel_rows.end - first);
            let row = first - self.rows.start;
            let numbers: [&[f32]; TOGETHER] = match self.weights {
                // The first stands in for those that are missing.
                Weights::F32(values) => std::array::from_fn(|index| {
                    let row = row + if index < together { index } else { 0 };
                    &values[row * columns + from..][..length]
                }),
                Weights::Blocks(format, bytes) | Weights::Interleaved(format, bytes) => {
                    let [row_bytes, begin] = [columns, from].map(|to| row_bytes(format, to));
                    for (row, values) in (row..row + together).zip(unpacked.iter_mut()) {
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
fn multiply<S: Simd, K: Kind>(
    simd: S,
    panel: (&[[S::f32s; VECTORS]], &[S::f32s; VECTORS]),
    x: &[K::Part],
    sums: &mut [[S::f32s; VECTORS]],
) {
    let tile_rows = if S::REGISTER_COUNT >= 32 { X_ROWS } else { X_ROWS / 2 };
    for (x, sums) in x.chunks(tile_rows).zip(sums.chunks_mut(tile_rows)) {
        // SAFETY: the processor has the instructions, as whoever made the task promised.
        unsafe { with_rows!(x.len(), ROWS => K::tile::<S, ROWS>(simd, panel, x, sums)) }
    }
}

/// Numbers as they are.
struct InF32;

impl Kind for InF32 {
    const OF_A_WORD: usize = 1;
    type Part = [f32; PART];
    const ZEROS: Self::Part = [0.0; PART];

    fn part(x: &[f32]) -> Option<Self::Part> {
        let mut part = Self::ZEROS;
        part[..x.len()].copy_from_slice(x);
        Some(part)
    }

    #[inline(always)]
    fn convert<S: Simd>(
        _simd: S,
        _steps: &[[S::f32s; VECTORS]],
        _words: &mut [[S::f32s; VECTORS]],
        _scales: &mut [S::f32s; VECTORS],
    ) -> bool {
        true
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const X: usize>(
        simd: S,
        (panel, _): (&[[S::f32s; VECTORS]], &[S::f32s; VECTORS]),
        x: &[Self::Part],
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
}
