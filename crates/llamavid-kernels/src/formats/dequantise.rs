//! Rows in any format, dequantised with AVX2 as they are read: multiplied and added up on the way (a dot product with
//! `x`, or a weighted sum of rows), or written.
//!
//! AVX-512 is no quicker here: reading is shifts and conversions, of which a processor does as many bits at a time in two
//! halves. The portable code in [`crate::formats::block_format`] is the reference.

use std::arch::x86_64::{
    __m256, __m256i, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtss_f32, _mm_loadl_epi64, _mm_loadu_si128,
    _mm256_add_ps, _mm256_and_si256, _mm256_castsi256_ps, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi32, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_fmsub_ps,
    _mm256_loadu_ps, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_slli_epi32, _mm256_srli_epi32, _mm256_srlv_epi32, _mm256_storeu_ps, _mm256_sub_epi32,
    _mm256_sub_ps, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_storeu_ps,
};
use std::slice::ChunksExact;

use crate::formats::block_format::BlockFormat;
use crate::formats::integer_blocks::{Scales, eighths};
use crate::instructions::horizontal_sums::horizontal_sums_256;
use crate::instructions::prefetch::{PREFETCH_DISTANCE, prefetch_l2};
use crate::instructions::processor::{IntegerDot, Processor};
use crate::products::Output;

/// Whether this module may run.
fn allowed(processor: Processor) -> bool {
    matches!(processor, Processor::Avx512(..) | Processor::Avx2(..))
}

/// f32 numbers of a vector of AVX2.
const LANES: usize = 8;
/// Numbers that share a min.
const GROUP: usize = 32;
/// Rows of `x` of which there are sums at a time.
const X_ROWS: usize = 4;
/// Numbers of the rows that are added up at most.
const WIDEST: usize = 512;
/// Rows in blocks whose sums are made of vectors together.
const ROWS: usize = 4;

/// A few rows of numbers that rows in blocks are multiplied with, while those are read.
pub(crate) struct Dots {
    format: BlockFormat,
    /// (count, columns).
    x: Vec<f32>,
    columns: usize,
    /// The sum of each [`GROUP`] numbers of `x`, where the weights have mins.
    sums: Vec<f32>,
}

impl Dots {
    /// None where there are no such vectors.
    pub(crate) fn new(processor: Processor, format: BlockFormat, x: &[f32], columns: usize) -> Option<Self> {
        let whole = columns.is_multiple_of(format.block_length().max(LANES));
        let mins = matches!(format, BlockFormat::Q4K | BlockFormat::Q5K);
        (allowed(processor) && whole).then(|| Self {
            format,
            x: x.to_vec(),
            columns,
            // Groups are never of two rows: a row has whole blocks.
            sums: x.chunks(GROUP).filter(|_| mins).map(|group| group.iter().sum()).collect(),
        })
    }

    /// Numbers of a row.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Adds the products with some rows, the bytes of which are `rows`; their results are the columns from `column` on.
    ///
    /// # Safety
    /// The result lives, and nobody else uses these columns.
    pub(crate) unsafe fn add(&self, rows: &[u8], column: usize, output: Output) {
        let row_bytes = self.format.row_bytes(self.columns).unwrap_or_default();
        let groups = self.columns / GROUP;
        for (index, x) in self.x.chunks(X_ROWS * self.columns).enumerate() {
            let count = x.len() / self.columns;
            let first = index * X_ROWS * groups;
            let sums = self.sums.get(first..first + count * groups).unwrap_or_default();
            for (four, rows) in rows.chunks(ROWS * row_bytes).enumerate() {
                // SAFETY: `new` has looked for the instructions, and the rows have the numbers of a row of `x`.
                let totals = unsafe {
                    match count {
                        1 => sum::<1>(self.format, rows, row_bytes, x, sums),
                        2 => sum::<2>(self.format, rows, row_bytes, x, sums),
                        3 => sum::<3>(self.format, rows, row_bytes, x, sums),
                        _ => sum::<X_ROWS>(self.format, rows, row_bytes, x, sums),
                    }
                };
                for (of_x, totals) in totals.iter().enumerate().take(count) {
                    let totals = &totals[..rows.len() / row_bytes];
                    // SAFETY: as the caller promises.
                    unsafe { output.add(index * X_ROWS + of_x, column + four * ROWS, totals) };
                }
            }
        }
    }
}

/// Unpacks whole blocks, as many as `values` has room for; false where there are no such vectors.
pub(crate) fn unpack(processor: Processor, format: BlockFormat, bytes: &[u8], values: &mut [f32]) -> bool {
    let whole = values.len().is_multiple_of(format.block_length().max(LANES));
    if !allowed(processor) || !whole {
        return false;
    }
    let length = format.row_bytes(values.len()).unwrap_or_default();
    // SAFETY: the instructions are there, and as many blocks are read as fill `values`.
    unsafe {
        match (processor, format) {
            (Processor::Avx512(_, IntegerDot::Tiles), BlockFormat::Q8_0) => {
                write_bytes(&bytes[..length], values)
            }
            _ => write(format, &bytes[..length], values),
        }
    }
    true
}

/// Dequantises int8 blocks with AVX-512 and prefetches the next ones: that is quicker than AVX2 on processors with AMX.
///
/// # Safety
/// The processor has AVX-512 F and F16C, and there is room for as many numbers as the blocks have.
#[target_feature(enable = "avx512f,avx2,f16c")]
unsafe fn write_bytes(blocks: &[u8], values: &mut [f32]) {
    for (block, values) in blocks.as_chunks::<34>().0.iter().zip(values.as_chunks_mut::<GROUP>().0) {
        prefetch_l2(block.as_ptr().wrapping_add(PREFETCH_DISTANCE));
        // SAFETY: a scale and 32 numbers, and room for those.
        unsafe {
            let scale = _mm512_set1_ps(half(block.as_ptr()));
            for first in [0, 16] {
                let numbers = _mm_loadu_si128(block.as_ptr().add(2 + first).cast());
                let numbers = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(numbers));
                _mm512_storeu_ps(values.as_mut_ptr().add(first), _mm512_mul_ps(numbers, scale));
            }
        }
    }
}

/// Sums, aligned to a cache line: a vector that crosses two takes longer to read and to write.
#[repr(align(64))]
struct AtLine([f32; WIDEST]);

/// Adds rows in blocks, each times its probability, to `sums`; false where there are no such vectors, or more than
/// [`WIDEST`] sums.
pub(crate) fn add_weighted(
    processor: Processor,
    format: BlockFormat,
    rows: &[u8],
    probabilities: &[f32],
    sums: &mut [f32],
) -> bool {
    let whole = sums.len().is_multiple_of(format.block_length().max(LANES));
    if !allowed(processor) || !whole || !(1..=WIDEST).contains(&sums.len()) {
        return false;
    }
    let row_bytes = format.row_bytes(sums.len()).unwrap_or_default();
    let mut own = AtLine([0.0; WIDEST]);
    let own = &mut own.0[..sums.len()];
    own.copy_from_slice(sums);
    // SAFETY: the instructions are there, and a row has as many numbers as there are sums.
    unsafe { add_rows(format, rows.chunks_exact(row_bytes), probabilities, own) };
    sums.copy_from_slice(own);
    true
}

/// The sums of the products of up to four rows with `X` rows, one after the other in `x`, whose groups add up to `sums`.
///
/// # Safety
/// The processor has AVX2, FMA and F16C, and each row of `x` as many numbers as a row of `row_bytes`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn sum<const X: usize>(
    format: BlockFormat,
    rows: &[u8],
    row_bytes: usize,
    x: &[f32],
    sums: &[f32],
) -> [[f32; ROWS]; X_ROWS] {
    let zero = _mm256_setzero_ps();
    let mut vectors = [[zero; ROWS]; X];
    for (index, row) in rows.chunks_exact(row_bytes).take(ROWS).enumerate() {
        let mut sink = Sum { x, sums, products: [[zero; 2]; X], mins: [zero; X] };
        // SAFETY: as the caller promises.
        unsafe { read(format, row, &mut sink) };
        for ((vectors, products), mins) in vectors.iter_mut().zip(sink.products).zip(sink.mins) {
            vectors[index] = _mm256_sub_ps(_mm256_add_ps(products[0], products[1]), mins);
        }
    }
    let mut totals = [[0.0; ROWS]; X_ROWS];
    for (totals, vectors) in totals.iter_mut().zip(vectors) {
        // SAFETY: the processor has AVX2.
        *totals = unsafe { horizontal_sums_256(vectors) };
    }
    totals
}

/// Adds rows, each times its probability, to `sums`.
///
/// # Safety
/// The processor has AVX2, FMA and F16C, and there are as many sums as a row has numbers.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_rows(format: BlockFormat, rows: ChunksExact<u8>, probabilities: &[f32], sums: &mut [f32]) {
    for (row, probability) in rows.zip(probabilities) {
        // SAFETY: as the caller promises.
        unsafe {
            read(
                format,
                row,
                &mut Scaled::<true> { probability: *probability, values: sums, mins: [0.0; LANES] },
            )
        };
    }
}

/// Writes the numbers of a row.
///
/// # Safety
/// The processor has AVX2, FMA and F16C, and there is room for as many numbers as the row has.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn write(format: BlockFormat, row: &[u8], values: &mut [f32]) {
    // SAFETY: as the caller promises.
    unsafe { read(format, row, &mut Scaled::<false> { probability: 1.0, values, mins: [0.0; LANES] }) };
}

/// What becomes of the numbers of a row.
trait Sink {
    /// The mins, each to be subtracted from 32 numbers, of the 256 from `place` on; they come before those.
    unsafe fn mins(&mut self, place: usize, mins: __m256);
    /// Some vectors of numbers from `place` on, which are to be multiplied with `scale`; with `eighth`, the min of that
    /// eighth of 256 is to be subtracted from them. `SECOND` are every second vectors, which need not wait for the first.
    unsafe fn take<const SECOND: bool, const N: usize>(
        &mut self,
        place: usize,
        scale: f32,
        eighth: Option<usize>,
        numbers: [__m256; N],
    );
}

/// Adds up the products with `X` rows.
struct Sum<'a, const X: usize> {
    x: &'a [f32],
    sums: &'a [f32],
    /// Of each row, two sums that do not wait for each other.
    products: [[__m256; 2]; X],
    mins: [__m256; X],
}

impl<const X: usize> Sink for Sum<'_, X> {
    #[inline(always)]
    unsafe fn mins(&mut self, place: usize, mins: __m256) {
        let groups = self.sums.len() / X;
        for index in 0..X {
            // SAFETY: a large block has eight groups, and each row of `x` is as long as the row.
            unsafe {
                let sums = _mm256_loadu_ps(self.sums.as_ptr().add(index * groups + place / GROUP));
                self.mins[index] = _mm256_fmadd_ps(mins, sums, self.mins[index]);
            }
        }
    }

    #[inline(always)]
    unsafe fn take<const SECOND: bool, const N: usize>(
        &mut self,
        place: usize,
        scale: f32,
        _eighth: Option<usize>,
        numbers: [__m256; N],
    ) {
        let columns = self.x.len() / X;
        for index in 0..X {
            // SAFETY: each row of `x` is as long as the row.
            unsafe {
                let x = self.x.as_ptr().add(index * columns + place);
                let mut sum = _mm256_mul_ps(numbers[0], _mm256_loadu_ps(x));
                for (vector, numbers) in numbers.iter().enumerate().skip(1) {
                    sum = _mm256_fmadd_ps(*numbers, _mm256_loadu_ps(x.add(LANES * vector)), sum);
                }
                let products = &mut self.products[index][usize::from(SECOND)];
                *products = _mm256_fmadd_ps(_mm256_set1_ps(scale), sum, *products);
            }
        }
    }
}

/// Writes the numbers, times the probability of their row, or adds them to what is there.
struct Scaled<'a, const ADD: bool> {
    probability: f32,
    values: &'a mut [f32],
    mins: [f32; LANES],
}

impl<const ADD: bool> Sink for Scaled<'_, ADD> {
    #[inline(always)]
    unsafe fn mins(&mut self, _place: usize, mins: __m256) {
        // SAFETY: there is room for eight.
        unsafe {
            let mins = _mm256_mul_ps(mins, _mm256_set1_ps(self.probability));
            _mm256_storeu_ps(self.mins.as_mut_ptr(), mins);
        }
    }

    #[inline(always)]
    unsafe fn take<const SECOND: bool, const N: usize>(
        &mut self,
        place: usize,
        scale: f32,
        eighth: Option<usize>,
        numbers: [__m256; N],
    ) {
        // SAFETY: as many numbers are read as there is room for.
        unsafe {
            let scale = _mm256_set1_ps(scale * self.probability);
            let mins = _mm256_set1_ps(eighth.map_or(0.0, |eighth| self.mins[eighth]));
            for (index, numbers) in numbers.into_iter().enumerate() {
                let at = self.values.as_mut_ptr().add(place + LANES * index);
                let value = match ADD {
                    true => _mm256_sub_ps(_mm256_fmadd_ps(numbers, scale, _mm256_loadu_ps(at)), mins),
                    false => _mm256_fmsub_ps(numbers, scale, mins),
                };
                _mm256_storeu_ps(at, value);
            }
        }
    }
}

/// Reads a row into `sink`.
///
/// # Safety
/// The processor has AVX2, FMA and F16C; the sink takes as many numbers as the row has.
#[inline(always)]
unsafe fn read<S: Sink>(format: BlockFormat, row: &[u8], sink: &mut S) {
    // What is called through a parameter would be compiled without these vectors: hence a macro, and no closures below.
    macro_rules! each {
        ($bytes:literal, $numbers:literal, $read:ident) => {
            each!(row, 0, $bytes, $numbers, $read)
        };
        ($row:expr, $first:expr, $bytes:literal, $numbers:literal, $read:ident) => {
            for (index, block) in $row.as_chunks::<$bytes>().0.iter().enumerate() {
                // SAFETY: it reads within its block, and gives as many numbers as the block has.
                unsafe { $read(block, $first + index * $numbers, sink) };
            }
        };
    }
    // Numbers that are no blocks: 32 at a time, then eight.
    match format {
        BlockFormat::F32 => {
            let (many, rest) = row.split_at(row.len() / 128 * 128);
            each!(many, 0, 128, 32, f32s);
            each!(rest, many.len() / 4, 32, 8, f32s_rest);
        }
        BlockFormat::F16 => {
            let (many, rest) = row.split_at(row.len() / 64 * 64);
            each!(many, 0, 64, 32, f16s);
            each!(rest, many.len() / 2, 16, 8, f16s_rest);
        }
        BlockFormat::BF16 => each!(16, 8, bf16s),
        BlockFormat::Q8_0 => each!(34, 32, q8_0),
        BlockFormat::Q4_0 => each!(18, 32, q4_0),
        BlockFormat::Q4K => each!(144, 256, q4_k),
        BlockFormat::Q5K => each!(176, 256, q5_k),
        BlockFormat::Q6K => each!(210, 256, q6_k),
    }
}

#[inline(always)]
unsafe fn f32s<S: Sink>(block: &[u8; 128], place: usize, sink: &mut S) {
    // SAFETY: 32 numbers, two cache lines.
    unsafe {
        let at = block.as_ptr().cast::<f32>();
        let numbers = [
            _mm256_loadu_ps(at),
            _mm256_loadu_ps(at.add(LANES)),
            _mm256_loadu_ps(at.add(2 * LANES)),
            _mm256_loadu_ps(at.add(3 * LANES)),
        ];
        sink.take::<false, 4>(place, 1.0, None, numbers);
    }
}

#[inline(always)]
unsafe fn f32s_rest<S: Sink>(block: &[u8; 32], place: usize, sink: &mut S) {
    // SAFETY: eight numbers.
    unsafe { sink.take::<false, 1>(place, 1.0, None, [_mm256_loadu_ps(block.as_ptr().cast())]) };
}

#[inline(always)]
unsafe fn f16s<S: Sink>(block: &[u8; 64], place: usize, sink: &mut S) {
    // SAFETY: 32 f16, a cache line.
    unsafe {
        let at = block.as_ptr();
        let numbers =
            [half_vector(at), half_vector(at.add(16)), half_vector(at.add(32)), half_vector(at.add(48))];
        sink.take::<false, 4>(place, 1.0, None, numbers);
    }
}

#[inline(always)]
unsafe fn f16s_rest<S: Sink>(block: &[u8; 16], place: usize, sink: &mut S) {
    // SAFETY: eight f16.
    unsafe { sink.take::<false, 1>(place, 1.0, None, [half_vector(block.as_ptr())]) };
}

/// Eight f16.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn half_vector(at: *const u8) -> __m256 {
    // SAFETY: as the caller promises.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
}

#[inline(always)]
unsafe fn bf16s<S: Sink>(block: &[u8; 16], place: usize, sink: &mut S) {
    // SAFETY: eight bf16.
    unsafe {
        let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(block.as_ptr().cast()));
        sink.take::<false, 1>(place, 1.0, None, [_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))]);
    }
}

#[inline(always)]
unsafe fn q8_0<S: Sink>(block: &[u8; 34], place: usize, sink: &mut S) {
    // SAFETY: a scale and 32 numbers.
    unsafe {
        let at = block.as_ptr();
        let numbers = [signed(at.add(2)), signed(at.add(10)), signed(at.add(18)), signed(at.add(26))];
        sink.take::<false, 4>(place, half(at), None, numbers);
    }
}

#[inline(always)]
unsafe fn q4_0<S: Sink>(block: &[u8; 18], place: usize, sink: &mut S) {
    // SAFETY: a scale and 16 bytes.
    unsafe {
        let at = block.as_ptr();
        let (a, b) = (wide(at.add(2)), wide(at.add(10)));
        let eight = _mm256_set1_epi32(8);
        let numbers = [
            number(_mm256_sub_epi32(lower(a), eight)),
            number(_mm256_sub_epi32(lower(b), eight)),
            number(_mm256_sub_epi32(upper(a), eight)),
            number(_mm256_sub_epi32(upper(b), eight)),
        ];
        sink.take::<false, 4>(place, half(at), None, numbers);
    }
}

#[inline(always)]
unsafe fn q4_k<S: Sink>(block: &[u8; 144], place: usize, sink: &mut S) {
    // SAFETY: two f16, 12 bytes of scales and mins, 128 bytes of nibbles.
    unsafe {
        let at = block.as_ptr();
        let scales = scales_and_mins(at, place, sink);
        for quarter in 0..4 {
            let pairs = four(at.add(16 + 32 * quarter));
            let (mut first, mut second) = ([_mm256_setzero_ps(); 4], [_mm256_setzero_ps(); 4]);
            for index in 0..4 {
                first[index] = number(lower(pairs[index]));
                second[index] = number(upper(pairs[index]));
            }
            let (place, eighth) = (place + 64 * quarter, 2 * quarter);
            sink.take::<false, 4>(place, scales[eighth], Some(eighth), first);
            sink.take::<true, 4>(place + GROUP, scales[eighth + 1], Some(eighth + 1), second);
        }
    }
}

#[inline(always)]
unsafe fn q5_k<S: Sink>(block: &[u8; 176], place: usize, sink: &mut S) {
    // SAFETY: two f16, 12 bytes of scales and mins, 32 bytes with a bit of each eighth, 128 bytes of nibbles.
    unsafe {
        let at = block.as_ptr();
        let scales = scales_and_mins(at, place, sink);
        let bits = four(at.add(16));
        let sixteen = _mm256_set1_epi32(16);
        for quarter in 0..4 {
            let (place, eighth) = (place + 64 * quarter, 2 * quarter);
            let pairs = four(at.add(48 + 32 * quarter));
            let (mut first, mut second) = ([_mm256_setzero_ps(); 4], [_mm256_setzero_ps(); 4]);
            for index in 0..4 {
                // The bits of both eighths, moved to the fifth place and the one after it.
                let moved = _mm256_slli_epi32(bits[index], 4);
                let moved = _mm256_srlv_epi32(moved, _mm256_set1_epi32(eighth as i32));
                let fifth = _mm256_and_si256(moved, sixteen);
                first[index] = number(_mm256_or_si256(lower(pairs[index]), fifth));
                let fifth = _mm256_and_si256(_mm256_srli_epi32(moved, 1), sixteen);
                second[index] = number(_mm256_or_si256(upper(pairs[index]), fifth));
            }
            sink.take::<false, 4>(place, scales[eighth], Some(eighth), first);
            sink.take::<true, 4>(place + GROUP, scales[eighth + 1], Some(eighth + 1), second);
        }
    }
}

#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "four vectors are written at a time")]
unsafe fn q6_k<S: Sink>(block: &[u8; 210], place: usize, sink: &mut S) {
    // SAFETY: 128 bytes of pairs of lower halves, 64 of four upper bits each, 16 scales, and one of all.
    unsafe {
        let at = block.as_ptr();
        let all = _mm256_set1_ps(half(at.add(208)));
        let mut scales = [0f32; 16];
        for part in 0..2 {
            let scaled = _mm256_mul_ps(signed(at.add(192 + LANES * part)), all);
            _mm256_storeu_ps(scales.as_mut_ptr().add(LANES * part), scaled);
        }
        for part in 0..2 {
            for sixteenth in 0..2 {
                // Two vectors of each quarter of these 128 numbers.
                let mut vectors = [[_mm256_setzero_ps(); 2]; 4];
                for index in 0..2 {
                    let first = 16 * sixteenth + LANES * index;
                    let (a, b) = (wide(at.add(64 * part + first)), wide(at.add(64 * part + 32 + first)));
                    let bits = wide(at.add(128 + 32 * part + first));
                    vectors[0][index] = six(lower(a), _mm256_slli_epi32(bits, 4));
                    vectors[1][index] = six(lower(b), _mm256_slli_epi32(bits, 2));
                    vectors[2][index] = six(upper(a), bits);
                    vectors[3][index] = six(upper(b), _mm256_srli_epi32(bits, 2));
                }
                for quarter in 0..4 {
                    let place = place + 128 * part + 32 * quarter + 16 * sixteenth;
                    let scale = scales[8 * part + 2 * quarter + sixteenth];
                    match quarter % 2 {
                        0 => sink.take::<false, 2>(place, scale, None, vectors[quarter]),
                        _ => sink.take::<true, 2>(place, scale, None, vectors[quarter]),
                    }
                }
            }
        }
    }
}

/// The scales of the eighths of a block; its mins go to the sink.
///
/// # Safety
/// 16 bytes can be read: two f16, and eight times 6 bits of a scale and of a min.
#[inline(always)]
unsafe fn scales_and_mins<S: Sink>(block: *const u8, place: usize, sink: &mut S) -> [f32; 8] {
    // SAFETY: as the caller promises.
    unsafe {
        let Scales { scales: [scales, _], mins: [mins, _] } = eighths(block);
        sink.mins(place, mins);
        let mut factors = [0f32; 8];
        _mm256_storeu_ps(factors.as_mut_ptr(), scales);
        factors
    }
}

/// int32 to f32.
#[inline(always)]
unsafe fn number(bits: __m256i) -> __m256 {
    // SAFETY: whoever calls it has the instructions.
    unsafe { _mm256_cvtepi32_ps(bits) }
}

/// Numbers from -32 to 31 of their lower four bits, and two more at the places above those.
#[inline(always)]
unsafe fn six(lower: __m256i, bits: __m256i) -> __m256 {
    // SAFETY: whoever calls it has the instructions.
    unsafe {
        let both = _mm256_or_si256(lower, _mm256_and_si256(bits, _mm256_set1_epi32(0x30)));
        number(_mm256_sub_epi32(both, _mm256_set1_epi32(32)))
    }
}

/// The upper nibbles of eight numbers.
#[inline(always)]
unsafe fn upper(bits: __m256i) -> __m256i {
    // SAFETY: whoever calls it has the instructions.
    unsafe { _mm256_srli_epi32(bits, 4) }
}

/// The lower nibble of each number.
#[inline(always)]
unsafe fn lower(bits: __m256i) -> __m256i {
    // SAFETY: whoever calls it has the instructions.
    unsafe { _mm256_and_si256(bits, _mm256_set1_epi32(15)) }
}

/// Eight bytes as eight numbers.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn wide(at: *const u8) -> __m256i {
    // SAFETY: as the caller promises.
    unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast())) }
}

/// 32 bytes as as many numbers.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn four(at: *const u8) -> [__m256i; 4] {
    // SAFETY: as the caller promises.
    unsafe { [wide(at), wide(at.add(8)), wide(at.add(16)), wide(at.add(24))] }
}

/// Eight bytes with a sign as eight numbers.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn signed(at: *const u8) -> __m256 {
    // SAFETY: as the caller promises.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()))) }
}

/// An f16.
///
/// # Safety
/// It can be read.
#[inline(always)]
unsafe fn half(at: *const u8) -> f32 {
    // SAFETY: as the caller promises.
    unsafe {
        let bits = u16::from_le(at.cast::<u16>().read_unaligned());
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
    }
}
