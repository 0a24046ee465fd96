//! Attention of all rows of a frame to each other, from rows that hold query, key and value of all heads one after the other.

use rayon::prelude::*;

use super::parts::{Ahead, PANEL, Step, Target};
use super::tiles::{Rows, TILE_ROWS, Tiles};
use crate::panels::{TOGETHER, lay_out};
use crate::processor::Processor;
use crate::softmax;
use crate::vector::widest;

/// Rows whose scores exist at once.
const BLOCK: usize = 4 * TILE_ROWS;

/// Rows of some frames.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed<'a> {
    /// (frames · rows, 3 · heads · width).
    pub(super) values: &'a [f32],
    pub(super) frames: usize,
    /// Of a frame.
    pub(super) rows: usize,
    pub(super) heads: usize,
}

/// What a task needs beside its inputs.
struct Scratch {
    keys: Vec<Step>,
    values: Vec<Step>,
    sums: Vec<Step>,
    shares: Vec<f32>,
}

impl Packed<'_> {
    /// Writes what each row takes from the others, (frames · rows, heads · width); on all threads.
    ///
    /// # Safety
    /// `target` has as many rows and columns; it lives, and nobody else uses it.
    pub(super) unsafe fn attend(self, processor: Processor, target: Target) {
        let Self { values, frames, rows, heads } = self;
        if values.is_empty() {
            return;
        }
        let all = values.len() / (frames * rows).max(1);
        let width = all / 3 / heads;
        let (key_panels, value_panels) = (rows.div_ceil(PANEL), width.div_ceil(PANEL));
        let scratch = || Scratch {
            keys: vec![Step::ZERO; key_panels * width],
            values: vec![Step::ZERO; value_panels * rows],
            sums: vec![Step::ZERO; BLOCK * key_panels.max(value_panels)],
            shares: vec![0.0; BLOCK * rows],
        };
        let scale = (width as f32).sqrt().recip();
        (0..frames * heads).into_par_iter().for_each_init(scratch, |scratch, task| {
            let (frame, head) = (task / heads, task % heads);
            let Scratch { keys, values: of_values, sums, shares } = scratch;
            let of_frame = &values[frame * rows * all..][..rows * all];
            let part = |index: usize| &of_frame[(index * heads + head) * width..];
            lay_out_rows(part(1), all, (rows, width), keys);
            lay_out_columns(part(2), all, (rows, width), of_values);
            for first in (0..rows).step_by(BLOCK) {
                let count = BLOCK.min(rows - first);
                let queries = Rows { values: &part(0)[first * all..], stride: all };
                let sums_of = |steps: &[Step], length: usize, x: Rows, sums: &mut [Step]| {
                    sums.fill(Step::ZERO);
                    for (panel, sums) in steps.chunks_exact(length).zip(sums.chunks_exact_mut(count)) {
                        processor.run(Tiles { panel, x, sums, ahead: Ahead::NOTHING });
                    }
                };
                sums_of(keys, width, queries, &mut sums[..key_panels * count]);
                let shares = &mut shares[..count * rows];
                gather(sums, count, scale, rows, shares);
                softmax::normalise(rows, shares);
                sums_of(
                    of_values,
                    rows,
                    Rows { values: shares, stride: rows },
                    &mut sums[..value_panels * count],
                );
                for (index, sums) in sums[..value_panels * count].chunks_exact(count).enumerate() {
                    let column = index * PANEL;
                    for (row, sums) in sums.iter().enumerate() {
                        let row = frame * rows + first + row;
                        // SAFETY: only this task has these rows of this head, and the caller has all of them alone.
                        unsafe {
                            target.write(row, head * width + column, &sums.0[..PANEL.min(width - column)])
                        };
                    }
                }
            }
        });
    }
}

/// Lays out rows, of which each starts `stride` numbers after the one before: a number of each row of a panel, then the next.
fn lay_out_rows(values: &[f32], stride: usize, (rows, width): (usize, usize), into: &mut [Step]) {
    for (panel, into) in into.chunks_exact_mut(width).enumerate() {
        let last = rows.min((panel + 1) * PANEL);
        for first in (panel * PANEL..last).step_by(TOGETHER) {
            // The first stands in for those that are missing: nobody reads their sums.
            let four = std::array::from_fn(|row| {
                let row = if first + row < last { first + row } else { first };
                &values[row * stride..][..width]
            });
            lay_out(four, first - panel * PANEL, Step::numbers(into), PANEL);
        }
    }
}

/// Lays out columns of rows: what a row has of the columns of a panel, then what the next one has.
fn lay_out_columns(values: &[f32], stride: usize, (rows, width): (usize, usize), into: &mut [Step]) {
    for (panel, into) in into.chunks_exact_mut(rows).enumerate() {
        let columns = panel * PANEL..width.min((panel + 1) * PANEL);
        for (row, into) in into.iter_mut().enumerate() {
            into.0[..columns.len()].copy_from_slice(&values[row * stride..][columns.clone()]);
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
