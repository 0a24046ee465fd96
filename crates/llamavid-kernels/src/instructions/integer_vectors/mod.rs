//! Vectors whose lanes are rows of weights: of each row four int8 or two int16, an int32 sum, or an f32.

#[cfg(target_arch = "x86_64")]
mod avx;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx::{Avx2, Avx512Vnni, AvxVnni, Twice};
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;

/// Such vectors of one set of instructions. Whoever calls these functions has the instructions, and room for what is read or written.
pub(crate) trait IntegerVectors: Copy {
    /// Four int8, two int16 or an int32 in a lane.
    type Integers: Copy;
    /// An f32 in a lane.
    type Floats: Copy;
    /// Rows of a vector.
    const LANES: usize;
    /// Whether products are added up in pairs of 16 bits, where int8 weights are to be signed.
    #[cfg(target_arch = "x86_64")]
    const IN_PAIRS: bool = false;

    unsafe fn splat(value: f32) -> Self::Floats;
    unsafe fn splat_integers(value: i32) -> Self::Integers;
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(at: *const f32) -> Self::Floats;
    unsafe fn load_integers(at: *const u8) -> Self::Integers;
    /// f16, converted.
    unsafe fn load_f16(at: *const u8) -> Self::Floats;
    unsafe fn store(at: *mut f32, values: Self::Floats);
    #[cfg(target_arch = "x86_64")]
    unsafe fn store_integers(at: *mut u8, values: Self::Integers);
    /// How many times [`Self::dot`] may add products of weights of so many bits to sums that began with [`Self::narrow`].
    fn run(_bits: u32) -> usize {
        usize::MAX
    }
    /// What [`Self::dot`] adds products to: `sums`, or sums of fewer bits, which [`Self::widened`] adds to them.
    #[inline(always)]
    unsafe fn narrow(_bits: u32, sums: Self::Integers) -> Self::Integers {
        sums
    }
    #[inline(always)]
    unsafe fn widened(_bits: u32, _sums: Self::Integers, narrow: Self::Integers) -> Self::Integers {
        narrow
    }
    /// Adds the products of four unsigned weights with four int8 of `x`.
    unsafe fn dot(sums: Self::Integers, weights: Self::Integers, x: Self::Integers) -> Self::Integers;
    /// The same of int8 weights, where sums begin with [`Self::begin_signed`].
    unsafe fn dot_signed(sums: Self::Integers, weights: Self::Integers, x: Self::Integers) -> Self::Integers;
    /// What sums of products begin with for the offset of 128 that makes weights positive.
    unsafe fn begin_signed(offset: i32) -> Self::Integers;
    /// Adds the products of two int16 weights with two numbers of `x`.
    #[cfg(target_arch = "x86_64")]
    unsafe fn dot_pairs(sums: Self::Integers, weights: Self::Integers, x: Self::Integers) -> Self::Integers;
    /// Adds sums.
    unsafe fn add(a: Self::Integers, b: Self::Integers) -> Self::Integers;
    /// Takes bytes from each other.
    #[cfg(target_arch = "x86_64")]
    unsafe fn less(a: Self::Integers, b: Self::Integers) -> Self::Integers;
    unsafe fn and(a: Self::Integers, b: Self::Integers) -> Self::Integers;
    unsafe fn or(a: Self::Integers, b: Self::Integers) -> Self::Integers;
    /// The bits of lanes moved to higher places.
    unsafe fn left(values: Self::Integers, places: i32) -> Self::Integers;
    /// The bits of lanes moved to lower places, zeros behind them.
    unsafe fn right(values: Self::Integers, places: i32) -> Self::Integers;
    /// The same with the sign behind them.
    unsafe fn right_signed(values: Self::Integers, places: i32) -> Self::Integers;
    unsafe fn converted(values: Self::Integers) -> Self::Floats;
    unsafe fn multiply(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`.
    unsafe fn multiply_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `c - a * b`.
    unsafe fn multiply_subtract(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
}
