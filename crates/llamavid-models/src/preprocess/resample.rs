//! Bicubic resampling that gives Pillow's bytes.
//!
//! Reference: Pillow's `Resample.c`. Rows first, then columns; weights are 22-bit fixed point; the result of the
//! first pass is rounded and clipped to bytes. A picture in a padded square is resampled without building the
//! square: sums of integers do not depend on their order, so the padding's share of each sum is taken up front.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::RgbImage;

/// Fraction bits of the weights: 32, less 8 for a byte, less 2 for overshoot and sign.
const FRACTION: u32 = 22;
const HALF: i32 = 1 << (FRACTION - 1);
/// How far the kernel reaches to each side, in pixels of the smaller picture.
const REACH: f64 = 2.0;
/// Values of the first pass summed side by side: whole pixels that also fill whole vector registers.
const LANES: usize = 24;
/// Rows of the first pass that share the reading of the weights.
const ROWS: usize = 2;
/// Values of the second pass summed side by side.
const BLOCK: usize = 32;
/// With fewer bytes to read, handing rows to other threads costs more than it gives.
const PARALLEL_FROM: usize = 1 << 18;

/// One direction of a resize.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    /// Pixels of the picture.
    pub length: usize,
    /// Pixels of padding before the picture.
    pub padding: usize,
    /// Pixels of the picture and the padding on both sides.
    pub padded: usize,
    /// Pixels after the resize.
    pub resized: usize,
    /// The first of them that is wanted.
    pub first: usize,
}

/// Resamples `image` to `size` rows of `size` pixels; what lies around it has the colour `padding`.
pub(super) fn resample(
    image: &RgbImage,
    across: &Axis,
    down: &Axis,
    size: usize,
    padding: [u8; 3],
) -> Vec<u8> {
    let column_taps = Taps::new(across, size, LANES / 3);
    let row_taps = Taps::new(down, size, 1);
    let first_pass = RowPass::new(&column_taps, padding);
    let row_length = (3 * size).next_multiple_of(BLOCK);
    let needed = row_taps.range();
    let parallel = needed.len().saturating_mul(3 * column_taps.range().len()) >= PARALLEL_FROM;

    let mut narrowed = vec![0; needed.len() * row_length];
    let narrow = |(group, results): (usize, &mut [u8])| {
        first_pass.resample_rows(image, needed.start + group * ROWS, results, row_length);
    };
    if parallel {
        narrowed.par_chunks_mut(ROWS * row_length).enumerate().for_each(narrow);
    } else {
        narrowed.chunks_mut(ROWS * row_length).enumerate().for_each(narrow);
    }

    let mut padding_row = vec![0; row_length];
    first_pass.padding_row(padding, &mut padding_row);
    let mut result = vec![0; 3 * size * size];
    let mut row = vec![0; row_length];
    let mut bases = vec![0; row_length];
    for (index, result) in result.chunks_exact_mut(3 * size).enumerate() {
        for (base, value) in bases.iter_mut().zip(&padding_row) {
            *base = HALF + row_taps.padding[index] * i32::from(*value);
        }
        let rows = &narrowed[(row_taps.starts[index] - needed.start) * row_length..];
        let weights = &row_taps.weights[index * row_taps.count..][..row_taps.count];
        combine_rows(rows, weights, &bases, &mut row);
        result.copy_from_slice(&row[..3 * size]);
    }
    result
}

/// The source pixels that make up each wanted pixel, along one axis.
struct Taps {
    /// Source pixels of a wanted pixel.
    count: usize,
    /// For each wanted pixel the first of its source pixels.
    starts: Vec<usize>,
    /// For each wanted pixel the weights of its source pixels; one without a share weighs 0.
    weights: Vec<i32>,
    /// For each wanted pixel the sum of the weights that fall on padding.
    padding: Vec<i32>,
}

/// Cubic convolution with a = -0.5.
fn kernel(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

impl Taps {
    /// Taps of `wanted` pixels, a multiple of `multiple` for each. They end within the picture, or start at 0.
    fn new(axis: &Axis, wanted: usize, multiple: usize) -> Self {
        let scale = axis.padded as f64 / axis.resized as f64;
        let stretch = scale.max(1.0);
        let reach = REACH * stretch;
        let count = (reach.ceil() as usize * 2 + 1).min(axis.length).next_multiple_of(multiple);
        let mut taps = Self {
            count,
            starts: Vec::with_capacity(wanted),
            weights: vec![0; count * wanted],
            padding: Vec::with_capacity(wanted),
        };
        let mut shares = Vec::new();
        for (index, weights) in taps.weights.chunks_exact_mut(count).enumerate() {
            let centre = ((axis.first + index) as f64 + 0.5) * scale;
            // `as` cuts the fraction off and makes negative numbers 0, which is what the C code does.
            let begin = (centre - reach + 0.5) as usize;
            let end = ((centre + reach + 0.5) as usize).min(axis.padded);
            shares.clear();
            shares
                .extend((begin..end).map(|source| kernel((source as f64 - centre + 0.5) * (1.0 / stretch))));
            let sum: f64 = shares.iter().sum();

            let start = begin.saturating_sub(axis.padding).min(axis.length.saturating_sub(count));
            let mut padding = 0;
            for (source, share) in (begin..end).zip(&shares) {
                let share = if sum == 0.0 { *share } else { share / sum };
                let exact = share * f64::from(1 << FRACTION);
                let weight = (if exact < 0.0 { exact - 0.5 } else { exact + 0.5 }) as i32;
                match source.checked_sub(axis.padding).filter(|source| *source < axis.length) {
                    Some(source) => weights[source - start] = weight,
                    None => padding += weight,
                }
            }
            taps.starts.push(start);
            taps.padding.push(padding);
        }
        taps
    }

    /// The source pixels from the first to the last that any wanted pixel reads.
    fn range(&self) -> Range<usize> {
        let start = self.starts.iter().min().copied().unwrap_or(0);
        let end = self.starts.iter().max().map_or(0, |last| last + self.count);
        start..end
    }
}

/// The first pass: makes a row of wanted pixels of a row of the picture.
struct RowPass {
    /// For each wanted pixel the first value that it reads.
    starts: Vec<usize>,
    /// Values read for a wanted pixel, whole `LANES`.
    values: usize,
    /// The weight of each value: that of its pixel, three times.
    weights: Vec<i32>,
    /// What each sum starts from: half a unit and the padding's share.
    bases: Vec<[i32; 3]>,
}

impl RowPass {
    fn new(taps: &Taps, padding: [u8; 3]) -> Self {
        Self {
            starts: taps.starts.iter().map(|start| 3 * start).collect(),
            values: 3 * taps.count,
            weights: taps.weights.iter().flat_map(|weight| [*weight; 3]).collect(),
            bases: taps
                .padding
                .iter()
                .map(|weight| padding.map(|value| HALF + weight * i32::from(value)))
                .collect(),
        }
    }

    /// The result for a row that has the colour of the padding everywhere.
    fn padding_row(&self, padding: [u8; 3], result: &mut [u8]) {
        let pixels = result.chunks_exact_mut(3).zip(self.weights.chunks_exact(self.values)).zip(&self.bases);
        for ((pixel, weights), base) in pixels {
            let inside: i32 = weights.iter().step_by(3).sum();
            for channel in 0..3 {
                pixel[channel] = to_byte(base[channel] + inside * i32::from(padding[channel]));
            }
        }
    }

    /// Resamples rows of `image` from `first` on, one for each `row_length` of `results`.
    fn resample_rows(&self, image: &RgbImage, first: usize, results: &mut [u8], row_length: usize) {
        let source = |offset| {
            let row = image.row(first + offset);
            // Only a picture narrower than one window needs a wider copy; the weights there are 0.
            if row.len() >= self.values {
                Cow::Borrowed(row)
            } else {
                let mut wider = row.to_vec();
                wider.resize(self.values, 0);
                Cow::Owned(wider)
            }
        };
        let mut results = results.chunks_exact_mut(row_length);
        match (results.next(), results.next()) {
            (Some(upper), Some(lower)) => combine_columns(self, [&source(0), &source(1)], [upper, lower]),
            (Some(upper), None) => combine_columns(self, [&source(0)], [upper]),
            _ => {}
        }
    }
}

fn to_byte(sum: i32) -> u8 {
    (sum >> FRACTION).clamp(0, 255) as u8
}

/// Resamples `R` rows, with the widest vectors that this processor has.
fn combine_columns<const R: usize>(pass: &RowPass, sources: [&[u8]; R], results: [&mut [u8]; R]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn wide<const R: usize>(pass: &RowPass, sources: [&[u8]; R], results: [&mut [u8]; R]) {
            combine_columns_inline(pass, sources, results);
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { wide(pass, sources, results) };
        }
    }
    combine_columns_inline(pass, sources, results);
}

#[inline(always)]
fn combine_columns_inline<const R: usize>(pass: &RowPass, sources: [&[u8]; R], mut results: [&mut [u8]; R]) {
    let columns = pass.starts.iter().zip(pass.weights.chunks_exact(pass.values)).zip(&pass.bases);
    for (column, ((start, weights), base)) in columns.enumerate() {
        let mut sums = [[0i32; LANES]; R];
        let windows = sources.map(|source| &source[*start..][..pass.values]);
        for (block, weights) in weights.chunks_exact(LANES).enumerate() {
            for (sums, window) in sums.iter_mut().zip(windows) {
                let values = &window[block * LANES..][..LANES];
                for lane in 0..LANES {
                    sums[lane] += i32::from(values[lane]) * weights[lane];
                }
            }
        }
        for (sums, result) in sums.iter().zip(&mut results) {
            // Half of the lanes still is a whole number of pixels and of registers.
            let halved: [i32; LANES / 2] = std::array::from_fn(|lane| sums[lane] + sums[lane + LANES / 2]);
            let pixel = &mut result[3 * column..][..3];
            for channel in 0..3 {
                let sum: i32 = halved.iter().skip(channel).step_by(3).sum();
                pixel[channel] = to_byte(base[channel] + sum);
            }
        }
    }
}

/// Sums `rows`, one for each weight, on top of `bases`, with the widest vectors that this processor has.
fn combine_rows(rows: &[u8], weights: &[i32], bases: &[i32], result: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn wide(rows: &[u8], weights: &[i32], bases: &[i32], result: &mut [u8]) {
            combine_rows_inline(rows, weights, bases, result);
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { wide(rows, weights, bases, result) };
        }
    }
    combine_rows_inline(rows, weights, bases, result);
}

#[inline(always)]
fn combine_rows_inline(rows: &[u8], weights: &[i32], bases: &[i32], result: &mut [u8]) {
    let blocks = bases.chunks_exact(BLOCK).zip(result.chunks_exact_mut(BLOCK));
    for (block, (block_bases, result)) in blocks.enumerate() {
        let mut sums: [i32; BLOCK] = std::array::from_fn(|lane| block_bases[lane]);
        for (row, weight) in rows.chunks_exact(bases.len()).zip(weights) {
            let values = &row[block * BLOCK..][..BLOCK];
            for lane in 0..BLOCK {
                sums[lane] += i32::from(values[lane]) * weight;
            }
        }
        for lane in 0..BLOCK {
            result[lane] = to_byte(sums[lane]);
        }
    }
}
