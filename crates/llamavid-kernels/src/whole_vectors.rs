//! Vectors whose lanes are rows of weights: of each row four whole numbers of 8 bits or two of 16, a sum of 32 bits, or a number.

#[cfg(target_arch = "x86_64")]
mod avx;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx::{Narrow, Pairs, Twice, Wide};
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;

/// Such vectors of one set of instructions. Whoever calls these functions has the instructions, and room for what is read or written.
pub(crate) trait WholeVectors: Copy {
    /// Whole numbers: four of 8 bits, two of 16 or one of 32 in a lane.
    type Whole: Copy;
    /// A number of 32 bits in a lane.
    type Numbers: Copy;
    /// Rows of a vector.
    const LANES: usize;
    /// Whether products are added up in pairs of 16 bits, where weights of 8 bits are to have their sign.
    #[cfg(target_arch = "x86_64")]
    const IN_PAIRS: bool = false;

    unsafe fn splat(value: f32) -> Self::Numbers;
    unsafe fn splat_whole(value: i32) -> Self::Whole;
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(at: *const f32) -> Self::Numbers;
    unsafe fn load_whole(at: *const u8) -> Self::Whole;
    /// Numbers of 16 bits.
    unsafe fn load_halves(at: *const u8) -> Self::Numbers;
    unsafe fn store(at: *mut f32, values: Self::Numbers);
    #[cfg(target_arch = "x86_64")]
    unsafe fn store_whole(at: *mut u8, values: Self::Whole);
    /// How many times [`Self::dot`] may add products of weights of so many bits to sums that began with [`Self::narrow`].
    fn run(_bits: u32) -> usize {
        usize::MAX
    }
    /// What [`Self::dot`] adds products to: `sums`, or sums of fewer bits, which [`Self::widened`] adds to them.
    #[inline(always)]
    unsafe fn narrow(_bits: u32, sums: Self::Whole) -> Self::Whole {
        sums
    }
    #[inline(always)]
    unsafe fn widened(_bits: u32, _sums: Self::Whole, narrow: Self::Whole) -> Self::Whole {
        narrow
    }
    /// Adds the products of four weights without a sign with four numbers of `x`.
    unsafe fn dot(sums: Self::Whole, weights: Self::Whole, x: Self::Whole) -> Self::Whole;
    /// The same of weights of 8 bits with a sign, where sums begin with [`Self::begin_signed`].
    unsafe fn dot_signed(sums: Self::Whole, weights: Self::Whole, x: Self::Whole) -> Self::Whole;
    /// What sums of products begin with for the offset of 128 that makes weights positive.
    unsafe fn begin_signed(offset: i32) -> Self::Whole;
    /// Adds the products of two weights of 16 bits with two numbers of `x`.
    #[cfg(target_arch = "x86_64")]
    unsafe fn dot_pairs(sums: Self::Whole, weights: Self::Whole, x: Self::Whole) -> Self::Whole;
    /// Adds sums.
    unsafe fn add(a: Self::Whole, b: Self::Whole) -> Self::Whole;
    /// Takes bytes from each other.
    #[cfg(target_arch = "x86_64")]
    unsafe fn less(a: Self::Whole, b: Self::Whole) -> Self::Whole;
    unsafe fn and(a: Self::Whole, b: Self::Whole) -> Self::Whole;
    unsafe fn or(a: Self::Whole, b: Self::Whole) -> Self::Whole;
    /// The bits of lanes moved to higher places.
    unsafe fn left(values: Self::Whole, places: i32) -> Self::Whole;
    /// The bits of lanes moved to lower places, zeros behind them.
    unsafe fn right(values: Self::Whole, places: i32) -> Self::Whole;
    /// The same with the sign behind them.
    unsafe fn right_signed(values: Self::Whole, places: i32) -> Self::Whole;
    unsafe fn converted(values: Self::Whole) -> Self::Numbers;
    unsafe fn multiply(a: Self::Numbers, b: Self::Numbers) -> Self::Numbers;
    /// `a * b + c`.
    unsafe fn multiply_add(a: Self::Numbers, b: Self::Numbers, c: Self::Numbers) -> Self::Numbers;
    /// `c - a * b`.
    unsafe fn multiply_subtract(a: Self::Numbers, b: Self::Numbers, c: Self::Numbers) -> Self::Numbers;
}
