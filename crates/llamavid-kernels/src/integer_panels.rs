//! Products of many rows with weights in blocks, in whole numbers: four multiplications and additions for each that f32 does in
//! the same time.
//!
//! Weights are laid out so that a vector holds four numbers of each of sixteen rows, which is once the work for all rows of
//! `x`.

use std::arch::x86_64::{
    __m256, __m256i, __m512, __m512i, _mm256_castps_si256, _mm256_cvtepi32_ps, _mm256_dpbusd_avx_epi32,
    _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_mul_ps,
    _mm256_permute2x128_si256, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256, _mm256_storeu_ps,
    _mm256_storeu_si256, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32,
    _mm256_unpacklo_epi64, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_fnmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_storeu_ps,
};

use crate::processor::Processor;
use crate::products::Output;
use crate::whole_blocks::{NUMBERS, Row, WholeBlock, each_eighth, with_block};
use crate::whole_rows::WholeRows;

/// Rows of weights that are laid out together: two vectors of sixteen.
pub(crate) const PANEL_ROWS: usize = 32;
/// Numbers of a row that are multiplied at a time: those of a panel stay in the first cache.
pub(crate) const PART: usize = 512;
/// Rows of `x` of a tile at most.
const X_ROWS: usize = 6;
/// Numbers that one instruction multiplies and adds up in a lane.
const STEP: usize = 4;
/// Rows of weights that change places with as many vectors.
const TOGETHER: usize = 8;

/// Adds the products of all rows of `x`, in parts of [`PART`], with up to [`PANEL_ROWS`] rows of weights, the bytes of which are
/// `rows`; their results are the columns from `column` on.
///
/// # Safety
/// The processor has the instructions; the result lives, and nobody else uses these columns.
pub(crate) unsafe fn add_panel(
    processor: Processor,
    x: &WholeRows,
    rows: &[u8],
    column: usize,
    output: Output,
) {
    // SAFETY: as the caller promises.
    unsafe {
        match processor {
            Processor::Avx512(..) => {
                with_block!(x.format, B => add_wide::<B>(x, rows, column, output), ());
            }
            _ => with_block!(x.format, B => add_narrow::<B>(x, rows, column, output), ()),
        }
    }
}

/// # Safety
/// As [`add_panel`], and the processor has AVX-512 with VNNI.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn add_wide<B: WholeBlock>(x: &WholeRows, rows: &[u8], column: usize, output: Output) {
    // SAFETY: as the caller promises.
    unsafe { add::<B, Wide>(x, rows, column, output) }
}

/// # Safety
/// As [`add_panel`], and the processor has AVX2, FMA, F16C and AVX-VNNI.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn add_narrow<B: WholeBlock>(x: &WholeRows, rows: &[u8], column: usize, output: Output) {
    // SAFETY: as the caller promises.
    unsafe { add::<B, Narrow>(x, rows, column, output) }
}

/// # Safety
/// As [`add_panel`].
#[inline(always)]
unsafe fn add<B: WholeBlock, V: Vectors>(x: &WholeRows, rows: &[u8], column: usize, output: Output) {
    into_cache(rows);
    let rows: Vec<Row> = rows.chunks_exact(x.row_bytes).map(Row::new::<B>).collect();
    let mut panel = Panel::new(x.group);
    for first in (0..x.columns).step_by(PART) {
        let length = PART.min(x.columns - first);
        for (index, rows) in rows.chunks(TOGETHER).enumerate() {
            // SAFETY: the processor has the instructions, as the caller promises.
            unsafe { panel.lay_out::<B>(index * TOGETHER, rows, first / NUMBERS, length / NUMBERS) };
        }
        for at in (0..x.count).step_by(V::X_ROWS) {
            let width = V::X_ROWS.min(x.count - at);
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
                    1 => V::tile::<B, 1>(&part, &mut sums),
                    2 => V::tile::<B, 2>(&part, &mut sums),
                    3 => V::tile::<B, 3>(&part, &mut sums),
                    4 => V::tile::<B, 4>(&part, &mut sums),
                    5 => V::tile::<B, 5>(&part, &mut sums),
                    _ => V::tile::<B, X_ROWS>(&part, &mut sums),
                }
            }
            for (row, sums) in sums.iter().take(width).enumerate() {
                // SAFETY: as the caller promises.
                unsafe { output.add(at + row, column, &sums[..rows.len()]) };
            }
        }
    }
}

/// Reads rows in the order in which they lie. Memory gives them several times as quickly as a piece of each in turn, which is how
/// they are laid out.
fn into_cache(rows: &[u8]) {
    /// Bytes of a line of the caches.
    const LINE: usize = 64;
    rows.iter().step_by(LINE).for_each(|byte| {
        std::hint::black_box(*byte);
    });
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
    /// The processor has the instructions.
    #[inline(always)]
    unsafe fn tile<B: WholeBlock, V: Vectors, const X: usize>(&self, sums: &mut [[f32; PANEL_ROWS]; X_ROWS]) {
        let steps = NUMBERS / (8 * B::VECTORS) / STEP;
        let (length, count) = (self.length, self.length / (STEP * steps));
        assert!(self.numbers.len() == X * length && length <= PART, "rows of another length");
        assert!([self.scales.len(), self.sums.len(), self.begins.len()] == [X * count; 3], "other groups");
        let numbers: *const i8 = self.numbers.as_ptr();
        // Two vectors at a time.
        for at in (0..PANEL_ROWS).step_by(2 * V::LANES) {
            // SAFETY: a panel's rows are whole vectors, two of which begin at `at`; there are `X` rows of `x` of this length.
            unsafe {
                let mut totals = [[V::splat(0.0); 2]; X];
                for group in 0..count {
                    let mut products = [[V::splat_whole(0); 2]; X];
                    for (row, products) in products.iter_mut().enumerate() {
                        *products = [V::splat_whole(self.begins[row * count + group]); 2];
                    }
                    for step in group * steps..(group + 1) * steps {
                        let weights = self.panel.numbers[step].as_ptr().add(at);
                        let weights = [V::load_whole(weights), V::load_whole(weights.add(V::LANES))];
                        for (row, products) in products.iter_mut().enumerate() {
                            let four = numbers.add(row * length + STEP * step).cast::<i32>().read_unaligned();
                            let four = V::splat_whole(four);
                            products[0] = V::dot(products[0], weights[0], four);
                            products[1] = V::dot(products[1], weights[1], four);
                        }
                    }
                    let scales = self.panel.scales[group].as_ptr().add(at);
                    let scales = [V::load(scales), V::load(scales.add(V::LANES))];
                    for (row, (totals, products)) in totals.iter_mut().zip(products).enumerate() {
                        let scale = V::splat(self.scales[row * count + group]);
                        for half in 0..2 {
                            let sum = V::multiply(V::converted(products[half]), scales[half]);
                            totals[half] = V::multiply_add(sum, scale, totals[half]);
                        }
                    }
                    if B::LEAST {
                        let least = self.panel.least[group].as_ptr().add(at);
                        let least = [V::load(least), V::load(least.add(V::LANES))];
                        for (row, totals) in totals.iter_mut().enumerate() {
                            let sum = V::splat(self.sums[row * count + group]);
                            for half in 0..2 {
                                totals[half] = V::multiply_subtract(least[half], sum, totals[half]);
                            }
                        }
                    }
                }
                for (sums, totals) in sums.iter_mut().zip(totals) {
                    V::store(sums.as_mut_ptr().add(at), totals[0]);
                    V::store(sums.as_mut_ptr().add(at + V::LANES), totals[1]);
                }
            }
        }
    }
}

/// The vectors of a tile. Whoever calls these functions has the instructions, and room for what is read or written.
trait Vectors {
    type Whole: Copy;
    type Numbers: Copy;
    /// Numbers of a vector.
    const LANES: usize;
    /// Rows of `x` of a tile: with two vectors of each, their products and sums take most of the registers.
    const X_ROWS: usize;

    /// [`Part::tile`] in these vectors.
    unsafe fn tile<B: WholeBlock, const X: usize>(part: &Part, sums: &mut [[f32; PANEL_ROWS]; X_ROWS]);
    unsafe fn splat(value: f32) -> Self::Numbers;
    unsafe fn splat_whole(value: i32) -> Self::Whole;
    unsafe fn load(at: *const f32) -> Self::Numbers;
    unsafe fn load_whole(at: *const [u8; STEP]) -> Self::Whole;
    unsafe fn store(at: *mut f32, values: Self::Numbers);
    unsafe fn dot(sums: Self::Whole, weights: Self::Whole, x: Self::Whole) -> Self::Whole;
    unsafe fn converted(values: Self::Whole) -> Self::Numbers;
    unsafe fn multiply(a: Self::Numbers, b: Self::Numbers) -> Self::Numbers;
    /// `a * b + c`.
    unsafe fn multiply_add(a: Self::Numbers, b: Self::Numbers, c: Self::Numbers) -> Self::Numbers;
    /// `c - a * b`.
    unsafe fn multiply_subtract(a: Self::Numbers, b: Self::Numbers, c: Self::Numbers) -> Self::Numbers;
}

macro_rules! vectors {
    ($(#[$meta:meta])* $name:ident, $features:literal, $whole:ty, $numbers:ty, $lanes:literal, $x_rows:literal,
        $splat:ident, $splat_whole:ident, $load:ident, $load_whole:ident, $store:ident,
        $dot:ident, $converted:ident, $multiply:ident, $multiply_add:ident, $multiply_subtract:ident) => {
        $(#[$meta])*
        struct $name;

        impl Vectors for $name {
            type Whole = $whole;
            type Numbers = $numbers;
            const LANES: usize = $lanes;
            const X_ROWS: usize = $x_rows;

            #[inline(always)]
            unsafe fn tile<B: WholeBlock, const X: usize>(part: &Part, sums: &mut [[f32; PANEL_ROWS]; X_ROWS]) {
                #[target_feature(enable = $features)]
                unsafe fn tile<B: WholeBlock, const X: usize>(part: &Part, sums: &mut [[f32; PANEL_ROWS]; X_ROWS]) {
                    // SAFETY: as the caller promises.
                    unsafe { part.tile::<B, $name, X>(sums) }
                }
                // SAFETY: as the caller promises.
                unsafe { tile::<B, X>(part, sums) }
            }

            vectors!(splat($splat; value: f32) -> $numbers);
            vectors!(splat_whole($splat_whole; value: i32) -> $whole);
            vectors!(dot($dot; sums: $whole, weights: $whole, x: $whole) -> $whole);
            vectors!(converted($converted; values: $whole) -> $numbers);
            vectors!(multiply($multiply; a: $numbers, b: $numbers) -> $numbers);
            vectors!(multiply_add($multiply_add; a: $numbers, b: $numbers, c: $numbers) -> $numbers);
            vectors!(multiply_subtract($multiply_subtract; a: $numbers, b: $numbers, c: $numbers) -> $numbers);
            vectors!(load($load; at: *const f32) -> $numbers);

            #[inline(always)]
            unsafe fn load_whole(at: *const [u8; STEP]) -> $whole {
                // SAFETY: as the caller promises.
                unsafe { $load_whole(at.cast()) }
            }

            #[inline(always)]
            unsafe fn store(at: *mut f32, values: $numbers) {
                // SAFETY: as the caller promises.
                unsafe { $store(at, values) }
            }
        }
    };
    ($name:ident($instruction:ident; $($argument:ident: $type:ty),*) -> $result:ty) => {
        #[inline(always)]
        unsafe fn $name($($argument: $type),*) -> $result {
            // SAFETY: as the caller promises.
            unsafe { $instruction($($argument),*) }
        }
    };
}

vectors!(
    /// AVX-512 with VNNI.
    Wide, "avx512f,avx512vnni", __m512i, __m512, 16, 6,
    _mm512_set1_ps, _mm512_set1_epi32, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_storeu_ps,
    _mm512_dpbusd_epi32, _mm512_cvtepi32_ps, _mm512_mul_ps, _mm512_fmadd_ps, _mm512_fnmadd_ps
);
vectors!(
    /// AVX2 with AVX-VNNI: half as many numbers in half as many registers.
    Narrow, "avx2,fma,avxvnni", __m256i, __m256, 8, 3,
    _mm256_set1_ps, _mm256_set1_epi32, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_storeu_ps,
    _mm256_dpbusd_avx_epi32, _mm256_cvtepi32_ps, _mm256_mul_ps, _mm256_fmadd_ps, _mm256_fnmadd_ps
);
