//! Products of many rows with weights in blocks, in whole numbers: four multiplications and additions for each that f32 does in
//! the same time.
//!
//! Weights are laid out so that a vector holds four numbers of each of sixteen rows, which is once the work for all rows of
//! `x`.

use std::arch::x86_64::{
    __m256i, __m512, _mm256_castps_si256, _mm256_permute2x128_si256, _mm256_setzero_si256,
    _mm256_storeu_si256, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32,
    _mm256_unpacklo_epi64, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_fnmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_storeu_ps,
};

use crate::products::Output;
use crate::whole_blocks::{NUMBERS, Row, WholeBlock, each_eighth, with_block};
use crate::whole_rows::WholeRows;

/// Rows of weights that are laid out together: two vectors of sixteen.
pub(crate) const PANEL_ROWS: usize = 32;
/// Numbers of a row that are multiplied at a time: those of a panel stay in the first cache.
pub(crate) const PART: usize = 512;
/// Rows of `x` of a tile: with two vectors of each, their sums take most of 32 registers.
const X_ROWS: usize = 6;
/// Numbers that one instruction multiplies and adds up in a lane.
const STEP: usize = 4;
/// Rows of weights that change places with as many vectors.
const TOGETHER: usize = 8;

/// Adds the products of all rows of `x`, in parts of [`PART`], with some rows of weights, the bytes of which are `rows`; their
/// results are the columns from `column` on.
///
/// # Safety
/// The processor has AVX-512 with VNNI; the result lives, and nobody else uses these columns.
pub(crate) unsafe fn add_panels(x: &WholeRows, rows: &[u8], column: usize, output: Output) {
    for (index, rows) in rows.chunks(PANEL_ROWS * x.row_bytes).enumerate() {
        let column = column + index * PANEL_ROWS;
        // SAFETY: as the caller promises.
        unsafe { with_block!(x.format, B => add::<B>(x, rows, column, output), ()) }
    }
}

/// The same with up to [`PANEL_ROWS`] rows.
///
/// # Safety
/// As [`add_panels`].
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn add<B: WholeBlock>(x: &WholeRows, rows: &[u8], column: usize, output: Output) {
    let rows: Vec<Row> = rows.chunks_exact(x.row_bytes).map(Row::new::<B>).collect();
    let mut panel = Panel::new(x.group);
    for first in (0..x.columns).step_by(PART) {
        let length = PART.min(x.columns - first);
        for (index, rows) in rows.chunks(TOGETHER).enumerate() {
            // SAFETY: the processor has the instructions, as the caller promises.
            unsafe { panel.lay_out::<B>(index * TOGETHER, rows, first / NUMBERS, length / NUMBERS) };
        }
        for at in (0..x.count).step_by(X_ROWS) {
            let width = X_ROWS.min(x.count - at);
            let (begin, end) = (first * x.count + at * length, first * x.count + (at + width) * length);
            let groups = begin / x.group..end / x.group;
            let part = Part {
                panel: &panel,
                length,
                numbers: &x.numbers[begin..end],
                scales: &x.scales[groups.clone()],
                sums: &x.sums[groups.clone()],
                begins: &x.begins[groups],
            };
            let mut sums = [[0f32; PANEL_ROWS]; X_ROWS];
            // SAFETY: the processor has the instructions, as the caller promises.
            unsafe {
                match width {
                    1 => part.tile::<B, 1>(&mut sums),
                    2 => part.tile::<B, 2>(&mut sums),
                    3 => part.tile::<B, 3>(&mut sums),
                    4 => part.tile::<B, 4>(&mut sums),
                    5 => part.tile::<B, 5>(&mut sums),
                    _ => part.tile::<B, 6>(&mut sums),
                }
            }
            for (row, sums) in sums.iter().take(width).enumerate() {
                // SAFETY: as the caller promises.
                unsafe { output.add(at + row, column, &sums[..rows.len()]) };
            }
        }
    }
}

/// A part of some rows of weights: four numbers of each row, then the next four.
struct Panel {
    numbers: Vec<[[u8; STEP]; PANEL_ROWS]>,
    /// Of each group, for each row.
    scales: Vec<[f32; PANEL_ROWS]>,
    least: Vec<[f32; PANEL_ROWS]>,
}

impl Panel {
    fn new(group: usize) -> Self {
        Self {
            numbers: vec![[[0; STEP]; PANEL_ROWS]; PART / STEP],
            scales: vec![[0.0; PANEL_ROWS]; PART / group],
            least: vec![[0.0; PANEL_ROWS]; PART / group],
        }
    }

    /// Takes `blocks` times 256 numbers of up to eight rows, to places from `place` on. The first row stands in for those that
    /// are missing: nobody reads their sums.
    ///
    /// # Safety
    /// The processor has AVX2 and F16C; the rows have as many blocks.
    #[inline(always)]
    unsafe fn lay_out<B: WholeBlock>(&mut self, place: usize, rows: &[Row], first: usize, blocks: usize) {
        for block in 0..blocks {
            let mut at = [rows[0].at::<B>(first + block); TOGETHER];
            for (at, row) in at.iter_mut().zip(rows) {
                *at = row.at::<B>(first + block);
            }
            // SAFETY: the rows have these blocks, as the caller promises, and a panel has room for eight rows at `place`.
            unsafe {
                let mut scales = [[_mm256_setzero_si256(); TOGETHER]; 2];
                let mut least = [[_mm256_setzero_si256(); TOGETHER]; 2];
                for row in 0..TOGETHER {
                    let of_row = B::scales(at[row]);
                    for vector in 0..B::VECTORS {
                        scales[vector][row] = _mm256_castps_si256(of_row.scales[vector]);
                        least[vector][row] = _mm256_castps_si256(of_row.least[vector]);
                    }
                }
                for vector in 0..B::VECTORS {
                    let group = TOGETHER * (B::VECTORS * block + vector);
                    write(transposed(scales[vector]), &mut self.scales[group..], place);
                    if B::LEAST {
                        write(transposed(least[vector]), &mut self.least[group..], place);
                    }
                }
                each_eighth!(eighth => {
                    let mut numbers = [_mm256_setzero_si256(); TOGETHER];
                    for row in 0..TOGETHER {
                        numbers[row] = B::numbers(at[row], eighth);
                    }
                    let step = TOGETHER * (8 * block + eighth);
                    write(transposed(numbers), &mut self.numbers[step..], place);
                });
            }
        }
    }
}

/// Writes a vector to each step, at the place of eight rows.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn write<T>(vectors: [__m256i; TOGETHER], steps: &mut [[T; PANEL_ROWS]], place: usize) {
    for (vector, step) in vectors.into_iter().zip(steps) {
        let places = &mut step[place..place + TOGETHER];
        assert_eq!(size_of_val(places), size_of::<__m256i>(), "numbers of another size");
        // SAFETY: eight places are a vector.
        unsafe { _mm256_storeu_si256(places.as_mut_ptr().cast(), vector) };
    }
}

/// Eight vectors of eight numbers of 32 bits: rows become columns.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn transposed(rows: [__m256i; TOGETHER]) -> [__m256i; TOGETHER] {
    let [a, b, c, d, e, f, g, h] = rows;
    // SAFETY: as the caller promises.
    unsafe {
        let (ab, ab_upper) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let (cd, cd_upper) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        let (ef, ef_upper) = (_mm256_unpacklo_epi32(e, f), _mm256_unpackhi_epi32(e, f));
        let (gh, gh_upper) = (_mm256_unpacklo_epi32(g, h), _mm256_unpackhi_epi32(g, h));
        // A number of four rows, and the one four places on.
        let first = [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(ab_upper, cd_upper),
            _mm256_unpackhi_epi64(ab_upper, cd_upper),
        ];
        let second = [
            _mm256_unpacklo_epi64(ef, gh),
            _mm256_unpackhi_epi64(ef, gh),
            _mm256_unpacklo_epi64(ef_upper, gh_upper),
            _mm256_unpackhi_epi64(ef_upper, gh_upper),
        ];
        [
            _mm256_permute2x128_si256::<0x20>(first[0], second[0]),
            _mm256_permute2x128_si256::<0x20>(first[1], second[1]),
            _mm256_permute2x128_si256::<0x20>(first[2], second[2]),
            _mm256_permute2x128_si256::<0x20>(first[3], second[3]),
            _mm256_permute2x128_si256::<0x31>(first[0], second[0]),
            _mm256_permute2x128_si256::<0x31>(first[1], second[1]),
            _mm256_permute2x128_si256::<0x31>(first[2], second[2]),
            _mm256_permute2x128_si256::<0x31>(first[3], second[3]),
        ]
    }
}

/// A part of a panel, and as many numbers of some rows of `x`.
struct Part<'a> {
    panel: &'a Panel,
    /// Numbers of each row.
    length: usize,
    numbers: &'a [i8],
    /// Of the groups of each row, as in [`WholeRows`].
    scales: &'a [f32],
    sums: &'a [f32],
    begins: &'a [i32],
}

impl Part<'_> {
    /// The products of `X` rows with the panel's.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn tile<B: WholeBlock, const X: usize>(&self, sums: &mut [[f32; PANEL_ROWS]; X_ROWS]) {
        let steps = NUMBERS / (8 * B::VECTORS) / STEP;
        let (length, count) = (self.length, self.length / (STEP * steps));
        assert!(self.numbers.len() == X * length && length <= PART, "rows of another length");
        assert!([self.scales.len(), self.sums.len(), self.begins.len()] == [X * count; 3], "other groups");
        let numbers: *const i8 = self.numbers.as_ptr();
        let mut totals = [[_mm512_setzero_ps(); 2]; X];
        for group in 0..count {
            let mut products = [[_mm512_setzero_si512(); 2]; X];
            for (row, products) in products.iter_mut().enumerate() {
                *products = [_mm512_set1_epi32(self.begins[row * count + group]); 2];
            }
            for step in group * steps..(group + 1) * steps {
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
            for (row, (totals, products)) in totals.iter_mut().zip(products).enumerate() {
                let scale = _mm512_set1_ps(self.scales[row * count + group]);
                for half in 0..2 {
                    let sum = _mm512_mul_ps(_mm512_cvtepi32_ps(products[half]), scales[half]);
                    totals[half] = _mm512_fmadd_ps(sum, scale, totals[half]);
                }
            }
            if B::LEAST {
                let least = halves(&self.panel.least[group]);
                for (row, totals) in totals.iter_mut().enumerate() {
                    let sum = _mm512_set1_ps(self.sums[row * count + group]);
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
