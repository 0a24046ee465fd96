//! Interleaved blocks as vectors of integers, a lane for each row.
//!
//! Reference: [`crate::formats::block_format`], which reads blocks row after row in portable code.

use crate::formats::block_types::{BlockType, NUMBERS, Q4_0, Q4K, Q5K, Q6K, Q8_0};
use crate::formats::interleaved::INTERLEAVED_ROWS;
use crate::instructions::integer_vectors::IntegerVectors;
use crate::instructions::prefetch::prefetch_ahead;

/// A block of sixteen rows, or of those of them that are a vector's lanes. What lies ahead is prefetched to this level of the caches.
#[derive(Clone, Copy)]
pub(crate) struct Interleaved<const PREFETCH: usize> {
    pub(crate) at: *const u8,
    /// The first row.
    pub(crate) row: usize,
}

impl<const PREFETCH: usize> Interleaved<PREFETCH> {
    /// The units of all rows that begin at a byte of their blocks.
    #[inline(always)]
    unsafe fn unit<V: IntegerVectors>(self, byte: usize) -> V::Integers {
        self.prefetch_ahead(byte);
        // SAFETY: whoever calls it has the block.
        unsafe { V::load_integers(self.at.add(INTERLEAVED_ROWS * byte + 4 * self.row)) }
    }

    /// The f16 that begin there.
    #[inline(always)]
    unsafe fn f16s<V: IntegerVectors>(self, byte: usize) -> V::Floats {
        // SAFETY: as above.
        unsafe { V::load_f16(self.at.add(INTERLEAVED_ROWS * byte + 2 * self.row)) }
    }

    /// Prefetches what lies ahead of a byte to this level of the caches.
    #[inline(always)]
    fn prefetch_ahead(self, byte: usize) {
        prefetch_ahead::<PREFETCH>(self.at.wrapping_add(INTERLEAVED_ROWS * byte));
    }
}

/// How interleaved blocks of a format are read: in parts, of which a unit holds numbers of two places.
pub(crate) trait InterleavedBlock: BlockType {
    /// Numbers of a block.
    const BLOCK_NUMBERS: usize = NUMBERS;
    /// Bytes of a block of a row.
    const BLOCK_BYTES: usize = Self::BYTES * Self::BLOCK_NUMBERS / NUMBERS;
    /// Numbers that share a scale.
    const GROUP: usize = NUMBERS / (8 * Self::VECTORS);
    /// Parts of a block.
    const PARTS: usize;
    /// Fours of numbers of a part's places.
    const STEPS: usize;
    /// Whether bytes are read in another order than they lie in, which the processor's own prefetches do not follow.
    const SCATTERED: bool = false;

    /// The first numbers of a part.
    fn places(part: usize) -> [usize; 2];

    /// Four numbers of each row, of both places of a part. int8 are signed, others unsigned.
    ///
    /// # Safety
    /// The processor has the instructions, and the block can be read.
    unsafe fn quads<V: IntegerVectors, const PREFETCH: usize>(
        block: Interleaved<PREFETCH>,
        part: usize,
        step: usize,
    ) -> [V::Integers; 2];

    /// What reads the scales of a block.
    type Scales<V: IntegerVectors>: Scales<V>;
}

/// The scales of the groups of a block.
pub(crate) trait Scales<V: IntegerVectors>: Copy {
    /// # Safety
    /// The processor has the instructions, and the block can be read.
    unsafe fn new<const PREFETCH: usize>(block: Interleaved<PREFETCH>) -> Self;

    /// The scale of a group, and its min where the format has those.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn of(self, group: usize) -> [V::Floats; 2];
}

/// A scale, then 32 int8.
impl InterleavedBlock for Q8_0 {
    const BLOCK_NUMBERS: usize = 32;
    const PARTS: usize = 1;
    const STEPS: usize = 4;
    type Scales<V: IntegerVectors> = Only<V>;

    #[inline(always)]
    fn places(_part: usize) -> [usize; 2] {
        [0, 16]
    }

    #[inline(always)]
    unsafe fn quads<V: IntegerVectors, const PREFETCH: usize>(
        block: Interleaved<PREFETCH>,
        _part: usize,
        step: usize,
    ) -> [V::Integers; 2] {
        // SAFETY: as the caller promises.
        unsafe { [block.unit::<V>(2 + 4 * step), block.unit::<V>(18 + 4 * step)] }
    }
}

/// A scale, then 32 numbers from -8 to 7: the first half in the lower nibbles of 16 bytes, the second in the upper.
impl InterleavedBlock for Q4_0 {
    const BLOCK_NUMBERS: usize = 32;
    const PARTS: usize = 1;
    const STEPS: usize = 4;
    type Scales<V: IntegerVectors> = Only<V>;

    #[inline(always)]
    fn places(_part: usize) -> [usize; 2] {
        [0, 16]
    }

    #[inline(always)]
    unsafe fn quads<V: IntegerVectors, const PREFETCH: usize>(
        block: Interleaved<PREFETCH>,
        _part: usize,
        step: usize,
    ) -> [V::Integers; 2] {
        // SAFETY: as the caller promises.
        unsafe { nibbles::<V>(block.unit::<V>(2 + 4 * step)) }
    }
}

/// Two f16, 6 bits of a scale and of a min of each eighth, then 256 numbers from 0 to 15: of each 64, the first half in the lower
/// nibbles of 32 bytes, the second in the upper.
impl InterleavedBlock for Q4K {
    const PARTS: usize = 4;
    const STEPS: usize = 8;
    type Scales<V: IntegerVectors> = Eighths<V>;

    #[inline(always)]
    fn places(quarter: usize) -> [usize; 2] {
        [64 * quarter, 64 * quarter + 32]
    }

    #[inline(always)]
    unsafe fn quads<V: IntegerVectors, const PREFETCH: usize>(
        block: Interleaved<PREFETCH>,
        quarter: usize,
        step: usize,
    ) -> [V::Integers; 2] {
        // SAFETY: as the caller promises.
        unsafe { nibbles::<V>(block.unit::<V>(16 + 32 * quarter + 4 * step)) }
    }
}

/// The same with a fifth bit of each number: bit e of 32 bytes between is that of the numbers of eighth e.
impl InterleavedBlock for Q5K {
    const PARTS: usize = 4;
    const STEPS: usize = 8;
    const SCATTERED: bool = true;
    type Scales<V: IntegerVectors> = Eighths<V>;

    #[inline(always)]
    fn places(quarter: usize) -> [usize; 2] {
        [64 * quarter, 64 * quarter + 32]
    }

    #[inline(always)]
    unsafe fn quads<V: IntegerVectors, const PREFETCH: usize>(
        block: Interleaved<PREFETCH>,
        quarter: usize,
        step: usize,
    ) -> [V::Integers; 2] {
        // SAFETY: as the caller promises.
        unsafe {
            let [lower, upper] = nibbles::<V>(block.unit::<V>(48 + 32 * quarter + 4 * step));
            let bits = block.unit::<V>(16 + 4 * step);
            // The bits of both eighths, moved to the fifth place.
            let [first, second] = match quarter {
                0 => [V::left(bits, 4), V::left(bits, 3)],
                1 => [V::left(bits, 2), V::left(bits, 1)],
                2 => [bits, V::right(bits, 1)],
                _ => [V::right(bits, 2), V::right(bits, 3)],
            };
            let fifth = V::splat_integers(of_bytes(16));
            [V::or(lower, V::and(first, fifth)), V::or(upper, V::and(second, fifth))]
        }
    }
}

/// 256 numbers from -32 to 31: of each half, the lower 4 bits of its quarters in 64 bytes (two quarters to the lower nibbles, two to
/// the upper), and two bits of each of them in 32 bytes. Then 16 scales of a byte each, and one of all. A part is 16 numbers of one of
/// the first two quarters of a half, and those that lie in the same bytes.
impl InterleavedBlock for Q6K {
    const PARTS: usize = 8;
    const STEPS: usize = 4;
    const SCATTERED: bool = true;
    type Scales<V: IntegerVectors> = Sixteenths<V>;

    #[inline(always)]
    fn places(part: usize) -> [usize; 2] {
        let first = 128 * (part / 4) + 16 * (part % 4);
        [first, first + 64]
    }

    #[inline(always)]
    unsafe fn quads<V: IntegerVectors, const PREFETCH: usize>(
        block: Interleaved<PREFETCH>,
        part: usize,
        step: usize,
    ) -> [V::Integers; 2] {
        let (half, quarter, step) = (part / 4, part / 2 % 2, 4 * (part % 2) + step);
        // SAFETY: as the caller promises.
        unsafe {
            let [lower, upper] = nibbles::<V>(block.unit::<V>(64 * half + 32 * quarter + 4 * step));
            let bits = block.unit::<V>(128 + 32 * half + 4 * step);
            // The bits of both quarters, moved to the fifth place and the one behind it.
            let [first, second] = match quarter {
                0 => [V::left(bits, 4), bits],
                _ => [V::left(bits, 2), V::right(bits, 2)],
            };
            let two = V::splat_integers(of_bytes(0x30));
            [V::or(lower, V::and(first, two)), V::or(upper, V::and(second, two))]
        }
    }
}

/// Each byte of four.
const fn of_bytes(byte: u8) -> i32 {
    i32::from_ne_bytes([byte; 4])
}

/// The lower and the upper nibble of each byte.
#[inline(always)]
unsafe fn nibbles<V: IntegerVectors>(bytes: V::Integers) -> [V::Integers; 2] {
    // SAFETY: whoever calls it has the instructions.
    unsafe {
        let lower = V::splat_integers(of_bytes(15));
        [V::and(bytes, lower), V::and(V::right(bytes, 4), lower)]
    }
}

/// The only scale of a small block.
#[derive(Clone, Copy)]
pub(crate) struct Only<V: IntegerVectors>(V::Floats);

impl<V: IntegerVectors> Scales<V> for Only<V> {
    #[inline(always)]
    unsafe fn new<const PREFETCH: usize>(block: Interleaved<PREFETCH>) -> Self {
        // Blocks of 32 numbers are no whole cache lines: with those of the numbers alone, every ninth would be left
        // out.
        block.prefetch_ahead(0);
        // SAFETY: as the caller promises.
        unsafe { Self(block.f16s::<V>(0)) }
    }

    #[inline(always)]
    unsafe fn of(self, _group: usize) -> [V::Floats; 2] {
        // SAFETY: as the caller promises.
        unsafe { [self.0, V::splat(0.0)] }
    }
}

/// The scales and the mins of the eighths of large blocks.
#[derive(Clone, Copy)]
pub(crate) struct Eighths<V: IntegerVectors> {
    scale: V::Floats,
    mins: V::Floats,
    words: [V::Integers; 3],
}

impl<V: IntegerVectors> Scales<V> for Eighths<V> {
    #[inline(always)]
    unsafe fn new<const PREFETCH: usize>(block: Interleaved<PREFETCH>) -> Self {
        // SAFETY: as the caller promises.
        unsafe {
            Self {
                scale: block.f16s::<V>(0),
                mins: block.f16s::<V>(2),
                words: [block.unit::<V>(4), block.unit::<V>(8), block.unit::<V>(12)],
            }
        }
    }

    #[inline(always)]
    unsafe fn of(self, eighth: usize) -> [V::Floats; 2] {
        let [a, b, both] = self.words;
        // SAFETY: as the caller promises.
        unsafe {
            let [scale, mins] = if eighth < 4 {
                let six = V::splat_integers(63);
                let places = 8 * eighth as i32;
                [V::and(V::right(a, places), six), V::and(V::right(b, places), six)]
            } else {
                let (four, two) = (V::splat_integers(15), V::splat_integers(0x30));
                let places = 8 * (eighth as i32 - 4);
                [
                    V::or(V::and(V::right(both, places), four), V::and(V::right(a, places + 2), two)),
                    V::or(V::and(V::right(both, places + 4), four), V::and(V::right(b, places + 2), two)),
                ]
            };
            [V::multiply(V::converted(scale), self.scale), V::multiply(V::converted(mins), self.mins)]
        }
    }
}

/// The scales of the sixteenths of large blocks.
#[derive(Clone, Copy)]
pub(crate) struct Sixteenths<V: IntegerVectors> {
    scale: V::Floats,
    words: [V::Integers; 4],
}

impl<V: IntegerVectors> Scales<V> for Sixteenths<V> {
    #[inline(always)]
    unsafe fn new<const PREFETCH: usize>(block: Interleaved<PREFETCH>) -> Self {
        // SAFETY: as the caller promises.
        unsafe {
            let words =
                [block.unit::<V>(192), block.unit::<V>(196), block.unit::<V>(200), block.unit::<V>(204)];
            Self { scale: block.f16s::<V>(208), words }
        }
    }

    #[inline(always)]
    unsafe fn of(self, sixteenth: usize) -> [V::Floats; 2] {
        // SAFETY: as the caller promises.
        unsafe {
            let byte = V::left(self.words[sixteenth / 4], 24 - 8 * (sixteenth % 4) as i32);
            let scale = V::converted(V::right_signed(byte, 24));
            [V::multiply(scale, self.scale), V::splat(0.0)]
        }
    }
}
