//! Scores and weighted sums of values in AMX tiles, for keys and values in blocks of int8 or 4 bits (Q8_0, Q4_0).
//!
//! Keys and values are multiplied as they lie. Queries, and probabilities times the scales of the values, are quantised to int16, with a
//! scale for 32 numbers, or for 64 probabilities: their upper and their lower bytes are two rows of a tile, whose sums are put together
//! again. That errs by a hundredth of what int8 does.

use std::arch::x86_64::{
    __m256i, __m512, __m512i, _mm256_set1_epi8, _mm256_store_si256, _mm256_sub_epi8, _mm256_unpackhi_epi8,
    _mm256_unpackhi_epi16, _mm256_unpacklo_epi8, _mm256_unpacklo_epi16, _mm512_add_epi32, _mm512_and_si512,
    _mm512_castps_si512, _mm512_castsi256_si512, _mm512_cvtepi32_epi16, _mm512_cvtepi32_ps, _mm512_cvtph_ps,
    _mm512_cvtps_epi32, _mm512_fmadd_ps, _mm512_i32gather_epi32, _mm512_inserti64x4, _mm512_load_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_max_epu32, _mm512_mul_ps, _mm512_mullo_epi32,
    _mm512_packs_epi16, _mm512_packs_epi32, _mm512_packus_epi16, _mm512_reduce_max_epu32, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_f32x4,
    _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_srai_epi32, _mm512_store_ps, _mm512_store_si512,
    _mm512_storeu_ps, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};

use crate::formats::block_format::{BlockFormat, IntegerLayout, SMALL};
use crate::formats::block_types::{NUMBERS, Q4_0, Q8_0};
use crate::formats::integer_blocks::IntegerBlock;
use crate::instructions::amx::{LONGEST, Products, ProductsOfGroup, SIDE, Tiles};
use crate::instructions::processor::{IntegerDot, Processor};
use crate::instructions::vector::NEAREST;

/// Positions that are laid out at a time: their probabilities are a row of a tile.
pub(super) const TURN: usize = LONGEST;
/// Queries of a tile: its first rows have the upper bits of as many, its last rows the lower ones.
const QUERIES: usize = SIDE / 2;
/// Sides of a turn: the keys of one are the right operand of a product.
const SIDES: usize = TURN / SIDE;
/// The largest int16 that is used, so that the upper byte is between -127 and 127, when the lower is signed too.
const MOST: f32 = 127.0 * 256.0;
/// Probabilities of which the largest is smaller count as 0: its inverse would be no f32.
const MIN_PROBABILITY: f32 = 1e-30;

/// Bytes of a row of a tile.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Row([i8; LONGEST]);

impl Row {
    const ZERO: Self = Self([0; LONGEST]);
}

/// A number for each position of a turn.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct OfTurn([f32; TURN]);

/// Rows of a tile of queries, two of which are in a [`Row`].
const QUERY_ROWS: usize = SIDE * SMALL / LONGEST;
/// Rows of a tile of keys.
const KEY_ROWS: usize = SMALL / 4;
/// Tiles of values of a block of numbers, and rows of one.
const VALUE_TILES: usize = SMALL / SIDE;
const VALUE_ROWS: usize = TURN / 4;

/// Some queries, and room for what they are multiplied with.
pub(super) struct QueriesInTiles {
    format: BlockFormat,
    count: usize,
    /// Blocks of a row.
    blocks: usize,
    /// Of each [`QUERIES`], and each block, a tile.
    numbers: Vec<Row>,
    /// Of the same, what the numbers of each query are to be multiplied with.
    scales: Vec<[f32; QUERIES]>,
    /// Keys or values of a turn.
    laid_out: Vec<Row>,
    /// Of each block, the scales of a turn.
    of_turn: Vec<OfTurn>,
    /// Of each block of values, the largest of these, which are divided by it.
    most: Vec<f32>,
    /// Of each block, a tile of probabilities.
    probabilities: Vec<Row>,
    /// Of each block, the products with the keys of each side, or with each tile of values.
    products: Vec<Products>,
    /// Rows of a turn, where there are fewer.
    last: Vec<u8>,
}

impl QueriesInTiles {
    /// `queries` (count, width) for keys and values in `format`; none for other formats and processors.
    pub(super) fn new(
        processor: Processor,
        format: BlockFormat,
        queries: &[f32],
        width: usize,
    ) -> Option<Self> {
        let tiles = matches!(processor, Processor::Avx512(_, IntegerDot::Tiles));
        let small = matches!(format, BlockFormat::Q8_0 | BlockFormat::Q4_0);
        if !tiles || !small || width == 0 || !width.is_multiple_of(SMALL) {
            return None;
        }
        let (count, blocks) = (queries.len() / width, width / SMALL);
        let tiles = count.div_ceil(QUERIES) * blocks;
        let mut numbers = vec![Row::ZERO; tiles * QUERY_ROWS];
        let mut scales = vec![[0f32; QUERIES]; tiles];
        for (index, query) in queries.chunks_exact(width).enumerate() {
            for (block, values) in query.as_chunks::<SMALL>().0.iter().enumerate() {
                let tile = index / QUERIES * blocks + block;
                let (scale, whole) = rounded(values);
                scales[tile][index % QUERIES] = scale;
                let rows = &mut numbers[tile * QUERY_ROWS..][..QUERY_ROWS];
                for (bits, place) in [(0, index % QUERIES), (1, index % QUERIES + QUERIES)] {
                    let row = &mut rows[place / 2].0[place % 2 * SMALL..][..SMALL];
                    row.iter_mut().zip(&whole).for_each(|(byte, whole)| *byte = whole[bits]);
                }
            }
        }
        Some(Self {
            format,
            count,
            blocks,
            numbers,
            scales,
            laid_out: vec![Row::ZERO; blocks * VALUE_TILES * VALUE_ROWS],
            of_turn: vec![OfTurn([0.0; TURN]); blocks],
            most: vec![0.0; blocks],
            probabilities: vec![Row::ZERO; blocks * SIDE],
            products: vec![Products::ZERO; blocks],
            last: Vec::new(),
        })
    }

    /// Writes the products with rows of keys: those of a query `stride` behind those of the one before. Behind those of the last key
    /// something is written up to a multiple of [`TURN`].
    pub(super) fn score(&mut self, keys: &[u8], scores: &mut [f32], stride: usize) {
        // SAFETY: `new` has looked for the instructions, and for the format.
        unsafe {
            match self.format {
                BlockFormat::Q8_0 => self.score_blocks::<Q8_0>(keys, scores, stride),
                _ => self.score_blocks::<Q4_0>(keys, scores, stride),
            }
        }
    }

    /// Adds rows of values, each times its probability, to sums (count, width). The probabilities of a query are `stride` behind
    /// those of the one before, none of them is below 0, and they are 0 behind the last row up to a multiple of [`TURN`].
    pub(super) fn add_weighted(
        &mut self,
        values: &[u8],
        (probabilities, stride): (&[f32], usize),
        sums: &mut [f32],
    ) {
        // SAFETY: as above.
        unsafe {
            match self.format {
                BlockFormat::Q8_0 => self.add_blocks::<Q8_0>(values, (probabilities, stride), sums),
                _ => self.add_blocks::<Q4_0>(values, (probabilities, stride), sums),
            }
        }
    }

    /// # Safety
    /// The processor has AMX and AVX-512, the process may use them, and the keys are of this format.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn score_blocks<B: IntegerBlock>(&mut self, keys: &[u8], scores: &mut [f32], stride: usize) {
        let (blocks, row_bytes) = (self.blocks, self.blocks * block_bytes::<B>());
        let turns = keys.len().div_ceil(TURN * row_bytes);
        let last = (self.count - 1) * stride + turns * TURN;
        assert!(turns * TURN <= stride && last <= scores.len(), "no room for the scores");
        // SAFETY: whoever calls has no tiles of its own.
        let tiles = unsafe { Tiles::new(SMALL) };
        for (turn, rows) in keys.chunks(TURN * row_bytes).enumerate() {
            let rows = whole_turn(rows, row_bytes, &mut self.last);
            for block in 0..blocks {
                // SAFETY: the rows of a turn, and of a tile for each side, are there.
                unsafe {
                    let at = rows.add(block * block_bytes::<B>());
                    read_scales(at, row_bytes, &mut self.of_turn[block]);
                    for side in 0..SIDES {
                        let laid_out = &mut self.laid_out[(block * SIDES + side) * KEY_ROWS..][..KEY_ROWS];
                        lay_out_keys::<B>(at.add(side * SIDE * row_bytes), row_bytes, laid_out);
                    }
                }
            }
            for first in (0..self.count).step_by(QUERIES) {
                let tile = first / QUERIES * blocks;
                let mut before = (blocks - 1, SIDES - 1);
                for (block, numbers) in
                    self.numbers[tile * QUERY_ROWS..].chunks_exact(QUERY_ROWS).take(blocks).enumerate()
                {
                    for side in 0..SIDES {
                        let keys = &self.laid_out[(block * SIDES + side) * KEY_ROWS..][..KEY_ROWS];
                        // SAFETY: both are whole tiles.
                        unsafe {
                            let into = &mut self.products[before.0].0[before.1];
                            tiles.next_products(
                                numbers.as_ptr().cast(),
                                SMALL,
                                keys.as_ptr().cast(),
                                LONGEST,
                                into,
                            );
                        }
                        before = (block, side);
                    }
                }
                // SAFETY: as above.
                unsafe { tiles.last_products(&mut self.products[before.0].0[before.1]) };
                for query in 0..QUERIES.min(self.count - first) {
                    for side in 0..SIDES {
                        // SAFETY: the processor has the instructions, and there is room for the scores.
                        unsafe {
                            let mut sum = _mm512_setzero_ps();
                            for block in 0..blocks {
                                let found = put_together(&self.products[block].0[side], query);
                                let scales = _mm512_load_ps(self.of_turn[block].0.as_ptr().add(side * SIDE));
                                let scale = _mm512_set1_ps(self.scales[tile + block][query]);
                                sum = _mm512_fmadd_ps(_mm512_mul_ps(found, scales), scale, sum);
                            }
                            let place = (first + query) * stride + turn * TURN + side * SIDE;
                            _mm512_storeu_ps(scores.as_mut_ptr().add(place), sum);
                        }
                    }
                }
            }
        }
    }

    /// # Safety
    /// The processor has AMX and AVX-512, the process may use them, and the values are of this format.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn add_blocks<B: IntegerBlock>(
        &mut self,
        values: &[u8],
        (probabilities, stride): (&[f32], usize),
        sums: &mut [f32],
    ) {
        let (blocks, row_bytes) = (self.blocks, self.blocks * block_bytes::<B>());
        let (width, turns) = (blocks * SMALL, values.len().div_ceil(TURN * row_bytes));
        let last = (self.count - 1) * stride + turns * TURN;
        assert!(turns * TURN <= stride && last <= probabilities.len(), "too few probabilities");
        assert_eq!(sums.len(), self.count * width, "sums of other rows");
        // SAFETY: whoever calls has no tiles of its own.
        let tiles = unsafe { Tiles::new(LONGEST) };
        for (turn, rows) in values.chunks(TURN * row_bytes).enumerate() {
            let rows = whole_turn(rows, row_bytes, &mut self.last);
            let of_block = VALUE_TILES * VALUE_ROWS;
            for (block, laid_out) in self.laid_out.chunks_exact_mut(of_block).enumerate() {
                // SAFETY: the rows of a turn, and of its tiles, are there.
                unsafe {
                    let at = rows.add(block * block_bytes::<B>());
                    read_scales(at, row_bytes, &mut self.of_turn[block]);
                    self.most[block] = divide_by_largest(&mut self.of_turn[block]);
                    lay_out_values::<B>(at, row_bytes, laid_out);
                }
            }
            for first in (0..self.count).step_by(QUERIES) {
                let queries = QUERIES.min(self.count - first);
                let mut largest = [0f32; QUERIES];
                for (query, largest) in largest.iter_mut().enumerate().take(queries) {
                    let probabilities = &probabilities[(first + query) * stride + turn * TURN..][..TURN];
                    // SAFETY: the processor has the instructions.
                    *largest = unsafe {
                        round_probabilities(probabilities, &self.of_turn, query, &mut self.probabilities)
                    };
                }
                let mut before = (blocks - 1, VALUE_TILES - 1);
                for block in 0..blocks {
                    for tile in 0..VALUE_TILES {
                        let probabilities = &self.probabilities[block * SIDE..][..SIDE];
                        let values =
                            &self.laid_out[(block * VALUE_TILES + tile) * VALUE_ROWS..][..VALUE_ROWS];
                        let into = &mut self.products[before.0].0[before.1];
                        // SAFETY: both are whole tiles.
                        unsafe {
                            let (probabilities, values) =
                                (probabilities.as_ptr().cast(), values.as_ptr().cast());
                            tiles.next_products(probabilities, LONGEST, values, LONGEST, into);
                        }
                        before = (block, tile);
                    }
                }
                // SAFETY: as above.
                unsafe { tiles.last_products(&mut self.products[before.0].0[before.1]) };
                for (query, largest) in largest.iter().enumerate().take(queries) {
                    let sums = &mut sums[(first + query) * width..][..width];
                    for (block, sums) in sums.as_chunks_mut::<SMALL>().0.iter_mut().enumerate() {
                        let scale = largest * self.most[block] / MOST;
                        let [a, b, ..] = &self.products[block].0;
                        // SAFETY: the processor has the instructions.
                        unsafe { add_in_order(put_together(a, query), put_together(b, query), scale, sums) };
                    }
                }
            }
        }
    }
}

/// Bytes of a block of 32 numbers.
const fn block_bytes<B: IntegerBlock>() -> usize {
    B::BYTES * SMALL / NUMBERS
}

/// Where the rows of a turn begin: these, or a copy of them, with zeros behind it, where they are fewer.
fn whole_turn(rows: &[u8], row_bytes: usize, last: &mut Vec<u8>) -> *const u8 {
    if rows.len() == TURN * row_bytes {
        return rows.as_ptr();
    }
    last.clear();
    last.extend_from_slice(rows);
    last.resize(TURN * row_bytes, 0);
    last.as_ptr()
}

/// Some numbers as int16, upper and lower byte, and their scale, which is NaN where one is not finite.
fn rounded(values: &[f32; SMALL]) -> (f32, [[i8; 2]; SMALL]) {
    // Bits of numbers without a sign are in the order of the numbers, and what is not finite comes last.
    let largest = values.iter().fold(0, |largest, value| value.abs().to_bits().max(largest));
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        return (f32::NAN, [[0; 2]; SMALL]);
    }
    let inverse = if largest > 0.0 { (MOST / largest).min(f32::MAX) } else { 0.0 };
    let whole = values.map(|value| {
        let whole = (value * inverse + NEAREST).to_bits() as i32 - NEAREST.to_bits() as i32;
        [((whole + 128) >> 8) as i8, whole as i8]
    });
    (largest / MOST, whole)
}

/// The scales of the blocks at `at` and in the rows behind it.
///
/// # Safety
/// The processor has AVX-512 and F16C, and a block can be read in each row of a turn.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn read_scales(at: *const u8, row_bytes: usize, into: &mut OfTurn) {
    // SAFETY: the scale is the first two of a block's bytes; the two behind it are read as well.
    unsafe {
        let step = _mm512_set1_epi32(row_bytes as i32);
        let rows =
            _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), step);
        for (side, into) in into.0.as_chunks_mut::<SIDE>().0.iter_mut().enumerate() {
            let words = _mm512_i32gather_epi32::<1>(rows, at.add(side * SIDE * row_bytes).cast());
            _mm512_store_ps(into.as_mut_ptr(), _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words)));
        }
    }
}

/// The numbers of a block with their sign.
///
/// # Safety
/// The processor has AVX2, and a block can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn signed<B: IntegerBlock>(at: *const u8) -> __m256i {
    let offset = if B::EIGHT_BITS { IntegerLayout::Q8_0 } else { IntegerLayout::Q4_0 }.offset;
    // SAFETY: as the caller promises.
    unsafe { _mm256_sub_epi8(B::numbers(at, 0), _mm256_set1_epi8(offset as i8)) }
}

/// Lays the blocks of the keys of a side out as the right operand of a product: four numbers of each, then the next four.
///
/// # Safety
/// The processor has AVX-512 F and AVX2; the blocks can be read, and there is a tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn lay_out_keys<B: IntegerBlock>(at: *const u8, row_bytes: usize, tile: &mut [Row]) {
    // SAFETY: as the caller promises.
    unsafe {
        let mut keys = [_mm512_setzero_si512(); SIDE / 2];
        for (index, keys) in keys.iter_mut().enumerate() {
            // Four of each 8 keys are in the lower halves, so that quarters of vectors are in order below.
            let first = index / 4 * 8 + index % 4;
            let lower = signed::<B>(at.add(first * row_bytes));
            let upper = signed::<B>(at.add((first + 4) * row_bytes));
            *keys = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(lower), upper);
        }
        let mut fours = [[_mm512_setzero_si512(); 4]; 2];
        for (fours, keys) in fours.iter_mut().zip(keys.as_chunks::<4>().0) {
            let [a, b, c, d] = *keys;
            let (ab, above_ab) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd, above_cd) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            *fours = [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(above_ab, above_cd),
                _mm512_unpackhi_epi64(above_ab, above_cd),
            ];
        }
        let tile: *mut __m512i = tile.as_mut_ptr().cast();
        let [first, second] = fours;
        for place in 0..4 {
            let (first, second) = (first[place], second[place]);
            _mm512_store_si512(tile.add(place), _mm512_shuffle_i32x4::<0x88>(first, second));
            _mm512_store_si512(tile.add(4 + place), _mm512_shuffle_i32x4::<0xdd>(first, second));
        }
    }
}

/// Lays the blocks of the values of a turn out as two right operands: a number of four values each, then the next one. See
/// [`round_probabilities`] for the order of values, and [`add_in_order`] for the numbers.
///
/// # Safety
/// The processor has AVX2; the blocks can be read, and there are two tiles.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn lay_out_values<B: IntegerBlock>(at: *const u8, row_bytes: usize, tiles: &mut [Row]) {
    // SAFETY: as the caller promises.
    unsafe {
        let tiles: *mut __m256i = tiles.as_mut_ptr().cast();
        for four in 0..VALUE_ROWS {
            let rows = at.add((four % SIDES * SIDE + four / SIDES * 4) * row_bytes);
            let (a, b) = (signed::<B>(rows), signed::<B>(rows.add(row_bytes)));
            let (c, d) = (signed::<B>(rows.add(2 * row_bytes)), signed::<B>(rows.add(3 * row_bytes)));
            let (ab, above_ab) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
            let (cd, above_cd) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
            let first = tiles.add(2 * four);
            _mm256_store_si256(first, _mm256_unpacklo_epi16(ab, cd));
            _mm256_store_si256(first.add(1), _mm256_unpackhi_epi16(ab, cd));
            let second = first.add(2 * VALUE_ROWS);
            _mm256_store_si256(second, _mm256_unpacklo_epi16(above_ab, above_cd));
            _mm256_store_si256(second.add(1), _mm256_unpackhi_epi16(above_ab, above_cd));
        }
    }
}

/// The sums of a query, whose upper and lower bits have some of their own.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn put_together(products: &ProductsOfGroup, query: usize) -> __m512 {
    // SAFETY: a row is a vector.
    unsafe {
        let upper = _mm512_loadu_si512(products[query].as_ptr().cast());
        let lower = _mm512_loadu_si512(products[query + QUERIES].as_ptr().cast());
        _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(upper), lower))
    }
}

/// Adds what two tiles have of a block's numbers, times `scale`: the first one has the first four, four from the 16th on, the next four
/// of each of these, and the second one the others.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn add_in_order(first: __m512, second: __m512, scale: f32, sums: &mut [f32; SMALL]) {
    // SAFETY: two vectors of sums.
    unsafe {
        let scale = _mm512_set1_ps(scale);
        let [lower, upper] = [sums.as_mut_ptr(), sums.as_mut_ptr().add(SIDE)];
        let numbers = _mm512_shuffle_f32x4::<0x88>(first, second);
        _mm512_storeu_ps(lower, _mm512_fmadd_ps(numbers, scale, _mm512_loadu_ps(lower)));
        let numbers = _mm512_shuffle_f32x4::<0xdd>(first, second);
        _mm512_storeu_ps(upper, _mm512_fmadd_ps(numbers, scale, _mm512_loadu_ps(upper)));
    }
}

/// The largest scale of a turn, its sign aside, and the scales divided by it. What is not finite stays so.
///
/// # Safety
/// The processor has AVX-512 F and DQ.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn divide_by_largest(scales: &mut OfTurn) -> f32 {
    let scales = scales.0.as_mut_ptr();
    // SAFETY: vectors of a turn.
    unsafe {
        let largest = largest_of(scales, _mm512_set1_epi32(i32::MAX));
        let inverse = _mm512_set1_ps(if largest > 0.0 { largest.recip() } else { 0.0 });
        for side in 0..SIDES {
            let at = scales.add(side * SIDE);
            _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), inverse));
        }
        largest
    }
}

/// Writes the probabilities of a query times the scales of each block, in int16, and gives the largest probability. A row of a tile has
/// four probabilities of each side, the next four of each, and so on.
///
/// # Safety
/// The processor has AVX-512 F and BW, and there is a tile for each block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn round_probabilities(
    probabilities: &[f32],
    scales: &[OfTurn],
    query: usize,
    tiles: &mut [Row],
) -> f32 {
    assert!(probabilities.len() == TURN && tiles.len() == scales.len() * SIDE, "probabilities of a turn");
    // SAFETY: vectors of a turn, and rows of tiles.
    unsafe {
        let largest = largest_of(probabilities.as_ptr(), _mm512_set1_epi32(-1));
        let inverse = _mm512_set1_ps(if largest >= MIN_PROBABILITY { MOST / largest } else { 0.0 });
        let mut of_sides = [_mm512_setzero_ps(); SIDES];
        for (side, of_side) in of_sides.iter_mut().enumerate() {
            *of_side = _mm512_mul_ps(_mm512_loadu_ps(probabilities.as_ptr().add(side * SIDE)), inverse);
        }
        for (block, scales) in scales.iter().enumerate() {
            let (mut upper, mut lower) = ([_mm512_setzero_si512(); SIDES], [_mm512_setzero_si512(); SIDES]);
            for (side, of_side) in of_sides.into_iter().enumerate() {
                let scales = _mm512_load_ps(scales.0.as_ptr().add(side * SIDE));
                let whole = _mm512_cvtps_epi32(_mm512_mul_ps(of_side, scales));
                upper[side] = _mm512_srai_epi32::<8>(_mm512_add_epi32(whole, _mm512_set1_epi32(128)));
                lower[side] = _mm512_and_si512(whole, _mm512_set1_epi32(255));
            }
            let rows: *mut __m512i = tiles.as_mut_ptr().add(block * SIDE + query).cast();
            let [a, b, c, d] = upper;
            let upper = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            _mm512_store_si512(rows, upper);
            let [a, b, c, d] = lower;
            let lower = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
            _mm512_store_si512(rows.add(QUERIES), lower);
        }
        largest
    }
}

/// The largest number of a turn, of whose bits only `used` count: those of numbers without a sign are in the order of the numbers, and
/// what is not finite comes last.
///
/// # Safety
/// The processor has AVX-512 F, and the numbers can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn largest_of(numbers: *const f32, used: __m512i) -> f32 {
    // SAFETY: as the caller promises.
    unsafe {
        let mut largest = _mm512_setzero_si512();
        for side in 0..SIDES {
            let bits = _mm512_castps_si512(_mm512_loadu_ps(numbers.add(side * SIDE)));
            largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, used));
        }
        f32::from_bits(_mm512_reduce_max_epu32(largest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::noise;

    fn queries(format: BlockFormat, queries: &[f32], width: usize) -> Option<QueriesInTiles> {
        Processor::tested()
            .into_iter()
            .find_map(|processor| QueriesInTiles::new(processor, format, queries, width))
    }

    fn rows(format: BlockFormat, count: usize, width: usize, seed: u32) -> (Vec<u8>, Vec<f32>) {
        let numbers = noise(count * width, seed);
        // Some rows are much larger than others.
        let numbers: Vec<f32> = numbers
            .iter()
            .enumerate()
            .map(|(place, number)| number * (1 + place / width % 5) as f32)
            .collect();
        let bytes = format.encode(&numbers, width).unwrap();
        let mut numbers = vec![0f32; numbers.len()];
        crate::formats::block_format::decode(Processor::Portable, format, &bytes, &mut numbers);
        (bytes, numbers)
    }

    const FORMATS: [BlockFormat; 2] = [BlockFormat::Q8_0, BlockFormat::Q4_0];
    /// Rows, keys and width.
    const SHAPES: [[usize; 3]; 6] =
        [[1, 1, 32], [3, 15, 64], [8, 64, 128], [9, 65, 96], [16, 200, 64], [37, 130, 32]];

    #[test]
    fn scores_err_by_int16_queries() {
        for format in FORMATS {
            for [count, keys, width] in SHAPES {
                let x = noise(count * width, 3);
                let Some(mut queries) = queries(format, &x, width) else { return };
                let (bytes, numbers) = rows(format, keys, width, 4);
                let stride = keys.next_multiple_of(TURN) + TURN;
                let mut scores = vec![f32::NAN; count * stride];
                queries.score(&bytes, &mut scores, stride);
                for (query, scores) in x.chunks_exact(width).zip(scores.chunks_exact(stride)) {
                    let largest =
                        query.iter().fold(0f64, |largest, number| largest.max(f64::from(number.abs())));
                    for (score, key) in scores.iter().zip(numbers.chunks_exact(width)) {
                        let products = query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b));
                        let sum: f64 = products.sum();
                        let of_key: f64 = key.iter().map(|number| f64::from(number.abs())).sum();
                        let error = (f64::from(*score) - sum).abs();
                        let most = largest * of_key * (0.5 / f64::from(MOST) + 1e-6);
                        assert!(error <= most, "{format:?} {count} {keys} {width}: {score} is not {sum}");
                    }
                }
            }
        }
    }

    #[test]
    fn values_are_added_with_int16_probabilities() {
        for format in FORMATS {
            for [count, values, width] in SHAPES {
                let Some(mut queries) = queries(format, &vec![1.0; count * width], width) else { return };
                let (bytes, numbers) = rows(format, values, width, 5);
                let stride = values.next_multiple_of(TURN);
                let mut probabilities = vec![0f32; count * stride];
                for (row, probabilities) in probabilities.chunks_exact_mut(stride).enumerate() {
                    let found = noise(values, 6 + row as u32);
                    // Of the last row, all are so small that the others could not tell.
                    let scale = if row + 1 == count { 1e-20 } else { 1.0 };
                    probabilities
                        .iter_mut()
                        .zip(found)
                        .for_each(|(probability, found)| *probability = found.abs() * scale);
                }
                let mut sums = vec![0f32; count * width];
                queries.add_weighted(&bytes, (&probabilities, stride), &mut sums);
                for (probabilities, sums) in probabilities.chunks_exact(stride).zip(sums.chunks_exact(width))
                {
                    for (column, sum) in sums.iter().enumerate() {
                        let (mut expected, mut most) = (0f64, 0f64);
                        for (turn, probabilities) in probabilities[..values].chunks(TURN).enumerate() {
                            let largest = probabilities
                                .iter()
                                .fold(0f32, |largest, probability| largest.max(*probability));
                            // What a scale is rounded with is the largest of its turn, which may be that of another number.
                            let scale = 127.0 * f64::from(largest) / f64::from(MOST);
                            let block = column / SMALL * SMALL;
                            let of_turn =
                                numbers.chunks_exact(width).skip(turn * TURN).take(probabilities.len());
                            let scales = of_turn.clone().map(|row| {
                                row[block..block + SMALL]
                                    .iter()
                                    .fold(0f64, |most, number| most.max(number.abs().into()))
                            });
                            let of_scales = scales.fold(0f64, f64::max)
                                / if format == BlockFormat::Q8_0 { 127.0 } else { 7.0 };
                            most += 0.51 * of_scales * scale * probabilities.len() as f64;
                            for (probability, row) in probabilities.iter().zip(of_turn) {
                                expected += f64::from(*probability) * f64::from(row[column]);
                                most += 1e-6 * f64::from(*probability) * f64::from(row[column].abs());
                            }
                        }
                        let error = (f64::from(*sum) - expected).abs();
                        assert!(
                            error <= most,
                            "{format:?} {count} {values} {width}: {sum} is not {expected}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let (keys, width) = (70, 64);
        let (bytes, _) = rows(BlockFormat::Q8_0, keys, width, 7);
        let mut x = noise(2 * width, 8);
        x[40] = f32::INFINITY;
        let Some(mut queries) = queries(BlockFormat::Q8_0, &x, width) else { return };
        let mut scores = vec![0f32; 2 * 128];
        queries.score(&bytes, &mut scores, 128);
        assert!(scores[..keys].iter().all(|score| score.is_nan()), "the first query");
        assert!(scores[128..][..keys].iter().all(|score| score.is_finite()), "the second one");
        let mut probabilities = vec![0f32; 2 * 128];
        probabilities[..keys].fill(0.5);
        probabilities[69] = f32::NAN;
        probabilities[128..][..keys].fill(0.5);
        let mut sums = vec![0f32; 2 * width];
        queries.add_weighted(&bytes, (&probabilities, 128), &mut sums);
        assert!(
            sums[..width].iter().all(|sum| sum.is_nan()) && sums[width..].iter().all(|sum| sum.is_finite())
        );
    }

    #[test]
    fn other_formats_widths_and_processors_are_for_others() {
        for processor in Processor::tested() {
            assert!(QueriesInTiles::new(processor, BlockFormat::F16, &[1.0; 64], 64).is_none());
            assert!(QueriesInTiles::new(processor, BlockFormat::Q8_0, &[1.0; 48], 48).is_none());
            let without = processor.without_integer_dot();
            assert!(QueriesInTiles::new(without, BlockFormat::Q8_0, &[1.0; 64], 64).is_none());
        }
    }
}
