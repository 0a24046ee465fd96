//! int8 products of some rows with interleaved weights in AMX tiles: sixteen rows of weights as they are interleaved are the right
//! operand, and what comes next is prefetched between the products.
//!
//! Reference: [`crate::products::integer::interleaved`], which gives the same, up to the order of sums.

use std::arch::x86_64::{
    __m512, _mm512_cvtepi32_ps, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use crate::formats::block_format::{BlockFormat, IntegerLayout};
use crate::formats::block_types::{NUMBERS, each_eighth, with_block};
use crate::formats::interleaved::INTERLEAVED_ROWS;
use crate::formats::interleaved_blocks::{Interleaved, InterleavedBlock, Scales};
use crate::instructions::amx::{GROUPS, Products, SIDE, Tiles};
use crate::instructions::integer_vectors::{Avx512Vnni, IntegerVectors};
use crate::instructions::prefetch::{CACHE_LINE, prefetch_l1, prefetch_l2};
use crate::products::Output;
use crate::products::integer::quantised_rows::QuantisedRows;

/// How many bytes ahead memory is prefetched: some turns.
const PREFETCH_DISTANCE: usize = 4 * 1024;
/// Rows of `x` from which tiles are quicker than vectors.
const FEWEST: usize = 9;
/// Numbers of each row that one instruction multiplies and adds up in a lane.
const STEP: usize = 4;
/// After how many others the int8 products of a group are scaled: one is in its tile, and one on its way to the cache.
const LATER: usize = 2;

/// Whether so many rows of so many numbers are multiplied in tiles. Groups of 16 numbers are half a tile, and quicker in vectors.
pub(crate) fn fit_tiles(format: BlockFormat, count: usize, columns: usize) -> bool {
    format != BlockFormat::Q6K && count >= FEWEST && columns.is_multiple_of(NUMBERS)
}

/// Adds the products of all rows of `x`, in one part, with rows of weights, the bytes of which are whole `groups` of interleaved ones;
/// their results are the columns from `column` on.
///
/// # Safety
/// The processor has AMX and AVX-512, which the process may use, and [`fit_tiles`] was true of the rows. The result lives, and nobody else
/// uses these columns.
pub(crate) unsafe fn add_in_tiles(x: &QuantisedRows, groups: &[u8], column: usize, output: Output) {
    // SAFETY: as the caller promises.
    unsafe { with_block!(x.format, B => add::<B>(x, groups, column, output), ()) }
}

/// # Safety
/// As [`add_in_tiles`], and the blocks are of the format of `x`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn add<B: InterleavedBlock>(x: &QuantisedRows, groups: &[u8], column: usize, output: Output) {
    assert_eq!(x.group, B::GROUP, "rows that are rounded for another format");
    assert_eq!(x.row_bytes / B::BLOCK_BYTES * B::BLOCK_NUMBERS, x.columns, "rows of another length");
    // SAFETY: whoever calls has no tiles of its own.
    let tiles = unsafe { Tiles::new(B::GROUP) };
    let offset = IntegerLayout::of(x.format).map_or(0, |whole| whole.offset) as i8;
    let of_x = x.columns / B::GROUP;
    let sides = x.count.div_ceil(SIDE);
    let mut room = Room {
        unpacked: [const { Numbers([[0; STEP * INTERLEAVED_ROWS]; NUMBERS / STEP]) }; 2],
        products: [Products::ZERO; 2],
    };
    for (index, group) in groups.chunks_exact(INTERLEAVED_ROWS * x.row_bytes).enumerate() {
        for side in 0..sides {
            let first = side * SIDE;
            assert!(x.numbers.len() >= (first + SIDE) * x.columns, "fewer rows than a tile reads");
            // SAFETY: the group has the columns of `x`, which has sixteen rows from `first` on.
            let totals = unsafe {
                let rows = Rows {
                    numbers: x.numbers.as_ptr().add(first * x.columns),
                    columns: x.columns,
                    scales: x.scales.as_ptr().add(first * of_x),
                    sums: x.sums.as_ptr().add(first * of_x),
                };
                match B::EIGHT_BITS {
                    true => multiply_bytes::<B>(&tiles, group, rows, [side, sides], &mut room.products[0]),
                    false => multiply::<B>(&tiles, group, offset, rows, &mut room),
                }
            };
            for (row, total) in totals.into_iter().enumerate().take(x.count - first) {
                let mut sums = [0f32; SIDE];
                // SAFETY: there is room for a vector, and the columns are the caller's.
                unsafe {
                    _mm512_storeu_ps(sums.as_mut_ptr(), total);
                    output.add(first + row, column + INTERLEAVED_ROWS * index, &sums);
                }
            }
        }
    }
}

/// Sixteen rows of `x`, as in [`QuantisedRows`].
#[derive(Clone, Copy)]
struct Rows {
    numbers: *const i8,
    columns: usize,
    scales: *const f32,
    sums: *const f32,
}

/// [`NUMBERS`] numbers of sixteen rows of weights, with their sign: four of each row, then the next four.
#[repr(align(64))]
struct Numbers([[i8; STEP * INTERLEAVED_ROWS]; NUMBERS / STEP]);

/// Some numbers or groups are multiplied while the next are unpacked, or those before them scaled.
struct Room {
    unpacked: [Numbers; 2],
    products: [Products; 2],
}

/// The sums of the products of sixteen rows of `x` with sixteen rows of int8 weights, which are used as they lie. They are memory-bound, so
/// that cache line after cache line is prefetched between the products. Those rows are a `side` of all `sides`.
///
/// # Safety
/// As [`add_in_tiles`]; the group has the columns of the rows.
#[inline(always)]
unsafe fn multiply_bytes<B: InterleavedBlock>(
    tiles: &Tiles,
    group: &[u8],
    rows: Rows,
    [side, sides]: [usize; 2],
    products: &mut Products,
) -> [__m512; SIDE] {
    /// Groups of [`NUMBERS`].
    const OF_NUMBERS: usize = NUMBERS / 32;
    /// There is no more room than this: what lies 4 KB behind what has just been written is slow to read.
    const SLOTS: usize = GROUPS;
    assert_eq!(B::BLOCK_NUMBERS, B::GROUP, "blocks of several groups");
    let bytes = INTERLEAVED_ROWS * B::BLOCK_BYTES;
    let (places, all_groups) = (rows.columns / NUMBERS, rows.columns / B::GROUP);
    // What is read several times is in the L2 cache after the first time; each time then prefetches its share of what is next.
    let ahead = match sides {
        1 => PREFETCH_DISTANCE,
        _ => group.len() + side * group.len() / sides,
    };
    let (ahead, ahead_step) = (group.as_ptr().wrapping_add(ahead), bytes / sides);
    // SAFETY: as the caller promises.
    let mut totals = [unsafe { _mm512_setzero_ps() }; SIDE];
    for place in 0..=places {
        each_eighth!(eighth => {
            let next = place * OF_NUMBERS + eighth;
            // SAFETY: the group has so many numbers, and so have the rows.
            unsafe {
                if place < places {
                    let scale = (B::BLOCK_BYTES - B::BLOCK_NUMBERS) * INTERLEAVED_ROWS;
                    let weights = group.as_ptr().add(next * bytes + scale);
                    let x = rows.numbers.add(next * B::GROUP);
                    let before = &mut products.0[(eighth + SLOTS - 1) % SLOTS];
                    tiles.next_products(x, rows.columns, weights.cast(), STEP * INTERLEAVED_ROWS, before);
                } else if eighth == 0 {
                    tiles.last_products(&mut products.0[SLOTS - 1]);
                }
                let found = next.wrapping_sub(LATER);
                if found < places * OF_NUMBERS {
                    let at = group.as_ptr().add(found * bytes);
                    let [scale, _] = B::Scales::<Avx512Vnni>::new(Interleaved::<0> { at, row: 0 }).of(0);
                    let scales_of_x = rows.scales.add(found);
                    let ahead = ahead.wrapping_add(found * ahead_step);
                    let products = &products.0[(eighth + OF_NUMBERS - LATER) % SLOTS];
                    let lines = bytes.div_ceil(CACHE_LINE);
                    // Rows are written out: compilers leave a loop of so much as it is, and sums in memory.
                    each_eighth!(pair => {
                        for row in 2 * pair..2 * pair + 2 {
                            if (row + 1) * lines / SIDE > row * lines / SIDE {
                                prefetch_l2(ahead.wrapping_add(row * lines / SIDE * CACHE_LINE));
                            }
                            let whole = _mm512_cvtepi32_ps(_mm512_loadu_si512(products[row].as_ptr().cast()));
                            let of_x = _mm512_set1_ps(*scales_of_x.add(row * all_groups));
                            totals[row] = _mm512_fmadd_ps(_mm512_mul_ps(whole, scale), of_x, totals[row]);
                        }
                    });
                }
            }
        });
    }
    totals
}

/// The same with weights of fewer bits, which are unpacked before the turn that they are for.
///
/// # Safety
/// As [`add_in_tiles`]; the group has the columns of the rows.
#[inline(always)]
unsafe fn multiply<B: InterleavedBlock>(
    tiles: &Tiles,
    group: &[u8],
    offset: i8,
    rows: Rows,
    room: &mut Room,
) -> [__m512; SIDE] {
    let of_block = B::BLOCK_NUMBERS / B::GROUP;
    let of_numbers = NUMBERS / B::GROUP / GROUPS;
    let bytes = NUMBERS / B::BLOCK_NUMBERS * INTERLEAVED_ROWS * B::BLOCK_BYTES;
    let turns = rows.columns / NUMBERS * of_numbers;
    let all_groups = rows.columns / B::GROUP;
    // SAFETY: as the caller promises.
    let mut totals = [unsafe { _mm512_setzero_ps() }; SIDE];
    if turns > 0 {
        // SAFETY: the group has them.
        unsafe { unpack::<B>(group.as_ptr(), offset, &mut room.unpacked[0]) };
    }
    for turn in 0..=turns {
        let (place, part) = (turn / of_numbers, turn % of_numbers);
        // SAFETY: the group has so many numbers, and so have the rows.
        unsafe {
            if turn < turns {
                let step = part * GROUPS * B::GROUP / STEP;
                let weights = room.unpacked[place % 2].0[step..].as_ptr().cast();
                let steps = [STEP * INTERLEAVED_ROWS, B::GROUP * INTERLEAVED_ROWS];
                let x = rows.numbers.add(turn * GROUPS * B::GROUP);
                tiles.products(x, rows.columns, weights, steps, &mut room.products[turn % 2]);
                let ahead = group.as_ptr().wrapping_add(PREFETCH_DISTANCE + turn * bytes / of_numbers);
                for line in (0..bytes / of_numbers).step_by(CACHE_LINE) {
                    prefetch_l1(ahead.wrapping_add(line));
                }
                if part == 0 && (place + 1) * of_numbers < turns {
                    let next = group.as_ptr().add((place + 1) * bytes);
                    unpack::<B>(next, offset, &mut room.unpacked[(place + 1) % 2]);
                }
            }
            let Some(turn) = turn.checked_sub(1) else { continue };
            for index in 0..GROUPS {
                let found = turn * GROUPS + index;
                let at = group.as_ptr().add(found / of_block * INTERLEAVED_ROWS * B::BLOCK_BYTES);
                let scales = B::Scales::<Avx512Vnni>::new(Interleaved::<0> { at, row: 0 });
                let [scale, mins] = scales.of(found % of_block);
                let products = &room.products[turn % 2].0[index];
                for row in 0..SIDE {
                    let whole = _mm512_cvtepi32_ps(_mm512_loadu_si512(products[row].as_ptr().cast()));
                    let of_x = _mm512_set1_ps(*rows.scales.add(row * all_groups + found));
                    totals[row] = _mm512_fmadd_ps(_mm512_mul_ps(whole, scale), of_x, totals[row]);
                    if B::HAS_MINS {
                        let of_x = _mm512_set1_ps(*rows.sums.add(row * all_groups + found));
                        totals[row] = _mm512_fnmadd_ps(mins, of_x, totals[row]);
                    }
                }
            }
        }
    }
    totals
}

/// Unpacks [`NUMBERS`] unsigned numbers of sixteen rows of weights, less `offset`.
///
/// # Safety
/// The processor has AVX-512, and the numbers can be read.
#[inline(always)]
unsafe fn unpack<B: InterleavedBlock>(at: *const u8, offset: i8, into: &mut Numbers) {
    for block in 0..NUMBERS / B::BLOCK_NUMBERS {
        // SAFETY: as the caller promises; steps of a block are within the numbers.
        unsafe {
            let at = at.add(block * INTERLEAVED_ROWS * B::BLOCK_BYTES);
            let offset = Avx512Vnni::splat_integers(i32::from_ne_bytes([offset as u8; 4]));
            let into = &mut into.0[block * B::BLOCK_NUMBERS / STEP..][..B::BLOCK_NUMBERS / STEP];
            each_eighth!(part => {
                if part < B::PARTS {
                    let [first, second] = B::places(part);
                    for step in 0..B::STEPS {
                        let [a, b] = B::quads::<Avx512Vnni, 0>(Interleaved { at, row: 0 }, part, step);
                        let places = [first / STEP + step, second / STEP + step];
                        Avx512Vnni::store_integers(into[places[0]].as_mut_ptr().cast(), Avx512Vnni::less(a, offset));
                        Avx512Vnni::store_integers(into[places[1]].as_mut_ptr().cast(), Avx512Vnni::less(b, offset));
                    }
                }
            });
        }
    }
}
