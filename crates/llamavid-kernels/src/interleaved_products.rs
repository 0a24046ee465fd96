//! Products of a few rows with interleaved weights in whole numbers: the weights are read once, front to back, and a lane of a vector
//! is a row of weights.
//!
//! Reference: [`crate::integer_rows`], which gives the same of weights row after row, up to the order of sums.

use crate::block_format::BlockFormat;
use crate::block_vectors::{self, ask_for};
use crate::interleaved::INTERLEAVED_ROWS;
use crate::processor::{Processor, WholeNumbers};
use crate::products::Output;
use crate::whole_blocks::each_eighth;
use crate::whole_rows::WholeRows;
use crate::whole_vectors::{Narrow, Pairs, WholeVectors, Wide};

/// Adds the products of all rows of `x`, which are not in parts, with rows of weights, the bytes of which are whole `groups` of
/// interleaved ones; their results are the columns from `column` on.
///
/// # Safety
/// The processor has the instructions; the result lives, and nobody else uses these columns.
pub(crate) unsafe fn add_interleaved(
    processor: Processor,
    x: &WholeRows,
    groups: &[u8],
    column: usize,
    output: Output,
) {
    // SAFETY: as the caller promises.
    unsafe {
        match processor {
            Processor::Avx512(_, WholeNumbers::Tiles) => {
                add::<Wide, { block_vectors::AHEAD }>(x, groups, column, output)
            }
            Processor::Avx512(_, WholeNumbers::Fours) => add::<Wide, 0>(x, groups, column, output),
            Processor::Avx2(_, WholeNumbers::Fours) => add::<Narrow, 0>(x, groups, column, output),
            _ => add::<Pairs, 0>(x, groups, column, output),
        }
    }
}

/// # Safety
/// As [`add_interleaved`].
unsafe fn add<V: Vectors, const AHEAD: usize>(x: &WholeRows, groups: &[u8], column: usize, output: Output) {
    // SAFETY: as the caller promises.
    unsafe {
        match x.format {
            BlockFormat::F32 | BlockFormat::F16 | BlockFormat::BF16 => {}
            BlockFormat::Q8_0 => add_blocks::<Q8_0, V, AHEAD>(x, groups, column, output),
            BlockFormat::Q4_0 => add_blocks::<Q4_0, V, AHEAD>(x, groups, column, output),
            BlockFormat::Q4K => add_blocks::<Q4K, V, AHEAD>(x, groups, column, output),
            BlockFormat::Q5K => add_blocks::<Q5K, V, AHEAD>(x, groups, column, output),
            BlockFormat::Q6K => add_blocks::<Q6K, V, AHEAD>(x, groups, column, output),
        }
    }
}

/// # Safety
/// As [`add_interleaved`], and the blocks are of the format of `x`.
unsafe fn add_blocks<B: Block, V: Vectors, const AHEAD: usize>(
    x: &WholeRows,
    groups: &[u8],
    column: usize,
    output: Output,
) {
    assert_eq!(x.group, B::GROUP, "rows that are rounded for another format");
    let of_x = x.columns / x.group;
    for (index, group) in groups.chunks_exact(INTERLEAVED_ROWS * x.row_bytes).enumerate() {
        let blocks = group.len() / (INTERLEAVED_ROWS * B::BYTES);
        assert!(blocks * B::NUMBERS <= x.columns, "rows of another length");
        let mut first = 0;
        while first < x.count {
            // SAFETY: `x` has rows from `first` on, each with the numbers of all blocks and so many groups.
            unsafe {
                let rows = Rows {
                    numbers: x.numbers.as_ptr().add(first * x.columns),
                    columns: x.columns,
                    scales: x.scales.as_ptr().add(first * of_x),
                    sums: x.sums.as_ptr().add(first * of_x),
                    begins: x.begins.as_ptr().add(first * of_x),
                    groups: of_x,
                };
                let group = Group { at: group.as_ptr(), blocks };
                let output = At { output, row: first, column: column + INTERLEAVED_ROWS * index };
                let sums = V::SUMS / B::SUMS;
                first += match x.count - first {
                    1 => V::add::<B, 1, AHEAD>(rows, group, output),
                    2 | 3 if sums >= 2 => V::add::<B, 2, AHEAD>(rows, group, output),
                    4..8 if sums >= 4 => V::add::<B, 4, AHEAD>(rows, group, output),
                    _ if sums >= 8 => V::add::<B, 8, AHEAD>(rows, group, output),
                    _ if sums >= 4 => V::add::<B, 4, AHEAD>(rows, group, output),
                    _ if sums >= 2 => V::add::<B, 2, AHEAD>(rows, group, output),
                    _ => V::add::<B, 1, AHEAD>(rows, group, output),
                };
            }
        }
    }
}

/// Sixteen interleaved rows.
#[derive(Clone, Copy)]
struct Group {
    at: *const u8,
    blocks: usize,
}

/// Where the sums of the first row of `x` go.
#[derive(Clone, Copy)]
struct At {
    output: Output,
    row: usize,
    column: usize,
}

/// Rows of `x` from some number on.
#[derive(Clone, Copy)]
struct Rows {
    numbers: *const i8,
    /// Numbers from a row to the next.
    columns: usize,
    /// Of the groups of each row, as in [`WholeRows`].
    scales: *const f32,
    sums: *const f32,
    begins: *const i32,
    /// Groups from a row to the next.
    groups: usize,
}

impl Rows {
    /// The same from a later block on.
    #[inline(always)]
    unsafe fn behind<B: Block>(self, blocks: usize) -> Self {
        let groups = blocks * (B::NUMBERS / B::GROUP);
        // SAFETY: whoever calls it has so many blocks, and below these rows and groups.
        unsafe {
            Self {
                numbers: self.numbers.add(blocks * B::NUMBERS),
                scales: self.scales.add(groups),
                sums: self.sums.add(groups),
                begins: self.begins.add(groups),
                ..self
            }
        }
    }

    /// Four numbers of a row, in all lanes.
    #[inline(always)]
    unsafe fn four<V: WholeVectors>(&self, row: usize, place: usize) -> V::Whole {
        // SAFETY: as above.
        unsafe { V::splat_whole(self.numbers.add(row * self.columns + place).cast::<i32>().read_unaligned()) }
    }

    /// What the sums of products of a group begin with for the offset of the weights.
    #[inline(always)]
    unsafe fn begin(&self, row: usize, group: usize) -> i32 {
        // SAFETY: as above.
        unsafe { *self.begins.add(row * self.groups + group) }
    }

    /// Adds products of `X` rows with a group of weights, times the scales of both.
    #[inline(always)]
    unsafe fn scaled<V: WholeVectors, const X: usize>(
        &self,
        group: usize,
        products: [V::Whole; X],
        scales: V::Numbers,
        mut totals: [V::Numbers; X],
    ) -> [V::Numbers; X] {
        for row in 0..X {
            // SAFETY: as above.
            unsafe {
                let of_x = V::splat(*self.scales.add(row * self.groups + group));
                let products = V::multiply(V::converted(products[row]), scales);
                totals[row] = V::multiply_add(products, of_x, totals[row]);
            }
        }
        totals
    }

    /// Takes off the least value of a group of weights for each number of `X` rows.
    #[inline(always)]
    unsafe fn less<V: WholeVectors, const X: usize>(
        &self,
        group: usize,
        least: V::Numbers,
        mut totals: [V::Numbers; X],
    ) -> [V::Numbers; X] {
        for row in 0..X {
            // SAFETY: as above.
            unsafe {
                let of_x = V::splat(*self.sums.add(row * self.groups + group));
                totals[row] = V::multiply_subtract(least, of_x, totals[row]);
            }
        }
        totals
    }
}

/// A block of sixteen rows, or of the half of them that are a vector's lanes.
#[derive(Clone, Copy)]
struct Interleaved<const AHEAD: usize> {
    at: *const u8,
    /// The first row.
    row: usize,
}

impl<const AHEAD: usize> Interleaved<AHEAD> {
    /// The units of all rows that begin at a byte of their blocks.
    #[inline(always)]
    unsafe fn unit<V: WholeVectors>(self, byte: usize) -> V::Whole {
        // SAFETY: whoever calls it has the block.
        unsafe {
            let at = self.at.add(INTERLEAVED_ROWS * byte);
            if AHEAD > 0 {
                ask_for(at.wrapping_add(AHEAD));
            }
            V::load_whole(at.add(4 * self.row))
        }
    }

    /// The numbers of 16 bits that begin there.
    #[inline(always)]
    unsafe fn halves<V: WholeVectors>(self, byte: usize) -> V::Numbers {
        // SAFETY: as above.
        unsafe { V::load_halves(self.at.add(INTERLEAVED_ROWS * byte + 2 * self.row)) }
    }
}

/// How interleaved blocks of a format are multiplied.
trait Block {
    /// Bytes of a block of a row.
    const BYTES: usize;
    /// Numbers of a block.
    const NUMBERS: usize;
    /// Numbers that share a scale.
    const GROUP: usize = 32;
    /// Sums of whole numbers of each row of `x` at the same time.
    const SUMS: usize = 2;

    /// Adds the products of a block with `X` rows of `x`.
    ///
    /// # Safety
    /// The processor has the instructions; the block can be read, and rows of `x` have its numbers.
    unsafe fn add<V: WholeVectors, const X: usize, const AHEAD: usize>(
        block: Interleaved<AHEAD>,
        x: Rows,
        totals: [V::Numbers; X],
    ) -> [V::Numbers; X];
}

/// The products of `X` rows of `x` with sixteen rows of weights, and how many rows of `x` they were.
///
/// # Safety
/// As [`Block::add`]; the result lives, and nobody else uses these columns.
#[inline(always)]
unsafe fn add_group<B: Block, V: WholeVectors, const X: usize, const AHEAD: usize>(
    x: Rows,
    group: Group,
    to: At,
) -> usize {
    for row in (0..INTERLEAVED_ROWS).step_by(V::LANES) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut totals = [V::splat(0.0); X];
            for block in 0..group.blocks {
                let at = group.at.add(block * INTERLEAVED_ROWS * B::BYTES);
                let interleaved = Interleaved::<AHEAD> { at, row };
                totals = B::add::<V, X, AHEAD>(interleaved, x.behind::<B>(block), totals);
            }
            for (of_x, total) in totals.into_iter().enumerate() {
                let mut sums = [0f32; INTERLEAVED_ROWS];
                V::store(sums.as_mut_ptr(), total);
                to.output.add(to.row + of_x, to.column + row, &sums[..V::LANES]);
            }
        }
    }
    X
}

/// The vectors of a group.
trait Vectors: WholeVectors {
    /// Sums of whole numbers at the same time: half of the registers.
    const SUMS: usize;

    /// [`add_group`] in these vectors.
    unsafe fn add<B: Block, const X: usize, const AHEAD: usize>(x: Rows, group: Group, to: At) -> usize;
}

macro_rules! vectors {
    ($name:ident, $features:literal, $sums:literal) => {
        impl Vectors for $name {
            const SUMS: usize = $sums;

            #[inline(always)]
            unsafe fn add<B: Block, const X: usize, const AHEAD: usize>(
                x: Rows,
                group: Group,
                to: At,
            ) -> usize {
                #[target_feature(enable = $features)]
                unsafe fn add<B: Block, const X: usize, const AHEAD: usize>(
                    x: Rows,
                    group: Group,
                    to: At,
                ) -> usize {
                    // SAFETY: as the caller promises.
                    unsafe { add_group::<B, $name, X, AHEAD>(x, group, to) }
                }
                // SAFETY: as the caller promises.
                unsafe { add::<B, X, AHEAD>(x, group, to) }
            }
        }
    };
}
vectors!(Wide, "avx512f,avx512bw,avx512vnni,avx2,fma,f16c", 16);
vectors!(Narrow, "avx2,fma,f16c,avxvnni", 4);
vectors!(Pairs, "avx2,fma,f16c", 4);

/// Each byte of four.
const fn of_bytes(byte: u8) -> i32 {
    i32::from_ne_bytes([byte; 4])
}

/// A scale, then 32 numbers of 8 bits with a sign.
struct Q8_0;

impl Block for Q8_0 {
    const BYTES: usize = 34;
    const NUMBERS: usize = 32;

    #[inline(always)]
    unsafe fn add<V: WholeVectors, const X: usize, const AHEAD: usize>(
        block: Interleaved<AHEAD>,
        x: Rows,
        totals: [V::Numbers; X],
    ) -> [V::Numbers; X] {
        // SAFETY: as the caller promises.
        unsafe {
            let scales = block.halves::<V>(0);
            let mut products = [V::splat_whole(0); X];
            for row in 0..X {
                products[row] = V::begin_signed(x.begin(row, 0));
            }
            for step in 0..8 {
                let weights = block.unit::<V>(2 + 4 * step);
                for row in 0..X {
                    products[row] = V::dot_signed(products[row], weights, x.four::<V>(row, 4 * step));
                }
            }
            x.scaled::<V, X>(0, products, scales, totals)
        }
    }
}

/// A scale, then 32 numbers from -8 to 7: the first half in the lower bits of 16 bytes, the second in the upper.
struct Q4_0;

impl Block for Q4_0 {
    const BYTES: usize = 18;
    const NUMBERS: usize = 32;

    #[inline(always)]
    unsafe fn add<V: WholeVectors, const X: usize, const AHEAD: usize>(
        block: Interleaved<AHEAD>,
        x: Rows,
        totals: [V::Numbers; X],
    ) -> [V::Numbers; X] {
        // SAFETY: as the caller promises.
        unsafe {
            let scales = block.halves::<V>(0);
            let mut products = [V::splat_whole(0); X];
            for row in 0..X {
                products[row] = V::splat_whole(x.begin(row, 0));
            }
            for step in 0..4 {
                let [lower, upper] = pairs::<V>(block.unit::<V>(2 + 4 * step));
                for row in 0..X {
                    products[row] = V::dot(products[row], lower, x.four::<V>(row, 4 * step));
                    products[row] = V::dot(products[row], upper, x.four::<V>(row, 16 + 4 * step));
                }
            }
            x.scaled::<V, X>(0, products, scales, totals)
        }
    }
}

/// Two numbers of 16 bits, 6 bits of a scale and of a least value of each eighth, then 256 numbers from 0 to 15: of each 64, the first
/// half in the lower bits of 32 bytes, the second in the upper.
struct Q4K;

impl Block for Q4K {
    const BYTES: usize = 144;
    const NUMBERS: usize = 256;

    #[inline(always)]
    unsafe fn add<V: WholeVectors, const X: usize, const AHEAD: usize>(
        block: Interleaved<AHEAD>,
        x: Rows,
        mut totals: [V::Numbers; X],
    ) -> [V::Numbers; X] {
        // SAFETY: as the caller promises.
        unsafe {
            let eighths = Eighths::<V>::new(block);
            each_eighth!(quarter => {
                let mut products = [[V::splat_whole(0); X]; 2];
                for step in 0..8 {
                    let [lower, upper] = pairs::<V>(block.unit::<V>(16 + 32 * quarter + 4 * step));
                    let place = 64 * quarter + 4 * step;
                    for row in 0..X {
                        products[0][row] = V::dot(products[0][row], lower, x.four::<V>(row, place));
                        products[1][row] = V::dot(products[1][row], upper, x.four::<V>(row, place + 32));
                    }
                }
                totals = eighths.scaled::<X>(2 * quarter, x, products, totals);
            }, 0 1 2 3);
        }
        totals
    }
}

/// The same with a fifth bit of each number: bit e of 32 bytes between is that of the numbers of eighth e.
struct Q5K;

impl Block for Q5K {
    const BYTES: usize = 176;
    const NUMBERS: usize = 256;

    #[inline(always)]
    unsafe fn add<V: WholeVectors, const X: usize, const AHEAD: usize>(
        block: Interleaved<AHEAD>,
        x: Rows,
        mut totals: [V::Numbers; X],
    ) -> [V::Numbers; X] {
        // SAFETY: as the caller promises.
        unsafe {
            let eighths = Eighths::<V>::new(block);
            let fifth = V::splat_whole(of_bytes(16));
            each_eighth!(quarter => {
                let mut products = [[V::splat_whole(0); X]; 2];
                for step in 0..8 {
                    let [lower, upper] = pairs::<V>(block.unit::<V>(48 + 32 * quarter + 4 * step));
                    let bits = block.unit::<V>(16 + 4 * step);
                    // The bits of both eighths, moved to the fifth place.
                    let [first, second] = match quarter {
                        0 => [V::left(bits, 4), V::left(bits, 3)],
                        1 => [V::left(bits, 2), V::left(bits, 1)],
                        2 => [bits, V::right(bits, 1)],
                        _ => [V::right(bits, 2), V::right(bits, 3)],
                    };
                    let lower = V::or(lower, V::and(first, fifth));
                    let upper = V::or(upper, V::and(second, fifth));
                    let place = 64 * quarter + 4 * step;
                    for row in 0..X {
                        products[0][row] = V::dot(products[0][row], lower, x.four::<V>(row, place));
                        products[1][row] = V::dot(products[1][row], upper, x.four::<V>(row, place + 32));
                    }
                }
                totals = eighths.scaled::<X>(2 * quarter, x, products, totals);
            }, 0 1 2 3);
        }
        totals
    }
}

/// 256 numbers from -32 to 31: of each half, the lower 4 bits of its quarters in 64 bytes (two quarters to the lower bits, two to the
/// upper), and two bits of each of them in 32 bytes. Then 16 scales of a byte each, and one of all.
struct Q6K;

impl Block for Q6K {
    const BYTES: usize = 210;
    const NUMBERS: usize = 256;
    const GROUP: usize = 16;
    const SUMS: usize = 4;

    #[inline(always)]
    unsafe fn add<V: WholeVectors, const X: usize, const AHEAD: usize>(
        block: Interleaved<AHEAD>,
        x: Rows,
        mut totals: [V::Numbers; X],
    ) -> [V::Numbers; X] {
        // SAFETY: as the caller promises.
        unsafe {
            let all = block.halves::<V>(208);
            let two = V::splat_whole(of_bytes(0x30));
            // Each half's first and second groups of its quarters.
            each_eighth!(part => {
                let (half, second) = (part / 2, part % 2);
                let mut products = [[V::splat_whole(0); X]; 4];
                for quarter in 0..4 {
                    for row in 0..X {
                        products[quarter][row] = V::splat_whole(x.begin(row, 8 * half + 2 * quarter + second));
                    }
                }
                for step in 4 * second..4 * second + 4 {
                    let [a, c] = pairs::<V>(block.unit::<V>(64 * half + 4 * step));
                    let [b, d] = pairs::<V>(block.unit::<V>(64 * half + 32 + 4 * step));
                    let bits = block.unit::<V>(128 + 32 * half + 4 * step);
                    let weights = [
                        V::or(a, V::and(V::left(bits, 4), two)),
                        V::or(b, V::and(V::left(bits, 2), two)),
                        V::or(c, V::and(bits, two)),
                        V::or(d, V::and(V::right(bits, 2), two)),
                    ];
                    for quarter in 0..4 {
                        let place = 128 * half + 32 * quarter + 4 * step;
                        for row in 0..X {
                            products[quarter][row] =
                                V::dot(products[quarter][row], weights[quarter], x.four::<V>(row, place));
                        }
                    }
                }
                for quarter in 0..4 {
                    let group = 8 * half + 2 * quarter + second;
                    let scales = block.unit::<V>(192 + group / 4 * 4);
                    let scales = V::right_signed(V::left(scales, 24 - 8 * (group % 4) as i32), 24);
                    let scales = V::multiply(V::converted(scales), all);
                    totals = x.scaled::<V, X>(group, products[quarter], scales, totals);
                }
            }, 0 1 2 3);
        }
        totals
    }
}

/// The lower and the upper four bits of each byte.
#[inline(always)]
unsafe fn pairs<V: WholeVectors>(bytes: V::Whole) -> [V::Whole; 2] {
    // SAFETY: whoever calls it has the instructions.
    unsafe {
        let lower = V::splat_whole(of_bytes(15));
        [V::and(bytes, lower), V::and(V::right(bytes, 4), lower)]
    }
}

/// The scales and the least values of the eighths of large blocks.
#[derive(Clone, Copy)]
struct Eighths<V: WholeVectors> {
    scale: V::Numbers,
    least: V::Numbers,
    words: [V::Whole; 3],
}

impl<V: WholeVectors> Eighths<V> {
    #[inline(always)]
    unsafe fn new<const AHEAD: usize>(block: Interleaved<AHEAD>) -> Self {
        // SAFETY: whoever calls it has the instructions and the block, here and below.
        unsafe {
            Self {
                scale: block.halves::<V>(0),
                least: block.halves::<V>(2),
                words: [block.unit::<V>(4), block.unit::<V>(8), block.unit::<V>(12)],
            }
        }
    }

    /// What an eighth's numbers are multiplied with, and what is taken from them.
    #[inline(always)]
    unsafe fn of(&self, eighth: usize) -> [V::Numbers; 2] {
        let [a, b, both] = self.words;
        // SAFETY: as above.
        unsafe {
            let [scale, least] = if eighth < 4 {
                let six = V::splat_whole(63);
                let places = 8 * eighth as i32;
                [V::and(V::right(a, places), six), V::and(V::right(b, places), six)]
            } else {
                let (four, two) = (V::splat_whole(15), V::splat_whole(0x30));
                let places = 8 * (eighth as i32 - 4);
                [
                    V::or(V::and(V::right(both, places), four), V::and(V::right(a, places + 2), two)),
                    V::or(V::and(V::right(both, places + 4), four), V::and(V::right(b, places + 2), two)),
                ]
            };
            [V::multiply(V::converted(scale), self.scale), V::multiply(V::converted(least), self.least)]
        }
    }

    /// Adds the products of an eighth and of the next one.
    #[inline(always)]
    unsafe fn scaled<const X: usize>(
        &self,
        eighth: usize,
        x: Rows,
        products: [[V::Whole; X]; 2],
        mut totals: [V::Numbers; X],
    ) -> [V::Numbers; X] {
        for (next, products) in products.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe {
                let [scales, least] = self.of(eighth + next);
                totals = x.scaled::<V, X>(eighth + next, products, scales, totals);
                totals = x.less::<V, X>(eighth + next, least, totals);
            }
        }
        totals
    }
}
