//! From rows to pieces, and from sums to rows, in vectors of AVX-512.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
    _mm512_setzero_si512, _mm512_storeu_ps,
};
use std::ops::Range;

use super::rows::{Rows, Target};
use super::tasks::{OF_X, resized};
use super::{FrozenProjection, NormOf};
use crate::frozen::groups::gelu;
use crate::frozen::row_vectors::normalise;
use crate::frozen::tile_rows::mask;
use crate::instructions::amx::{Piece, ROWS, RUN, SIDE, Sums};
use crate::products::pieces::{Place, STEP, in_pieces, steps_of, two};

/// Lays out runs of tiles of rows; those behind the last row are zeros.
///
/// # Safety
/// The processor has the instructions, and there is room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
pub(super) unsafe fn lay_out(x: Rows, tiles: Range<usize>, runs: Range<usize>, into: &mut [Piece]) {
    let of_tile = runs.len() * OF_X;
    assert!(into.len() >= tiles.len() * of_tile, "room for the pieces of tiles");
    let (from, length) = (runs.start * RUN, x.width.min(runs.end * RUN) - runs.start * RUN);
    for row in 0..tiles.len() * ROWS {
        let index = tiles.start * ROWS + row;
        let values = if index < x.count { &x.row(index)[from..from + length] } else { &[] };
        // SAFETY: there is room for the tile's runs, and a row has as many numbers.
        unsafe {
            let tile = into.as_mut_ptr().add(row / ROWS * of_tile).cast::<__m512i>();
            let place = Place { first: tile.add(row % ROWS) };
            for step in 0..steps_of(length) {
                let at = values.as_ptr().wrapping_add(step * STEP);
                place.write(step, in_pieces::<OF_X>(two(at, values.len().saturating_sub(step * STEP))));
            }
        }
    }
}

/// Lays out the GELU of sums with a panel as a step of so many runs, or zeros where there is no panel.
///
/// # Safety
/// The processor has the instructions, and there is room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
pub(super) unsafe fn lay_out_hidden(
    sums: &[Sums],
    bias: Option<&[f32]>,
    step: usize,
    runs: usize,
    into: &mut [Piece],
) {
    let of_tile = runs * OF_X;
    assert!(into.len() >= sums.len() * of_tile && step < 2 * runs, "room for the pieces of tiles");
    for (tile, sums) in sums.iter().enumerate() {
        for row in 0..ROWS {
            // SAFETY: there is room for the tile's runs; a panel's biases are two vectors.
            unsafe {
                let tile = into.as_mut_ptr().add(tile * of_tile).cast::<__m512i>();
                let pieces = match bias {
                    Some(bias) => in_pieces::<OF_X>(row_of(sums, row, bias.as_ptr()).map(|sum| gelu(sum))),
                    None => [_mm512_setzero_si512(); OF_X],
                };
                Place { first: tile.add(row) }.write(step, pieces);
            }
        }
    }
}

/// Sums of a row with a panel, and its biases.
///
/// # Safety
/// The processor has AVX-512, and there are as many biases.
#[inline(always)]
unsafe fn row_of(sums: &Sums, row: usize, bias: *const f32) -> [__m512; 2] {
    let [first, second] = [0, 1].map(|half| sums.0[2 * (row / SIDE) + half][row % SIDE].as_ptr());
    // SAFETY: as the caller promises; a row of sums is a vector.
    unsafe {
        [
            _mm512_add_ps(_mm512_loadu_ps(first), _mm512_loadu_ps(bias)),
            _mm512_add_ps(_mm512_loadu_ps(second), _mm512_loadu_ps(bias.add(SIDE))),
        ]
    }
}

/// Writes sums with a panel to some rows.
///
/// # Safety
/// The processor has AVX-512, and nobody else uses these columns of these rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
pub(super) unsafe fn write(
    sums: &[Sums],
    layer: &FrozenProjection,
    panel: usize,
    rows: Range<usize>,
    target: Target,
) {
    let (column, bias) = (panel * ROWS, &layer.bias[panel * ROWS..][..ROWS]);
    let width = ROWS.min(layer.rows - column);
    for (index, row) in rows.enumerate().take(sums.len() * ROWS) {
        let into = target.at(row, column, width);
        // SAFETY: what is masked is not written; as the caller promises.
        unsafe {
            let [first, second] = row_of(&sums[index / ROWS], index % ROWS, bias.as_ptr());
            _mm512_mask_storeu_ps(into, mask(width), first);
            _mm512_mask_storeu_ps(into.wrapping_add(SIDE), mask(width.saturating_sub(SIDE)), second);
        }
    }
}

/// Writes the norm of some rows to which sums with all panels, so many tiles of each, are added.
///
/// # Safety
/// The processor has AVX-512, and nobody else uses these rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
pub(super) unsafe fn finish(
    (sums, count): (&[Sums], usize),
    layer: &FrozenProjection,
    x: Rows,
    rows: Range<usize>,
    norm: NormOf,
    target: Target,
    row: &mut Vec<f32>,
) {
    let row = resized(row, layer.panels() * ROWS, 0.0);
    for (index, place) in rows.enumerate() {
        let added = x.row(place);
        for (panel, into) in row.chunks_exact_mut(ROWS).enumerate() {
            let (column, bias) = (panel * ROWS, &layer.bias[panel * ROWS..][..ROWS]);
            let left = layer.rows - column;
            // SAFETY: vectors are read as far as there are numbers.
            unsafe {
                let found = row_of(&sums[panel * count + index / ROWS], index % ROWS, bias.as_ptr());
                for (half, found) in found.into_iter().enumerate() {
                    let others = added.as_ptr().wrapping_add(column + half * SIDE);
                    let others = _mm512_maskz_loadu_ps(mask(left.saturating_sub(half * SIDE)), others);
                    _mm512_storeu_ps(into.as_mut_ptr().add(half * SIDE), _mm512_add_ps(found, others));
                }
            }
        }
        // SAFETY: only this task has this row, as the caller promises.
        unsafe {
            let into = std::slice::from_raw_parts_mut(target.at(place, 0, layer.rows), layer.rows);
            normalise(&row[..layer.rows], norm.weight, norm.bias, norm.eps, into);
        }
    }
}
