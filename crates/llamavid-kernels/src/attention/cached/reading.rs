//! How the rows of a task meet keys and values: whichever way is quickest for how those are stored, and for how many rows there are.

use pulp::{Simd, WithSimd};

#[cfg(target_arch = "x86_64")]
use super::in_pieces::QueriesInPieces;
#[cfg(target_arch = "x86_64")]
use super::in_tiles::QueriesInTiles;
use crate::formats::block_format::BlockFormat;
#[cfg(target_arch = "x86_64")]
use crate::formats::dequantise::add_weighted;
use crate::instructions::processor::processor;
#[cfg(target_arch = "x86_64")]
use crate::products::Output;
#[cfg(target_arch = "x86_64")]
use crate::products::float_rows::FloatRows;
use crate::products::panels;
use crate::products::{Layer, Weights};

/// Keys whose scores exist at once: they, or their values, and what is made of them are in the L1 and L2 caches.
const KEYS: usize = 64;
/// The same where there are few rows, which read more than they compute: from memory, in long pieces.
pub(super) const KEYS_OF_FEW_ROWS: usize = 256;
/// Rows up to which f32, f16 and bf16 are read row after row, where that is quicker.
#[cfg(target_arch = "x86_64")]
const FEW_ROWS: usize = 16;

/// Query rows of a task on their way through keys and values.
pub(super) struct Reading {
    way: Way,
    width: usize,
    /// Keys whose scores exist at once.
    pub(super) at_once: usize,
    unpacked: Vec<f32>,
    columns: Vec<f32>,
}

enum Way {
    /// In AMX tiles, as int8.
    #[cfg(target_arch = "x86_64")]
    Tiles(QueriesInTiles),
    /// In AMX tiles, in bf16 pieces.
    #[cfg(target_arch = "x86_64")]
    Pieces(QueriesInPieces),
    /// Row after row.
    #[cfg(target_arch = "x86_64")]
    Rows(FloatRows),
    /// The same, for one row that reads blocks as they lie.
    Alone,
    /// Unpacked and laid out in the L1 cache.
    Columns,
}

impl Reading {
    /// For scaled queries (rows, width), and keys and values in `format`.
    pub(super) fn new(queries: &[f32], width: usize, format: BlockFormat) -> Self {
        let rows = queries.len() / width.max(1);
        let way = Way::new(queries, rows, width, format);
        let few = !matches!(way, Way::Columns);
        let at_once = if few { KEYS_OF_FEW_ROWS } else { KEYS };
        Self { way, width, at_once, unpacked: Vec::new(), columns: Vec::new() }
    }

    /// Writes the scores of `count` keys, `at_once` at most; those of a query are so many behind those of the one before. What is written
    /// behind those of the last key stands for nothing.
    pub(super) fn score(&mut self, queries: &[f32], keys: Weights, count: usize, scores: &mut [f32]) {
        match &mut self.way {
            #[cfg(target_arch = "x86_64")]
            Way::Tiles(queries) => queries.score(keys.bytes(), scores, self.at_once),
            #[cfg(target_arch = "x86_64")]
            Way::Pieces(queries) => {
                let keys = numbers(keys, count * self.width, &mut self.unpacked);
                queries.score(keys, scores, self.at_once);
            }
            #[cfg(target_arch = "x86_64")]
            Way::Rows(rows) => {
                scores.fill(0.0);
                // SAFETY: nobody else has the scores.
                unsafe { rows.add(keys.bytes(), 0, Output::new(scores, self.at_once)) };
            }
            Way::Alone => Layer { weights: keys, rows: count, columns: self.width, bias: None }
                .write_exactly(queries, &mut scores[..count]),
            Way::Columns => {
                let keys = numbers(keys, count * self.width, &mut self.unpacked);
                lay_out(keys, self.width, &mut self.columns);
                scores.fill(0.0);
                let (left, right) = (queries, &self.columns);
                add_product(Product { left, stride: self.width, right, width: KEYS }, scores);
            }
        }
    }

    /// Adds `count` values, `at_once` at most, each times its probability, to sums (rows, width). Probabilities are in the places of
    /// scores, and 0 behind those of the last value.
    pub(super) fn add_weighted(
        &mut self,
        values: Weights,
        count: usize,
        probabilities: &[f32],
        sums: &mut [f32],
    ) {
        match &mut self.way {
            #[cfg(target_arch = "x86_64")]
            Way::Tiles(queries) => {
                return queries.add_weighted(values.bytes(), (probabilities, self.at_once), sums);
            }
            #[cfg(target_arch = "x86_64")]
            Way::Pieces(queries) => {
                let values = numbers(values, count * self.width, &mut self.unpacked);
                return queries.add_weighted(values, (probabilities, self.at_once), sums);
            }
            #[cfg(target_arch = "x86_64")]
            Way::Rows(rows) if rows.of_whole_vectors() => {
                return rows.add_weighted(values.bytes(), (probabilities, self.at_once), sums);
            }
            #[cfg(target_arch = "x86_64")]
            Way::Alone if add_weighted(processor(), values.format(), values.bytes(), probabilities, sums) => {
                return;
            }
            _ => {}
        }
        let right = numbers(values, count * self.width, &mut self.unpacked);
        add_product(Product { left: probabilities, stride: self.at_once, right, width: self.width }, sums);
    }
}

impl Way {
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "two ways are all there are"))]
    fn new(queries: &[f32], rows: usize, width: usize, format: BlockFormat) -> Self {
        #[cfg(target_arch = "x86_64")]
        if width > 0
            && let Some(way) = Self::with_amx(queries, rows, width, format)
        {
            return way;
        }
        if rows == 1 { Self::Alone } else { Self::Columns }
    }

    /// The ways of processors with AMX.
    #[cfg(target_arch = "x86_64")]
    fn with_amx(queries: &[f32], rows: usize, width: usize, format: BlockFormat) -> Option<Self> {
        let processor = processor();
        if let Some(queries) = QueriesInTiles::new(processor, format, queries, width) {
            return Some(Self::Tiles(queries));
        }
        match rows <= FEW_ROWS {
            true => FloatRows::of_keys(processor, format, queries, width).map(Self::Rows),
            false => QueriesInPieces::new(processor, format, queries, width).map(Self::Pieces),
        }
    }
}

/// `count` numbers as they are, or unpacked.
fn numbers<'a>(rows: Weights<'a>, count: usize, unpacked: &'a mut Vec<f32>) -> &'a [f32] {
    match rows {
        Weights::F32(values) => values,
        Weights::Blocks(format, bytes) | Weights::Interleaved(format, bytes) => {
            unpacked.resize(count, 0.0);
            format.decode(bytes, unpacked);
            unpacked
        }
    }
}

/// Makes columns of up to [`KEYS`] keys (keys, width): (width, [`KEYS`]). What stands for keys that are missing is of others.
fn lay_out(keys: &[f32], width: usize, columns: &mut Vec<f32>) {
    columns.resize(width * KEYS, 0.0);
    let count = keys.len() / width.max(1);
    for first in (0..count).step_by(TOGETHER) {
        let four = std::array::from_fn(|index| {
            let key = (first + index).min(count - 1);
            &keys[key * width..(key + 1) * width]
        });
        panels::lay_out(four, first, columns, KEYS);
    }
}

/// Rows, those of `left`, times a matrix that stays in the L1 cache: (rows, inner) · (inner, width).
#[derive(Clone, Copy)]
struct Product<'a> {
    left: &'a [f32],
    /// From a row of `left` to the next one.
    stride: usize,
    right: &'a [f32],
    width: usize,
}

/// Adds a product to `sums` (rows, width).
fn add_product(product: Product, sums: &mut [f32]) {
    processor().run(AddProduct { product, sums });
}

struct AddProduct<'a> {
    product: Product<'a>,
    sums: &'a mut [f32],
}

/// Rows whose sums stay in registers while the right matrix goes by, and vectors of each of them.
const TOGETHER: usize = 4;
/// Vectors of the sums of a row alone: enough of them that none waits for the addition before it.
const ALONE: usize = 8;

impl WithSimd for AddProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { mut product, mut sums } = self;
        // With fewer registers half as many rows, so that sums and what is multiplied still fit.
        let most = if S::REGISTER_COUNT >= 32 { TOGETHER } else { TOGETHER / 2 };
        while !sums.is_empty() {
            let rows = if sums.len() >= most * product.width { most } else { 1 };
            let (of_these, others) = sums.split_at_mut(rows * product.width);
            match rows {
                1 => product.add::<S, 1, ALONE>(simd, of_these),
                2 => product.add::<S, 2, TOGETHER>(simd, of_these),
                _ => product.add::<S, TOGETHER, TOGETHER>(simd, of_these),
            }
            sums = others;
            product.left = product.left.get(rows * product.stride..).unwrap_or_default();
        }
    }
}

impl Product<'_> {
    /// Adds to `R` rows of sums, `N` vectors at a time.
    #[inline(always)]
    fn add<S: Simd, const R: usize, const N: usize>(self, simd: S, sums: &mut [f32]) {
        let whole = self.width / S::F32_LANES * S::F32_LANES;
        let mut first = 0;
        while first + N * S::F32_LANES <= whole {
            self.add_vectors::<S, R, N>(simd, first, sums);
            first += N * S::F32_LANES;
        }
        while first < whole {
            self.add_vectors::<S, R, 1>(simd, first, sums);
            first += S::F32_LANES;
        }
        for (sums, left) in sums.chunks_exact_mut(self.width).zip(self.left.chunks(self.stride)) {
            for (place, sum) in sums.iter_mut().enumerate().skip(whole) {
                for (left, right) in left.iter().zip(self.right.chunks_exact(self.width)) {
                    *sum += left * right[place];
                }
            }
        }
    }

    /// Adds to the `N` vectors from `first` on of each row.
    #[inline(always)]
    fn add_vectors<S: Simd, const R: usize, const N: usize>(self, simd: S, first: usize, sums: &mut [f32]) {
        let Self { left, stride, right, width } = self;
        let inner = right.len() / width;
        let left: [&[f32]; R] = std::array::from_fn(|row| &left[row * stride..][..inner]);
        let mut registers = [[simd.splat_f32s(0.0); N]; R];
        for (row, registers) in registers.iter_mut().enumerate() {
            registers.copy_from_slice(&S::as_simd_f32s(&sums[row * width + first..]).0[..N]);
        }
        for (place, right) in right.chunks_exact(width).enumerate().take(inner) {
            let right = &S::as_simd_f32s(&right[first..]).0[..N];
            for (registers, left) in registers.iter_mut().zip(left) {
                let left = simd.splat_f32s(left[place]);
                for (sum, right) in registers.iter_mut().zip(right) {
                    *sum = simd.mul_add_e_f32s(left, *right, *sum);
                }
            }
        }
        for (row, registers) in registers.iter().enumerate() {
            S::as_mut_simd_f32s(&mut sums[row * width + first..]).0[..N].copy_from_slice(registers);
        }
    }
}
