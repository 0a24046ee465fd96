//! int8 dot products with weights in blocks, in the vectors of an ARM processor (NEON, dotprod, i8mm).
//!
//! Blocks are read by [`crate::formats::block_format`], 256 numbers at a time into the L1 cache: its portable code is vectorised
//! too. A few rows are multiplied while the weights go by; for many, weights are laid out as panels once for all.

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, vaddq_f32, vaddvq_f32, vcvtq_f32_s32, vdupq_n_f32, vdupq_n_s32,
    vdupq_n_u8, vfmaq_n_f32, vfmsq_f32, vfmsq_n_f32, vld1q_f32, vld1q_s8, vld1q_u8, vmulq_f32,
    vreinterpretq_s8_s64, vreinterpretq_s8_u8, vreinterpretq_s32_s64, vreinterpretq_s64_s8,
    vreinterpretq_s64_s32, vst1q_f32, vsubq_u8, vzip1q_s64, vzip2q_s64,
};

use crate::formats::block_format::{BlockFormat, IntegerLayout, LARGE as NUMBERS, read_integers};
use crate::instructions::neon_dot::{dot, dot_lane, square};
use crate::instructions::processor::{IntegerDot, Processor};
use crate::products::integer::quantised_rows::QuantisedRows;
use crate::products::{Output, Weights};

/// Rows of weights that are laid out together.
pub(crate) const PANEL_ROWS: usize = 8;
/// Numbers of a row that are multiplied at a time: those of a panel stay in the L1 cache.
pub(crate) const PART: usize = 512;
/// Rows of `x` of a tile: their products and sums take half of 32 registers.
const X_ROWS: usize = 4;
/// Numbers of a vector.
const LANES: usize = 16;
/// The smallest groups.
const GROUP: usize = 16;
/// Rows of `x` that [`add_rows`] takes at most.
const FEW: usize = 8;

/// Adds the products of all rows of `x`, which are not in parts and at most [`FEW`], with some rows of weights, the bytes of
/// which are `rows`; their results are the columns from `column` on.
///
/// # Safety
/// The processor has the dot products; the result lives, and nobody else uses these columns.
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn add_rows(_: Processor, x: &QuantisedRows, rows: &[u8], column: usize, output: Output) {
    assert!(x.count <= FEW, "more rows than a few");
    let groups = x.columns / x.group;
    let mut blocks = Blocks::new(x.format);
    for (index, row) in rows.chunks_exact(x.row_bytes).enumerate() {
        let mut sums = [vdupq_n_f32(0.0); FEW];
        for (place, bytes) in row.chunks(blocks.bytes).enumerate() {
            blocks.read(bytes);
            for (of_x, sum) in sums.iter_mut().enumerate().take(x.count) {
                let first = of_x * groups + place * NUMBERS / x.group;
                let numbers = &x.numbers[of_x * x.columns + place * NUMBERS..][..NUMBERS];
                let (scales, of_groups) = (&x.scales[first..], &x.sums[first..]);
                // SAFETY: the processor has the instructions, as the caller promises.
                *sum = unsafe {
                    match x.group {
                        GROUP => blocks.add::<GROUP>(*sum, numbers, scales, of_groups),
                        _ => blocks.add::<{ 2 * GROUP }>(*sum, numbers, scales, of_groups),
                    }
                };
            }
        }
        for (of_x, sum) in sums.into_iter().enumerate().take(x.count) {
            // SAFETY: as the caller promises.
            unsafe { output.add(of_x, column + index, &[vaddvq_f32(sum)]) };
        }
    }
}

/// 256 numbers of a row of weights.
struct Blocks {
    format: BlockFormat,
    group: usize,
    /// Bytes that they take.
    bytes: usize,
    /// The zero point; 0 where there are mins.
    offset: u8,
    numbers: [u8; NUMBERS],
    scales: [f32; NUMBERS / GROUP],
    mins: [f32; NUMBERS / GROUP],
}

impl Blocks {
    #[inline(always)]
    fn new(format: BlockFormat) -> Self {
        let IntegerLayout { group, offset } =
            IntegerLayout::of(format).unwrap_or(IntegerLayout { group: GROUP, offset: 0 });
        Self {
            format,
            group,
            bytes: NUMBERS / format.block_length() * format.block_bytes(),
            offset: offset as u8,
            numbers: [0; NUMBERS],
            scales: [0.0; NUMBERS / GROUP],
            mins: [0.0; NUMBERS / GROUP],
        }
    }

    /// Reads the next ones; behind the end of a row there are zeros.
    #[inline(always)]
    fn read(&mut self, bytes: &[u8]) {
        if bytes.len() < self.bytes {
            self.scales.fill(0.0);
        }
        read_integers(self.format, bytes, &mut self.numbers, &mut self.scales, &mut self.mins);
    }

    /// 16 of the numbers, with a sign.
    ///
    /// # Safety
    /// `vector` is below 16.
    #[inline(always)]
    unsafe fn signed(&self, vector: usize) -> int8x16_t {
        // SAFETY: every processor of the architecture has the instructions, and there are 16 vectors of numbers.
        unsafe {
            let numbers = vld1q_u8(self.numbers.as_ptr().add(LANES * vector));
            vreinterpretq_s8_u8(vsubq_u8(numbers, vdupq_n_u8(self.offset)))
        }
    }

    /// Adds the products with as many numbers of a row of `x`, in groups of `OF_A_GROUP`, to a vector of sums.
    ///
    /// # Safety
    /// The processor has the dot products.
    #[inline(always)]
    unsafe fn add<const OF_A_GROUP: usize>(
        &self,
        sum: float32x4_t,
        x: &[i8],
        scales: &[f32],
        of_groups: &[f32],
    ) -> float32x4_t {
        let groups = NUMBERS / OF_A_GROUP;
        let vectors = OF_A_GROUP / LANES;
        assert!(x.len() == NUMBERS && self.group == OF_A_GROUP, "other groups");
        let (scales, of_groups) = (&scales[..groups], &of_groups[..groups]);
        // SAFETY: the instructions are there, and what is read has this length.
        unsafe {
            // Two sums that do not wait for each other.
            let mut sums = [sum, vdupq_n_f32(0.0)];
            for (group, scale) in scales.iter().enumerate() {
                let mut products = vdupq_n_s32(0);
                for vector in group * vectors..(group + 1) * vectors {
                    let x = vld1q_s8(x.as_ptr().add(LANES * vector));
                    products = dot(products, self.signed(vector), x);
                }
                let factor = self.scales[group] * scale;
                sums[group % 2] = vfmaq_n_f32(sums[group % 2], vcvtq_f32_s32(products), factor);
            }
            if self.offset == 0 {
                for (of_x, mins) in of_groups.as_chunks().0.iter().zip(self.mins.as_chunks().0) {
                    sums[1] = vfmsq_f32(sums[1], four(of_x), four(mins));
                }
            }
            vaddq_f32(sums[0], sums[1])
        }
    }
}

/// Adds the products of all rows of `x`, in parts of [`PART`], with up to [`PANEL_ROWS`] rows of weights, none of
/// them interleaved; their results are the columns from `column` on.
///
/// # Safety
/// The processor has the instructions; the result lives, and nobody else uses these columns.
pub(crate) unsafe fn add_panel(
    processor: Processor,
    x: &QuantisedRows,
    weights: Weights,
    column: usize,
    output: Output,
) {
    let rows = weights.bytes();
    // SAFETY: as the caller promises.
    unsafe {
        match processor.integer_dot() {
            IntegerDot::Tiles => add_in_tiles(x, rows, column, output),
            _ => add_in_quads(x, rows, column, output),
        }
    }
}

/// # Safety
/// As [`add_panel`], and the processor has products of matrices.
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn add_in_tiles(x: &QuantisedRows, rows: &[u8], column: usize, output: Output) {
    // SAFETY: as the caller promises.
    unsafe { add::<true>(x, rows, column, output) }
}

/// # Safety
/// As [`add_panel`], and the processor has dot products.
#[target_feature(enable = "neon,dotprod")]
unsafe fn add_in_quads(x: &QuantisedRows, rows: &[u8], column: usize, output: Output) {
    // SAFETY: as the caller promises.
    unsafe { add::<false>(x, rows, column, output) }
}

/// The same, in products of matrices of two rows when `TILES`.
///
/// # Safety
/// As [`add_panel`].
#[inline(always)]
unsafe fn add<const TILES: bool>(x: &QuantisedRows, rows: &[u8], column: usize, output: Output) {
    let mut panel = Panel::new(x.format);
    let found = rows.len() / x.row_bytes;
    for first in (0..x.columns).step_by(PART) {
        let length = PART.min(x.columns - first);
        for (place, row) in rows.chunks_exact(x.row_bytes).enumerate() {
            panel.lay_out::<TILES>(place, row, first / NUMBERS, length / NUMBERS);
        }
        for at in (0..x.count).step_by(X_ROWS) {
            let width = X_ROWS.min(x.count - at);
            let mut begins = [0; X_ROWS];
            for (row, begin) in begins.iter_mut().enumerate() {
                // The last row stands in for those that are missing: nobody reads their sums.
                *begin = first * x.count + (at + row.min(width - 1)) * length;
            }
            // SAFETY: the processor has the instructions, as the caller promises.
            let sums = unsafe { panel.tile::<TILES>(x, begins, length) };
            for (row, sums) in sums.iter().enumerate().take(width) {
                // SAFETY: as the caller promises.
                unsafe { output.add(at + row, column, &sums[..found]) };
            }
        }
    }
}

/// A part of some rows of weights: four numbers of each row, then the next four, or eight and eight for tiles.
struct Panel {
    blocks: Blocks,
    numbers: Vec<i8>,
    /// Of each group, for each row.
    scales: Vec<[f32; PANEL_ROWS]>,
    mins: Vec<[f32; PANEL_ROWS]>,
}

impl Panel {
    #[inline(always)]
    fn new(format: BlockFormat) -> Self {
        let blocks = Blocks::new(format);
        let groups = PART / blocks.group;
        Self {
            blocks,
            numbers: vec![0; PART * PANEL_ROWS],
            scales: vec![[0.0; PANEL_ROWS]; groups],
            mins: vec![[0.0; PANEL_ROWS]; groups],
        }
    }

    /// Takes `count` times 256 numbers of a row.
    #[inline(always)]
    fn lay_out<const TILES: bool>(&mut self, place: usize, row: &[u8], first: usize, count: usize) {
        let Self { blocks, numbers, scales, mins } = self;
        let groups = NUMBERS / blocks.group;
        for (block, bytes) in row.chunks(blocks.bytes).skip(first).take(count).enumerate() {
            blocks.read(bytes);
            let into = &mut numbers[block * NUMBERS * PANEL_ROWS..][..NUMBERS * PANEL_ROWS];
            match TILES {
                true => take::<8>(&blocks.numbers, blocks.offset, place, into),
                false => take::<4>(&blocks.numbers, blocks.offset, place, into),
            }
            for group in 0..groups {
                scales[block * groups + group][place] = blocks.scales[group];
                mins[block * groups + group][place] = blocks.mins[group];
            }
        }
    }

    /// The products of the panel's rows with rows of `x` whose `length` numbers lie from `begins` on.
    ///
    /// # Safety
    /// The processor has dot products, and products of matrices when `TILES`.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "of several arrays")]
    unsafe fn tile<const TILES: bool>(
        &self,
        x: &QuantisedRows,
        begins: [usize; X_ROWS],
        length: usize,
    ) -> [[f32; PANEL_ROWS]; X_ROWS] {
        assert!(length <= PART && begins.iter().all(|begin| begin + length <= x.numbers.len()), "other rows");
        let vectors = x.group / LANES;
        let weights = self.numbers.as_ptr();
        // SAFETY: the instructions are there, rows of `x` and of the panel have `length` numbers each.
        unsafe {
            let mut totals = [[vdupq_n_f32(0.0); 2]; X_ROWS];
            for group in 0..length / x.group {
                let mut products = [[vdupq_n_s32(0); 2]; X_ROWS];
                // Of two rows of `x` and two of weights each.
                let mut squares = [[vdupq_n_s32(0); 4]; 2];
                for vector in group * vectors..(group + 1) * vectors {
                    let mut of_x = [std::mem::zeroed(); X_ROWS];
                    for row in 0..X_ROWS {
                        of_x[row] = vld1q_s8(x.numbers.as_ptr().add(begins[row] + LANES * vector));
                    }
                    let weights = weights.add(LANES * PANEL_ROWS * vector);
                    if TILES {
                        let pairs = [halves(of_x[0], of_x[1]), halves(of_x[2], of_x[3])];
                        for half in 0..2 {
                            for rows in 0..4 {
                                let weights = vld1q_s8(weights.add(LANES * (4 * half + rows)));
                                squares[0][rows] = square(squares[0][rows], pairs[0][half], weights);
                                squares[1][rows] = square(squares[1][rows], pairs[1][half], weights);
                            }
                        }
                    } else {
                        macro_rules! step {
                            ($($lane:literal)*) => {
                                $({
                                    let first = vld1q_s8(weights.add(2 * LANES * $lane));
                                    let second = vld1q_s8(weights.add(2 * LANES * $lane + LANES));
                                    for row in 0..X_ROWS {
                                        products[row][0] = dot_lane::<$lane>(products[row][0], first, of_x[row]);
                                        products[row][1] = dot_lane::<$lane>(products[row][1], second, of_x[row]);
                                    }
                                })*
                            };
                        }
                        step!(0 1 2 3);
                    }
                }
                if TILES {
                    for pair in 0..2 {
                        for half in 0..2 {
                            let [first, second] =
                                of_rows(squares[pair][2 * half], squares[pair][2 * half + 1]);
                            products[2 * pair][half] = first;
                            products[2 * pair + 1][half] = second;
                        }
                    }
                }
                let (first, second) = self.scales[group].split_at(4);
                let scales = [vld1q_f32(first.as_ptr()), vld1q_f32(second.as_ptr())];
                let (first, second) = self.mins[group].split_at(4);
                let mins = [vld1q_f32(first.as_ptr()), vld1q_f32(second.as_ptr())];
                for row in 0..X_ROWS {
                    let place = begins[row] / x.group + group;
                    for half in 0..2 {
                        let sum = vmulq_f32(vcvtq_f32_s32(products[row][half]), scales[half]);
                        totals[row][half] = vfmaq_n_f32(totals[row][half], sum, x.scales[place]);
                        if self.blocks.offset == 0 {
                            totals[row][half] = vfmsq_n_f32(totals[row][half], mins[half], x.sums[place]);
                        }
                    }
                }
            }
            let mut sums = [[0f32; PANEL_ROWS]; X_ROWS];
            for (sums, totals) in sums.iter_mut().zip(totals) {
                vst1q_f32(sums.as_mut_ptr(), totals[0]);
                vst1q_f32(sums.as_mut_ptr().add(4), totals[1]);
            }
            sums
        }
    }
}

/// Writes the numbers of the row `place` of a panel, `STEP` at a time, with a sign.
#[inline(always)]
fn take<const STEP: usize>(numbers: &[u8; NUMBERS], offset: u8, place: usize, into: &mut [i8]) {
    let steps = into.as_chunks_mut::<STEP>().0.as_chunks_mut::<PANEL_ROWS>().0;
    for (numbers, step) in numbers.as_chunks::<STEP>().0.iter().zip(steps) {
        step[place] = numbers.map(|number| number.wrapping_sub(offset) as i8);
    }
}

/// Four numbers as a vector.
#[inline(always)]
fn four(values: &[f32; 4]) -> float32x4_t {
    // SAFETY: every processor of the architecture has the instruction, and there are four.
    unsafe { vld1q_f32(values.as_ptr()) }
}

/// The first halves of two rows, and the second ones.
#[inline(always)]
fn halves(first: int8x16_t, second: int8x16_t) -> [int8x16_t; 2] {
    // SAFETY: every processor of the architecture has the instructions.
    unsafe {
        let (first, second) = (vreinterpretq_s64_s8(first), vreinterpretq_s64_s8(second));
        [vreinterpretq_s8_s64(vzip1q_s64(first, second)), vreinterpretq_s8_s64(vzip2q_s64(first, second))]
    }
}

/// What two products of two rows with two rows have of the first row, and of the second.
#[inline(always)]
fn of_rows(first: int32x4_t, second: int32x4_t) -> [int32x4_t; 2] {
    // SAFETY: every processor of the architecture has the instructions.
    unsafe {
        let (first, second) = (vreinterpretq_s64_s32(first), vreinterpretq_s64_s32(second));
        [vreinterpretq_s32_s64(vzip1q_s64(first, second)), vreinterpretq_s32_s64(vzip2q_s64(first, second))]
    }
}
