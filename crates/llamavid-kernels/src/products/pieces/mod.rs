//! Products of many rows with weights in AMX tiles, of numbers that are split into bf16 pieces: an f32 is the sum of up to three,
//! each the bf16 nearest to what those before it leave (elsewhere called bf16x2 and bf16x3).
//!
//! A piece has 8 bits of its number's significand and sums are f32, so that the number of pieces, and of their products, is how exact a
//! product is:
//!
//! - Weights in blocks stand for few bits. They and `x` are a piece each, and one product of them errs by up to 2^-7, 0.23 % in the mean of
//!   squares. Rows that are quantised to int8, as elsewhere beside such weights, err by 0.4 to 0.6 %.
//! - Weights in 16 bits are exactly one piece (bf16) or two (f16). With `x` in two, and all products but that of both second ones, it is
//!   up to 2^-15, and 2^-18 in the mean of squares.
//! - Weights in f32 are three pieces, and so is `x`: exactly, but for numbers next to none. Six products of pieces are left when those are
//!   gone that are below the last bit of the number's product, and five where no weight needs its third piece, as of numbers that half
//!   precision holds. The largest of them is added last, and all afresh for every part of a row, so that sums err as those of f32 do:
//!   nothing that is computed in f32 elsewhere is rounded here.
//!
//! What several pieces cannot stand for, which is what is not finite or so large or small that their products leave f32's range, goes
//! to the panels in f32. Single pieces stand for whatever f32 does, but for what is less than 2^-126: tiles take that for 0.
//!
//! Rows of weights are the left operand as they lie, so that they only have to be converted. `x` is the right one, in pairs of
//! numbers of its rows, and is laid out once for all weights.

mod numbers;
mod right;
mod sources;

use std::arch::x86_64::{
    __m512i, _mm512_add_ps, _mm512_castsi512_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_setzero_si512,
    _mm512_storeu_ps,
};
use std::ops::Range;

use crate::formats::block_format::BlockFormat;
use crate::formats::block_types::{NUMBERS, with_block};
use crate::formats::integer_blocks::MOST_BYTES;
use crate::formats::interleaved::INTERLEAVED_ROWS;
use crate::instructions::amx::{LONGEST, Piece, Prefetch, ROWS, RUN, SIDE, Sums, Tiles};
use crate::instructions::prefetch::{CACHE_LINE, prefetch_l2};
use crate::instructions::processor::{IntegerDot, Processor};
use crate::products::float_rows;
use crate::products::integer::panels::into_cache;
use crate::products::panels::Panels;
use crate::products::{Output, row_bytes};

pub(crate) use self::numbers::{Place, STEP, in_pieces, pairs, pieces_of, steps_of, two};
use self::right::{Right, transposed};
pub(crate) use self::right::{lay_out_columns, transpose};
use self::sources::{InBf16, InBlocks, InF16, InF32, Source};

/// Numbers of a row of weights that are laid out at a time, whole parts.
const LAID_OUT: usize = NUMBERS;
/// Panels of 32 rows of weights of a task at most: each part of `x` is read for all of them.
const TASK_PANELS: usize = 8;
/// Rows of `x` up to which reading the weights takes most of the time: panels are tasks of their own then, which are read in the order in
/// which they lie before all else.
const FEW: usize = 64;
/// Rows of `x` that are multiplied at a time at most: their sums with a task's panels stay in the L2 cache.
const X_ROWS: usize = 512;

/// Whether so many rows are multiplied with weights of a format in pieces: where the processor has tiles, and what is won is worth the
/// conversion of the weights.
pub(crate) fn pay(processor: Processor, format: BlockFormat, count: usize) -> bool {
    let few = match format {
        BlockFormat::F32 | BlockFormat::F16 | BlockFormat::BF16 => float_rows::most(format),
        // Up to two tiles of int8 take no longer than the weights' way from memory.
        _ => 2 * SIDE,
    };
    matches!(processor, Processor::Avx512(_, IntegerDot::Tiles)) && count > few
}

/// Writes what a layer makes of rows, all of it, or adds to it.
///
/// # Safety
/// [`pay`] was true of them. The result must live, and nobody else may use it.
pub(crate) unsafe fn multiply(panels: Panels, output: Output, parallel: bool) {
    let Panels { layer, x, stride, count, .. } = panels;
    let rows = count.div_ceil(count.div_ceil(X_ROWS)).next_multiple_of(ROWS);
    for (index, x) in x.chunks(rows * stride).enumerate() {
        let panels = Panels { x, count: rows.min(count - index * rows), ..panels };
        let output = output.below(index * rows);
        let format = layer.weights.format();
        // SAFETY: as the caller promises.
        unsafe {
            match format {
                BlockFormat::F32 => multiply_from::<InF32>(panels, output, parallel),
                BlockFormat::F16 => multiply_from::<InF16>(panels, output, parallel),
                BlockFormat::BF16 => multiply_from::<InBf16>(panels, output, parallel),
                _ => with_block!(format, B => multiply_from::<InBlocks<B>>(panels, output, parallel), ()),
            }
        }
    }
}

/// # Safety
/// As [`multiply`].
unsafe fn multiply_from<S: Source>(panels: Panels, output: Output, parallel: bool) {
    let x = Right::new::<S>(&panels, parallel);
    panels.in_tasks(if panels.count <= FEW { 1 } else { TASK_PANELS }, output, parallel, |rows| {
        let Some(x) = &x else { return false };
        // SAFETY: the processor has the instructions; the columns of the result belong to the task, as the caller promises.
        unsafe { Task { panels, x, rows, output }.run::<S>() }
    });
}

/// The products with some rows of the weights. Whoever makes one promises that nobody else uses their columns of the result.
struct Task<'a> {
    panels: Panels<'a>,
    x: &'a Right,
    rows: Range<usize>,
    output: Output,
}

impl Task<'_> {
    /// False, and nothing is written, if pieces cannot stand for the weights.
    ///
    /// # Safety
    /// The processor has the instructions, and the process may use tiles; `x` was laid out for this source.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx2,fma,f16c")]
    unsafe fn run<S: Source>(self) -> bool {
        let Panels { layer, count, .. } = self.panels;
        let part = layer.weights.part(self.rows.clone(), layer.columns);
        let (format, unit, weights) = (part.format(), part.unit(), part.bytes());
        let row_bytes = row_bytes(format, layer.columns);
        let panels = self.rows.len().div_ceil(ROWS);
        let blocks = count.div_ceil(ROWS);
        // Pieces of 32 rows that are laid out.
        let block = S::LEFT * (LAID_OUT / RUN);
        let mut left: Vec<Piece> = Vec::with_capacity(panels * block);
        let mut sums: Vec<Sums> = Vec::with_capacity(blocks * panels);
        // Sums of a part, and those of the one before it, which are added to others only now: the tiles had not been done with them.
        let (mut of_parts, mut place) = ([Sums::ZERO; 2], 0);
        let mut late: Option<*mut Sums> = None;
        if count <= FEW {
            into_cache(weights);
        }
        let mut in_order = [0; INTERLEAVED_ROWS * MOST_BYTES];
        // SAFETY: whoever calls has no tiles of its own.
        let tiles = unsafe { Tiles::new(LONGEST) };
        for from in (0..layer.columns).step_by(LAID_OUT) {
            let length = LAID_OUT.min(layer.columns - from);
            let [begin, next, behind] = [0, 1, 2].map(|times| {
                let column = (from + times * LAID_OUT).min(layer.columns);
                column / format.block_length() * format.block_bytes()
            });
            let mut has_last = false;
            for (index, rows) in weights.chunks(INTERLEAVED_ROWS * row_bytes).enumerate() {
                let interleaved = unit > 1 && rows.len() == INTERLEAVED_ROWS * row_bytes;
                let (rows, row_bytes, from) = if interleaved {
                    let in_order = &mut in_order[..INTERLEAVED_ROWS * (next - begin)];
                    let blocks = &rows[INTERLEAVED_ROWS * begin..INTERLEAVED_ROWS * next];
                    format.deinterleave(blocks, next - begin, in_order);
                    (&*in_order, next - begin, 0)
                } else {
                    (rows, row_bytes, from)
                };
                for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
                    let row = INTERLEAVED_ROWS * index + row;
                    // SAFETY: there is room for the numbers of all panels, and the row has them. Nobody reads the sums of rows that are
                    // missing.
                    let laid_out = unsafe {
                        let panel = left.as_mut_ptr().add(row / ROWS * block).cast::<__m512i>();
                        S::lay_out(bytes, from, length, Place { first: panel.add(row % ROWS) })
                    };
                    match laid_out {
                        Some(last) => has_last |= last,
                        None => return false,
                    }
                }
            }
            let pairs = if has_last { S::PAIRS } else { S::PAIRS_WITHOUT_LAST };
            let turns = length.div_ceil(S::PART) * blocks * panels;
            let mut transpose = 0;
            for first in (0..length).step_by(S::PART) {
                let steps = S::PART.min(length - first).div_ceil(STEP);
                let pairs = &pairs[..pairs.len() * steps / (S::PART / STEP)];
                let x = &self.x.pieces[(from + first) / S::PART * blocks * self.x.block..];
                for (index, x) in x.chunks_exact(self.x.block).take(blocks).enumerate() {
                    for panel in 0..panels {
                        let rows =
                            self.rows.len() * transpose / turns..self.rows.len() * (transpose + 1) / turns;
                        for row in rows {
                            let at =
                                (row - row % unit) * row_bytes + unit * next + row % unit * (behind - next);
                            prefetch_all(weights.as_ptr().wrapping_add(at), behind - next);
                        }
                        transpose += 1;
                        let share = size_of::<Piece>() * self.x.block / panels;
                        let next_x = x.as_ptr_range().end.cast::<u8>();
                        let prefetch =
                            Prefetch { first: next_x.wrapping_add(panel * share), lines: S::LINES };
                        let begins = from + first == 0;
                        let by_themselves = S::AFRESH && !begins;
                        // SAFETY: both operands have these pieces, and there is room for the sums, which begin with the first part.
                        unsafe {
                            let left = left.as_ptr().add(panel * block + first / RUN * S::LEFT);
                            let sums = sums.as_mut_ptr().add(index * panels + panel);
                            let into = if by_themselves { &raw mut of_parts[place] } else { sums };
                            let anew = begins || by_themselves;
                            tiles.add_products_of_pieces([left, x.as_ptr()], pairs, anew, into, prefetch);
                            if by_themselves {
                                place = 1 - place;
                                if let Some(before) = late.replace(sums) {
                                    add(&of_parts[place], before);
                                }
                            }
                        }
                    }
                }
            }
        }
        if let Some(before) = late {
            // SAFETY: the sums are there, and the processor has AVX-512.
            unsafe { add(&of_parts[1 - place], before) };
        }
        // SAFETY: all sums were written.
        unsafe {
            sums.set_len(blocks * panels);
            self.write(&sums, panels);
        }
        true
    }

    /// Writes sums, of each 32 rows of `x` those with each panel, to the result.
    ///
    /// # Safety
    /// The processor has AVX-512.
    #[inline(always)]
    unsafe fn write(&self, sums: &[Sums], panels: usize) {
        let Panels { layer, count, add, .. } = self.panels;
        for (index, sums) in sums.chunks_exact(panels).enumerate() {
            for half in 0..2 {
                for (panel, sums) in sums.iter().enumerate() {
                    for upper in 0..2 {
                        let column = self.rows.start + panel * ROWS + upper * SIDE;
                        if column >= self.rows.end {
                            continue;
                        }
                        let columns = column..self.rows.end.min(column + SIDE);
                        let mut bias = [0f32; SIDE];
                        if let Some(numbers) = layer.bias {
                            bias[..columns.len()].copy_from_slice(&numbers[columns.clone()]);
                        }
                        // SAFETY: as many numbers are a vector; the columns are this task's, as whoever made it promised.
                        unsafe {
                            let bias = _mm512_loadu_ps(bias.as_ptr());
                            let mut rows = [_mm512_setzero_si512(); SIDE];
                            for (row, sums) in rows.iter_mut().zip(&sums.0[2 * upper + half]) {
                                *row = _mm512_loadu_si512(sums.as_ptr().cast());
                            }
                            let first = index * ROWS + half * SIDE;
                            for (row, found) in (first..count).zip(transposed(rows)) {
                                let mut sums = [0f32; SIDE];
                                _mm512_storeu_ps(
                                    sums.as_mut_ptr(),
                                    _mm512_add_ps(_mm512_castsi512_ps(found), bias),
                                );
                                match columns.len() {
                                    SIDE => self.output.write(row, column, &sums, add),
                                    length => self.output.write(row, column, &sums[..length], add),
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Prefetches bytes to the L2 cache. The addresses need not be valid.
#[inline(always)]
fn prefetch_all(at: *const u8, bytes: usize) {
    for byte in (0..bytes).step_by(CACHE_LINE) {
        prefetch_l2(at.wrapping_add(byte));
    }
}

/// Adds sums to others.
///
/// # Safety
/// The processor has AVX-512, and nobody else uses the others.
#[inline(always)]
unsafe fn add(sums: &Sums, to: *mut Sums) {
    let (from, to) = (std::ptr::from_ref(sums).cast::<f32>(), to.cast::<f32>());
    for place in (0..4 * SIDE * SIDE).step_by(SIDE) {
        // SAFETY: as the caller promises.
        unsafe {
            let sum = _mm512_add_ps(_mm512_loadu_ps(from.add(place)), _mm512_loadu_ps(to.add(place)));
            _mm512_storeu_ps(to.add(place), sum);
        }
    }
}
