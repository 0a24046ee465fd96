//! Products in whole numbers of 8 bits: weights with a scale for each of their rows, `x` with a scale and a zero for each of its own.
//!
//! What is rounded has no sign in `x` and one in the weights, as the instructions want it. Sums of whole rows are exact; only
//! then they are scaled. The few numbers of a row of `x` that are far larger than the others, as some channels of large encoders
//! are, would leave the others no steps: they are multiplied on their own, in f32. T. Dettmers et al., "LLM.int8()" (2022), does
//! so with whole channels.

use std::ops::Range;

use rayon::prelude::*;

use super::parts::{Ahead, PANEL, PART, Parts, Step};
use crate::processor::Processor;
#[cfg(target_arch = "x86_64")]
use crate::processor::WholeNumbers;
use crate::rows::rows_of_a_task;
use crate::vector::{sum_of, widest};

/// Numbers that one instruction multiplies and adds up in a lane.
const TOGETHER: usize = 4;
/// Numbers of a row that lie together, in as many bytes as those of [`Parts`].
const BYTES: usize = 4 * PART;
/// Numbers of a row of `x` up to which it is not rounded: little is gained, and patches of small encoders would turn too far.
const SHORT: usize = 128;
/// The largest whole number of a weight.
const LARGEST: f32 = 127.0;
/// The largest whole number of `x`.
const STEPS: f32 = 255.0;
/// 1.5 · 2^23: added to a small number, it leaves the number's nearest integer in the lowest bits.
const ROUND: f32 = 12_582_912.0;

/// Panels of weights: four numbers of each of [`PANEL`] rows, then the next four of each.
#[derive(Debug)]
pub(super) struct BytePanels {
    numbers: Vec<ByteStep>,
    /// Of each panel: for each of its rows what a whole number stands for, and the sum of its whole numbers.
    scales: Vec<Step>,
    totals: Vec<Sums>,
    /// Steps of a panel.
    steps: usize,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct ByteStep([[i8; TOGETHER]; PANEL]);

/// A sum for each row of a panel.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [i32; PANEL]);

impl Sums {
    pub(super) const ZERO: Self = Self([0; PANEL]);
}

impl BytePanels {
    /// Rounds and lays out weights (rows, columns).
    pub(super) fn new(values: &[f32], rows: usize, columns: usize) -> Self {
        let (panels, steps) = (rows.div_ceil(PANEL), columns.div_ceil(TOGETHER));
        let mut numbers = vec![ByteStep([[0; TOGETHER]; PANEL]); panels * steps];
        let mut scales = vec![Step::ZERO; panels];
        let mut totals = vec![Sums::ZERO; panels];
        let tasks = numbers.par_chunks_exact_mut(steps).zip(&mut scales).zip(&mut totals);
        tasks.zip(values.par_chunks(PANEL * columns)).for_each(|(((numbers, scales), totals), values)| {
            let mut whole = vec![0i8; columns];
            for (place, row) in values.chunks_exact(columns).enumerate() {
                scales.0[place] = round_weights(row, &mut whole);
                totals.0[place] = whole.iter().map(|number| i32::from(*number)).sum();
                for (four, step) in whole.chunks(TOGETHER).zip(&mut *numbers) {
                    step.0[place][..four.len()].copy_from_slice(four);
                }
            }
        });
        Self { numbers, scales, totals, steps }
    }

    /// Whether whole numbers are multiplied; else they are widened, and `x` is not rounded: where the processor does not, and for
    /// short rows.
    pub(super) fn multiplies(&self, processor: Processor) -> bool {
        let long = self.steps * TOGETHER > SHORT;
        match processor {
            #[cfg(target_arch = "x86_64")]
            Processor::Avx512(_, whole) | Processor::Avx2(_, whole) => long && whole != WholeNumbers::None,
            _ => false,
        }
    }

    /// Columns of a panel as numbers.
    pub(super) fn widen(&self, panel: usize, columns: Range<usize>, into: &mut [Step]) {
        let numbers = &self.numbers[panel * self.steps..][..self.steps];
        widen(numbers, &self.scales[panel], columns.start, into);
    }

    /// Writes the products of rows from `first` on of `x` with a panel, and a bias, to `sums`; `whole` has as many.
    pub(super) fn multiply(
        &self,
        processor: Processor,
        panel: usize,
        (x, first): (&ByteRows, usize),
        whole: &mut [Sums],
        bias: &Step,
        sums: &mut [Step],
    ) {
        const STEPS: usize = BYTES / TOGETHER;
        let (begin, end) = (panel * self.steps, (panel + 1) * self.steps);
        whole.fill(Sums::ZERO);
        for (index, start) in (begin..end).step_by(STEPS).enumerate() {
            let after = end.min(start + STEPS);
            let ahead = Ahead::new(self.numbers.get(after..after + STEPS).unwrap_or_default());
            let x = &x.numbers[index * x.count + first..][..whole.len()];
            add_products(processor, &self.numbers[start..after], x, whole, ahead);
        }
        let rows = first..first + whole.len();
        let of_x = (&x.scales[rows.clone()], &x.zeros[rows]);
        scale(whole, of_x, (&self.scales[panel], &self.totals[panel]), bias, sums);
        let large = &x.large[first..first + sums.len()];
        if large.iter().any(|large| !large.is_empty()) {
            add_large(&self.numbers[begin..end], &self.scales[panel], large, sums);
        }
    }
}

/// Adds the products of rows of `x` with steps of a panel.
fn add_products(
    processor: Processor,
    panel: &[ByteStep],
    x: &[[u8; BYTES]],
    sums: &mut [Sums],
    ahead: Ahead,
) {
    let _ = ahead;
    match processor {
        // SAFETY: the processor has AVX-512 with VNNI.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512(_, WholeNumbers::Fours) => unsafe { x86::fours(panel, x, sums, ahead) },
        // SAFETY: the processor has AVX2, which is a part of AVX-512.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512(..) | Processor::Avx2(..) => unsafe { x86::pairs(panel, x, sums) },
        _ => plain(panel, x, sums),
    }
}

/// The same as it is meant.
fn plain(panel: &[ByteStep], x: &[[u8; BYTES]], sums: &mut [Sums]) {
    for (x, sums) in x.iter().zip(sums) {
        for (step, x) in panel.iter().zip(x.as_chunks::<TOGETHER>().0) {
            for (sum, weights) in sums.0.iter_mut().zip(&step.0) {
                for (weight, x) in weights.iter().zip(x) {
                    *sum += i32::from(*weight) * i32::from(*x);
                }
            }
        }
    }
}

/// Rounds a row of weights to whole numbers with a sign, and gives what they stand for.
#[inline(always)]
fn round_weights_inline<const FUSED: bool>(row: &[f32], numbers: &mut [i8]) -> f32 {
    let mut most = 0f32;
    for value in row {
        most = if value.abs() > most { value.abs() } else { most };
    }
    let factor = if most > 0.0 { LARGEST / most } else { 0.0 };
    for (number, value) in numbers.iter_mut().zip(row) {
        let rounded = (value * factor + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
        *number = rounded.clamp(-127, 127) as i8;
    }
    most / LARGEST
}
widest!(fn round_weights(row: &[f32], numbers: &mut [i8]) -> f32 = round_weights_inline);

#[inline(always)]
fn widen_inline<const FUSED: bool>(numbers: &[ByteStep], scales: &Step, first: usize, into: &mut [Step]) {
    for (index, into) in into.iter_mut().enumerate() {
        let column = first + index;
        let numbers = &numbers[column / TOGETHER].0;
        for ((into, numbers), scale) in into.0.iter_mut().zip(numbers).zip(&scales.0) {
            *into = f32::from(numbers[column % TOGETHER]) * scale;
        }
    }
}
widest!(fn widen(numbers: &[ByteStep], scales: &Step, first: usize, into: &mut [Step]) = widen_inline);

#[inline(always)]
fn scale_inline<const FUSED: bool>(
    whole: &[Sums],
    (x_scales, x_zeros): (&[f32], &[i32]),
    (scales, totals): (&Step, &Sums),
    bias: &Step,
    sums: &mut [Step],
) {
    for (((sums, whole), x_scale), zero) in sums.iter_mut().zip(whole).zip(x_scales).zip(x_zeros) {
        for place in 0..PANEL {
            let sum = (whole.0[place] - zero * totals.0[place]) as f32;
            sums.0[place] = sum * (scales.0[place] * x_scale) + bias.0[place];
        }
    }
}
widest!(fn scale(
    whole: &[Sums],
    of_x: (&[f32], &[i32]),
    of_weights: (&Step, &Sums),
    bias: &Step,
    sums: &mut [Step],
) = scale_inline);

#[inline(always)]
fn add_large_inline<const FUSED: bool>(
    numbers: &[ByteStep],
    scales: &Step,
    large: &[Vec<Large>],
    sums: &mut [Step],
) {
    for (large, sums) in large.iter().zip(sums) {
        for Large { column, value } in large {
            let numbers = &numbers[column / TOGETHER].0;
            // The number at its place among four, as the upper bits.
            let shift = 8 * (TOGETHER - 1 - column % TOGETHER);
            for ((sum, four), scale) in sums.0.iter_mut().zip(numbers).zip(&scales.0) {
                let four = i32::from_le_bytes(four.map(|number| number as u8));
                *sum += (four << shift >> 24) as f32 * (scale * value);
            }
        }
    }
}
widest!(
    /// Adds the products of large numbers of each row to its sums.
    fn add_large(numbers: &[ByteStep], scales: &Step, large: &[Vec<Large>], sums: &mut [Step]) = add_large_inline
);

/// A number that is far larger than others of its row.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Large {
    column: usize,
    value: f32,
}

/// Rows in whole numbers without a sign: the first ones of each row, then the next ones, up to whole steps of four.
#[derive(Debug, Default)]
pub(super) struct ByteRows {
    numbers: Vec<[u8; BYTES]>,
    /// Of each row: what a whole number stands for, and the whole number that stands for 0.
    scales: Vec<f32>,
    zeros: Vec<i32>,
    /// Of each row; its whole numbers have 0 in their places.
    large: Vec<Vec<Large>>,
    count: usize,
}

/// Where tasks write the numbers of rows of their own.
struct Places(*mut [u8; BYTES]);

// SAFETY: each task writes rows of its own.
unsafe impl Sync for Places {}

impl Places {
    fn at(&self, index: usize) -> *mut [u8; BYTES] {
        self.0.wrapping_add(index)
    }
}

impl ByteRows {
    /// Rounds rows; on all threads.
    pub(super) fn fill(&mut self, x: &Parts) {
        let (count, columns) = (x.count(), x.columns());
        let parts = columns.div_ceil(BYTES);
        self.count = count;
        self.numbers.resize(parts * count, [0; BYTES]);
        self.scales.resize(count, 0.0);
        self.zeros.resize(count, 0);
        self.large.resize_with(count, Vec::new);
        let task = rows_of_a_task(columns);
        let places = Places(self.numbers.as_mut_ptr());
        let tasks = self
            .scales
            .par_chunks_mut(task)
            .zip(self.zeros.par_chunks_mut(task))
            .zip(self.large.par_chunks_mut(task));
        let buffers = || (vec![0f32; columns], vec![0u8; columns]);
        tasks.enumerate().for_each_init(buffers, |(row, numbers), (index, ((scales, zeros), large))| {
            for (place, ((scale, zero), large)) in scales.iter_mut().zip(zeros).zip(large).enumerate() {
                let at = index * task + place;
                x.read(at, row);
                take_large(row, large);
                (*scale, *zero) = round(row, numbers);
                for (part, numbers) in numbers.chunks(BYTES).enumerate() {
                    // SAFETY: there are as many parts of as many rows, and only this task writes this row.
                    let into = unsafe { &mut *places.at(part * count + at) };
                    into[..numbers.len()].copy_from_slice(numbers);
                }
            }
        });
    }
}

/// Takes the large numbers out of a row.
fn take_large(row: &mut [f32], large: &mut Vec<Large>) {
    large.clear();
    let limit = limit(row);
    if limit < f32::INFINITY {
        for (column, value) in row.iter_mut().enumerate().filter(|(_, value)| value.abs() > limit) {
            large.push(Large { column, value: std::mem::take(value) });
        }
    }
}

/// How large a number of a row may be before it counts as a large one: several times what the others are, if only a few are;
/// infinite where none is large, or too many are.
#[inline(always)]
fn limit_inline<const FUSED: bool>(row: &[f32]) -> f32 {
    /// Of the root of the mean square. As good as no number of a bell curve is that far from its middle.
    const TIMES: f32 = 5.0;
    /// Numbers of which one may be a large one.
    const AMONG: usize = 16;
    let beyond = |limit: f32| sum_of(row.len(), |place| f32::from(u8::from(row[place].abs() > limit)));
    let of_all = TIMES * (sum_of(row.len(), |place| row[place] * row[place]) / row.len() as f32).sqrt();
    let count = beyond(of_all);
    let most = (row.len() / AMONG) as f32;
    if count == 0.0 || count > most {
        return f32::INFINITY;
    }
    let squares = sum_of(row.len(), |place| {
        let value = row[place];
        if value.abs() > of_all { 0.0 } else { value * value }
    });
    let of_others = TIMES * (squares / (row.len() as f32 - count)).sqrt();
    if beyond(of_others) > most { of_all } else { of_others }
}
widest!(fn limit(row: &[f32]) -> f32 = limit_inline);

/// Rounds a row to whole numbers, and gives what they stand for and the one that stands for 0. A row that is not finite stands for
/// no number at all.
#[inline(always)]
fn round_inline<const FUSED: bool>(row: &[f32], numbers: &mut [u8]) -> (f32, i32) {
    const LANES: usize = 32;
    let (mut least, mut most, mut finite) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
    let (blocks, rest) = row.as_chunks::<LANES>();
    let mut last = [0f32; LANES];
    last[..rest.len()].copy_from_slice(rest);
    for block in blocks.iter().chain([&last]) {
        for lane in 0..LANES {
            let value = block[lane];
            least[lane] = if value < least[lane] { value } else { least[lane] };
            most[lane] = if value > most[lane] { value } else { most[lane] };
            finite[lane] += value * 0.0;
        }
    }
    let (mut low, mut high, mut sum) = (0f32, 0f32, 0f32);
    for lane in 0..LANES {
        low = if least[lane] < low { least[lane] } else { low };
        high = if most[lane] > high { most[lane] } else { high };
        sum += finite[lane];
    }
    // In halves, so that no row of finite numbers is beyond them.
    let scale = (high / STEPS - low / STEPS).max(f32::MIN_POSITIVE);
    let factor = scale.recip();
    let zero = (-low * factor).round_ties_even();
    for (number, value) in numbers.iter_mut().zip(row) {
        let rounded = (value * factor + ROUND).to_bits() as i32 - ROUND.to_bits() as i32 + zero as i32;
        *number = rounded.clamp(0, STEPS as i32) as u8;
    }
    (scale + sum, zero as i32)
}
widest!(fn round(row: &[f32], numbers: &mut [u8]) -> (f32, i32) = round_inline);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, _mm_loadu_si128, _mm_set1_epi32, _mm256_add_epi32, _mm256_cvtepi8_epi16,
        _mm256_cvtepu8_epi16, _mm256_hadd_epi32, _mm256_loadu_si256, _mm256_madd_epi16,
        _mm256_permute4x64_epi64, _mm256_setzero_si256, _mm256_storeu_si256, _mm512_dpbusd_epi32,
        _mm512_loadu_si512, _mm512_set1_epi32, _mm512_storeu_si512,
    };

    use super::super::tiles::TILE_ROWS;
    use super::{Ahead, BYTES, ByteStep, Sums, TOGETHER};

    /// Rows of a tile of pairs: their sums of half a panel, and what is multiplied, are nearly all of 16 registers.
    const PAIR_ROWS: usize = 3;
    /// Vectors of a tile of pairs, each of the sums of pairs of four rows of weights.
    const PAIR_VECTORS: usize = 4;

    /// # Safety
    /// The processor has AVX-512 with VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) unsafe fn fours(panel: &[ByteStep], x: &[[u8; BYTES]], sums: &mut [Sums], ahead: Ahead) {
        let mut ahead = ahead.spread(sums.len());
        for (x, sums) in x.chunks(TILE_ROWS).zip(sums.chunks_mut(TILE_ROWS)) {
            ahead.read(sums.len());
            // SAFETY: the processor has the instructions, as the caller promises.
            unsafe {
                match sums.len() {
                    1 => tile_of_fours::<1>(panel, x, sums),
                    2 => tile_of_fours::<2>(panel, x, sums),
                    3 => tile_of_fours::<3>(panel, x, sums),
                    4 => tile_of_fours::<4>(panel, x, sums),
                    5 => tile_of_fours::<5>(panel, x, sums),
                    6 => tile_of_fours::<6>(panel, x, sums),
                    7 => tile_of_fours::<7>(panel, x, sums),
                    8 => tile_of_fours::<8>(panel, x, sums),
                    9 => tile_of_fours::<9>(panel, x, sums),
                    10 => tile_of_fours::<10>(panel, x, sums),
                    11 => tile_of_fours::<11>(panel, x, sums),
                    _ => tile_of_fours::<12>(panel, x, sums),
                }
            }
        }
    }

    /// # Safety
    /// As [`fours`].
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn tile_of_fours<const X: usize>(panel: &[ByteStep], x: &[[u8; BYTES]], sums: &mut [Sums]) {
        assert!(x.len() == X && sums.len() == X && panel.len() * TOGETHER <= BYTES, "a tile of another size");
        let x: *const u8 = x.as_ptr().cast();
        // SAFETY: the sums of a row are two vectors, and so are a step's numbers; a row has as many numbers as the panel.
        unsafe {
            let mut found = [[_mm512_set1_epi32(0); 2]; X];
            for (found, sums) in found.iter_mut().zip(&*sums) {
                let sums: *const i32 = sums.0.as_ptr();
                *found = [_mm512_loadu_si512(sums.cast()), _mm512_loadu_si512(sums.add(16).cast())];
            }
            for (step, weights) in panel.iter().enumerate() {
                let weights: *const i8 = weights.0.as_flattened().as_ptr();
                let weights =
                    [_mm512_loadu_si512(weights.cast()), _mm512_loadu_si512(weights.add(64).cast())];
                for (row, found) in found.iter_mut().enumerate() {
                    let four = x.add(row * BYTES + step * TOGETHER).cast::<i32>().read_unaligned();
                    let four = _mm512_set1_epi32(four);
                    found[0] = _mm512_dpbusd_epi32(found[0], four, weights[0]);
                    found[1] = _mm512_dpbusd_epi32(found[1], four, weights[1]);
                }
            }
            for (sums, found) in sums.iter_mut().zip(found) {
                let sums: *mut i32 = sums.0.as_mut_ptr();
                _mm512_storeu_si512(sums.cast(), found[0]);
                _mm512_storeu_si512(sums.add(16).cast(), found[1]);
            }
        }
    }

    /// # Safety
    /// The processor has AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn pairs(panel: &[ByteStep], x: &[[u8; BYTES]], sums: &mut [Sums]) {
        for half in 0..2 {
            for (x, sums) in x.chunks(PAIR_ROWS).zip(sums.chunks_mut(PAIR_ROWS)) {
                // SAFETY: the processor has the instructions, as the caller promises.
                unsafe {
                    match sums.len() {
                        1 => tile_of_pairs::<1>(panel, half, x, sums),
                        2 => tile_of_pairs::<2>(panel, half, x, sums),
                        _ => tile_of_pairs::<3>(panel, half, x, sums),
                    }
                }
            }
        }
    }

    /// In 16 bits, the products of which never overflow when two are added.
    ///
    /// # Safety
    /// As [`pairs`].
    #[target_feature(enable = "avx2")]
    unsafe fn tile_of_pairs<const X: usize>(
        panel: &[ByteStep],
        half: usize,
        x: &[[u8; BYTES]],
        sums: &mut [Sums],
    ) {
        assert!(x.len() == X && sums.len() == X && panel.len() * TOGETHER <= BYTES, "a tile of another size");
        assert!(half < 2, "a third half");
        let x: *const u8 = x.as_ptr().cast();
        // SAFETY: half a step's numbers are four times 16 bytes, and half the sums two vectors; a row has as many numbers as the
        // panel.
        unsafe {
            let mut found = [[_mm256_setzero_si256(); PAIR_VECTORS]; X];
            for (step, weights) in panel.iter().enumerate() {
                let weights: *const i8 = weights.0.as_flattened().as_ptr().add(64 * half);
                let mut wide = [_mm256_setzero_si256(); X];
                for (row, wide) in wide.iter_mut().enumerate() {
                    let four = x.add(row * BYTES + step * TOGETHER).cast::<i32>().read_unaligned();
                    *wide = _mm256_cvtepu8_epi16(_mm_set1_epi32(four));
                }
                for vector in 0..PAIR_VECTORS {
                    let weights = _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.add(16 * vector).cast()));
                    for (found, wide) in found.iter_mut().zip(wide) {
                        let products = _mm256_madd_epi16(weights, wide);
                        found[vector] = _mm256_add_epi32(found[vector], products);
                    }
                }
            }
            for (sums, found) in sums.iter_mut().zip(found) {
                let sums: *mut __m256i = sums.0.as_mut_ptr().add(16 * half).cast();
                for pair in 0..2 {
                    // Sums of two vectors, whose quarters change places.
                    let both = _mm256_hadd_epi32(found[2 * pair], found[2 * pair + 1]);
                    let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(both);
                    let into = sums.add(pair);
                    _mm256_storeu_si256(into, _mm256_add_epi32(_mm256_loadu_si256(into), both));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole numbers without a pattern, the outermost ones among them.
    fn random(count: usize) -> impl Iterator<Item = u8> {
        let mut state = 9u32;
        (0..count).map(move |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match state >> 29 {
                0 => u8::MAX,
                1 => 0,
                _ => (state >> 16) as u8,
            }
        })
    }

    #[test]
    fn every_path_gives_the_same_whole_numbers() {
        for (steps, count) in [(1, 1), (3, 2), (BYTES / TOGETHER, 5), (100, 12), (77, 13), (9, 40)] {
            let numbers: Vec<u8> = random(steps * PANEL * TOGETHER).collect();
            let numbers = numbers.as_chunks::<TOGETHER>().0.as_chunks::<PANEL>().0.iter();
            let panel: Vec<ByteStep> = numbers
                .map(|step| ByteStep(step.map(|four| four.map(|number| (number as i8).max(-127)))))
                .collect();
            let x: Vec<[u8; BYTES]> = random(count * BYTES).collect::<Vec<_>>().as_chunks().0.to_vec();
            let mut expected = vec![Sums([7; PANEL]); count];
            plain(&panel, &x, &mut expected);
            for processor in Processor::available() {
                let mut sums = vec![Sums([7; PANEL]); count];
                add_products(processor, &panel, &x, &mut sums, Ahead::NOTHING);
                for (sums, expected) in sums.iter().zip(&expected) {
                    assert_eq!(sums.0, expected.0, "{processor:?} {steps} {count}");
                }
            }
        }
    }

    #[test]
    fn rounded_rows_stand_for_what_they_were() {
        for columns in [1, 4, 31, 33, 100, 1500] {
            for (least, most) in
                [(-1.0, 1.0), (-0.1, 9.0), (2.0, 3.0), (-3.0, -2.0), (0.0, 0.0), (-3e38, 3e38)]
            {
                let row: Vec<f32> = random(columns)
                    .map(|step| least / 255.0 * (255.0 - f32::from(step)) + most / 255.0 * f32::from(step))
                    .collect();
                let mut numbers = vec![0; columns];
                let (scale, zero) = round(&row, &mut numbers);
                for (value, number) in row.iter().zip(&numbers) {
                    let told = (i32::from(*number) - zero) as f32 * scale;
                    assert!((told - value).abs() <= 1.01 * scale, "{value} is {told}, steps of {scale}");
                }
            }
        }
    }

    #[test]
    fn few_large_numbers_are_taken_out_and_many_are_not() {
        let mut row: Vec<f32> = random(640).map(|number| f32::from(number) - 128.0).collect();
        let mut large = vec![Large { column: 1, value: 2.0 }];
        let before = row.clone();
        take_large(&mut row, &mut large);
        assert!(large.is_empty() && row == before);
        (row[7], row[100], row[639]) = (3e3, -2e4, 900.0);
        take_large(&mut row, &mut large);
        let taken = [(7, 3e3), (100, -2e4), (639, 900.0)];
        assert_eq!(large, taken.map(|(column, value)| Large { column, value }));
        assert!(large.iter().all(|large| row[large.column] == 0.0));
        row.iter_mut().step_by(10).for_each(|value| *value = 1e5);
        take_large(&mut row, &mut large);
        assert!(large.is_empty());
        row[3] = f32::NAN;
        take_large(&mut row, &mut large);
        assert!(large.is_empty());
    }

    #[test]
    fn weights_come_back_to_a_part_of_their_rows_largest() {
        let (rows, columns) = (37, 70);
        let values: Vec<f32> = random(rows * columns)
            .enumerate()
            .map(|(place, number)| (f32::from(number) - 128.0) * (1 + place / columns) as f32)
            .collect();
        let panels = BytePanels::new(&values, rows, columns);
        let mut widened = vec![Step::ZERO; 30];
        for (row, values) in values.chunks_exact(columns).enumerate() {
            panels.widen(row / PANEL, 33..63, &mut widened);
            let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for (widened, value) in widened.iter().zip(&values[33..]) {
                let error = (widened.0[row % PANEL] - value).abs();
                assert!(error <= 0.501 * largest / LARGEST, "{value}: {error}");
            }
        }
    }
}
