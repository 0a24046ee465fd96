//! Attention of all rows of a frame to each other, from rows that hold query, key and value of all heads one after the other.

#[cfg(target_arch = "x86_64")]
use super::groups;
use super::parts::{PANEL, PrefetchQueue, Step, Target};
use super::tasks::{ThreadScratch, resized, share_out};
use super::tiles::{Rows, TILE_ROWS, Tiles};
#[cfg(target_arch = "x86_64")]
use crate::instructions::processor::IntegerDot;
use crate::instructions::processor::Processor;
use crate::instructions::vector::widest;
use crate::operations::softmax;
use crate::products::panels::{TOGETHER, lay_out};

/// Rows whose scores exist at once.
const BLOCK: usize = 4 * TILE_ROWS;

/// Rows of some frames.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed<'a> {
    /// (frames · rows, 3 · heads · width) in `precision`: bf16 take half the room.
    pub(super) values: &'a [f32],
    pub(super) precision: Precision,
    pub(super) frames: usize,
    /// Of a frame.
    pub(super) rows: usize,
    pub(super) heads: usize,
    /// Of a head.
    pub(super) width: usize,
}

/// In which precision queries, keys and probabilities are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    /// f32.
    F32,
    /// bf16, two of them in the room of an f32.
    #[cfg(target_arch = "x86_64")]
    Bf16,
}

impl Precision {
    /// bf16 where the processor multiplies it quicker, for heads of an even width.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "rows stay as they are there"))]
    pub(super) fn of(processor: Processor, width: usize) -> Self {
        match processor {
            #[cfg(target_arch = "x86_64")]
            Processor::Avx512(_, IntegerDot::Quads | IntegerDot::Tiles)
                if width.is_multiple_of(2) && is_x86_feature_detected!("avx512bf16") =>
            {
                Self::Bf16
            }
            _ => Self::F32,
        }
    }

    /// The room that so many numbers take, in f32.
    pub(super) fn room(self, numbers: usize) -> usize {
        match self {
            Self::F32 => numbers,
            #[cfg(target_arch = "x86_64")]
            Self::Bf16 => numbers.div_ceil(2),
        }
    }

    /// Writes the sums of products of rows with a panel.
    fn products(self, processor: Processor, panel: &[Step], x: Rows, sums: &mut [Step]) {
        let queue = &mut PrefetchQueue::nothing();
        match self {
            Self::F32 => {
                sums.fill(Step::ZERO);
                processor.run(Tiles { panel, x, sums, queue });
            }
            // SAFETY: the processor has the instructions, see `of`.
            #[cfg(target_arch = "x86_64")]
            Self::Bf16 => unsafe { groups::pairs(panel, x, sums, queue) },
        }
    }

    /// Numbers in this precision, which `narrowed` has room for.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn numbers<'a>(self, numbers: &'a [f32], narrowed: &'a mut [f32]) -> &'a [f32] {
        match self {
            Self::F32 => numbers,
            Self::Bf16 => {
                let narrowed = &mut narrowed[..self.room(numbers.len())];
                // SAFETY: the processor has the instructions, see `of`.
                unsafe { groups::narrow(numbers, narrowed) };
                narrowed
            }
        }
    }
}

impl Packed<'_> {
    /// Writes what each row takes from the others, (frames · rows, heads · width); on all threads.
    ///
    /// # Safety
    /// `target` has as many rows and columns; it lives, and nobody else uses it.
    pub(super) unsafe fn attend(
        self,
        processor: Processor,
        scratches: &mut Vec<ThreadScratch>,
        target: Target,
    ) {
        let Self { values, precision, frames, rows, heads, width } = self;
        if values.is_empty() {
            return;
        }
        let stride = precision.room(3 * heads * width);
        let (key_panels, value_panels) = (rows.div_ceil(PANEL), width.div_ceil(PANEL));
        let (key_steps, value_steps) = (precision.room(width), precision.room(rows));
        let scale = (width as f32).sqrt().recip();
        share_out(frames * heads, scratches, |scratch, task| {
            let (frame, head) = (task / heads, task % heads);
            let ThreadScratch { keys, values: of_values, sums, probabilities, .. } = scratch;
            let keys = resized(keys, key_panels * key_steps, Step::ZERO);
            let of_values = resized(of_values, value_panels * value_steps, Step::ZERO);
            let of_frame = &values[frame * rows * stride..][..rows * stride];
            let part = |index: usize| Rows {
                values: &of_frame[precision.room((index * heads + head) * width)..],
                stride,
            };
            let queries = part(0);
            lay_out_rows(part(1), (rows, key_steps), keys);
            lay_out_columns(precision, part(2), (rows, width), of_values);
            for first in (0..rows).step_by(BLOCK) {
                let count = BLOCK.min(rows - first);
                let sums = resized(sums, count * key_panels.max(value_panels), Step::ZERO);
                let sums_of = |panels: &[Step], length: usize, x: Rows, sums: &mut [Step]| {
                    for (panel, sums) in panels.chunks_exact(length).zip(sums.chunks_exact_mut(count)) {
                        precision.products(processor, panel, x, sums);
                    }
                };
                sums_of(keys, key_steps, queries.from(first), &mut sums[..key_panels * count]);
                let probabilities = resized(probabilities, count * value_steps, 0.0);
                match precision {
                    Precision::F32 => {
                        gather(sums, count, scale, rows, probabilities);
                        softmax::normalise(rows, rows, probabilities);
                    }
                    #[cfg(target_arch = "x86_64")]
                    Precision::Bf16 => {
                        for (row, probabilities) in probabilities.chunks_exact_mut(value_steps).enumerate() {
                            // SAFETY: the processor has the instructions, see `of`.
                            unsafe {
                                groups::write_softmax(&mut sums[row..], count, rows, scale, probabilities)
                            };
                        }
                    }
                }
                let probabilities = Rows { values: probabilities, stride: value_steps };
                let sums = &mut sums[..value_panels * count];
                sums_of(of_values, value_steps, probabilities, sums);
                for (index, sums) in sums.chunks_exact(count).enumerate() {
                    let column = index * PANEL;
                    for (row, sums) in sums.iter().enumerate() {
                        let row = frame * rows + first + row;
                        let sums = &sums.0[..PANEL.min(width - column)];
                        // SAFETY: only this task has these rows of this head, and the caller has all of them alone.
                        unsafe { target.write(row, head * width + column, sums) };
                    }
                }
            }
        });
    }
}

/// Lays out rows: a number of each row of a panel, then the next.
fn lay_out_rows(x: Rows, (rows, width): (usize, usize), into: &mut [Step]) {
    for (panel, into) in into.chunks_exact_mut(width).enumerate() {
        let last = rows.min((panel + 1) * PANEL);
        for first in (panel * PANEL..last).step_by(TOGETHER) {
            // The first stands in for those that are missing: nobody reads their sums.
            let four = std::array::from_fn(|row| {
                let row = if first + row < last { first + row } else { first };
                &x.values[row * x.stride..][..width]
            });
            lay_out(four, first - panel * PANEL, Step::numbers(into), PANEL);
        }
    }
}

/// Lays out columns of rows: what a row has of the columns of a panel, then what the next one has; in bf16, what two rows have.
fn lay_out_columns(precision: Precision, x: Rows, (rows, width): (usize, usize), into: &mut [Step]) {
    for (panel, into) in into.chunks_exact_mut(precision.room(rows)).enumerate() {
        let columns = [panel * PANEL, width.min((panel + 1) * PANEL)].map(|column| precision.room(column));
        let columns = columns[0]..columns[1];
        let row = |row: usize| match row < rows {
            true => &x.values[row * x.stride..][columns.clone()],
            false => &[],
        };
        for (index, into) in into.iter_mut().enumerate() {
            match precision {
                Precision::F32 => into.0[..columns.len()].copy_from_slice(row(index)),
                // SAFETY: the processor has the instructions, see `of`.
                #[cfg(target_arch = "x86_64")]
                Precision::Bf16 => unsafe { groups::pair([row(2 * index), row(2 * index + 1)], into) },
            }
        }
    }
}

#[inline(always)]
fn gather_inline<const FUSED: bool>(sums: &[Step], count: usize, scale: f32, width: usize, into: &mut [f32]) {
    for (row, into) in into.chunks_exact_mut(width).enumerate() {
        for (panel, into) in into.chunks_mut(PANEL).enumerate() {
            for (into, sum) in into.iter_mut().zip(&sums[panel * count + row].0) {
                *into = sum * scale;
            }
        }
    }
}
widest!(
    /// Writes rows of sums, of which each panel has `count`, one after the other and scaled.
    fn gather(sums: &[Step], count: usize, scale: f32, width: usize, into: &mut [f32]) = gather_inline
);
