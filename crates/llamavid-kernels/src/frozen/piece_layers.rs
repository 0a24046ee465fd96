//! Layers of a query model in AMX's tiles, with weights that lie ready in pieces of 16 bits ([`crate::pieces`]): two of each number, as
//! half precision needs, or one.
//!
//! Rows are the left operand here, and are laid out by the task that multiplies them: some tiles of rows, few enough to stay in the
//! second cache with what becomes of them, meet all weights, which are asked for ahead. A part of a row is multiplied before its sums
//! leave the tiles. What follows a product is done by the same task: in a feed-forward layer the hidden numbers never leave the cache.
//!
//! Letters: B sequences, R rows of each, h width.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_setzero_si512, _mm512_storeu_ps,
};
use std::cell::RefCell;
use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::groups::gelu;
use super::lines::mask;
use super::{FrozenGelu, SomeRows};
use crate::amx::{Asked, LONGEST, Piece, ROWS, RUN, SIDE, Sums, Tiles};
use crate::block_vectors::LINE;
use crate::layer_norm::normalise;
use crate::pieces::{Place, STEP, in_pieces, lay_out_columns, pairs, steps_of, two};
use crate::processor::{Processor, WholeNumbers, processor};
use crate::rows::{fusible, with_values};
use crate::vector::widest;
use crate::{Norm, Projection, Weight};

/// Pieces of a number of `x`.
const OF_X: usize = 3;
/// Runs of a row that are multiplied before their sums leave the tiles, at most.
const PART: usize = 24;
/// Runs of hidden numbers that are there at once.
const HIDDEN_PART: usize = 12;
/// Pieces of rows of a task at most: they and two panels of weights stay in the second cache.
const KEPT: usize = 256;
/// Tiles of rows of a task at most where hidden numbers and all sums stay there as well.
const MOST_HIDDEN: usize = 4;
/// Products of pieces of `x` with those of weights, the largest last, see [`crate::pieces`].
const WITH_ONE: [[usize; 2]; PART * 2 * 3] = pairs::<{ PART * 2 * 3 }, OF_X, 1>(&[[2, 0], [1, 0], [0, 0]]);
const WITH_TWO: [[usize; 2]; PART * 2 * 5] =
    pairs::<{ PART * 2 * 5 }, OF_X, 2>(&[[2, 0], [1, 0], [1, 1], [0, 1], [0, 0]]);

/// A linear layer whose weights lie ready for tiles.
#[derive(Debug)]
pub struct FrozenProjection {
    /// Panels of [`ROWS`] rows: of each run, its pieces.
    pieces: Vec<Piece>,
    /// Pieces of a weight.
    each: usize,
    rows: usize,
    columns: usize,
    /// Up to a whole number of panels.
    bias: Vec<f32>,
}

/// Where some rows of each of some sequences lie.
#[derive(Debug, Clone, Copy)]
struct Selection {
    /// Rows of a sequence, and the first of those that are meant, and their number.
    all: usize,
    first: usize,
    some: usize,
}

impl Selection {
    fn place(self, row: usize) -> usize {
        row / self.some * self.all + self.first + row % self.some
    }
}

/// Rows that are read.
#[derive(Debug, Clone, Copy)]
struct Rows<'a> {
    values: &'a [f32],
    width: usize,
    selection: Selection,
    count: usize,
}

impl<'a> Rows<'a> {
    fn new(values: &'a [f32], (_batch, all, width): (usize, usize, usize), range: &Range<usize>) -> Self {
        let selection = Selection { all, first: range.start, some: range.len() };
        let count = values.len() / (all * width).max(1) * range.len();
        Self { values, width, selection, count }
    }

    fn row(self, index: usize) -> &'a [f32] {
        &self.values[self.selection.place(index) * self.width..][..self.width]
    }
}

/// Rows that tasks write, each its own numbers.
#[derive(Debug, Clone, Copy)]
struct Target {
    values: *mut f32,
    length: usize,
    width: usize,
    selection: Selection,
}

// SAFETY: tasks write disjoint numbers, see `at`.
unsafe impl Sync for Target {}
// SAFETY: as above.
unsafe impl Send for Target {}

impl Target {
    /// Where `length` numbers of a row are from a column on.
    fn at(self, row: usize, column: usize, length: usize) -> *mut f32 {
        let start = self.selection.place(row) * self.width + column;
        assert!(column + length <= self.width && start + length <= self.length, "numbers beyond the rows");
        self.values.wrapping_add(start)
    }
}

/// Memory of a thread for what its tasks need in between; it stays from one to the next. Nothing in it lasts.
#[derive(Debug, Default)]
struct Room {
    x: Vec<Piece>,
    hidden: Vec<Piece>,
    sums: Vec<Sums>,
    panel: Vec<Sums>,
    row: Vec<f32>,
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

fn room<T: Copy>(numbers: &mut Vec<T>, length: usize, fresh: T) -> &mut [T] {
    if numbers.len() < length {
        numbers.resize(length, fresh);
    }
    &mut numbers[..length]
}

/// Runs `task` with blocks of tiles of rows, `most` at most, and a share of the units of work on each, of which there are several only where
/// there are few rows, so that weights are read once; on all threads.
fn in_blocks(
    count: usize,
    most: usize,
    units: usize,
    task: impl Fn(&mut Room, Range<usize>, Range<usize>) + Sync,
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
    /// Lays out its weights where the processor has tiles and two pieces stand for each of them; else there is none. No gradient flows
    /// through it.
    ///
    /// # Errors
    /// A bias that does not go with the weights.
    pub fn new(projection: Projection) -> Result<Option<Self>> {
        Self::on(processor(), projection)
    }

    fn on(processor: Processor, Projection { weight, bias }: Projection) -> Result<Option<Self>> {
        let Weight::Dense(weight) = weight else { return Ok(None) };
        if !matches!(processor, Processor::Avx512(_, WholeNumbers::Tiles)) || !fusible(&[weight]) {
            return Ok(None);
        }
        let (rows, columns) = weight.dims2()?;
        let mut padded = vec![0f32; rows.next_multiple_of(ROWS)];
        if let Some(bias) = bias {
            if bias.dims() != [rows] {
                bail!("a bias of shape {:?} for {rows} outputs", bias.dims());
            }
            with_values([bias], |[bias]| {
                padded[..rows].copy_from_slice(bias);
                Ok(())
            })?;
        }
        with_values([weight], |[values]| {
            let each = values.par_chunks(1 << 16).map(pieces_of).max().unwrap_or(1);
            if rows == 0 || columns == 0 || each > 2 {
                return Ok(None);
            }
            let of_panel = columns.div_ceil(RUN) * each;
            let length = padded.len() / ROWS * of_panel;
            let mut pieces = Vec::with_capacity(length);
            let panels = pieces.spare_capacity_mut()[..length].par_chunks_exact_mut(of_panel);
            panels.zip(values.par_chunks(ROWS * columns)).for_each(|(pieces, values)| {
                let into = pieces.as_mut_ptr().cast();
                // SAFETY: the processor has the instructions, the rows have these columns, and there is room for their pieces.
                unsafe {
                    match each {
                        1 => lay_out_columns::<1>(values, columns, 0..columns, into),
                        _ => lay_out_columns::<2>(values, columns, 0..columns, into),
                    }
                };
            });
            // SAFETY: all of it was written, with zeros for rows and columns that are missing.
            unsafe { pieces.set_len(length) };
            Ok(Some(Self { pieces, each, rows, columns, bias: padded }))
        })
    }

    /// What each of some layers makes of the same rows: (B, rows of each sequence, out).
    ///
    /// # Errors
    /// Rows that the layers do not read.
    pub fn project<const N: usize>(layers: [&Self; N], x: &SomeRows) -> Result<[Tensor; N]> {
        const { assert!(N > 0, "no layers") };
        let mut found = Vec::with_capacity(N);
        for layer in layers {
            let (batch, some, _width) = x.check(layer.columns)?;
            found.push((batch, some, layer.rows));
        }
        let results = with_values([x.of], |[values]| {
            let x = Rows::new(values, x.of.dims3()?, &x.range);
            Ok(project(layers, x))
        })?;
        let tensors = results.into_iter().zip(found);
        let tensors = tensors.map(|(values, shape)| Tensor::from_vec(values, shape, x.of.device()));
        let tensors: Vec<Tensor> = tensors.collect::<Result<_>>()?;
        tensors.try_into().map_err(|_| candle_core::Error::msg("another number of results"))
    }

    /// The norm of rows of `x`, to which it adds what it makes of `inner` (B, rows of each sequence, in): (B, rows of each sequence, h).
    ///
    /// # Errors
    /// Shapes that do not go together.
    pub fn add_and_norm(&self, inner: &Tensor, x: &SomeRows, norm: Norm) -> Result<Tensor> {
        let (batch, some, width) = x.check(self.rows)?;
        if inner.dims() != [batch, some, self.columns] || !fusible(&[inner]) {
            bail!("rows {:?} and {:?} do not go with a layer of {} x {}", inner, x, self.rows, self.columns);
        }
        let result = with_norm(norm, width, |norm| {
            with_values([inner, x.of], |[inner, values]| {
                let inner = Rows::new(inner, (batch, some, self.columns), &(0..some));
                let x = Rows::new(values, x.of.dims3()?, &x.range);
                let mut result = Vec::with_capacity(x.count * width);
                let selection = Selection { all: some, first: 0, some };
                let length = x.count * width;
                let target = Target { values: result.as_mut_ptr(), length, width, selection };
                add_and_norm(self, inner, x, norm, target);
                // SAFETY: all of it was written.
                unsafe { result.set_len(length) };
                Ok(result)
            })
        })?;
        Tensor::from_vec(result, (batch, some, width), x.of.device())
    }

    fn runs(&self) -> usize {
        self.columns.div_ceil(RUN)
    }

    fn panels(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Adds products of runs of rows with those of a panel to sums, or to zeros in their place when `anew`: of each tile of rows `x` has the
    /// pieces of these runs. The same runs of the next panel are asked for.
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
            let lines = (share / LINE / pairs.len()).max(1);
            let asked = Asked { first: next.wrapping_add(tile * share), lines };
            // SAFETY: both operands have the pieces of these runs, and the sums are borrowed.
            unsafe {
                let x = x.as_ptr().add(tile * of_tile);
                tiles.add_products_of_pieces([x, weights.as_ptr()], pairs, anew, sums, asked);
            }
        }
    }
}

/// What feed-forward layers make of their rows, those of a sequence one after the other: (B, rows of all, h).
///
/// # Errors
/// Shapes that do not go together.
pub fn frozen_gelu(parts: &[FrozenGelu]) -> Result<Tensor> {
    let Some(first) = parts.first() else { bail!("no feed-forward layer") };
    let (batch, _rows, width) = first.x.check(first.first.columns)?;
    let all: usize = parts.iter().map(|part| part.x.range.len()).sum();
    let length = batch * all * width;
    let mut result = Vec::with_capacity(length);
    let mut begin = 0;
    for FrozenGelu { first, second, norm, x } in parts {
        let (found, some, _width) = x.check(width)?;
        if found != batch || first.columns != width || second.rows != width || second.columns != first.rows {
            bail!("feed-forward layers that do not go together, or with rows {x:?}");
        }
        let selection = Selection { all, first: begin, some };
        let target = Target { values: result.as_mut_ptr(), length, width, selection };
        with_norm(*norm, width, |norm| {
            with_values([x.of], |[values]| {
                feed_forward([first, second], Rows::new(values, x.of.dims3()?, &x.range), norm, target);
                Ok(())
            })
        })?;
        begin += some;
    }
    // SAFETY: the parts have written all rows of each sequence.
    unsafe { result.set_len(length) };
    Tensor::from_vec(result, (batch, all, width), first.x.of.device())
}

/// A norm's numbers.
#[derive(Debug, Clone, Copy)]
struct NormOf<'a> {
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

fn with_norm<T>(norm: Norm, width: usize, run: impl FnOnce(NormOf) -> Result<T>) -> Result<T> {
    let Some(bias) = norm.bias else { bail!("a norm without a bias") };
    if norm.weight.dims() != [width] || bias.dims() != [width] {
        bail!("a norm of {:?} for rows of {width}", norm.weight.dims());
    }
    with_values([norm.weight, bias], |[weight, bias]| run(NormOf { weight, bias, eps: norm.eps as f32 }))
}

fn project<const N: usize>(layers: [&FrozenProjection; N], x: Rows) -> [Vec<f32>; N] {
    let mut results = layers.map(|layer| Vec::with_capacity(x.count * layer.rows));
    let targets: [Target; N] = std::array::from_fn(|index| {
        let (width, selection) = (layers[index].rows, Selection { all: 1, first: 0, some: 1 });
        Target { values: results[index].as_mut_ptr(), length: x.count * width, width, selection }
    });
    // Panels of all layers, one after the other.
    let panels: Vec<(usize, usize)> =
        (0..N).flat_map(|layer| (0..layers[layer].panels()).map(move |panel| (layer, panel))).collect();
    in_blocks(x.count, most(layers[0]), panels.len(), |scratch, block, share| {
        let panels = &panels[share];
        let (count, runs) = (block.len(), layers[0].runs());
        let whole = runs <= PART;
        let sums = room(&mut scratch.sums, count * if whole { 1 } else { panels.len() }, Sums::ZERO);
        let pieces = room(&mut scratch.x, count * PART.min(runs) * OF_X, Piece::ZERO);
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

fn add_and_norm(layer: &FrozenProjection, inner: Rows, x: Rows, norm: NormOf, target: Target) {
    if !many(x.count) {
        let [made] = project([layer], inner);
        return made.par_chunks(layer.rows).enumerate().for_each(|(index, made)| {
            let mut sum = made.to_vec();
            crate::rows::add_rows(x.row(index), &mut sum);
            // SAFETY: only this task writes this row.
            let into = unsafe { std::slice::from_raw_parts_mut(target.at(index, 0, sum.len()), sum.len()) };
            normalise(&sum, norm.weight, norm.bias, norm.eps, into);
        });
    }
    in_blocks(x.count, most(layer), 1, |scratch, block, _all| {
        let (count, runs) = (block.len(), layer.runs());
        let sums = room(&mut scratch.sums, count * layer.panels(), Sums::ZERO);
        let pieces = room(&mut scratch.x, count * PART.min(runs) * OF_X, Piece::ZERO);
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

fn feed_forward([first, second]: [&FrozenProjection; 2], x: Rows, norm: NormOf, target: Target) {
    if !many(x.count) {
        let [mut hidden] = project([first], x);
        crate::gelu::activate_all(&mut hidden);
        let selection = Selection { all: 1, first: 0, some: 1 };
        let hidden = Rows { values: &hidden, width: first.rows, selection, count: x.count };
        return add_and_norm(second, hidden, x, norm, target);
    }
    in_blocks(x.count, MOST_HIDDEN, 1, |scratch, block, _all| {
        let (count, runs) = (block.len(), first.runs());
        let sums = room(&mut scratch.sums, count * second.panels(), Sums::ZERO);
        let of_panel = room(&mut scratch.panel, count, Sums::ZERO);
        let pieces = room(&mut scratch.x, count * runs * OF_X, Piece::ZERO);
        let hidden = room(&mut scratch.hidden, count * HIDDEN_PART * OF_X, Piece::ZERO);
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

/// Lays out runs of tiles of rows; those behind the last row are zeros.
///
/// # Safety
/// The processor has the instructions, and there is room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
unsafe fn lay_out(x: Rows, tiles: Range<usize>, runs: Range<usize>, into: &mut [Piece]) {
    let of_tile = runs.len() * OF_X;
    assert!(into.len() >= tiles.len() * of_tile, "room for the pieces of tiles");
    let (from, length) = (runs.start * RUN, x.width.min(runs.end * RUN) - runs.start * RUN);
    for row in 0..tiles.len() * ROWS {
        let index = tiles.start * ROWS + row;
        let values = if index < x.count { &x.row(index)[from..from + length] } else { &[] };
        // SAFETY: there is room for the tile's runs, and a row has as many numbers.
        unsafe {
            let tile = into.as_mut_ptr().add(row / ROWS * of_tile).cast::<__m512i>();
            let place = Place { first: tile.add(row % ROWS) };
            for step in 0..steps_of(length) {
                let at = values.as_ptr().wrapping_add(step * STEP);
                place.write(step, in_pieces::<OF_X>(two(at, values.len().saturating_sub(step * STEP))));
            }
        }
    }
}

/// Lays out the GELU of sums with a panel as a step of so many runs, or zeros where there is no panel.
///
/// # Safety
/// The processor has the instructions, and there is room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
unsafe fn lay_out_hidden(sums: &[Sums], bias: Option<&[f32]>, step: usize, runs: usize, into: &mut [Piece]) {
    let of_tile = runs * OF_X;
    assert!(into.len() >= sums.len() * of_tile && step < 2 * runs, "room for the pieces of tiles");
    for (tile, sums) in sums.iter().enumerate() {
        for row in 0..ROWS {
            // SAFETY: there is room for the tile's runs; a panel's biases are two vectors.
            unsafe {
                let tile = into.as_mut_ptr().add(tile * of_tile).cast::<__m512i>();
                let pieces = match bias {
                    Some(bias) => in_pieces::<OF_X>(row_of(sums, row, bias.as_ptr()).map(|sum| gelu(sum))),
                    None => [_mm512_setzero_si512(); OF_X],
                };
                Place { first: tile.add(row) }.write(step, pieces);
            }
        }
    }
}

/// Sums of a row with a panel, and its biases.
///
/// # Safety
/// The processor has AVX-512, and there are as many biases.
#[inline(always)]
unsafe fn row_of(sums: &Sums, row: usize, bias: *const f32) -> [__m512; 2] {
    let [first, second] = [0, 1].map(|half| sums.0[2 * (row / SIDE) + half][row % SIDE].as_ptr());
    // SAFETY: as the caller promises; a row of sums is a vector.
    unsafe {
        [
            _mm512_add_ps(_mm512_loadu_ps(first), _mm512_loadu_ps(bias)),
            _mm512_add_ps(_mm512_loadu_ps(second), _mm512_loadu_ps(bias.add(SIDE))),
        ]
    }
}

/// Writes sums with a panel to some rows.
///
/// # Safety
/// The processor has AVX-512, and nobody else uses these columns of these rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
unsafe fn write(sums: &[Sums], layer: &FrozenProjection, panel: usize, rows: Range<usize>, target: Target) {
    let (column, bias) = (panel * ROWS, &layer.bias[panel * ROWS..][..ROWS]);
    let width = ROWS.min(layer.rows - column);
    for (index, row) in rows.enumerate().take(sums.len() * ROWS) {
        let into = target.at(row, column, width);
        // SAFETY: what is masked is not written; as the caller promises.
        unsafe {
            let [first, second] = row_of(&sums[index / ROWS], index % ROWS, bias.as_ptr());
            _mm512_mask_storeu_ps(into, mask(width), first);
            _mm512_mask_storeu_ps(into.wrapping_add(SIDE), mask(width.saturating_sub(SIDE)), second);
        }
    }
}

/// Writes the norm of some rows to which sums with all panels, so many tiles of each, are added.
///
/// # Safety
/// The processor has AVX-512, and nobody else uses these rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
unsafe fn finish(
    (sums, count): (&[Sums], usize),
    layer: &FrozenProjection,
    x: Rows,
    rows: Range<usize>,
    norm: NormOf,
    target: Target,
    row: &mut Vec<f32>,
) {
    let row = room(row, layer.panels() * ROWS, 0.0);
    for (index, place) in rows.enumerate() {
        let added = x.row(place);
        for (panel, into) in row.chunks_exact_mut(ROWS).enumerate() {
            let (column, bias) = (panel * ROWS, &layer.bias[panel * ROWS..][..ROWS]);
            let left = layer.rows - column;
            // SAFETY: vectors are read as far as there are numbers.
            unsafe {
                let found = row_of(&sums[panel * count + index / ROWS], index % ROWS, bias.as_ptr());
                for (half, found) in found.into_iter().enumerate() {
                    let others = added.as_ptr().wrapping_add(column + half * SIDE);
                    let others = _mm512_maskz_loadu_ps(mask(left.saturating_sub(half * SIDE)), others);
                    _mm512_storeu_ps(into.as_mut_ptr().add(half * SIDE), _mm512_add_ps(found, others));
                }
            }
        }
        // SAFETY: only this task has this row, as the caller promises.
        let into = unsafe { std::slice::from_raw_parts_mut(target.at(place, 0, layer.rows), layer.rows) };
        normalise(&row[..layer.rows], norm.weight, norm.bias, norm.eps, into);
    }
}

/// Pieces that numbers need, 3 where two do not stand for all of them exactly.
#[inline(always)]
fn pieces_of_inline<const FUSED: bool>(values: &[f32]) -> usize {
    let rounded = |value: f32| {
        let bits = value.to_bits();
        f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
    };
    let (mut one, mut two) = (true, true);
    for value in values {
        let rest = value - rounded(*value);
        one &= rest == 0.0;
        // Pieces of less are too small for tiles.
        two &= value.abs() <= f32::MAX / 4.0 && (rest == 0.0 || rest.abs() >= f32::MIN_POSITIVE);
        two &= rest == rounded(rest);
    }
    match (one && two, two) {
        (true, _) => 1,
        (false, true) => 2,
        (false, false) => 3,
    }
}
widest!(fn pieces_of(values: &[f32]) -> usize = pieces_of_inline);

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use candle_core::{DType, Device, Shape};

    use super::*;
    use crate::noise::noise;
    use crate::{NormPlace, gelu_block, layer_norm, linear};

    /// Runs a test on the processors that lay weights out, or what stands in for one, with so few threads that there are both few rows
    /// and many.
    fn on_each(test: impl Fn(Processor) + Sync) {
        let tiles = |found: &Processor| matches!(found, Processor::Avx512(_, WholeNumbers::Tiles));
        let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        threads.install(|| Processor::tested().into_iter().filter(tiles).for_each(&test));
    }

    fn numbers(shape: impl Into<Shape>, seed: u32) -> Tensor {
        let shape = shape.into();
        Tensor::from_vec(noise(shape.elem_count(), seed), shape, &Device::Cpu).unwrap()
    }

    /// Weight and bias of a layer whose weights numbers of `dtype` hold.
    fn layer(rows: usize, columns: usize, seed: u32, dtype: DType) -> (Tensor, Tensor) {
        let weight = (numbers((rows, columns), seed) * (3.0 / columns as f64).sqrt()).unwrap();
        let weight = weight.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
        (weight, numbers(rows, seed + 1))
    }

    fn projection((weight, bias): &(Tensor, Tensor)) -> Projection<'_> {
        Projection { weight: Weight::Dense(weight), bias: Some(bias) }
    }

    fn frozen(processor: Processor, layer: &(Tensor, Tensor)) -> FrozenProjection {
        FrozenProjection::on(processor, projection(layer)).unwrap().unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Differences by what they differ from, as lengths, are of rounding.
    fn assert_close(actual: &Tensor, expected: &Tensor, what: &str) {
        assert_eq!(actual.dims(), expected.dims(), "{what}");
        let (mut difference, mut length) = (0.0, 0.0);
        for (actual, expected) in values(actual).iter().zip(values(expected)) {
            difference += f64::from(actual - expected).powi(2);
            length += f64::from(expected).powi(2);
        }
        let error = (difference / length).sqrt();
        // Written so that not-a-number fails.
        assert!(error <= 1e-6, "{what}: {error:e}");
    }

    #[test]
    fn projects_what_linear_layers_do() {
        on_each(|processor| {
            for dtype in [DType::F16, DType::BF16] {
                for [batch, all, first, some, columns, rows] in [
                    [1, 1, 0, 1, 1, 1],
                    [2, 7, 3, 4, 33, 70],
                    [3, 50, 1, 48, 65, 31],
                    [1, 300, 7, 290, 100, 97],
                    [2, 40, 0, 40, 1600, 40],
                    [4, 66, 0, 66, 1540, 33],
                ] {
                    let x = numbers((batch, all, columns), 1);
                    let layers = [layer(rows, columns, 2, dtype), layer(2 * rows, columns, 4, dtype)];
                    let [one, other] = layers.each_ref().map(|layer| frozen(processor, layer));
                    if rows > 1 {
                        assert_eq!(one.each, if dtype == DType::F16 { 2 } else { 1 });
                    }
                    let selected = SomeRows { of: &x, range: first..first + some };
                    let found = FrozenProjection::project([&one, &other], &selected).unwrap();
                    let x = x.narrow(1, first, some).unwrap();
                    for (found, (weight, bias)) in found.iter().zip(&layers) {
                        let expected = linear(&x, weight, Some(bias)).unwrap();
                        assert_close(found, &expected, &format!("{dtype:?} {batch} {some} {columns} {rows}"));
                    }
                }
            }
        });
    }

    #[test]
    fn adds_and_norms_as_the_operations_do() {
        on_each(|processor| {
            for [batch, all, first, some, width, inner] in
                [[1, 1, 0, 1, 2, 1], [2, 9, 2, 5, 70, 40], [3, 90, 30, 60, 35, 1600], [9, 40, 0, 32, 130, 67]]
            {
                let (x, norm) = (numbers((batch, all, width), 1), layer(1, width, 2, DType::F32));
                let (norm_weight, norm_bias) = (norm.0.flatten_all().unwrap(), numbers(width, 3));
                let norm = Norm { weight: &norm_weight, bias: Some(&norm_bias), eps: 1e-12 };
                let what = format!("{batch} {some} {width} {inner}");
                let (of_rows, rows) = (SomeRows { of: &x, range: first..first + some }, first..first + some);
                let x_rows = x.narrow(1, rows.start, rows.len()).unwrap().contiguous().unwrap();

                let made = layer(width, inner, 5, DType::F16);
                let seen = numbers((batch, some, inner), 6);
                let found = frozen(processor, &made).add_and_norm(&seen, &of_rows, norm).unwrap();
                let sum = (linear(&seen, &made.0, Some(&made.1)).unwrap() + &x_rows).unwrap();
                assert_close(&found, &layer_norm(&sum, &norm_weight, &norm_bias, 1e-12).unwrap(), &what);

                let layers = [layer(inner, width, 7, DType::F16), layer(width, inner, 9, DType::BF16)];
                let [to, back] = layers.each_ref().map(|layer| frozen(processor, layer));
                let part =
                    |of, range| FrozenGelu { first: &to, second: &back, norm, x: SomeRows { of, range } };
                let found = frozen_gelu(&[part(&seen_as(&x), 0..all), part(&x, rows)]).unwrap();
                let [to, back] = layers.each_ref().map(projection);
                let expected = |x: &Tensor| gelu_block(x, (norm, NormPlace::After(None)), to, back).unwrap();
                let expected = Tensor::cat(&[expected(&seen_as(&x)), expected(&x_rows)], 1).unwrap();
                assert_close(&found, &expected, &what);
            }
        });
    }

    /// Other rows of the same shape.
    fn seen_as(x: &Tensor) -> Tensor {
        (x * -2.0).unwrap()
    }

    #[test]
    fn what_is_not_finite_spoils_its_row_only() {
        on_each(|processor| {
            for count in [3, 200] {
                let layers = [layer(70, 40, 1, DType::F16), layer(40, 70, 3, DType::F16)];
                let [first, second] = layers.each_ref().map(|layer| frozen(processor, layer));
                let ones = Tensor::ones(40, DType::F32, &Device::Cpu).unwrap();
                let norm = Norm { weight: &ones, bias: Some(&ones), eps: 1e-12 };
                for wrong in [f32::NAN, f32::INFINITY] {
                    let mut rows = noise(count * 40, 5);
                    rows[40 + 7] = wrong;
                    let x = Tensor::from_vec(rows, (1, count, 40), &Device::Cpu).unwrap();
                    let x = || SomeRows { of: &x, range: 0..count };
                    let [projected] = FrozenProjection::project([&first], &x()).unwrap();
                    let fed = FrozenGelu { first: &first, second: &second, norm, x: x() };
                    for (found, width) in [(projected, 70), (frozen_gelu(&[fed]).unwrap(), 40)] {
                        for (index, row) in values(&found).chunks(width).enumerate() {
                            let finite = index != 1;
                            assert!(row.iter().all(|value| value.is_finite() == finite), "{wrong} {index}");
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn weights_of_more_than_two_pieces_are_left_as_they_are() {
        for (numbers, count) in [
            (vec![1.0, -0.5, 0.0, 3.0], 1),
            (vec![1.0, 1.0 + 2f32.powi(-10)], 2),
            (vec![0.1], 3),
            (vec![f32::NAN], 3),
            (vec![f32::INFINITY], 3),
            (vec![2f32.powi(-126) * (1.0 + 2f32.powi(-10))], 3),
        ] {
            assert_eq!(pieces_of(&numbers), count, "{numbers:?}");
        }
        let halves: Vec<f32> = (0..=u16::MAX).map(|bits| half::f16::from_bits(bits).to_f32()).collect();
        let finite: Vec<f32> = halves.into_iter().filter(|value| value.is_finite()).collect();
        assert_eq!(pieces_of(&finite), 2);
        for processor in Processor::tested() {
            let exact = FrozenProjection::on(processor, projection(&layer(5, 9, 1, DType::F32))).unwrap();
            assert!(exact.is_none());
            let halves = FrozenProjection::on(processor, projection(&layer(5, 9, 1, DType::F16))).unwrap();
            let tiles = matches!(processor, Processor::Avx512(_, WholeNumbers::Tiles));
            assert_eq!(halves.is_some(), tiles);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        on_each(|processor| {
            let [wide, back] = [(64, 32), (32, 64)]
                .map(|(rows, columns)| frozen(processor, &layer(rows, columns, 1, DType::F16)));
            let (x, ones) = (numbers((2, 5, 32), 2), Tensor::ones(32, DType::F32, &Device::Cpu).unwrap());
            let norm = Norm { weight: &ones, bias: Some(&ones), eps: 1e-12 };
            let some = |range| SomeRows { of: &x, range };
            assert!(FrozenProjection::project([&back], &some(0..5)).is_err());
            assert!(FrozenProjection::project([&wide, &back], &some(0..5)).is_err());
            assert!(FrozenProjection::project([&wide], &some(2..6)).is_err());
            assert!(FrozenProjection::project([&wide], &some(2..2)).is_err());
            assert!(back.add_and_norm(&numbers((2, 4, 64), 3), &some(0..5), norm).is_err());
            assert!(frozen_gelu(&[]).is_err());
            let gelu = |first, second| FrozenGelu { first, second, norm, x: some(1..3) };
            assert!(frozen_gelu(&[gelu(&wide, &wide)]).is_err());
            assert!(frozen_gelu(&[gelu(&wide, &back)]).is_ok());
            let nothing = Tensor::zeros((0, 5, 32), DType::F32, &Device::Cpu).unwrap();
            let [projected] =
                FrozenProjection::project([&wide], &SomeRows { of: &nothing, range: 0..5 }).unwrap();
            assert_eq!(projected.dims(), [0, 5, 64]);
        });
    }
}
