//! Products of small matrices in AMX tiles, for the layers of this folder: rows of `x` lie the way tiles read them
//! ([`super::tile_rows`]), and the sums begin with a row that is the same for all, or with those that are there.

use std::arch::asm;

use super::parts::Step;
use super::tile_rows::TileRow;
use crate::instructions::amx::{LONGEST, Prefetch, Tiles};

/// Rows of `x`, and of weights, that are multiplied together.
pub(crate) const ROWS: usize = crate::instructions::amx::ROWS;
/// [`Line`]s of as many rows of `x`, or of weights.
pub(crate) const STEP: usize = ROWS;

/// The AMX tiles of this thread, configured for whole tile rows.
pub(crate) struct AmxTiles(#[allow(dead_code, reason = "it releases them")] Tiles);

impl AmxTiles {
    /// # Safety
    /// As [`Tiles::new`].
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: as the caller promises.
        Self(unsafe { Tiles::new(LONGEST) })
    }
}

/// What 32 bits of a row of `x` and of one of weights are, and how they are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Product {
    /// Four int8, those of `x` unsigned.
    Int8,
    /// Two bf16.
    Bf16,
    /// Two numbers of `x` in three bf16 pieces and two weights in two: [`super::tile_rows::PIECES`].
    ThreeByTwo,
    /// Two numbers of each in three pieces.
    ThreeByThree,
}

impl Product {
    /// Pieces of a number of `x`.
    pub(crate) fn of_x(self) -> usize {
        match self {
            Self::Int8 | Self::Bf16 => 1,
            Self::ThreeByTwo | Self::ThreeByThree => 3,
        }
    }

    /// Pieces of a weight.
    pub(crate) fn of_weights(self) -> usize {
        match self {
            Self::Int8 | Self::Bf16 => 1,
            Self::ThreeByTwo => 2,
            Self::ThreeByThree => 3,
        }
    }
}

/// What sums begin with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Begin<'a> {
    /// The same for each row of `x`.
    With(&'a Step),
    /// Those that are there.
    Sums,
}

/// Multiplies [`ROWS`] rows of `x`, or only the first half of them, with as many rows of weights. All are tile rows: of each step
/// and of each piece those of the rows, and of weights 16 times two tile rows, of which each has 32 bits of 16 rows.
///
/// Numbers in pieces: sums are rounded to f32 behind every product, of which there are six (five) for one. What is left out of a
/// product are pieces of 2^-23 of it at most, as little as f32 tells; what is less than 2^-126 counts as 0.
///
/// # Safety
/// There are as many tile rows of `x` and of weights as `steps` take, and sums of as many rows, which nobody else uses:
/// int32 where int8 are multiplied.
pub(crate) unsafe fn multiply(
    _tiles: &AmxTiles,
    product: Product,
    half: bool,
    (x, weights): (*const TileRow, *const TileRow),
    steps: usize,
    (begin, sums): (Begin, *mut Step),
    prefetch: Option<Prefetch>,
) {
    assert!(steps > 0, "no products");
    // To prefetch a line that is there costs next to nothing.
    let prefetch =
        prefetch.filter(|prefetch| prefetch.lines > 0).unwrap_or(Prefetch { first: x.cast(), lines: 1 });
    let (from, pace): (*const f32, usize) = match begin {
        Begin::With(row) => ((&raw const *row).cast(), 0),
        Begin::Sums => (sums.cast(), size_of::<Step>()),
    };
    // SAFETY: as the caller promises.
    unsafe {
        match (product, half) {
            (Product::Int8, false) => int8(x, weights, steps, from, pace, sums, prefetch),
            (Product::Int8, true) => few_int8(x, weights, steps, from, pace, sums, prefetch),
            (Product::Bf16, false) => bf16(x, weights, steps, from, pace, sums, prefetch),
            (Product::Bf16, true) => few_bf16(x, weights, steps, from, pace, sums, prefetch),
            (Product::ThreeByTwo, false) => three_by_two(x, weights, steps, from, pace, sums, prefetch),
            (Product::ThreeByTwo, true) => few_three_by_two(x, weights, steps, from, pace, sums, prefetch),
            (Product::ThreeByThree, false) => three_by_three(x, weights, steps, from, pace, sums, prefetch),
            (Product::ThreeByThree, true) => {
                few_three_by_three(x, weights, steps, from, pace, sums, prefetch)
            }
        }
    }
}

/// Assembly that loads 16 or 32 rows of a piece of `x`, or of weights.
macro_rules! load {
    (x $at:literal) => {
        concat!("tileloadd tmm4, [{x} + {side} + ", $at, "]\n")
    };
    (others $at:literal) => {
        concat!("tileloadd tmm5, [{x} + {side} + ", $at, " + 1024]\n")
    };
    (left $at:literal) => {
        concat!("tileloadd tmm6, [{weights} + {step} + ", $at, "]\n")
    };
    (right $at:literal) => {
        concat!("tileloadd tmm7, [{weights} + {step} + ", $at, " + 64]\n")
    };
}

/// Assembly that multiplies what is loaded, 32 rows or 16 with 32.
macro_rules! multiply_loaded {
    (32, $multiply:literal) => {
        concat!(
            $multiply,
            " tmm0, tmm4, tmm6\n",
            $multiply,
            " tmm2, tmm5, tmm6\n",
            $multiply,
            " tmm1, tmm4, tmm7\n",
            $multiply,
            " tmm3, tmm5, tmm7\n"
        )
    };
    (16, $multiply:literal) => {
        concat!($multiply, " tmm0, tmm4, tmm6\n", $multiply, " tmm1, tmm4, tmm7\n")
    };
}

/// Assembly of a step: pieces of `x` and of weights, by their places in bytes, are loaded one after the other, and what is
/// loaded then is multiplied.
macro_rules! step {
    (32, $multiply:literal, $($kind:ident $at:literal),*) => { concat!($(step!(@32 $multiply, $kind $at)),*) };
    (16, $multiply:literal, $($kind:ident $at:literal),*) => { concat!($(step!(@16 $multiply, $kind $at)),*) };
    (@32 $multiply:literal, first $at:literal) => { concat!(load!(x $at), load!(others $at)) };
    (@16 $multiply:literal, first $at:literal) => { load!(x $at) };
    (@32 $multiply:literal, x $at:literal) => {
        concat!(load!(x $at), load!(others $at), multiply_loaded!(32, $multiply))
    };
    (@16 $multiply:literal, x $at:literal) => { concat!(load!(x $at), multiply_loaded!(16, $multiply)) };
    (@32 $multiply:literal, weights $at:literal) => {
        concat!(load!(left $at), load!(right $at), multiply_loaded!(32, $multiply))
    };
    (@16 $multiply:literal, weights $at:literal) => {
        concat!(load!(left $at), load!(right $at), multiply_loaded!(16, $multiply))
    };
}

/// Functions of [`multiply`] for 32 and for 16 rows of `x`: `$x` and `$weights` pieces of each number, and the steps' pieces in an
/// order in which each product but the first needs only one of the two to be loaded.
macro_rules! products {
    ($all:ident, $few:ident, $multiply:literal, $pieces:tt, $($kind:ident $at:literal),*) => {
        products!(
            @$all, 32, $multiply, $pieces,
            [
                "tileloadd tmm0, [{from} + {pace}]",
                "tileloadd tmm1, [{from} + {pace} + 64]",
                "mov {count}, {pace}",
                "shl {count}, 4",
                "add {count}, {from}",
                "tileloadd tmm2, [{count} + {pace}]",
                "tileloadd tmm3, [{count} + {pace} + 64]"
            ],
            [
                "tilestored [{sums} + {step}], tmm0",
                "tilestored [{sums} + {step} + 64], tmm1",
                "tilestored [{sums} + {step} + 2048], tmm2",
                "tilestored [{sums} + {step} + 2048 + 64], tmm3"
            ],
            $($kind $at),*
        );
        products!(
            @$few, 16, $multiply, $pieces,
            ["tileloadd tmm0, [{from} + {pace}]", "tileloadd tmm1, [{from} + {pace} + 64]"],
            ["tilestored [{sums} + {step}], tmm0", "tilestored [{sums} + {step} + 64], tmm1"],
            $($kind $at),*
        );
    };
    (
        @$name:ident, $rows:tt, $multiply:literal, [$x:literal, $weights:literal],
        [$($begin:literal),*], [$($end:literal),*], $($kind:ident $at:literal),*
    ) => {
        unsafe fn $name(
            x: *const TileRow,
            weights: *const TileRow,
            steps: usize,
            from: *const f32,
            pace: usize,
            sums: *mut Step,
            prefetch: Prefetch,
        ) {
            // SAFETY: tiles of 16 rows are read and written as far as there are such, as the caller promises.
            unsafe {
                asm!(
                    $($begin,)*
                    "2:",
                    "mov {count}, {lines}",
                    "3:",
                    "prefetcht1 [{prefetch}]",
                    "add {prefetch}, 64",
                    "dec {count}",
                    "jnz 3b",
                    step!($rows, $multiply, $($kind $at),*),
                    concat!("add {x}, ", $x, " * 2048"),
                    concat!("add {weights}, ", $weights, " * 2048"),
                    "dec {steps}",
                    "jnz 2b",
                    $($end,)*
                    x = inout(reg) x => _,
                    weights = inout(reg) weights => _,
                    steps = inout(reg) steps => _,
                    from = in(reg) from,
                    pace = in(reg) pace,
                    sums = in(reg) sums,
                    prefetch = inout(reg) prefetch.first => _,
                    lines = in(reg) prefetch.lines,
                    count = out(reg) _,
                    side = in(reg) size_of::<TileRow>(),
                    step = in(reg) 2 * size_of::<TileRow>(),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack)
                );
            }
        }
    };
}

products!(int8, few_int8, "tdpbusd", [1, 1], first "0", weights "0");
products!(bf16, few_bf16, "tdpbf16ps", [1, 1], first "0", weights "0");
// Pieces of `x` by those of weights, of which the first is the largest: 0 · 1, 1 · 1, 1 · 0, 2 · 0, 0 · 0.
products!(
    three_by_two, few_three_by_two, "tdpbf16ps", [3, 2],
    first "0", weights "2048", x "2048", weights "0", x "4096", x "0"
);
// 0 · 2, 0 · 1, 1 · 1, 1 · 0, 2 · 0, 0 · 0.
products!(
    three_by_three, few_three_by_three, "tdpbf16ps", [3, 3],
    first "0", weights "4096", weights "2048", x "2048", weights "0", x "4096", x "0"
);
