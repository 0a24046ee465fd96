//! Linear layers in AMX tiles: int8 where weights and rows are quantised, else f32 in bf16 pieces ([`super::tile_rows`]).
//!
//! A part of a panel stays in the L1 cache while the rows of a task go by, which stay in the L2 cache with their sums. Where
//! these rows are too long for that, the task goes through a part of them with all its panels first.

use std::ops::Range;

use super::int8::{Int8Panels, Int8Rows, QuantisedRow, Sums};
use super::linear::{Ending, FrozenLinear, Input, Panels, finish_in_vectors};
use super::matrices::{AmxTiles, Begin, Product, ROWS, STEP, multiply};
use super::parts::{PANEL, PrefetchQueue, Step, Target};
use super::tasks::{ThreadScratch, resized, share_out};
use super::tile_rows::{SPAN, TileRow, TileRows, split_panel};
use crate::instructions::amx::Prefetch;
use crate::instructions::prefetch::CACHE_LINE;
use crate::instructions::processor::{IntegerDot, Processor};

/// Rows from which their products are quicker than in vectors, although weights are split for them.
const MANY: usize = 24;
/// Bytes of rows, and of sums, of a task: both stay in the L2 cache.
const KEPT: usize = 512 << 10;
/// Rows of a task at most, if all that tiles read of them is kept.
const MOST: usize = 18 * ROWS;
/// Rows of a task at most, if only a part of each is.
const BLOCK: usize = 9 * ROWS;

/// Parts of panels that are prefetched ahead.
const PREFETCH_PARTS: usize = 2;

/// Rows for tiles.
#[derive(Debug, Clone, Copy)]
pub(super) struct InTiles<'a> {
    pub(super) lines: &'a TileRows,
    /// How rows were quantised, with the int8 panels that they are multiplied with; else tile rows are in pieces.
    quantised: Option<(&'a [QuantisedRow], &'a Int8Panels)>,
}

/// Whether so many rows are multiplied in tiles.
pub(super) fn pay(processor: Processor, count: usize) -> bool {
    matches!(processor, Processor::Avx512(_, IntegerDot::Tiles)) && count >= MANY
}

/// Begins int32 sums.
static NOTHING: Step = Step::ZERO;

impl FrozenLinear {
    /// Rows that `make` has, as tiles multiply them. For processors of which [`pay`] tells.
    pub(super) fn in_tiles<'a>(
        &'a self,
        processor: Processor,
        count: usize,
        make: impl Fn(usize, &mut [f32]) + Sync,
        room: &'a mut Int8Rows,
        scratches: &mut Vec<ThreadScratch>,
    ) -> Input<'a> {
        Input::InTiles(match self.int8_panels(processor) {
            Some(panels) => {
                let (lines, rows) = room.fill_tiles(count, self.columns, make, scratches);
                InTiles { lines, quantised: Some((rows, panels)) }
            }
            None => {
                let lines = room.lines();
                // SAFETY: the processor has AVX-512, as all with tiles.
                unsafe { lines.fill(count, self.columns, make, scratches) };
                InTiles { lines, quantised: None }
            }
        })
    }

    /// # Safety
    /// As [`Self::forward`], and the processor has AMX, which the process may use.
    pub(super) unsafe fn forward_in_tiles(
        &self,
        x: InTiles,
        scratches: &mut Vec<ThreadScratch>,
        target: Target,
        ending: Ending,
    ) {
        let InTiles { lines: x, quantised } = x;
        let product = match (quantised, &self.panels) {
            (Some(_), _) => Product::Int8,
            (None, Panels::F16(_)) => Product::ThreeByTwo,
            (None, _) => Product::ThreeByThree,
        };
        let (count, steps) = (x.count(), x.steps());
        let of_a_step = product.of_x() * size_of::<TileRow>();
        let most = if 2 * KEPT / (steps * of_a_step) >= MOST { MOST } else { BLOCK };
        let blocks = count.div_ceil(most).max(1);
        // As even as may be, in tiles.
        let row_tiles = count.div_ceil(ROWS);
        let length = row_tiles.div_ceil(blocks) * ROWS;
        let part = part(product);
        let threads = rayon::current_num_threads();
        // Rows that are too long are gone through in pieces, each with all panels of a task, the sums of which are kept.
        let panels = self.rows.div_ceil(PANEL);
        let (kept, group) = if steps * of_a_step * length <= 2 * KEPT {
            (steps, 1)
        } else {
            let groups = panels.div_ceil(KEPT / (length * size_of::<Step>())).next_multiple_of(threads);
            let kept = even(steps, KEPT / (length * of_a_step)).next_multiple_of(part);
            (kept, panels.div_ceil(groups))
        };
        let groups = panels.div_ceil(group);
        share_out(groups * blocks, scratches, |scratch, task| {
            // Rows stay from one task to the next.
            let (group_first, block) = (task % groups * group, task / groups);
            let of_group = group_first..panels.min(group_first + group);
            let first = block * row_tiles / blocks * ROWS;
            let rows = count.min((block + 1) * row_tiles / blocks * ROWS) - first;
            if rows == 0 {
                return;
            }
            // Sums that are complete at once make room for others, so that they stay in the L1 cache.
            let places = if steps <= part { 2 * ROWS } else { rows.next_multiple_of(ROWS) };
            let ThreadScratch { sums: finished, integer_sums: sums, widened, lines, .. } = scratch;
            let sums = resized(sums, of_group.len() * places, Sums::ZERO);
            let finished = resized(finished, ROWS, Step::ZERO);
            // SAFETY: the processor has them, as the caller promises, and nothing here makes others.
            let tiles = unsafe { AmxTiles::new() };
            for begin in (0..steps).step_by(kept) {
                let until = steps.min(begin + kept);
                for (panel, sums) in of_group.clone().zip(sums.chunks_exact_mut(places)) {
                    let length = even(until - begin, part);
                    let mut x_queue = {
                        // With each panel the next part of some rows.
                        let index = panel - of_group.start;
                        if until < steps && index * ROWS < rows {
                            let lines = x.from(first / ROWS + index, until);
                            let next = (steps - until).min(kept) * product.of_x() * STEP;
                            PrefetchQueue::new(&lines[..next], rows * (until - begin).div_ceil(length))
                        } else {
                            PrefetchQueue::nothing()
                        }
                    };
                    for step in (begin..until).step_by(length) {
                        let of_part = step..until.min(step + length);
                        let last = of_part.end == steps;
                        // Some parts further, since a part of few rows is done before memory answers.
                        let parts = (until - begin).div_ceil(length);
                        let index = (step - begin) / length + PREFETCH_PARTS;
                        let others = index / parts;
                        let next = begin + index % parts * length;
                        let next = next..until.min(next + length);
                        let mut queue = self.part_queue(quantised, panel + others, next, rows);
                        // SAFETY: the processor has AVX-512.
                        let weights = unsafe { self.part(quantised, panel, of_part.clone(), lines, widened) };
                        let mut end = |row: usize, sums: &mut [Sums]| {
                            let range = first + row..first + rows.min(row + ROWS);
                            let sums = &mut sums[row % places..];
                            // SAFETY: as the caller promises, and each task has rows and columns of its own.
                            unsafe { self.end(quantised, panel, range, sums, finished, (target, ending)) };
                        };
                        for row in (0..rows).step_by(ROWS) {
                            let used = ROWS.min(rows - row);
                            x_queue.prefetch(used);
                            let prefetch = queue.take(used);
                            let prefetch_lines = prefetch.len().div_ceil(CACHE_LINE).div_ceil(of_part.len());
                            let prefetch = Prefetch { first: prefetch.as_ptr(), lines: prefetch_lines };
                            let begin = match (step, quantised) {
                                (0, Some(_)) => Begin::With(&NOTHING),
                                (0, None) => Begin::With(&self.bias[panel]),
                                _ => Begin::Sums,
                            };
                            let lines = x.from((first + row) / ROWS, step);
                            let of_rows = &mut sums[row % places..][..ROWS];
                            assert!(lines.len() >= of_part.len() * product.of_x() * STEP);
                            assert!(weights.len() == of_part.len() * product.of_weights() * STEP);
                            // SAFETY: there are as many tile rows, and sums of as many rows, of which a number takes 32
                            // bits.
                            unsafe {
                                multiply(
                                    &tiles,
                                    product,
                                    used <= ROWS / 2,
                                    (lines.as_ptr(), weights.as_ptr()),
                                    of_part.len(),
                                    (begin, of_rows.as_mut_ptr().cast()),
                                    Some(prefetch),
                                );
                            }
                            // While these are multiplied.
                            if last && row > 0 {
                                end(row - ROWS, sums);
                            }
                        }
                        if last {
                            end((rows - 1) / ROWS * ROWS, sums);
                        }
                    }
                }
            }
        });
    }

    /// Writes sums of some rows with a panel in f32; `finished` has room for them.
    ///
    /// # Safety
    /// As [`Self::forward_in_tiles`], of these rows and the panel's columns.
    unsafe fn end(
        &self,
        quantised: Option<(&[QuantisedRow], &Int8Panels)>,
        panel: usize,
        range: Range<usize>,
        sums: &mut [Sums],
        finished: &mut [Step],
        (target, ending): (Target, Ending),
    ) {
        let columns = panel * PANEL..self.rows.min((panel + 1) * PANEL);
        let sums = &mut sums[..range.len()];
        let finished = match quantised {
            Some((rows, panels)) => {
                let finished = &mut finished[..range.len()];
                let (rows, bias) = (&rows[range.clone()], &self.bias[panel]);
                // SAFETY: the processor has AVX-512.
                unsafe { panels.scale_in_vectors(panel, sums, rows, bias, finished) };
                finished
            }
            None => Sums::as_numbers(sums),
        };
        let strip = target.strip(range.clone(), ending.room(columns.start), ending.room(columns.len()));
        let ending = ending.from(range.start, columns.start);
        // SAFETY: the processor has AVX-512 with BF16; as the caller promises.
        unsafe { finish_in_vectors(finished, strip, ending) };
    }

    /// A part of a panel, some steps of tiles; `lines` and `widened` have room for it.
    ///
    /// # Safety
    /// The processor has AVX-512.
    unsafe fn part<'a>(
        &'a self,
        quantised: Option<(&[QuantisedRow], &'a Int8Panels)>,
        panel: usize,
        steps: Range<usize>,
        lines: &'a mut Vec<TileRow>,
        widened: &mut Vec<Step>,
    ) -> &'a [TileRow] {
        if let Some((_, panels)) = quantised {
            return panels.lines(panel, steps);
        }
        let columns = steps.start * SPAN..self.columns.min(steps.end * SPAN);
        let range = panel * self.columns + columns.start..panel * self.columns + columns.end;
        let length = steps.len() * STEP;
        // SAFETY: as the caller promises.
        unsafe {
            match &self.panels {
                Panels::F16(numbers) => {
                    let lines = resized(lines, 2 * length, TileRow::ZERO);
                    split_panel::<2, _>(&numbers[range], lines);
                    lines
                }
                Panels::F32(numbers) => {
                    let lines = resized(lines, 3 * length, TileRow::ZERO);
                    split_panel::<3, _>(&numbers[range], lines);
                    lines
                }
                Panels::Int8(panels) => {
                    let widened = resized(widened, columns.len(), Step::ZERO);
                    panels.widen(panel, columns, widened);
                    let lines = resized(lines, 3 * length, TileRow::ZERO);
                    split_panel::<3, _>(widened, lines);
                    lines
                }
            }
        }
    }

    /// The same as it lies in memory, as far as there is such a part, spread over so many rows.
    fn part_queue<'a>(
        &'a self,
        quantised: Option<(&[QuantisedRow], &'a Int8Panels)>,
        panel: usize,
        steps: Range<usize>,
        rows: usize,
    ) -> PrefetchQueue<'a> {
        if panel * PANEL >= self.rows {
            return PrefetchQueue::nothing();
        }
        if let Some((_, panels)) = quantised {
            return PrefetchQueue::new(panels.lines(panel, steps), rows);
        }
        let [first, last] = [steps.start, steps.end].map(|step| self.columns.min(step * SPAN));
        let range = panel * self.columns + first..panel * self.columns + last;
        match &self.panels {
            Panels::F16(numbers) => PrefetchQueue::new(&numbers[range], rows),
            Panels::F32(numbers) => PrefetchQueue::new(&numbers[range], rows),
            Panels::Int8(panels) => PrefetchQueue::new(panels.steps(panel, first..last), rows),
        }
    }
}

/// Steps of a part of a panel: with more the cache would be too small, and with fewer sums be read and written too often.
fn part(product: Product) -> usize {
    match product {
        Product::Int8 | Product::Bf16 => 12,
        Product::ThreeByTwo | Product::ThreeByThree => 4,
    }
}

/// The length of parts of a whole, which are `most` long at most and as even as may be.
fn even(total: usize, most: usize) -> usize {
    total.div_ceil(total.div_ceil(most.max(1)).max(1)).max(1)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::frozen::attention::Precision;
    use crate::frozen::parts::Parts;
    use crate::frozen::tiles::Rows;
    use crate::{Projection, Weight};

    /// Numbers without a pattern around 0, some of them a thousand times as large as others.
    fn noise(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next() * (5.0 * next()).exp2()).collect()
    }

    /// Sums of a layer's products, and what their sizes add up to, in f64.
    fn exact(weights: &[f32], bias: &[f32], x: &[f32], columns: usize) -> Vec<[f64; 2]> {
        let rows = x.chunks_exact(columns);
        rows.flat_map(|x| {
            weights.chunks_exact(columns).zip(bias).map(|(weights, bias)| {
                let products = || x.iter().zip(weights).map(|(x, weight)| f64::from(*x) * f64::from(*weight));
                let size: f64 = products().map(f64::abs).sum();
                [products().sum::<f64>() + f64::from(*bias), size + f64::from(bias.abs())]
            })
        })
        .collect()
    }

    /// What a layer makes of rows, which are added to ones.
    fn forward(processor: Processor, layer: &FrozenLinear, x: &[f32], count: usize) -> Vec<f32> {
        let columns = layer.columns();
        let (mut numbers, mut rounded, mut scratches) = (Parts::default(), Int8Rows::default(), Vec::new());
        let make = |row: usize, into: &mut [f32]| into.copy_from_slice(&x[row * columns..][..columns]);
        let input = layer.made_input(processor, count, make, &mut numbers, &mut rounded, &mut scratches);
        let ones = vec![1f32; count * layer.rows()];
        let mut result = vec![0f32; ones.len()];
        let target = Target::rows(result.as_mut_ptr(), result.len(), layer.rows());
        let ending = Ending::Added(Rows { values: &ones, stride: layer.rows() });
        // SAFETY: the target has as many rows, and nobody else uses it.
        unsafe { layer.forward(processor, input, &mut scratches, target, ending) };
        result
    }

    fn layer(weights: &[f32], bias: &[f32]) -> FrozenLinear {
        let shape = (bias.len(), weights.len() / bias.len());
        let weight = Tensor::from_slice(weights, shape, &Device::Cpu).unwrap();
        let bias = Tensor::from_slice(bias, bias.len(), &Device::Cpu).unwrap();
        FrozenLinear::new(&[Projection { weight: Weight::Dense(&weight), bias: Some(&bias) }]).unwrap()
    }

    /// Rows, columns and outputs around the sizes of steps, parts, tiles and tasks.
    const SHAPES: [[usize; 3]; 8] = [
        [24, 1, 1],
        [33, 31, 40],
        [48, 33, 32],
        [49, 128, 5],
        [47, 129, 64],
        [290, 70, 33],
        [100, 1100, 70],
        [300, 600, 100],
    ];

    #[test]
    fn numbers_in_pieces_err_as_little_as_numbers() {
        for [count, columns, rows] in SHAPES {
            let (weights, bias) = (noise(rows * columns, 1), noise(rows, 2));
            let halves: Vec<f32> = weights.iter().map(|value| half::f16::from_f32(*value).to_f32()).collect();
            let x = noise(count * columns, 3);
            for weights in [&weights, &halves] {
                let expected = exact(weights, &bias, &x, columns);
                let layer = layer(weights, &bias);
                for processor in Processor::tested() {
                    let found = forward(processor, &layer, &x, count);
                    // Of the sizes of all products: a rounding of the sum behind some of them, all of which are as likely up as down.
                    let most = 4.0 * (columns as f64).sqrt().max(4.0) * 2f64.powi(-24);
                    for (place, (found, [sum, size])) in found.iter().zip(&expected).enumerate() {
                        let error = (f64::from(*found) - 1.0 - sum).abs() / (size + 1.0);
                        assert!(error <= most, "{processor:?} {count} {columns} {rows}, {place}: {error:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn int8_sums_in_tiles_are_those_in_vectors() {
        for [count, columns, rows] in [[33, 129, 40], [64, 200, 33], [300, 700, 70], [47, 5000, 40]] {
            let weights = noise(rows * columns, 1);
            let mut layer = layer(&weights, &noise(rows, 2));
            layer.panels = Panels::Int8(Int8Panels::new(&weights, rows, columns));
            let x = noise(count * columns, 3);
            let processors = Processor::tested();
            let found: Vec<_> = processors
                .iter()
                .filter(|processor| layer.rounds(**processor))
                .map(|processor| forward(*processor, &layer, &x, count))
                .collect();
            assert!(found.windows(2).all(|two| two[0] == two[1]), "{count} {columns} {rows}");
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_row() {
        let (count, columns, rows) = (70, 90, 40);
        let layer = layer(&noise(rows * columns, 1), &noise(rows, 2));
        for wrong in [f32::NAN, f32::from_bits(0x7fff_ffff), f32::from_bits(0xff80_0001), f32::INFINITY] {
            let mut x = noise(count * columns, 3);
            x[37 * columns + 71] = wrong;
            for processor in Processor::tested() {
                let found = forward(processor, &layer, &x, count);
                for (row, found) in found.chunks_exact(rows).enumerate() {
                    let finite = found.iter().filter(|value| value.is_finite()).count();
                    assert_eq!(finite, if row == 37 { 0 } else { rows }, "{processor:?} {wrong} {row}");
                }
            }
        }
    }

    #[test]
    fn the_hidden_numbers_of_rounded_layers_are_narrow() {
        let weights = noise(40 * 160, 1);
        let mut layer = layer(&weights, &noise(40, 2));
        layer.panels = Panels::Int8(Int8Panels::new(&weights, 40, 160));
        for processor in Processor::tested() {
            let narrow = layer.input_precision(processor) != Precision::F32;
            let quads = matches!(processor, Processor::Avx512(_, IntegerDot::Quads | IntegerDot::Tiles));
            assert_eq!(narrow, quads && is_x86_feature_detected!("avx512bf16"), "{processor:?}");
        }
    }
}
