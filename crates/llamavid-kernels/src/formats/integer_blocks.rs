//! Blocks as vectors of 8-bit integers for AVX2, 256 numbers at a time: bits are moved about in registers, and nothing
//! is written.
//!
//! Reference: [`crate::formats::block_format`], which reads the same in portable code.

use std::arch::x86_64::{
    __m256, __m256i, _mm_cvtsi64_si128, _mm_insert_epi16, _mm_loadl_epi64, _mm_loadu_si128, _mm_set1_epi16,
    _mm_setzero_si128, _mm_srli_epi16, _mm256_and_si256, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi32, _mm256_cvtph_ps, _mm256_loadu_si256, _mm256_mul_ps, _mm256_or_si256,
    _mm256_set_m128i, _mm256_set1_epi8, _mm256_set1_ps, _mm256_slli_epi16, _mm256_srli_epi16,
    _mm256_xor_si256,
};
use std::mem::MaybeUninit;

use crate::formats::block_types::{BlockType, Q4_0, Q4K, Q5K, Q6K, Q8_0};

/// Bytes that they take at most.
pub(crate) const MOST_BYTES: usize = 8 * 34;

/// How integers are scaled: each times the scale of its group, less the group's min. Of eight groups a vector; the second
/// ones are for formats with sixteen groups only.
pub(crate) struct Scales {
    pub(crate) scales: [__m256; 2],
    pub(crate) mins: [__m256; 2],
}

/// How 256 numbers of a format are read.
pub(crate) trait IntegerBlock: BlockType {
    /// # Safety
    /// The processor has AVX2 and F16C, and as many bytes can be read.
    unsafe fn scales(at: *const u8) -> Scales;

    /// An eighth of the integers, which are unsigned.
    ///
    /// # Safety
    /// As above; `eighth` is below 8.
    unsafe fn numbers(at: *const u8, eighth: usize) -> __m256i;
}

/// A row of weights, of which the last blocks may be fewer than 256 numbers.
pub(crate) struct Row<'a> {
    bytes: &'a [u8],
    /// Bytes of the whole blocks of 256.
    whole: usize,
    /// The last blocks where they are fewer, with zeros behind them, which stand for zeros.
    rest: MaybeUninit<[u8; MOST_BYTES]>,
}

impl<'a> Row<'a> {
    #[inline(always)]
    pub(crate) fn new<B: IntegerBlock>(bytes: &'a [u8]) -> Self {
        let whole = bytes.len() / B::BYTES * B::BYTES;
        let mut rest = MaybeUninit::uninit();
        if whole < bytes.len() {
            rest.write([0; MOST_BYTES])[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
        }
        Self { bytes, whole, rest }
    }

    /// Where 256 numbers begin; as many bytes as they take can be read there.
    #[inline(always)]
    pub(crate) fn at<B: IntegerBlock>(&self, index: usize) -> *const u8 {
        match index * B::BYTES {
            first if first < self.whole => self.bytes[first..].as_ptr(),
            _ => self.rest.as_ptr().cast(),
        }
    }

    /// Up to `most` blocks of 256 numbers that lie behind each other, and how many they are; none behind the last one.
    #[inline(always)]
    pub(crate) fn blocks<B: IntegerBlock>(&self, first: usize, most: usize) -> Option<(*const u8, usize)> {
        let start = first * B::BYTES;
        match self.whole.checked_sub(start) {
            Some(0) | None => (start < self.bytes.len()).then_some((self.rest.as_ptr().cast(), 1)),
            Some(left) => Some((self.bytes[start..].as_ptr(), most.min(left / B::BYTES))),
        }
    }
}

/// A scale, then 32 signed integers of 8 bits.
impl IntegerBlock for Q8_0 {
    #[inline(always)]
    unsafe fn scales(at: *const u8) -> Scales {
        // SAFETY: eight blocks.
        unsafe { of_halves(eight_f16::<34>(at), 128.0) }
    }

    #[inline(always)]
    unsafe fn numbers(at: *const u8, eighth: usize) -> __m256i {
        // SAFETY: a block's numbers lie behind its scale.
        unsafe { _mm256_xor_si256(vector(at.add(34 * eighth + 2)), _mm256_set1_epi8(-128)) }
    }
}

/// A scale, then 16 bytes: the first 16 numbers in the lower nibbles, the others in the upper.
impl IntegerBlock for Q4_0 {
    #[inline(always)]
    unsafe fn scales(at: *const u8) -> Scales {
        // SAFETY: eight blocks.
        unsafe { of_halves(eight_f16::<18>(at), 8.0) }
    }

    #[inline(always)]
    unsafe fn numbers(at: *const u8, eighth: usize) -> __m256i {
        // SAFETY: a block's numbers lie behind its scale.
        unsafe {
            let pairs = _mm_loadu_si128(at.add(18 * eighth + 2).cast());
            lower(_mm256_set_m128i(_mm_srli_epi16::<4>(pairs), pairs))
        }
    }
}

/// [`eighths`], then 128 bytes: of each 32, the lower nibbles are an eighth, the upper ones the next.
impl IntegerBlock for Q4K {
    #[inline(always)]
    unsafe fn scales(at: *const u8) -> Scales {
        // SAFETY: the block begins with them.
        unsafe { eighths(at) }
    }

    #[inline(always)]
    unsafe fn numbers(at: *const u8, eighth: usize) -> __m256i {
        // SAFETY: the pairs are the last 128 bytes.
        unsafe { nibble_of(vector(at.add(16 + 32 * (eighth / 2))), eighth % 2) }
    }
}

/// The same with 32 bytes before the pairs: a fifth bit of each number, those of an eighth at the same place.
impl IntegerBlock for Q5K {
    #[inline(always)]
    unsafe fn scales(at: *const u8) -> Scales {
        // SAFETY: the block begins with them.
        unsafe { eighths(at) }
    }

    #[inline(always)]
    unsafe fn numbers(at: *const u8, eighth: usize) -> __m256i {
        // SAFETY: the pairs are the last 128 bytes.
        unsafe {
            let fifth = match eighth {
                0 => _mm256_slli_epi16::<4>(vector(at.add(16))),
                1 => _mm256_slli_epi16::<3>(vector(at.add(16))),
                2 => _mm256_slli_epi16::<2>(vector(at.add(16))),
                3 => _mm256_slli_epi16::<1>(vector(at.add(16))),
                4 => vector(at.add(16)),
                5 => _mm256_srli_epi16::<1>(vector(at.add(16))),
                6 => _mm256_srli_epi16::<2>(vector(at.add(16))),
                _ => _mm256_srli_epi16::<3>(vector(at.add(16))),
            };
            let four = nibble_of(vector(at.add(48 + 32 * (eighth / 2))), eighth % 2);
            _mm256_or_si256(four, _mm256_and_si256(fifth, _mm256_set1_epi8(0x10)))
        }
    }
}

/// Of each half, 64 bytes: the lower nibbles are its first two quarters, the upper ones the others. Then of each half, 32
/// bytes with two upper bits of each quarter's numbers; scales of a byte each, and one of all.
impl IntegerBlock for Q6K {
    #[inline(always)]
    unsafe fn scales(at: *const u8) -> Scales {
        // SAFETY: the scales are the last 18 bytes.
        unsafe {
            let all = half(at.add(208));
            let scales = [_mm_loadl_epi64(at.add(192).cast()), _mm_loadl_epi64(at.add(200).cast())];
            let first = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(scales[0])), all);
            let second = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(scales[1])), all);
            let offset = _mm256_set1_ps(32.0);
            let mins = [_mm256_mul_ps(first, offset), _mm256_mul_ps(second, offset)];
            Scales { scales: [first, second], mins }
        }
    }

    #[inline(always)]
    unsafe fn numbers(at: *const u8, eighth: usize) -> __m256i {
        let (part, quarter) = (eighth / 4, eighth % 4);
        // SAFETY: the numbers are the first 192 bytes.
        unsafe {
            let bits = vector(at.add(128 + 32 * part));
            let upper = match quarter {
                0 => _mm256_slli_epi16::<4>(bits),
                1 => _mm256_slli_epi16::<2>(bits),
                2 => bits,
                _ => _mm256_srli_epi16::<2>(bits),
            };
            let four = nibble_of(vector(at.add(64 * part + 32 * (quarter % 2))), quarter / 2);
            _mm256_or_si256(four, _mm256_and_si256(upper, _mm256_set1_epi8(0x30)))
        }
    }
}

/// Scales of eight blocks without mins, from whose numbers `offset` is to be taken.
#[inline(always)]
unsafe fn of_halves(scales: __m256, offset: f32) -> Scales {
    // SAFETY: whoever calls it has the instructions.
    unsafe { Scales { scales: [scales; 2], mins: [_mm256_mul_ps(scales, _mm256_set1_ps(offset)); 2] } }
}

/// The scales and mins of eighths: two f16, and 6 bits of each in 12 bytes.
///
/// # Safety
/// The processor has AVX2 and F16C, and 16 bytes can be read.
#[inline(always)]
pub(crate) unsafe fn eighths(at: *const u8) -> Scales {
    const SIX: u32 = 0x3f3f_3f3f;
    const FOUR: u32 = 0x0f0f_0f0f;
    const TWO: u32 = 0x0303_0303;
    // SAFETY: within the 16 bytes.
    unsafe {
        let word = |index: usize| u32::from_le(at.add(4 + 4 * index).cast::<u32>().read_unaligned());
        let (a, b, c) = (word(0), word(1), word(2));
        let both = |lower: u32, upper: u32| (u64::from(lower) | u64::from(upper) << 32) as i64;
        let scales = both(a & SIX, (c & FOUR) | ((a >> 6) & TWO) << 4);
        let mins = both(b & SIX, ((c >> 4) & FOUR) | ((b >> 6) & TWO) << 4);
        let scales = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(scales)));
        let mins = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(mins)));
        let (scale, base) = (half(at), half(at.add(2)));
        Scales { scales: [_mm256_mul_ps(scales, scale); 2], mins: [_mm256_mul_ps(mins, base); 2] }
    }
}

/// An f16 in all places.
///
/// # Safety
/// The processor has F16C, and it can be read.
#[inline(always)]
unsafe fn half(at: *const u8) -> __m256 {
    // SAFETY: as the caller promises.
    unsafe { _mm256_cvtph_ps(_mm_set1_epi16(at.cast::<i16>().read_unaligned())) }
}

/// Eight f16 at a distance of `STEP` bytes.
///
/// # Safety
/// The processor has F16C, and they can be read.
#[inline(always)]
unsafe fn eight_f16<const STEP: usize>(at: *const u8) -> __m256 {
    // SAFETY: as the caller promises.
    unsafe {
        let mut halves = _mm_setzero_si128();
        macro_rules! insert {
            ($($index:literal)*) => {
                $(
                    let bits = at.add(STEP * $index).cast::<i16>().read_unaligned();
                    halves = _mm_insert_epi16::<$index>(halves, i32::from(bits));
                )*
            };
        }
        insert!(0 1 2 3 4 5 6 7);
        _mm256_cvtph_ps(halves)
    }
}

/// 32 bytes.
///
/// # Safety
/// They can be read.
#[inline(always)]
unsafe fn vector(at: *const u8) -> __m256i {
    // SAFETY: as the caller promises.
    unsafe { _mm256_loadu_si256(at.cast()) }
}

/// The lower nibble of each byte.
#[inline(always)]
unsafe fn lower(bits: __m256i) -> __m256i {
    // SAFETY: whoever calls it has the instructions.
    unsafe { _mm256_and_si256(bits, _mm256_set1_epi8(15)) }
}

/// The lower nibble of each byte, or the upper one of `which` 1.
#[inline(always)]
unsafe fn nibble_of(pairs: __m256i, which: usize) -> __m256i {
    // SAFETY: whoever calls it has the instructions.
    unsafe {
        match which {
            0 => lower(pairs),
            _ => lower(_mm256_srli_epi16::<4>(pairs)),
        }
    }
}
