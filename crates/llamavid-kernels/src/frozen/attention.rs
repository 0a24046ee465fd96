//! Attention of all rows of a frame to each other, from rows that hold query, key and value of all heads one after the other.

#[cfg(target_arch = "x86_64")]
use super::groups;
use super::parts::{Ahead, PANEL, Step, Target};
use super::tasks::{Room, room, share_out};
use super::tiles::{Rows, TILE_ROWS, Tiles};
use crate::panels::{TOGETHER, lay_out};
use crate::processor::Processor;
#[cfg(target_arch = "x86_64")]
use crate::processor::WholeNumbers;
use crate::softmax;
use crate::vector::widest;

/// Rows whose scores exist at once.
const BLOCK: usize = 4 * TILE_ROWS;

/// Rows of some frames.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed<'a> {
    /// (frames · rows, 3 · heads · width), in the room that they take where they are narrow.
    pub(super) values: &'a [f32],
    pub(super) narrow: Narrow,
    pub(super) frames: usize,
    /// Of a frame.
    pub(super) rows: usize,
    pub(super) heads: usize,
    /// Of a head.
    pub(super) width: usize,
}

/// What is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Narrow {
    /// Numbers of 32 bits.
    No,
    /// Numbers of 16 bits (bf16), two of them in the room of one.
    #[cfg(target_arch = "x86_64")]
    Pairs,
}

impl Narrow {
    /// The narrowest that a processor multiplies quicker, of heads of a width.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "rows stay as they are there"))]
    pub(super) fn of(processor: Processor, width: usize) -> Self {
        match processor {
            #[cfg(target_arch = "x86_64")]
            Processor::Avx512(_, WholeNumbers::Fours | WholeNumbers::Tiles)
                if width.is_multiple_of(2) && is_x86_feature_detected!("avx512bf16") =>
            {
                Self::Pairs
            }
            _ => Self::No,
        }
    }

    /// Room that so many numbers take.
    pub(super) fn room(self, numbers: usize) -> usize {
        match self {
            Self::No => numbers,
            #[cfg(target_arch = "x86_64")]
            Self::Pairs => numbers.div_ceil(2),
        }
    }

    /// Writes the sums of products of rows with a panel.
    fn products(self, processor: Processor, panel: &[Step], x: Rows, sums: &mut [Step]) {
        let ahead = &mut Ahead::nothing();
        match self {
            Self::No => {
                sums.fill(Step::ZERO);
                processor.run(Tiles { panel, x, sums, ahead });
            }
            // SAFETY: the processor has the instructions, see `of`.
            #[cfg(target_arch = "x86_64")]
            Self::Pairs => unsafe { groups::pairs(panel, x, sums, ahead) },
        }
    }

    /// Numbers, of which `narrowed` has room for the pairs.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn numbers<'a>(self, numbers: &'a [f32], narrowed: &'a mut [f32]) -> &'a [f32] {
        match self {
            Self::No => numbers,
            Self::Pairs => {
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
    pub(super) unsafe fn attend(self, processor: Processor, rooms: &mut Vec<Room>, target: Target) {
        let Self { values, narrow, frames, rows, heads, width } = self;
        if values.is_empty() {
            return;
        }
        let stride = narrow.room(3 * heads * width);
        let (key_panels, value_panels) = (rows.div_ceil(PANEL), width.div_ceil(PANEL));
        let (key_steps, value_steps) = (narrow.room(width), narrow.room(rows));
        let scale = (width as f32).sqrt().recip();
        share_out(frames * heads, rooms, |scratch, task| {
            let (frame, head) = (task / heads, task % heads);
            let Room { keys, values: of_values, sums, shares, .. } = scratch;
            let keys = room(keys, key_panels * key_steps, Step::ZERO);
            let of_values = room(of_values, value_panels * value_steps, Step::ZERO);
            let of_frame = &values[frame * rows * stride..][..rows * stride];
            let part = |index: usize| Rows {
                values: &of_frame[narrow.room((index * heads + head) * width)..],
                stride,
            };
            let queries = part(0);
            lay_out_rows(part(1), (rows, key_steps), keys);
            lay_out_columns(narrow, part(2), (rows, width), of_values);
            for first in (0..rows).step_by(BLOCK) {
                let count = BLOCK.min(rows - first);
                let sums = room(sums, count * key_panels.max(value_panels), Step::ZERO);
                let sums_of = |panels: &[Step], length: usize, x: Rows, sums: &mut [Step]| {
                    for (panel, sums) in panels.chunks_exact(length).zip(sums.chunks_exact_mut(count)) {
                        narrow.products(processor, panel, x, sums);
                    }
                };
                sums_of(keys, key_steps, queries.from(first), &mut sums[..key_panels * count]);
                let shares = room(shares, count * value_steps, 0.0);
                match narrow {
                    Narrow::No => {
                        gather(sums, count, scale, rows, shares);
                        softmax::normalise(rows, rows, shares);
                    }
                    #[cfg(target_arch = "x86_64")]
                    Narrow::Pairs => {
                        for (row, shares) in shares.chunks_exact_mut(value_steps).enumerate() {
                            // SAFETY: the processor has the instructions, see `of`.
                            unsafe { groups::share(&mut sums[row..], count, rows, scale, shares) };
                        }
                    }
                }
                let shares = Rows { values: shares, stride: value_steps };
                let sums = &mut sums[..value_panels * count];
                sums_of(of_values, value_steps, shares, sums);
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

/// Lays out columns of rows: what a row has of the columns of a panel, then what the next one has; where numbers are narrow, what
/// two rows have.
fn lay_out_columns(narrow: Narrow, x: Rows, (rows, width): (usize, usize), into: &mut [Step]) {
    for (panel, into) in into.chunks_exact_mut(narrow.room(rows)).enumerate() {
        let columns = [panel * PANEL, width.min((panel + 1) * PANEL)].map(|column| narrow.room(column));
        let columns = columns[0]..columns[1];
        let row = |row: usize| match row < rows {
            true => &x.values[row * x.stride..][columns.clone()],
            false => &[],
        };
        for (index, into) in into.iter_mut().enumerate() {
            match narrow {
                Narrow::No => into.0[..columns.len()].copy_from_slice(row(index)),
                // SAFETY: the processor has the instructions, see `of`.
                #[cfg(target_arch = "x86_64")]
                Narrow::Pairs => unsafe { groups::pair([row(2 * index), row(2 * index + 1)], into) },
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
