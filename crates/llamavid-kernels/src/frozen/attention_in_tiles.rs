//! Attention of all rows of a frame to each other in AMX tiles: in bf16 where the layers around it are quantised to int8, else
//! in three bf16 pieces ([`super::tile_rows`]).

use std::arch::x86_64::{
    __m512i, _mm512_load_ps, _mm512_load_si512, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_store_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::attention::{Packed, Precision};
use super::groups;
use super::matrices::{AmxTiles, Begin, Product, ROWS, STEP, multiply};
use super::parts::{PANEL, Step, Target};
use super::tasks::{ThreadScratch, resized, share_out};
use super::tile_rows::{LANES, PIECES, SPAN, TileRow, copy_pairs, split, split_numbers, split_rows};

/// Begins sums.
static NOTHING: Step = Step::ZERO;

impl Packed<'_> {
    /// The same as [`Packed::attend`]. The result is in the precision that is told, bf16 of heads of an even width
    /// only.
    ///
    /// # Safety
    /// As there, and the processor has AMX, which the process may use.
    pub(super) unsafe fn attend_in_tiles(
        self,
        scratches: &mut Vec<ThreadScratch>,
        target: Target,
        result: Precision,
    ) {
        // SAFETY: as the caller promises.
        unsafe {
            match self.precision {
                Precision::Bf16 => self.attend_in_pieces::<1>(Product::Bf16, scratches, target, result),
                Precision::F32 => {
                    self.attend_in_pieces::<PIECES>(Product::ThreeByThree, scratches, target, result)
                }
            }
        }
    }

    /// Numbers in one piece are bf16.
    ///
    /// # Safety
    /// As [`Self::attend_in_tiles`].
    unsafe fn attend_in_pieces<const COUNT: usize>(
        self,
        product: Product,
        scratches: &mut Vec<ThreadScratch>,
        target: Target,
        result: Precision,
    ) {
        let Self { values, precision, frames, rows, heads, width } = self;
        if values.is_empty() {
            return;
        }
        let (of_head, of_panel) = (precision.room(width), precision.room(PANEL));
        let stride = 3 * heads * of_head;
        // Of keys and of values: panels, and steps of each.
        let (panels, steps) = (rows.div_ceil(PANEL), width.div_ceil(SPAN));
        let of_a_step = COUNT * STEP;
        let scale = (width as f32).sqrt().recip();
        share_out(frames * heads, scratches, |scratch, task| {
            let (frame, head) = (task / heads, task % heads);
            let ThreadScratch { sums, lines, .. } = scratch;
            let laid_out = panels * steps * of_a_step;
            let lines = resized(lines, 2 * laid_out + panels.max(steps) * of_a_step, TileRow::ZERO);
            let (keys, lines) = lines.split_at_mut(laid_out);
            let (of_values, x) = lines.split_at_mut(laid_out);
            let of_frame = &values[frame * rows * stride..][..rows * stride];
            let row = |index: usize, row: usize| match row < rows {
                true => &of_frame[row * stride + (index * heads + head) * of_head..][..of_head],
                false => &[],
            };
            for (panel, keys) in keys.chunks_exact_mut(steps * of_a_step).enumerate() {
                for place in 0..PANEL {
                    // SAFETY: the processor has AVX-512, as all with AMX; there are as many tile rows.
                    unsafe { lay_out::<COUNT>(row(1, panel * PANEL + place), &mut keys[place..], steps) };
                }
                for keys in keys.as_chunks_mut::<STEP>().0 {
                    // SAFETY: as above.
                    unsafe { exchange(keys) };
                }
            }
            for (index, of_values) in of_values.chunks_exact_mut(of_a_step).enumerate() {
                let (panel, step) = (index / panels, index % panels);
                let columns = panel * of_panel..of_head.min((panel + 1) * of_panel);
                for place in 0..LANES {
                    let first = step * SPAN + place;
                    let two =
                        [first, first + LANES].map(|index| row(2, index).get(columns.clone()).unwrap_or(&[]));
                    // SAFETY: as above.
                    unsafe {
                        match COUNT {
                            1 => groups::pair(two, Step::of_tile_rows(&mut of_values[2 * place..])),
                            _ => split_rows::<COUNT>(two, &mut of_values[2 * place..]),
                        }
                    }
                }
            }
            // SAFETY: the processor has them, as the caller promises, and nothing here makes others.
            let tiles = unsafe { AmxTiles::new() };
            let products =
                |panels: &[TileRow], x: &[TileRow], steps: usize, half: bool, sums: &mut [Step]| {
                    let length = steps * of_a_step;
                    assert!(x.len() >= length, "rows of another length");
                    for (panel, sums) in panels.chunks_exact(length).zip(sums.chunks_exact_mut(ROWS)) {
                        let lines = (x.as_ptr(), panel.as_ptr());
                        let sums = (Begin::With(&NOTHING), sums.as_mut_ptr());
                        // SAFETY: there are as many tile rows of each, and sums of as many rows.
                        unsafe { multiply(&tiles, product, half, lines, steps, sums, None) };
                    }
                };
            for first in (0..rows).step_by(ROWS) {
                let count = ROWS.min(rows - first);
                let half = count <= ROWS / 2;
                let sums = resized(sums, ROWS * panels.max(steps), Step::ZERO);
                for place in 0..count {
                    // SAFETY: as above.
                    unsafe { lay_out::<COUNT>(row(0, first + place), &mut x[place..], steps) };
                }
                products(keys, x, steps, half, sums);
                for place in 0..count {
                    // SAFETY: as above; each panel has sums of as many rows.
                    unsafe { write_softmax::<COUNT>(&mut sums[place..], rows, scale, &mut x[place..]) };
                }
                products(of_values, x, panels, half, sums);
                for (index, sums) in sums[..steps * ROWS].chunks_exact(ROWS).enumerate() {
                    let column = index * PANEL;
                    for (row, sums) in sums[..count].iter().enumerate() {
                        let row = frame * rows + first + row;
                        let mut narrowed = [0f32; PANEL];
                        let sums = result.numbers(&sums.0[..PANEL.min(width - column)], &mut narrowed);
                        // SAFETY: only this task has these rows of this head, and the caller has all of them alone.
                        unsafe { target.write(row, result.room(head * width + column), sums) };
                    }
                }
            }
        });
    }
}

/// Writes as many steps of a row of queries or keys as there are: in pieces, or bf16 as they are, since the order of those is the same
/// in both.
///
/// # Safety
/// The processor has AVX-512.
unsafe fn lay_out<const COUNT: usize>(row: &[f32], into: &mut [TileRow], steps: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        match COUNT {
            1 => copy_pairs(row, into, steps),
            _ => split_numbers::<COUNT>(row, into, steps),
        }
    }
}

/// Writes the softmax of a row of scores times `scale` in pieces, 0 behind its end. Each panel's scores are [`ROWS`] steps behind those
/// of the one before.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
unsafe fn write_softmax<const COUNT: usize>(
    sums: &mut [Step],
    length: usize,
    scale: f32,
    into: &mut [TileRow],
) {
    let panels = length.div_ceil(PANEL);
    assert!(((panels - 1) * COUNT + COUNT - 1) * STEP < into.len(), "lines of a row");
    // SAFETY: there are scores in each panel, and two vectors of them in a step; a tile row for each piece.
    unsafe {
        let part = match COUNT {
            1 => groups::exponentials::<true>(sums, ROWS, length, scale),
            _ => groups::exponentials::<false>(sums, ROWS, length, scale),
        };
        let (part, into) = (_mm512_set1_ps(part), into.as_mut_ptr());
        for panel in 0..panels {
            let at: *const f32 = (&raw const sums[panel * ROWS]).cast();
            let probabilities =
                [_mm512_mul_ps(_mm512_load_ps(at), part), _mm512_mul_ps(_mm512_load_ps(at.add(LANES)), part)];
            split::<COUNT>(probabilities, into.add(panel * COUNT * STEP), STEP);
        }
    }
}

/// Makes the right operand of rows of `x`: twice 16 tile rows are transposed, 32 bits at a time, and then those of the first and of
/// the second half take turns.
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn exchange(lines: &mut [TileRow; STEP]) {
    let lines: *mut __m512i = lines.as_mut_ptr().cast();
    let mut columns = [[_mm512_setzero_si512(); LANES]; 2];
    for (half, columns) in columns.iter_mut().enumerate() {
        // Twos and fours of words within quarters of vectors, and then quarters.
        for four in 0..LANES / 4 {
            // SAFETY: there are as many tile rows, of a vector each.
            let [a, b, c, d] = unsafe {
                let first = lines.add(half * LANES + 4 * four);
                [
                    _mm512_load_si512(first),
                    _mm512_load_si512(first.add(1)),
                    _mm512_load_si512(first.add(2)),
                    _mm512_load_si512(first.add(3)),
                ]
            };
            let (ab, above_ab) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd, above_cd) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            columns[4 * four] = _mm512_unpacklo_epi64(ab, cd);
            columns[4 * four + 1] = _mm512_unpackhi_epi64(ab, cd);
            columns[4 * four + 2] = _mm512_unpacklo_epi64(above_ab, above_cd);
            columns[4 * four + 3] = _mm512_unpackhi_epi64(above_ab, above_cd);
        }
        for place in 0..4 {
            let [a, b, c, d] = [columns[place], columns[4 + place], columns[8 + place], columns[12 + place]];
            let (ab, above_ab) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
            let (cd, above_cd) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
            columns[place] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
            columns[4 + place] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
            columns[8 + place] = _mm512_shuffle_i32x4::<0x88>(above_ab, above_cd);
            columns[12 + place] = _mm512_shuffle_i32x4::<0xdd>(above_ab, above_cd);
        }
    }
    let [first, second] = columns;
    for (place, (first, second)) in first.into_iter().zip(second).enumerate() {
        // SAFETY: as above; all were read.
        unsafe {
            _mm512_store_si512(lines.add(2 * place), first);
            _mm512_store_si512(lines.add(2 * place + 1), second);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::frozen::layers_in_tiles::pay;
    use crate::instructions::processor::Processor;

    /// Probabilities of scores, whose pieces are put together again; none without AVX-512.
    fn probabilities(scores: &[f32], scale: f32) -> Option<Vec<f32>> {
        if !Processor::tested().into_iter().any(|processor| pay(processor, 1 << 10)) {
            return None;
        }
        let panels = scores.len().div_ceil(PANEL);
        // What is behind the end of a row must not be read.
        let mut sums = vec![Step([f32::NAN; PANEL]); panels * ROWS];
        for (sums, scores) in sums.iter_mut().step_by(ROWS).zip(scores.chunks(PANEL)) {
            sums.0[..scores.len()].copy_from_slice(scores);
        }
        let mut lines = vec![TileRow::ZERO; panels * PIECES * STEP];
        // SAFETY: the processor has AVX-512.
        unsafe { write_softmax::<PIECES>(&mut sums, scores.len(), scale, &mut lines) };
        let probability = |index: usize| {
            let place = 2 * (index % LANES * 2 + index % PANEL / LANES);
            let piece = |piece: usize| {
                let TileRow(bytes) = lines[(index / PANEL * PIECES + piece) * STEP];
                bf16::from_le_bytes([bytes[place], bytes[place + 1]]).to_f32()
            };
            piece(0) + (piece(1) + piece(2))
        };
        let found: Vec<f32> = (0..scores.len()).map(probability).collect();
        let mut behind = scores.len()..panels * PANEL;
        assert!(found[0].is_nan() || behind.all(|index| probability(index) == 0.0), "behind the end");
        Some(found)
    }

    #[test]
    fn probabilities_are_those_of_the_softmax() {
        for length in [1, 15, 16, 17, 32, 33, 257] {
            for size in [0.1, 5.0, 300.0] {
                let scores: Vec<f32> = (0..length).map(|place| size * (place as f32 * 0.7).sin()).collect();
                let Some(found) = probabilities(&scores, 0.25) else { return };
                let powers: Vec<f64> = scores
                    .iter()
                    .map(|score| (0.25 * f64::from(*score) - 0.25 * f64::from(size)).exp())
                    .collect();
                let total: f64 = powers.iter().sum();
                for (found, power) in found.iter().zip(&powers) {
                    let expected = power / total;
                    let error = (f64::from(*found) - expected).abs();
                    // Of the power, and of the score that it is of.
                    let most = (4e-7 - 1e-7 * power.ln()) * expected;
                    assert!(error <= most + 1e-30, "{length} {size}: {found} is not {expected}");
                }
            }
        }
    }

    #[test]
    fn probabilities_of_far_scores_and_of_none() {
        let Some(far) = probabilities(&[f32::MIN, 3.0, f32::NEG_INFINITY, -1e6], 1.0) else { return };
        assert_eq!(far, [0.0, 1.0, 0.0, 0.0]);
        let wrong = probabilities(&[1.0, f32::NAN, 2.0], 1.0).unwrap();
        assert!(wrong.iter().all(|share| share.is_nan()));
        let wrong = probabilities(&[1.0, f32::INFINITY, 2.0], 1.0).unwrap();
        assert!(wrong.iter().any(|share| share.is_nan()));
    }
}
