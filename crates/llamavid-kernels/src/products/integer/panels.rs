//! int8 dot products of many rows with weights in blocks: four multiplications and additions for each that f32 does in the same
//! time.
//!
//! Weights are laid out so that a vector holds four numbers of each of sixteen rows, which is done once for all rows of
//! `x`. Groups of such vectors are matrices as AMX multiplies them.

use std::arch::x86_64::{
    __m256i, _mm256_castps_si256, _mm256_permute2x128_si256, _mm256_set1_epi8, _mm256_setzero_si256,
    _mm256_storeu_si256, _mm256_sub_epi8, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64,
    _mm256_unpacklo_epi32, _mm256_unpacklo_epi64, _mm512_cvtepi32_ps, _mm512_fmadd_ps, _mm512_fnmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};
use std::hint::black_box;
use std::ops::Range;

use crate::formats::block_format::{BlockFormat, IntegerLayout};
use crate::formats::block_types::{BlockType, NUMBERS, each_eighth, with_block};
use crate::formats::integer_blocks::{IntegerBlock, Row};
use crate::formats::interleaved::INTERLEAVED_ROWS;
use crate::formats::interleaved_blocks::{Interleaved, InterleavedBlock, Scales};
use crate::instructions::amx::{GROUPS, Products, SIDE, Tiles};
use crate::instructions::integer_vectors::{Avx2, Avx512Vnni, AvxVnni, IntegerVectors};
use crate::instructions::prefetch::CACHE_LINE;
use crate::instructions::processor::{IntegerDot, Processor};
use crate::products::integer::quantised_rows::QuantisedRows;
use crate::products::{Output, Weights};

/// Rows of weights that are laid out together: two vectors of sixteen.
pub(crate) const PANEL_ROWS: usize = 32;
/// Rows of weights that meet a part of `x` while it is in the L2 cache.
pub(crate) const MOST_ROWS: usize = 2 * PANEL_ROWS;
/// Numbers of a row that are multiplied at a time: those of a panel stay in the L1 cache.
pub(crate) const PART: usize = 512;
/// Numbers that one instruction multiplies and adds up in a lane.
const STEP: usize = 4;
/// Rows of weights that change places with as many vectors.
const TOGETHER: usize = 8;

/// Adds the products of all rows of `x`, in parts of [`PART`], with up to [`MOST_ROWS`] rows of weights; their results are the columns
/// from `column` on.
///
/// # Safety
/// The processor has the instructions; the result lives, and nobody else uses these columns.
pub(crate) unsafe fn add_panels(
    processor: Processor,
    x: &QuantisedRows,
    weights: Weights,
    column: usize,
    output: Output,
) {
    // SAFETY: as the caller promises.
    unsafe {
        match processor {
            Processor::Avx512(_, IntegerDot::Tiles) => {
                with_block!(x.format, B => add_in_matrices::<B>(x, weights, column, output), ());
            }
            Processor::Avx512(_, IntegerDot::Quads) => {
                with_block!(x.format, B => add_wide::<B>(x, weights, column, output), ());
            }
            Processor::Avx2(_, IntegerDot::Quads) => {
                with_block!(x.format, B => add_narrow::<B>(x, weights, column, output), ());
            }
            _ => with_block!(x.format, B => add_pairs::<B>(x, weights, column, output), ()),
        }
    }
}

/// Groups of a row of `x` that are to share a scale.
pub(crate) fn sharing(format: BlockFormat) -> usize {
    with_block!(format, B => B::SHARING, 1)
}

/// # Safety
/// As [`add_panels`], and the processor has AVX-512 and AMX, which the process may use.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")]
unsafe fn add_in_matrices<B: InterleavedBlock + IntegerBlock>(
    x: &QuantisedRows,
    weights: Weights,
    column: usize,
    output: Output,
) {
    // SAFETY: as the caller promises; whoever calls has no tiles of its own.
    unsafe { add::<B, Matrices>(&Matrices(Tiles::new(x.group)), x, weights, column, output) }
}

/// # Safety
/// As [`add_panels`], and the processor has AVX-512 with VNNI.
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn add_wide<B: InterleavedBlock + IntegerBlock>(
    x: &QuantisedRows,
    weights: Weights,
    column: usize,
    output: Output,
) {
    // SAFETY: as the caller promises.
    unsafe { add::<B, Avx512Vnni>(&Avx512Vnni, x, weights, column, output) }
}

/// # Safety
/// As [`add_panels`], and the processor has AVX2, FMA, F16C and AVX-VNNI.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn add_narrow<B: InterleavedBlock + IntegerBlock>(
    x: &QuantisedRows,
    weights: Weights,
    column: usize,
    output: Output,
) {
    // SAFETY: as the caller promises.
    unsafe { add::<B, AvxVnni>(&AvxVnni, x, weights, column, output) }
}

/// # Safety
/// As [`add_panels`], and the processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_pairs<B: InterleavedBlock + IntegerBlock>(
    x: &QuantisedRows,
    weights: Weights,
    column: usize,
    output: Output,
) {
    // SAFETY: as the caller promises.
    unsafe { add::<B, Avx2>(&Avx2, x, weights, column, output) }
}

/// A number of each row of a panel, aligned to cache lines: vectors that cross two take twice as long to read.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct OfRows<T>([T; PANEL_ROWS]);

/// Of a row of `x` and each row of a panel.
type Sums = OfRows<f32>;

/// How rows are multiplied with a part of a panel.
trait Kind {
    /// Rows of `x` at most.
    const X_ROWS: usize;
    /// Whether as many rows of `x` are always read.
    const MATRICES: bool;
    /// The vectors that interleaved rows are read in.
    type Lanes: IntegerVectors;

    /// Whether weights are signed. Otherwise products begin with what their zero point takes.
    #[inline(always)]
    fn signed<B: BlockType>() -> bool {
        Self::MATRICES || B::EIGHT_BITS && Self::Lanes::IN_PAIRS
    }

    /// Adds the products of `width` rows of `x` with the panel's to their sums, of which there are as many as rows are read.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn multiply<B: IntegerBlock>(&self, part: &Part, width: usize, sums: &mut [Sums]);
}

/// # Safety
/// As [`add_panels`].
#[inline(always)]
unsafe fn add<B: InterleavedBlock + IntegerBlock, K: Kind>(
    kind: &K,
    x: &QuantisedRows,
    weights: Weights,
    column: usize,
    output: Output,
) {
    // Interleaved rows lie in the order in which they are read.
    if let Weights::Blocks(_, bytes) = weights {
        into_cache(bytes);
    }
    let all = weights.bytes().len() / x.row_bytes;
    let of_panels = (0..all).step_by(PANEL_ROWS).map(|first| {
        let weights =
            weights.part(first..all.min(first + PANEL_ROWS), x.row_bytes / B::BLOCK_BYTES * B::BLOCK_NUMBERS);
        let (groups, rows) = weights.groups(x.row_bytes);
        (groups, rows.chunks_exact(x.row_bytes).map(Row::new::<B>).collect())
    });
    let of_panels: Vec<(&[u8], Vec<Row>)> = of_panels.collect();
    let offset =
        if K::signed::<B>() { IntegerLayout::of(x.format).map_or(0, |whole| whole.offset) } else { 0 };
    let mut panel = Panel::new(x.group);
    // Of all parts, and only then added to the result, whose rows lie far apart.
    let room = x.count.next_multiple_of(K::X_ROWS);
    let mut sums = vec![OfRows([0.0; PANEL_ROWS]); of_panels.len() * room];
    for first in (0..x.columns).step_by(PART) {
        let length = PART.min(x.columns - first);
        for ((groups, rows), sums) in of_panels.iter().zip(sums.chunks_exact_mut(room)) {
            for (index, group) in groups.chunks_exact(INTERLEAVED_ROWS * x.row_bytes).enumerate() {
                // SAFETY: the processor has the instructions, as the caller promises.
                unsafe {
                    let blocks = first / B::BLOCK_NUMBERS..(first + length) / B::BLOCK_NUMBERS;
                    panel.take::<B, K>(index * INTERLEAVED_ROWS, group, offset as i8, blocks);
                };
            }
            let interleaved = groups.len() / x.row_bytes;
            for (index, rows) in rows.chunks(TOGETHER).enumerate() {
                // SAFETY: as above.
                unsafe {
                    let place = interleaved + index * TOGETHER;
                    panel.lay_out::<B, K>(place, rows, offset as i8, first / NUMBERS, length / NUMBERS)
                };
            }
            let mut at = 0;
            while at < x.count {
                let left = x.count - at;
                let (width, read) = match K::MATRICES {
                    true => (K::X_ROWS.min(left), K::X_ROWS),
                    // As many each time as can be: few rows wait for their own products.
                    false => [left.div_ceil(left.div_ceil(K::X_ROWS)); 2].into(),
                };
                let (begin, end) = (first * x.count + at * length, first * x.count + (at + read) * length);
                let groups = begin / x.group..end / x.group;
                let part = Part {
                    panel: &panel,
                    length,
                    numbers: &x.numbers[begin..end],
                    scales: &x.scales[groups.clone()],
                    sums: &x.sums[groups.clone()],
                    begins: &x.begins[groups],
                };
                // SAFETY: the processor has the instructions, as the caller promises.
                unsafe { kind.multiply::<B>(&part, width, &mut sums[at..at + read]) };
                at += width;
            }
        }
    }
    for row in 0..x.count {
        for (index, sums) in sums.chunks_exact(room).enumerate() {
            let first = index * PANEL_ROWS;
            // SAFETY: as the caller promises.
            unsafe { output.add(row, column + first, &sums[row].0[..PANEL_ROWS.min(all - first)]) };
        }
    }
}

/// Reads rows in the order in which they lie. Memory gives them several times as quickly as a piece of each in turn, which is how
/// they are laid out.
pub(crate) fn into_cache(rows: &[u8]) {
    rows.iter().step_by(CACHE_LINE).for_each(|byte| {
        std::hint::black_box(*byte);
    });
}

/// A part of some rows of weights: four numbers of each row, then the next four.
struct Panel {
    numbers: Vec<OfRows<[u8; STEP]>>,
    /// Of each group, for each row.
    scales: Vec<OfRows<f32>>,
    mins: Vec<OfRows<f32>>,
}

impl Panel {
    fn new(group: usize) -> Self {
        Self {
            numbers: vec![OfRows([[0; STEP]; PANEL_ROWS]); PART / STEP],
            scales: vec![OfRows([0.0; PANEL_ROWS]); PART / group],
            mins: vec![OfRows([0.0; PANEL_ROWS]); PART / group],
        }
    }

    /// Takes some blocks of sixteen interleaved rows, to places from `place` on, less `offset` for matrices. Behind the last block of the
    /// rows there are zeros.
    ///
    /// # Safety
    /// The processor has the instructions.
    #[inline(always)]
    unsafe fn take<B: InterleavedBlock, K: Kind>(
        &mut self,
        place: usize,
        group: &[u8],
        offset: i8,
        blocks: Range<usize>,
    ) {
        let all = group.len() / (INTERLEAVED_ROWS * B::BLOCK_BYTES);
        let (of_block, steps) = (B::BLOCK_NUMBERS / B::GROUP, B::BLOCK_NUMBERS / STEP);
        for (index, block) in blocks.enumerate() {
            let scales = &mut self.scales[index * of_block..(index + 1) * of_block];
            let mins = &mut self.mins[index * of_block..(index + 1) * of_block];
            let numbers = &mut self.numbers[index * steps..(index + 1) * steps];
            if block >= all {
                for numbers in scales.iter_mut().chain(mins) {
                    numbers.0[place..place + INTERLEAVED_ROWS].fill(0.0);
                }
                continue;
            }
            for row in (0..INTERLEAVED_ROWS).step_by(K::Lanes::LANES) {
                let places = place + row..place + row + K::Lanes::LANES;
                // SAFETY: the group has this block, and places of a panel are a vector.
                unsafe {
                    let at = group.as_ptr().add(block * INTERLEAVED_ROWS * B::BLOCK_BYTES);
                    let block = Interleaved::<0> { at, row };
                    let of_groups = B::Scales::<K::Lanes>::new(block);
                    each_eighth!(part => {
                        if part < B::PARTS {
                            let [first, second] = B::places(part);
                            for step in 0..B::STEPS {
                                let [mut a, mut b] = B::quads::<K::Lanes, 0>(block, part, step);
                                // int8 are signed already.
                                if K::signed::<B>() != B::EIGHT_BITS {
                                    let offset = if B::EIGHT_BITS { i8::MIN } else { offset };
                                    let offset = K::Lanes::splat_integers(i32::from_ne_bytes([offset as u8; 4]));
                                    a = K::Lanes::less(a, offset);
                                    b = K::Lanes::less(b, offset);
                                }
                                let a_to = &mut numbers[first / STEP + step].0[places.clone()];
                                K::Lanes::store_integers(a_to.as_mut_ptr().cast(), a);
                                let b_to = &mut numbers[second / STEP + step].0[places.clone()];
                                K::Lanes::store_integers(b_to.as_mut_ptr().cast(), b);
                            }
                        }
                    });
                    for (index, (scales, mins)) in scales.iter_mut().zip(&mut *mins).enumerate() {
                        let [scale, of_min] = of_groups.of(index);
                        K::Lanes::store(scales.0[places.clone()].as_mut_ptr(), scale);
                        if B::HAS_MINS {
                            K::Lanes::store(mins.0[places.clone()].as_mut_ptr(), of_min);
                        }
                    }
                }
            }
        }
    }

    /// Takes `blocks` times 256 numbers of up to eight rows, to places from `place` on, less `offset` for matrices. The first row stands
    /// in for those that are missing: nobody reads their sums.
    ///
    /// # Safety
    /// The processor has AVX2 and F16C; the rows have as many blocks.
    #[inline(always)]
    unsafe fn lay_out<B: IntegerBlock, K: Kind>(
        &mut self,
        place: usize,
        rows: &[Row],
        offset: i8,
        first: usize,
        blocks: usize,
    ) {
        for block in 0..blocks {
            let mut at = [rows[0].at::<B>(first + block); TOGETHER];
            for (at, row) in at.iter_mut().zip(rows) {
                *at = row.at::<B>(first + block);
            }
            // SAFETY: the rows have these blocks, as the caller promises, and a panel has room for eight rows at `place`.
            unsafe {
                let mut scales = [[_mm256_setzero_si256(); TOGETHER]; 2];
                let mut mins = [[_mm256_setzero_si256(); TOGETHER]; 2];
                for row in 0..TOGETHER {
                    let of_row = B::scales(at[row]);
                    for vector in 0..B::VECTORS {
                        scales[vector][row] = _mm256_castps_si256(of_row.scales[vector]);
                        mins[vector][row] = _mm256_castps_si256(of_row.mins[vector]);
                    }
                }
                for vector in 0..B::VECTORS {
                    let group = TOGETHER * (B::VECTORS * block + vector);
                    write(transposed(scales[vector]), &mut self.scales[group..], place);
                    if B::HAS_MINS {
                        write(transposed(mins[vector]), &mut self.mins[group..], place);
                    }
                }
                each_eighth!(eighth => {
                    let mut numbers = [_mm256_setzero_si256(); TOGETHER];
                    for row in 0..TOGETHER {
                        numbers[row] = B::numbers(at[row], eighth);
                        if K::signed::<B>() {
                            numbers[row] = _mm256_sub_epi8(numbers[row], _mm256_set1_epi8(offset));
                        }
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
unsafe fn write<T>(vectors: [__m256i; TOGETHER], steps: &mut [OfRows<T>], place: usize) {
    for (vector, step) in vectors.into_iter().zip(steps) {
        let places = &mut step.0[place..place + TOGETHER];
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

/// Two vectors from a place on.
///
/// # Safety
/// The processor has the instructions, and so many numbers are there.
#[inline(always)]
unsafe fn two<V: IntegerVectors>(of_rows: *const OfRows<f32>, at: usize) -> [V::Floats; 2] {
    // SAFETY: as the caller promises.
    unsafe {
        let of_rows = of_rows.cast::<f32>().add(at);
        [V::load(of_rows), V::load(of_rows.add(V::LANES))]
    }
}

/// A part of a panel, and as many numbers of some rows of `x`.
struct Part<'a> {
    panel: &'a Panel,
    /// Numbers of each row.
    length: usize,
    numbers: &'a [i8],
    /// Of the groups of each row, as in [`QuantisedRows`].
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
    unsafe fn tile<B: IntegerBlock, V: Vectors, const X: usize>(&self, sums: &mut [Sums]) {
        let steps = NUMBERS / (8 * B::VECTORS) / STEP;
        let (length, count) = (self.length, self.length / (STEP * steps));
        assert!(self.numbers.len() == X * length && length <= PART, "rows of another length");
        assert!([self.scales.len(), self.sums.len(), self.begins.len()] == [X * count; 3], "other groups");
        assert!(sums.len() == X && count.is_multiple_of(B::SHARING), "sums of other rows");
        let numbers: *const i8 = self.numbers.as_ptr();
        let (scales, of_groups, begins): (*const f32, *const f32, *const i32) =
            (self.scales.as_ptr(), self.sums.as_ptr(), self.begins.as_ptr());
        let panel: (*const OfRows<[u8; STEP]>, *const OfRows<f32>, *const OfRows<f32>) =
            (self.panel.numbers.as_ptr(), self.panel.scales.as_ptr(), self.panel.mins.as_ptr());
        let signed = B::EIGHT_BITS && V::IN_PAIRS;
        let run = V::run(B::BITS).min(steps);
        // No constant: compilers add up pairs in another order, and run out of registers.
        let run = if V::IN_PAIRS { black_box(run) } else { run };
        // Two vectors at a time.
        for at in (0..PANEL_ROWS).step_by(2 * V::LANES) {
            // SAFETY: a panel's rows are whole vectors, two of which begin at `at`; it has these groups, and so have `X` rows of `x`.
            unsafe {
                let mut totals = [[V::splat(0.0); 2]; X];
                if B::SHARING == 1 {
                    for (totals, sums) in totals.iter_mut().zip(&*sums) {
                        *totals = two::<V>(sums, at);
                    }
                }
                for first in (0..count).step_by(B::SHARING) {
                    if B::SHARING > 1 {
                        totals = [[V::splat(0.0); 2]; X];
                    }
                    for group in first..first + B::SHARING {
                        let mut products = [[V::splat_integers(0); 2]; X];
                        for (row, products) in products.iter_mut().enumerate() {
                            let begin = *begins.add(row * count + group);
                            *products =
                                [if signed { V::begin_signed(begin) } else { V::splat_integers(begin) }; 2];
                        }
                        for start in (group * steps..(group + 1) * steps).step_by(run) {
                            let mut narrow = products;
                            for (narrow, products) in narrow.iter_mut().zip(products) {
                                *narrow = [V::narrow(B::BITS, products[0]), V::narrow(B::BITS, products[1])];
                            }
                            for step in start..start + run {
                                let weights: *const u8 =
                                    panel.0.add(step).cast::<[u8; STEP]>().add(at).cast();
                                let weights = [
                                    V::load_integers(weights),
                                    V::load_integers(weights.add(STEP * V::LANES)),
                                ];
                                for (row, narrow) in narrow.iter_mut().enumerate() {
                                    let four = numbers.add(row * length + STEP * step).cast::<i32>();
                                    let four = V::splat_integers(four.read_unaligned());
                                    for half in 0..2 {
                                        narrow[half] = match signed {
                                            true => V::dot_signed(narrow[half], weights[half], four),
                                            false => V::dot(narrow[half], weights[half], four),
                                        };
                                    }
                                }
                            }
                            for (products, narrow) in products.iter_mut().zip(narrow) {
                                *products = [
                                    V::widened(B::BITS, products[0], narrow[0]),
                                    V::widened(B::BITS, products[1], narrow[1]),
                                ];
                            }
                        }
                        let of_weights = two::<V>(panel.1.add(group), at);
                        for (row, (totals, products)) in totals.iter_mut().zip(products).enumerate() {
                            let scale = V::splat(*scales.add(row * count + group));
                            for half in 0..2 {
                                let whole = V::converted(products[half]);
                                totals[half] = match B::SHARING {
                                    1 => V::multiply_add(
                                        V::multiply(whole, of_weights[half]),
                                        scale,
                                        totals[half],
                                    ),
                                    _ => V::multiply_add(whole, of_weights[half], totals[half]),
                                };
                            }
                        }
                        if B::HAS_MINS {
                            let mins = two::<V>(panel.2.add(group), at);
                            for (row, totals) in totals.iter_mut().enumerate() {
                                let sum = V::splat(*of_groups.add(row * count + group));
                                for half in 0..2 {
                                    totals[half] = V::multiply_subtract(mins[half], sum, totals[half]);
                                }
                            }
                        }
                    }
                    if B::SHARING > 1 {
                        // There are no registers for these as well.
                        for (row, (sums, totals)) in sums.iter_mut().zip(totals).enumerate() {
                            let scale = V::splat(*scales.add(row * count + first));
                            let before = two::<V>(sums, at);
                            let into = sums.0.as_mut_ptr().add(at);
                            V::store(into, V::multiply_add(totals[0], scale, before[0]));
                            V::store(into.add(V::LANES), V::multiply_add(totals[1], scale, before[1]));
                        }
                    }
                }
                if B::SHARING == 1 {
                    for (sums, totals) in sums.iter_mut().zip(totals) {
                        let sums = sums.0.as_mut_ptr().add(at);
                        V::store(sums, totals[0]);
                        V::store(sums.add(V::LANES), totals[1]);
                    }
                }
            }
        }
    }
}

impl Part<'_> {
    /// The products of 16 rows with the panel's, in the same order as [`Part::tile`] has them where groups do not share scales, so that
    /// they are the same numbers.
    ///
    /// # Safety
    /// The processor has AVX-512, and the tiles are for groups of this format.
    #[target_feature(enable = "avx512f")]
    unsafe fn matrices<B: IntegerBlock>(&self, tiles: &Tiles, sums: &mut [Sums]) {
        let group = NUMBERS / (8 * B::VECTORS);
        let (length, count) = (self.length, self.length / group);
        assert!(self.numbers.len() == SIDE * length && length <= PART, "rows of another length");
        assert!([self.scales.len(), self.sums.len()] == [SIDE * count; 2], "other groups");
        assert!(count.is_multiple_of(GROUPS), "groups that are not multiplied together");
        assert!(sums.len() == SIDE, "sums of other rows");
        let (x, weights): (*const i8, *const [u8; STEP]) =
            (self.numbers.as_ptr(), self.panel.numbers.as_ptr().cast());
        let (scales, of_groups): (*const f32, *const f32) = (self.scales.as_ptr(), self.sums.as_ptr());
        let steps = [STEP * PANEL_ROWS, group * PANEL_ROWS];
        // Some groups are multiplied while those before them are scaled.
        let mut products = [Products::ZERO; 2];
        for at in (0..PANEL_ROWS).step_by(SIDE) {
            // SAFETY: 16 rows of `x` have these groups, and so has the panel; 16 rows of a panel begin at `at`, and are a vector.
            unsafe {
                let weights = weights.add(at).cast::<i8>();
                let mut totals = [_mm512_setzero_ps(); SIDE];
                for (total, sums) in totals.iter_mut().zip(&*sums) {
                    *total = _mm512_loadu_ps(sums.0.as_ptr().add(at));
                }
                tiles.products(x, length, weights, steps, &mut products[0]);
                for first in (0..count).step_by(GROUPS) {
                    let next = first + GROUPS;
                    if next < count {
                        let weights = weights.add(next * group * PANEL_ROWS);
                        tiles.products(
                            x.add(next * group),
                            length,
                            weights,
                            steps,
                            &mut products[next / GROUPS % 2],
                        );
                    }
                    let products = &products[first / GROUPS % 2].0;
                    for (group, products) in (first..next).zip(products) {
                        let of_weights = _mm512_loadu_ps(self.panel.scales[group].0.as_ptr().add(at));
                        for (row, (total, products)) in totals.iter_mut().zip(products).enumerate() {
                            let whole = _mm512_cvtepi32_ps(_mm512_loadu_si512(products.as_ptr().cast()));
                            let scale = _mm512_set1_ps(*scales.add(row * count + group));
                            *total = _mm512_fmadd_ps(_mm512_mul_ps(whole, of_weights), scale, *total);
                        }
                        if B::HAS_MINS {
                            let mins = _mm512_loadu_ps(self.panel.mins[group].0.as_ptr().add(at));
                            for (row, total) in totals.iter_mut().enumerate() {
                                let sum = _mm512_set1_ps(*of_groups.add(row * count + group));
                                *total = _mm512_fnmadd_ps(mins, sum, *total);
                            }
                        }
                    }
                }
                for (sums, totals) in sums.iter_mut().zip(totals) {
                    _mm512_storeu_ps(sums.0.as_mut_ptr().add(at), totals);
                }
            }
        }
    }
}

/// AMX: the products of a group of 16 rows of `x` with 16 rows of weights are one instruction. AVX-512 scales them and adds them up.
struct Matrices(Tiles);

impl Kind for Matrices {
    const X_ROWS: usize = SIDE;
    const MATRICES: bool = true;
    type Lanes = Avx512Vnni;

    #[inline(always)]
    unsafe fn multiply<B: IntegerBlock>(&self, part: &Part, _width: usize, sums: &mut [Sums]) {
        // SAFETY: as the caller promises.
        unsafe { part.matrices::<B>(&self.0, sums) }
    }
}

/// The vectors of a tile.
trait Vectors: IntegerVectors {
    /// Rows of `x` of a tile: with two vectors of each, their products and sums take most of the registers.
    const X_ROWS: usize;

    /// [`Part::tile`] in these vectors.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn tile<B: IntegerBlock, const X: usize>(part: &Part, sums: &mut [Sums]);
}

impl<V: Vectors> Kind for V {
    const X_ROWS: usize = <V as Vectors>::X_ROWS;
    const MATRICES: bool = false;
    type Lanes = V;

    #[inline(always)]
    unsafe fn multiply<B: IntegerBlock>(&self, part: &Part, width: usize, sums: &mut [Sums]) {
        // SAFETY: as the caller promises.
        unsafe {
            match width {
                1 => V::tile::<B, 1>(part, sums),
                2 => V::tile::<B, 2>(part, sums),
                3 => V::tile::<B, 3>(part, sums),
                4 => V::tile::<B, 4>(part, sums),
                5 => V::tile::<B, 5>(part, sums),
                _ => V::tile::<B, 6>(part, sums),
            }
        }
    }
}

macro_rules! vectors {
    ($name:ident, $features:literal, $x_rows:literal) => {
        impl Vectors for $name {
            const X_ROWS: usize = $x_rows;

            #[inline(always)]
            unsafe fn tile<B: IntegerBlock, const X: usize>(part: &Part, sums: &mut [Sums]) {
                #[target_feature(enable = $features)]
                unsafe fn tile<B: IntegerBlock, const X: usize>(part: &Part, sums: &mut [Sums]) {
                    // SAFETY: as the caller promises.
                    unsafe { part.tile::<B, $name, X>(sums) }
                }
                // SAFETY: as the caller promises.
                unsafe { tile::<B, X>(part, sums) }
            }
        }
    };
}
vectors!(Avx512Vnni, "avx512f,avx512vnni", 6);
// Half as many numbers in half as many registers.
vectors!(AvxVnni, "avx2,fma,avxvnni", 3);
vectors!(Avx2, "avx2,fma", 3);

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::noise::noise;

    #[test]
    fn matrices_give_the_same_numbers_as_vectors() {
        let processors = Processor::tested();
        let [Processor::Avx512(simd, IntegerDot::Tiles), ..] = processors[..] else { return };
        for format in BlockFormat::ALL.into_iter().filter(|format| format.block_length() > 1) {
            for (rows, columns, count) in
                [(32, 256, 16), (1, 256, 1), (31, 768, 17), (9, 1280, 5), (32, 512, 33), (17, 1024, 48)]
            {
                let bytes = format.encode(&noise(rows * columns, 1), columns).unwrap();
                let mut numbers = noise(count * columns, 2);
                numbers[columns / 2] = f32::NAN;
                let x =
                    QuantisedRows::sharing(format, &numbers, columns, Some(PART), sharing(format)).unwrap();
                let [found, expected] = [IntegerDot::Tiles, IntegerDot::Quads].map(|dot| {
                    let mut result = vec![0f32; count * rows];
                    let output = Output::new(&mut result, rows);
                    // SAFETY: the result lives, and nobody else has it.
                    unsafe {
                        add_panels(
                            Processor::Avx512(simd, dot),
                            &x,
                            Weights::Blocks(format, &bytes),
                            0,
                            output,
                        )
                    };
                    result
                });
                assert!(expected[..rows].iter().all(|value| value.is_nan()));
                assert!(found[..rows].iter().all(|value| value.is_nan()));
                let what = format!("{} {rows} x {columns}, {count}", format.name());
                if sharing(format) == 1 {
                    assert_eq!(found[rows..], expected[rows..], "{what}");
                }
                // Scales that groups share are multiplied with later.
                for (found, expected) in found[rows..].iter().zip(&expected[rows..]) {
                    assert!((found - expected).abs() <= 2e-5, "{what}: {found} {expected}");
                }
            }
        }
    }
}
