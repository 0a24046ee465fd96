//! Layers in tasks of some rows each: what they multiply, and what becomes of the sums.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::rows::{Rows, Selection, Target};
use super::vectors::{finish, lay_out, lay_out_hidden, write};
use super::{FrozenProjection, NormOf};
use crate::frozen::row_vectors::normalise;
use crate::instructions::amx::{LONGEST, Piece, Prefetch, ROWS, Sums, Tiles};
use crate::instructions::prefetch::CACHE_LINE;
use crate::products::pieces::pairs;

/// Pieces of a number of `x`.
pub(super) const OF_X: usize = 3;
/// Runs of a row that are multiplied before their sums leave the tiles, at most.
const PART: usize = 24;
/// Runs of hidden numbers that are there at once.
const HIDDEN_PART: usize = 12;
/// Pieces of rows of a task at most: they and two panels of weights stay in the L2 cache.
const KEPT: usize = 256;
/// Tiles of rows of a task at most where hidden numbers and all sums stay there as well.
const MOST_HIDDEN: usize = 4;
/// Products of pieces of `x` with those of weights, the largest last, see [`crate::products::pieces`].
const WITH_ONE: [[usize; 2]; PART * 2 * 3] = pairs::<{ PART * 2 * 3 }, OF_X, 1>(&[[2, 0], [1, 0], [0, 0]]);
const WITH_TWO: [[usize; 2]; PART * 2 * 5] =
    pairs::<{ PART * 2 * 5 }, OF_X, 2>(&[[2, 0], [1, 0], [1, 1], [0, 1], [0, 0]]);

/// Memory of a thread for what its tasks need in between; it stays from one to the next. Nothing in it lasts.
#[derive(Debug, Default)]
struct ThreadScratch {
    x: Vec<Piece>,
    hidden: Vec<Piece>,
    sums: Vec<Sums>,
    panel: Vec<Sums>,
    row: Vec<f32>,
}

thread_local! {
    static ROOM: RefCell<ThreadScratch> = RefCell::default();
}

/// The first `length` numbers of a room's vector, which grows to have them.
pub(super) fn resized<T: Copy>(numbers: &mut Vec<T>, length: usize, fresh: T) -> &mut [T] {
    if numbers.len() < length {
        numbers.resize(length, fresh);
    }
    &mut numbers[..length]
}

/// Runs `task` with blocks of tiles of rows, `most` at most, and a share of the units of work on each, of which there are several only
/// where there are few rows, so that weights are read once; on all threads.
fn in_blocks(
    count: usize,
    most: usize,
    units: usize,
    task: impl Fn(&mut ThreadScratch, Range<usize>, Range<usize>) + Sync,
) {
    let (tiles, threads) = (count.div_ceil(ROWS), rayon::current_num_threads());
    let blocks = if tiles <= most { 1 } else { tiles.div_ceil(most).next_multiple_of(threads).min(tiles) };
    let shares = threads.div_ceil(blocks).min(units);
    let tasks = if count > 0 { blocks * shares } else { 0 };
    (0..tasks).into_par_iter().with_max_len(1).for_each(|index| {
        let part = |index: usize, of: usize, all: usize| index * all / of..(index + 1) * all / of;
        let block = part(index / shares, blocks, tiles);
        ROOM.with_borrow_mut(|room| task(room, block, part(index % shares, shares, units)));
    });
}

/// Tiles of rows of a task at most.
fn most(layer: &FrozenProjection) -> usize {
    (KEPT / (layer.runs().min(PART) * OF_X)).max(1)
}

/// Whether there are so many rows that each thread has whole rows of results.
fn many(count: usize) -> bool {
    count.div_ceil(ROWS) > rayon::current_num_threads().max(MOST_HIDDEN)
}

impl FrozenProjection {
    /// Adds products of runs of rows with those of a panel to sums, or to zeros in their place when `anew`: of each tile of rows `x` has
    /// the pieces of these runs. The same runs of the next panel are prefetched.
    ///
    /// # Safety
    /// There are so many tiles of rows, and sums of each.
    unsafe fn multiply(
        &self,
        tiles: &Tiles,
        (panel, runs): (usize, Range<usize>),
        (x, count): (&[Piece], usize),
        anew: bool,
        sums: &mut [Sums],
    ) {
        let of_panel = self.runs() * self.each;
        let weights = &self.pieces[panel * of_panel + runs.start * self.each..][..runs.len() * self.each];
        let pairs: &[[usize; 2]] = if self.each == 1 { &WITH_ONE } else { &WITH_TWO };
        let pairs = &pairs[..pairs.len() / PART * runs.len()];
        let of_tile = runs.len() * OF_X;
        assert!(x.len() >= count * of_tile && sums.len() >= count, "pieces and sums of all tiles");
        let next = weights.as_ptr().wrapping_add(of_panel).cast::<u8>();
        let share = size_of_val(weights) / count;
        for (tile, sums) in sums[..count].iter_mut().enumerate() {
            let lines = (share / CACHE_LINE / pairs.len()).max(1);
            let prefetch = Prefetch { first: next.wrapping_add(tile * share), lines };
            // SAFETY: both operands have the pieces of these runs, and the sums are borrowed.
            unsafe {
                let x = x.as_ptr().add(tile * of_tile);
                tiles.add_products_of_pieces([x, weights.as_ptr()], pairs, anew, sums, prefetch);
            }
        }
    }
}

pub(super) fn project<const N: usize>(layers: [&FrozenProjection; N], x: Rows) -> [Vec<f32>; N] {
    let mut results = layers.map(|layer| Vec::with_capacity(x.count * layer.rows));
    let targets: [Target; N] = std::array::from_fn(|index| {
        let (result, width) = (&mut results[index], layers[index].rows);
        Target::new(result.as_mut_ptr(), x.count * width, width, Selection::ALL)
    });
    // Panels of all layers, one after the other.
    let panels: Vec<(usize, usize)> =
        (0..N).flat_map(|layer| (0..layers[layer].panels()).map(move |panel| (layer, panel))).collect();
    in_blocks(x.count, most(layers[0]), panels.len(), |scratch, block, share| {
        let panels = &panels[share];
        let (count, runs) = (block.len(), layers[0].runs());
        let whole = runs <= PART;
        let sums = resized(&mut scratch.sums, count * if whole { 1 } else { panels.len() }, Sums::ZERO);
        let pieces = resized(&mut scratch.x, count * PART.min(runs) * OF_X, Piece::ZERO);
        // SAFETY: the layers were laid out where the processor has tiles, and nothing here makes others.
        let tiles = unsafe { Tiles::new(LONGEST) };
        for first in (0..runs).step_by(PART) {
            let part = first..runs.min(first + PART);
            // SAFETY: as above; there is room for the part.
            unsafe { lay_out(x, block.clone(), part.clone(), pieces) };
            for (index, &(layer, panel)) in panels.iter().enumerate() {
                let sums = &mut sums[if whole { 0 } else { index * count }..][..count];
                // SAFETY: as above; only this task writes these columns of these rows.
                unsafe {
                    layers[layer].multiply(&tiles, (panel, part.clone()), (pieces, count), first == 0, sums);
                    if part.end == runs {
                        write(sums, layers[layer], panel, block.start * ROWS..x.count, targets[layer]);
                    }
                }
            }
        }
    });
    for (result, layer) in results.iter_mut().zip(layers) {
        // SAFETY: tasks have written all of it.
        unsafe { result.set_len(x.count * layer.rows) };
    }
    results
}

pub(super) fn add_and_norm(layer: &FrozenProjection, inner: Rows, x: Rows, norm: NormOf, target: Target) {
    if !many(x.count) {
        let [made] = project([layer], inner);
        return made.par_chunks(layer.rows).enumerate().for_each(|(index, made)| {
            let mut sum = made.to_vec();
            crate::operations::rows::add_rows(x.row(index), &mut sum);
            // SAFETY: only this task writes this row; what has tiles has AVX-512.
            unsafe {
                let into = std::slice::from_raw_parts_mut(target.at(index, 0, sum.len()), sum.len());
                normalise(&sum, norm.weight, norm.bias, norm.eps, into);
            }
        });
    }
    in_blocks(x.count, most(layer), 1, |scratch, block, _all| {
        let (count, runs) = (block.len(), layer.runs());
        let sums = resized(&mut scratch.sums, count * layer.panels(), Sums::ZERO);
        let pieces = resized(&mut scratch.x, count * PART.min(runs) * OF_X, Piece::ZERO);
        // SAFETY: as in `project`.
        let tiles = unsafe { Tiles::new(LONGEST) };
        for first in (0..runs).step_by(PART) {
            let part = first..runs.min(first + PART);
            // SAFETY: as above.
            unsafe { lay_out(inner, block.clone(), part.clone(), pieces) };
            for (panel, sums) in sums.chunks_exact_mut(count).enumerate() {
                // SAFETY: as above.
                unsafe { layer.multiply(&tiles, (panel, part.clone()), (pieces, count), first == 0, sums) };
            }
        }
        let rows = block.start * ROWS..x.count.min(block.end * ROWS);
        // SAFETY: as above; only this task writes these rows.
        unsafe { finish((sums, count), layer, x, rows, norm, target, &mut scratch.row) };
    });
}

pub(super) fn feed_forward([first, second]: [&FrozenProjection; 2], x: Rows, norm: NormOf, target: Target) {
    if !many(x.count) {
        let [mut hidden] = project([first], x);
        crate::operations::gelu::activate_all(&mut hidden);
        let hidden = Rows::all(&hidden, first.rows);
        return add_and_norm(second, hidden, x, norm, target);
    }
    in_blocks(x.count, MOST_HIDDEN, 1, |scratch, block, _all| {
        let (count, runs) = (block.len(), first.runs());
        let sums = resized(&mut scratch.sums, count * second.panels(), Sums::ZERO);
        let of_panel = resized(&mut scratch.panel, count, Sums::ZERO);
        let pieces = resized(&mut scratch.x, count * runs * OF_X, Piece::ZERO);
        let hidden = resized(&mut scratch.hidden, count * HIDDEN_PART * OF_X, Piece::ZERO);
        // SAFETY: as in `project`.
        let tiles = unsafe { Tiles::new(LONGEST) };
        let parts = |runs: usize, length: usize| {
            (0..runs).step_by(length).map(move |first| first..runs.min(first + length))
        };
        // One part of all tiles after the other.
        let place = |part: &Range<usize>| count * part.start * OF_X;
        for part in parts(runs, PART) {
            // SAFETY: as above.
            unsafe { lay_out(x, block.clone(), part.clone(), &mut pieces[place(&part)..]) };
        }
        for of_hidden in parts(second.runs(), HIDDEN_PART) {
            for step in 0..2 * of_hidden.len() {
                let panel = 2 * of_hidden.start + step;
                for part in parts(runs, PART) {
                    // The last run of hidden numbers may lack a panel: what is written then are zeros.
                    if panel < first.panels() {
                        let x = (&pieces[place(&part)..], count);
                        // SAFETY: as above.
                        unsafe {
                            first.multiply(&tiles, (panel, part.clone()), x, part.start == 0, of_panel)
                        };
                    }
                }
                let bias = first.bias.get(panel * ROWS..(panel + 1) * ROWS);
                // SAFETY: as above; there is room for the pieces of a part.
                unsafe { lay_out_hidden(of_panel, bias, step, of_hidden.len(), hidden) };
            }
            for (panel, sums) in sums.chunks_exact_mut(count).enumerate() {
                let of_panel = (panel, of_hidden.clone());
                // SAFETY: as above.
                unsafe { second.multiply(&tiles, of_panel, (hidden, count), of_hidden.start == 0, sums) };
            }
        }
        let rows = block.start * ROWS..x.count.min(block.end * ROWS);
        // SAFETY: as in `add_and_norm`.
        unsafe { finish((sums, count), second, x, rows, norm, target, &mut scratch.row) };
    });
}
