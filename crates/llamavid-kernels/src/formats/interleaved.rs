//! Blocks of sixteen rows interleaved, so that a vector holds as many bytes of each row as one instruction multiplies and adds up.
//!
//! Rows that are read one after the other need horizontal sums, and their scales are found one row at a time. Of interleaved rows a
//! vector's lanes are rows: sums stay in their lane, and a scale is found for sixteen rows at once. That is a quarter of the
//! instructions, few enough that decoding is bound by memory alone.
//!
//! The bytes of a block are units, two bytes for f16 and four elsewhere; each unit of all sixteen rows comes before the next one.
//! Nothing but the order changes: a matrix takes as many bytes as before. Rows behind the last whole sixteen stay as they are.

use std::ops::Range;

use candle_core::{Result, bail};
use pulp::bytemuck;
use rayon::prelude::*;

use crate::formats::block_format::BlockFormat;
use crate::instructions::processor::{Processor, processor};
use crate::operations::rows::rows_of_a_task;
use crate::products::panels::transposed;

/// Rows whose blocks are interleaved.
pub const INTERLEAVED_ROWS: usize = 16;

/// Whether products of few rows with interleaved blocks are quicker on this processor than with blocks row after row. Nobody has measured
/// it on ARM.
pub fn interleaving_pays() -> bool {
    cfg!(target_arch = "x86_64") && has_products(processor())
}

/// Whether a processor has products for interleaved blocks. Elsewhere rows are deinterleaved before they are multiplied.
pub(crate) fn has_products(processor: Processor) -> bool {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    return processor.integer_dot() != crate::instructions::processor::IntegerDot::None;
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = processor;
        false
    }
}

impl BlockFormat {
    /// Whether rows in this format can be interleaved: its blocks are of several numbers.
    pub fn interleaves(self) -> bool {
        self.block_length() > 1
    }

    /// Interleaves the blocks of each [`INTERLEAVED_ROWS`] rows of `columns` numbers, the bytes of which are `rows`. A part of a
    /// matrix is to begin with a whole number of times as many.
    ///
    /// # Errors
    /// A format without blocks, and bytes that are no whole rows.
    pub fn interleave(self, rows: &[u8], columns: usize) -> Result<Vec<u8>> {
        let row_bytes = self.row_bytes(columns).filter(|bytes| *bytes > 0 && self.interleaves());
        let Some(row_bytes) = row_bytes.filter(|bytes| rows.len().is_multiple_of(*bytes)) else {
            let (bytes, name) = (rows.len(), self.name());
            bail!(
                "{bytes} bytes are no rows of {columns} numbers in blocks that can be interleaved ({name})"
            );
        };
        let group = INTERLEAVED_ROWS * row_bytes;
        let mut result = rows.to_vec();
        result
            .par_chunks_exact_mut(group)
            .zip(rows.par_chunks_exact(group))
            .with_min_len(rows_of_a_task(group))
            .for_each(|(into, rows)| self.reorder::<true>(rows, row_bytes, into));
        Ok(result)
    }

    /// Deinterleaves rows of `row_bytes` each. Some blocks of sixteen rows that lie behind each other are interleaved rows themselves.
    pub(crate) fn deinterleave(self, interleaved: &[u8], row_bytes: usize, into: &mut [u8]) {
        let group = INTERLEAVED_ROWS * row_bytes;
        let mut groups = interleaved.chunks_exact(group);
        let mut places = into.chunks_exact_mut(group);
        for (from, into) in groups.by_ref().zip(places.by_ref()) {
            self.reorder::<false>(from, row_bytes, into);
        }
        places.into_remainder().copy_from_slice(groups.remainder());
    }

    /// One row of interleaved ones as it was before.
    pub(crate) fn deinterleaved_row(self, interleaved: &[u8], row_bytes: usize, row: usize) -> Vec<u8> {
        let group = INTERLEAVED_ROWS * row_bytes;
        let Some(rows) = interleaved.chunks_exact(group).nth(row / INTERLEAVED_ROWS) else {
            return interleaved[row * row_bytes..(row + 1) * row_bytes].to_vec();
        };
        let mut result = Vec::with_capacity(row_bytes);
        for block in (0..row_bytes).step_by(self.block_bytes()) {
            for (unit, bytes) in self.units() {
                for at in bytes.step_by(unit) {
                    let first = INTERLEAVED_ROWS * (block + at) + unit * (row % INTERLEAVED_ROWS);
                    result.extend_from_slice(&rows[first..first + unit]);
                }
            }
        }
        result
    }

    /// Bytes of the units of a block, and where those are: f16 before and behind those that have four bytes.
    fn units(self) -> [(usize, Range<usize>); 3] {
        let length = self.block_bytes();
        let whole = match self {
            Self::Q6K => 0..length - 2,
            Self::Q4K | Self::Q5K => 4..length,
            _ => 2..length,
        };
        [(2, 0..whole.start), (4, whole.clone()), (2, whole.end..length)]
    }

    /// Copies sixteen rows, interleaving their blocks, or undoing that.
    fn reorder<const INTERLEAVE: bool>(self, from: &[u8], row_bytes: usize, into: &mut [u8]) {
        for block in (0..row_bytes).step_by(self.block_bytes()) {
            for (unit, bytes) in self.units() {
                let bytes = block + bytes.start..block + bytes.end;
                match unit {
                    2 => copy::<2, INTERLEAVE>(from, row_bytes, bytes, into),
                    _ => copy::<4, INTERLEAVE>(from, row_bytes, bytes, into),
                }
            }
        }
    }
}

/// Copies some bytes of each of sixteen rows, whole units. As a call of its own it takes almost half as long again.
#[inline(always)]
fn copy<const UNIT: usize, const INTERLEAVE: bool>(
    from: &[u8],
    row_bytes: usize,
    bytes: Range<usize>,
    into: &mut [u8],
) {
    let places = |row: usize, at: usize| {
        let (in_rows, interleaved) = (row * row_bytes + at, INTERLEAVED_ROWS * at + UNIT * row);
        if INTERLEAVE { (in_rows, interleaved) } else { (interleaved, in_rows) }
    };
    // Units of 32 bits of four rows, four at a time, are a matrix that is turned.
    let squares = if UNIT == 4 { bytes.len() / 16 * 16 } else { 0 };
    let (squares, rest) = (bytes.start..bytes.start + squares, bytes.start + squares..bytes.end);
    for at in squares.step_by(16) {
        for row in (0..INTERLEAVED_ROWS).step_by(4) {
            let mut square = [[0f32; 4]; 4];
            for (index, line) in square.iter_mut().enumerate() {
                let start = if INTERLEAVE { places(row + index, at) } else { places(row, at + 4 * index) }.0;
                bytemuck::bytes_of_mut(line).copy_from_slice(&from[start..start + 16]);
            }
            for (index, line) in transposed(square).iter().enumerate() {
                let start = if INTERLEAVE { places(row, at + 4 * index) } else { places(row + index, at) }.1;
                into[start..start + 16].copy_from_slice(bytemuck::bytes_of(line));
            }
        }
    }
    for at in rest.step_by(UNIT) {
        for row in 0..INTERLEAVED_ROWS {
            let (from_at, into_at) = places(row, at);
            let mut unit = [0; UNIT];
            unit.copy_from_slice(&from[from_at..from_at + UNIT]);
            into[into_at..into_at + UNIT].copy_from_slice(&unit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_as_before_when_they_are_deinterleaved() {
        for format in BlockFormat::ALL.into_iter().filter(|format| format.interleaves()) {
            for (rows, blocks) in [(16, 1), (15, 2), (35, 3), (1, 1), (48, 2)] {
                let columns = blocks * format.block_length();
                let row_bytes = blocks * format.block_bytes();
                let bytes: Vec<u8> = (0..rows * row_bytes).map(|place| (place * 37 / 16) as u8).collect();
                let interleaved = format.interleave(&bytes, columns).unwrap();
                let mut in_order = vec![0; bytes.len()];
                format.deinterleave(&interleaved, row_bytes, &mut in_order);
                assert_eq!(in_order, bytes, "{}", format.name());
                for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
                    assert_eq!(
                        format.deinterleaved_row(&interleaved, row_bytes, row),
                        bytes,
                        "{}",
                        format.name()
                    );
                }
                let whole = rows / 16 * 16 * row_bytes;
                assert_eq!(interleaved[whole..], bytes[whole..]);
                assert_eq!(interleaved == bytes, whole == 0, "{}", format.name());
            }
        }
    }

    #[test]
    fn a_vector_holds_a_unit_of_each_row() {
        let row = |row: u8| (0..34).map(move |byte| 100 * (byte / 2 % 2) + row);
        let interleaved =
            BlockFormat::Q8_0.interleave(&(0..16).flat_map(row).collect::<Vec<u8>>(), 32).unwrap();
        for (place, byte) in interleaved.iter().enumerate() {
            // A scale of each row, then four numbers of each.
            let (row, byte_of_row) = match place {
                0..32 => (place / 2, place % 2),
                _ => ((place - 32) % 64 / 4, 2 + (place - 32) / 64 * 4 + place % 4),
            };
            assert_eq!(usize::from(*byte), 100 * (byte_of_row / 2 % 2) + row, "{place}");
        }
    }

    #[test]
    fn what_has_no_blocks_is_refused() {
        assert!(BlockFormat::F16.interleave(&[0; 64], 32).is_err());
        assert!(BlockFormat::Q8_0.interleave(&[0; 33], 32).is_err());
        assert!(BlockFormat::Q8_0.interleave(&[0; 34], 33).is_err());
        assert!(BlockFormat::Q4_0.interleave(&[], 0).is_err());
    }
}
