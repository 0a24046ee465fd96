//! Products of many rows with weights in blocks, in whole numbers: four multiplications and additions for each that f32 does in
//! the same time.
//!
//! The numbers of a block are whole numbers as they are. Those of the rows are rounded to 8 bits, with a scale for as many
//! as share one in the weights, as llama.cpp does; the sums are exact. A block's sum is multiplied with both scales and
//! added up in f32. Weights are laid out so that a vector holds four numbers of each of sixteen rows, which is once the
//! work for all rows of `x`.

use std::arch::x86_64::{
    __m512, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_storeu_ps,
};

use rayon::prelude::*;

use crate::block_format::{BlockFormat, Whole, whole_numbers};
use crate::products::Output;
use crate::vector::{multiply_add, widest};

/// Rows of weights that are laid out together: two vectors of sixteen.
pub(crate) const PANEL_ROWS: usize = 32;
/// Numbers of a row that are multiplied at a time: those of a panel stay in the first cache.
const PART: usize = 512;
/// Rows of `x` of a tile: with two vectors of each, their sums take most of 32 registers.
const X_ROWS: usize = 6;
/// Numbers that one instruction multiplies and adds up in a lane.
const STEP: usize = 4;

/// Rows of `x`, rounded to whole numbers.
pub(crate) struct WholeRows {
    format: BlockFormat,
    whole: Whole,
    count: usize,
    columns: usize,
    /// In parts: the first numbers of each row, then the next ones.
    numbers: Vec<i8>,
    /// Of each group, in the same order.
    groups: Vec<Group>,
}

/// Numbers of `x` that share a scale.
#[derive(Debug, Clone, Copy, Default)]
struct Group {
    scale: f32,
    /// What products with weights begin with, for their offset.
    begin: i32,
    /// The sum of the numbers, times the scale.
    sum: f32,
}

impl WholeRows {
    /// `x` (count, columns) for weights in `format`; none for one without blocks.
    pub(crate) fn new(format: BlockFormat, x: &[f32], columns: usize) -> Option<Self> {
        let whole = Whole::of(format)?;
        let count = x.len() / columns;
        let group = whole.group;
        let mut numbers = vec![0i8; x.len()];
        let mut groups = vec![Group::default(); x.len() / group];
        for first in (0..columns).step_by(PART) {
            let length = PART.min(columns - first);
            let numbers = &mut numbers[first * count..][..length * count];
            let groups = &mut groups[first * count / group..][..length * count / group];
            numbers
                .par_chunks_exact_mut(length)
                .zip(groups.par_chunks_exact_mut(length / group))
                .enumerate()
                .with_min_len(16)
                .for_each(|(row, (numbers, groups))| {
                    round(&x[row * columns + first..][..length], group, numbers, groups);
                    for group in groups {
                        group.sum = group.begin as f32 * group.scale;
                        group.begin *= -whole.offset;
                    }
                });
        }
        Some(Self { format, whole, count, columns, numbers, groups })
    }

    /// Bytes of a row of weights.
    fn row_bytes(&self) -> usize {
        self.columns / self.format.block_length() * self.format.block_bytes()
    }

    /// Adds the products with up to [`PANEL_ROWS`] rows of weights, the bytes of which are `rows`; their results are the
    /// columns from `column` on.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI; the result lives, and nobody else uses these columns.
    pub(crate) unsafe fn add_panel(&self, rows: &[u8], column: usize, output: Output) {
        let Whole { group, .. } = self.whole;
        let row_bytes = self.row_bytes();
        let found = rows.len() / row_bytes;
        let mut panel = Panel::new(group);
        for first in (0..self.columns).step_by(PART) {
            let length = PART.min(self.columns - first);
            let part_bytes = first / self.format.block_length() * self.format.block_bytes();
            for (row, bytes) in rows.chunks_exact(row_bytes).enumerate() {
                panel.lay_out(self.format, row, &bytes[part_bytes..], length);
            }
            let numbers = &self.numbers[first * self.count..][..length * self.count];
            let groups = &self.groups[first * self.count / group..][..length * self.count / group];
            for at in (0..self.count).step_by(X_ROWS) {
                let width = X_ROWS.min(self.count - at);
                let numbers = &numbers[at * length..(at + width) * length];
                let groups = &groups[at * length / group..(at + width) * length / group];
                let part = Part { panel: &panel, numbers, groups, length, least: self.whole.least };
                let mut sums = [[0f32; PANEL_ROWS]; X_ROWS];
                // SAFETY: the processor has the instructions, as the caller promises.
                unsafe {
                    match (width, group) {
                        (1, 32) => part.tile::<1, 8>(&mut sums),
                        (2, 32) => part.tile::<2, 8>(&mut sums),
                        (3, 32) => part.tile::<3, 8>(&mut sums),
                        (4, 32) => part.tile::<4, 8>(&mut sums),
                        (5, 32) => part.tile::<5, 8>(&mut sums),
                        (_, 32) => part.tile::<6, 8>(&mut sums),
                        (1, _) => part.tile::<1, 4>(&mut sums),
                        (2, _) => part.tile::<2, 4>(&mut sums),
                        (3, _) => part.tile::<3, 4>(&mut sums),
                        (4, _) => part.tile::<4, 4>(&mut sums),
                        (5, _) => part.tile::<5, 4>(&mut sums),
                        (_, _) => part.tile::<6, 4>(&mut sums),
                    }
                }
                for (row, sums) in sums.iter().take(width).enumerate() {
                    // SAFETY: as the caller promises.
                    unsafe { output.add(at + row, column, &sums[..found]) };
                }
            }
        }
    }
}

/// Rounds a row to whole numbers from -127 to 127, with a scale for each group; `begin` is the sum of its numbers.
#[inline(always)]
fn round_inline<const FUSED: bool>(x: &[f32], group: usize, numbers: &mut [i8], groups: &mut [Group]) {
    /// 1.5 · 2^23: added to a small number, it leaves the number's nearest integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    for ((x, numbers), into) in x.chunks_exact(group).zip(numbers.chunks_exact_mut(group)).zip(groups) {
        let mut largest = 0f32;
        for value in x {
            largest = if value.abs() > largest { value.abs() } else { largest };
        }
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let mut sum = 0;
        for (number, value) in numbers.iter_mut().zip(x) {
            let rounded =
                multiply_add::<FUSED>(*value, inverse, ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
            *number = rounded as i8;
            sum += rounded;
        }
        *into = Group { scale: largest / 127.0, begin: sum, sum: 0.0 };
    }
}
widest!(fn round(x: &[f32], group: usize, numbers: &mut [i8], groups: &mut [Group]) = round_inline);

/// A part of some rows of weights: four numbers of each row, then the next four.
struct Panel {
    group: usize,
    numbers: Vec<[[u8; STEP]; PANEL_ROWS]>,
    /// Of each group, for each row.
    scales: Vec<[f32; PANEL_ROWS]>,
    least: Vec<[f32; PANEL_ROWS]>,
}

impl Panel {
    fn new(group: usize) -> Self {
        Self {
            group,
            numbers: vec![[[0; STEP]; PANEL_ROWS]; PART / STEP],
            scales: vec![[0.0; PANEL_ROWS]; PART / group],
            least: vec![[0.0; PANEL_ROWS]; PART / group],
        }
    }

    /// Takes `length` numbers of a row from whole blocks.
    fn lay_out(&mut self, format: BlockFormat, row: usize, bytes: &[u8], length: usize) {
        let mut numbers = [0u8; PART];
        let mut scales = [0f32; PART / 16];
        let mut least = [0f32; PART / 16];
        let groups = length / self.group;
        whole_numbers(format, bytes, (&mut numbers[..length], &mut scales[..groups], &mut least[..groups]));
        for (into, four) in self.numbers.iter_mut().zip(numbers[..length].as_chunks().0) {
            into[row] = *four;
        }
        for (into, scale) in self.scales.iter_mut().zip(&scales[..groups]) {
            into[row] = *scale;
        }
        for (into, least) in self.least.iter_mut().zip(&least[..groups]) {
            into[row] = *least;
        }
    }
}

/// A part of a panel, and as many numbers of some rows of `x`.
struct Part<'a> {
    panel: &'a Panel,
    numbers: &'a [i8],
    groups: &'a [Group],
    /// Numbers of each row.
    length: usize,
    least: bool,
}

impl Part<'_> {
    /// The products of `X` rows with the panel's; `STEPS` steps make a group.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn tile<const X: usize, const STEPS: usize>(&self, sums: &mut [[f32; PANEL_ROWS]; X_ROWS]) {
        let (length, count) = (self.length, self.length / (STEP * STEPS));
        assert!(self.numbers.len() == X * length && self.groups.len() == X * count, "rows of another length");
        assert!(length <= PART && self.panel.group == STEP * STEPS, "another panel");
        let numbers: *const i8 = self.numbers.as_ptr();
        let mut totals = [[_mm512_setzero_ps(); 2]; X];
        for group in 0..count {
            let of_rows: [&Group; X] = std::array::from_fn(|row| &self.groups[row * count + group]);
            let mut products = [[_mm512_setzero_si512(); 2]; X];
            for (products, group) in products.iter_mut().zip(of_rows) {
                *products = [_mm512_set1_epi32(group.begin); 2];
            }
            for step in group * STEPS..(group + 1) * STEPS {
                let weights: *const u8 = self.panel.numbers[step].as_flattened().as_ptr();
                // SAFETY: two vectors of the panel.
                let weights = unsafe {
                    [_mm512_loadu_si512(weights.cast()), _mm512_loadu_si512(weights.add(64).cast())]
                };
                for (row, products) in products.iter_mut().enumerate() {
                    // SAFETY: four numbers of a row of `x`, of which there are `X` of this length.
                    let four =
                        unsafe { numbers.add(row * length + STEP * step).cast::<i32>().read_unaligned() };
                    let four = _mm512_set1_epi32(four);
                    products[0] = _mm512_dpbusd_epi32(products[0], weights[0], four);
                    products[1] = _mm512_dpbusd_epi32(products[1], weights[1], four);
                }
            }
            let scales = halves(&self.panel.scales[group]);
            for ((totals, products), of_row) in totals.iter_mut().zip(products).zip(of_rows) {
                let scale = _mm512_set1_ps(of_row.scale);
                for half in 0..2 {
                    let sum = _mm512_mul_ps(_mm512_cvtepi32_ps(products[half]), scales[half]);
                    totals[half] = _mm512_fmadd_ps(sum, scale, totals[half]);
                }
            }
            if self.least {
                let least = halves(&self.panel.least[group]);
                for (totals, of_row) in totals.iter_mut().zip(of_rows) {
                    let sum = _mm512_set1_ps(of_row.sum);
                    for half in 0..2 {
                        totals[half] = _mm512_fnmadd_ps(least[half], sum, totals[half]);
                    }
                }
            }
        }
        for (sums, totals) in sums.iter_mut().zip(totals) {
            // SAFETY: a panel's rows are two vectors.
            unsafe {
                _mm512_storeu_ps(sums.as_mut_ptr(), totals[0]);
                _mm512_storeu_ps(sums.as_mut_ptr().add(16), totals[1]);
            }
        }
    }
}

/// A number of each row, as two vectors.
#[target_feature(enable = "avx512f")]
#[inline]
fn halves(values: &[f32; PANEL_ROWS]) -> [__m512; 2] {
    // SAFETY: a panel's rows are two vectors.
    unsafe { [_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16))] }
}
