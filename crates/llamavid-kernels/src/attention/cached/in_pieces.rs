//! Scores and weighted sums of values in AMX tiles, for many queries and for keys and values in f32, f16 or bf16: these are split into bf16
//! pieces, see [`crate::frozen::tile_rows`], which is as exact as f32.

use crate::formats::block_format::BlockFormat;
use crate::frozen::attention_in_tiles::exchange;
use crate::frozen::matrices::{AmxTiles, Begin, Product, ROWS, STEP, multiply};
use crate::frozen::parts::{PANEL, Step};
use crate::frozen::tile_rows::{LANES, PIECES, SPAN, TileRow, split_numbers, split_rows};
use crate::instructions::processor::{IntegerDot, Processor};

/// Positions that are laid out at a time.
pub(super) const TURN: usize = 2 * PANEL;
/// Panels of keys, or steps of probabilities, of a turn.
const PANELS: usize = TURN / PANEL;

/// Begins sums.
static NOTHING: Step = Step::ZERO;

/// Some queries, and room for what they are multiplied with.
pub(super) struct QueriesInPieces {
    product: Product,
    count: usize,
    width: usize,
    /// Steps of a row.
    steps: usize,
    /// Of each [`ROWS`], and each step, the tile rows of each piece.
    queries: Vec<TileRow>,
    /// Keys or values of a turn: of each panel and each step, the tile rows of each piece.
    laid_out: Vec<TileRow>,
    /// Of each step of a turn, the tile rows of each piece of the probabilities of [`ROWS`].
    probabilities: Vec<TileRow>,
    /// Of [`ROWS`] queries, with a panel.
    sums: Vec<Step>,
}

impl QueriesInPieces {
    /// `queries` (count, width) for keys and values in `format`; none for other formats and processors.
    pub(super) fn new(
        processor: Processor,
        format: BlockFormat,
        queries: &[f32],
        width: usize,
    ) -> Option<Self> {
        let product = match format {
            BlockFormat::F32 => Product::ThreeByThree,
            BlockFormat::F16 | BlockFormat::BF16 => Product::ThreeByTwo,
            _ => return None,
        };
        if !matches!(processor, Processor::Avx512(_, IntegerDot::Tiles)) || width == 0 {
            return None;
        }
        let (count, steps) = (queries.len() / width, width.div_ceil(SPAN));
        let of_rows = steps * PIECES * STEP;
        let mut lines = vec![TileRow::ZERO; count.div_ceil(ROWS) * of_rows];
        for (row, query) in queries.chunks_exact(width).enumerate() {
            let lines = &mut lines[row / ROWS * of_rows..][..of_rows];
            // SAFETY: the processor has AVX-512, as all with tiles.
            unsafe { split_numbers::<PIECES>(query, &mut lines[row % ROWS..], steps) };
        }
        Some(Self {
            product,
            count,
            width,
            steps,
            queries: lines,
            laid_out: vec![TileRow::ZERO; PANELS * steps * product.of_weights() * STEP],
            probabilities: vec![TileRow::ZERO; PANELS * PIECES * STEP],
            sums: vec![Step::ZERO; ROWS],
        })
    }

    /// Writes the products with rows of keys: those of a query `stride` behind those of the one before. Behind those of the last key
    /// zeros are written up to a multiple of [`TURN`].
    pub(super) fn score(&mut self, keys: &[f32], scores: &mut [f32], stride: usize) {
        // SAFETY: `new` has looked for the instructions, and whoever calls has no tiles of its own.
        let tiles = unsafe { AmxTiles::new() };
        for (turn, keys) in keys.chunks(TURN * self.width).enumerate() {
            match self.product {
                Product::ThreeByTwo => self.lay_out_keys::<2>(keys),
                _ => self.lay_out_keys::<3>(keys),
            }
            for first in (0..self.count).step_by(ROWS) {
                let rows = ROWS.min(self.count - first);
                let of_rows = self.steps * PIECES * STEP;
                let queries = &self.queries[first / ROWS * of_rows..][..of_rows];
                let of_panel = self.laid_out.len() / PANELS;
                for (panel, keys) in self.laid_out.chunks_exact(of_panel).enumerate() {
                    multiply_all(&tiles, self.product, rows, (queries, keys), self.steps, &mut self.sums);
                    for (row, sums) in self.sums[..rows].iter().enumerate() {
                        let place = (first + row) * stride + turn * TURN + panel * PANEL;
                        scores[place..place + PANEL].copy_from_slice(&sums.0);
                    }
                }
            }
        }
    }

    /// Adds rows of values, each times its probability, to sums (count, width). The probabilities of a query are `stride` behind
    /// those of the one before, and 0 behind the last row up to a multiple of [`TURN`].
    pub(super) fn add_weighted(
        &mut self,
        values: &[f32],
        (probabilities, stride): (&[f32], usize),
        sums: &mut [f32],
    ) {
        // SAFETY: as above.
        let tiles = unsafe { AmxTiles::new() };
        for (turn, values) in values.chunks(TURN * self.width).enumerate() {
            match self.product {
                Product::ThreeByTwo => self.lay_out_values::<2>(values),
                _ => self.lay_out_values::<3>(values),
            }
            for first in (0..self.count).step_by(ROWS) {
                let rows = ROWS.min(self.count - first);
                for row in 0..rows {
                    let probabilities = &probabilities[(first + row) * stride + turn * TURN..][..TURN];
                    // SAFETY: the processor has AVX-512.
                    unsafe { split_numbers::<PIECES>(probabilities, &mut self.probabilities[row..], PANELS) };
                }
                let of_panel = self.laid_out.len() / self.steps;
                for (panel, values) in self.laid_out.chunks_exact(of_panel).enumerate() {
                    multiply_all(
                        &tiles,
                        self.product,
                        rows,
                        (&self.probabilities, values),
                        PANELS,
                        &mut self.sums,
                    );
                    let columns = panel * PANEL..self.width.min((panel + 1) * PANEL);
                    for (row, found) in self.sums[..rows].iter().enumerate() {
                        let sums = &mut sums[(first + row) * self.width..][columns.clone()];
                        sums.iter_mut().zip(&found.0).for_each(|(sum, found)| *sum += found);
                    }
                }
            }
        }
    }

    /// Of keys, as many as a turn has at most: panels, and steps of each.
    fn lay_out_keys<const COUNT: usize>(&mut self, keys: &[f32]) {
        let of_panel = self.steps * COUNT * STEP;
        for (panel, laid_out) in self.laid_out.chunks_exact_mut(of_panel).enumerate() {
            for place in 0..PANEL {
                let key = row(keys, self.width, panel * PANEL + place);
                // SAFETY: the processor has AVX-512; there is a line for each piece of each step.
                unsafe { split_numbers::<COUNT>(key, &mut laid_out[place..], self.steps) };
            }
            for step in laid_out.as_chunks_mut::<STEP>().0 {
                // SAFETY: as above.
                unsafe { exchange(step) };
            }
        }
    }

    /// Of values, as many as a turn has at most: panels of columns, and steps of values of each.
    fn lay_out_values<const COUNT: usize>(&mut self, values: &[f32]) {
        for (index, laid_out) in self.laid_out.chunks_exact_mut(COUNT * STEP).enumerate() {
            let (panel, step) = (index / PANELS, index % PANELS);
            let columns = panel * PANEL..self.width.min((panel + 1) * PANEL);
            for place in 0..LANES {
                let first = step * SPAN + place;
                let two = [first, first + LANES]
                    .map(|index| row(values, self.width, index).get(columns.clone()).unwrap_or(&[]));
                // SAFETY: as above.
                unsafe { split_rows::<COUNT>(two, &mut laid_out[2 * place..]) };
            }
        }
    }
}

/// A row of `width` numbers; none where there are fewer.
fn row(rows: &[f32], width: usize, index: usize) -> &[f32] {
    rows.get(index * width..(index + 1) * width).unwrap_or(&[])
}

/// The sums of the products of up to [`ROWS`] rows with a panel.
fn multiply_all(
    tiles: &AmxTiles,
    product: Product,
    rows: usize,
    (x, panel): (&[TileRow], &[TileRow]),
    steps: usize,
    sums: &mut [Step],
) {
    let (of_x, of_panel) = (steps * product.of_x() * STEP, steps * product.of_weights() * STEP);
    assert!(x.len() == of_x && panel.len() == of_panel && sums.len() == ROWS, "other rows");
    let sums = (Begin::With(&NOTHING), sums.as_mut_ptr());
    // SAFETY: there are as many lines and sums, as was just looked at.
    unsafe { multiply(tiles, product, rows <= ROWS / 2, (x.as_ptr(), panel.as_ptr()), steps, sums, None) };
}
