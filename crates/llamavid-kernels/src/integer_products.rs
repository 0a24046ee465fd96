//! Products with weights in blocks, in whole numbers.
//!
//! The numbers of a block are whole numbers as they are. Rows that are multiplied with them are rounded to 8 bits, with a
//! scale for as many as share one in the weights, as llama.cpp does; sums of those are exact. They are multiplied with both
//! scales and added up in f32.

use crate::block_format::BlockFormat;
#[cfg(target_arch = "x86_64")]
use crate::integer_panels::{PANEL_ROWS, PART, add_panel};
#[cfg(target_arch = "x86_64")]
use crate::integer_rows::add_rows;
#[cfg(target_arch = "aarch64")]
use crate::neon_products::{PANEL_ROWS, PART, add_panel, add_rows};
use crate::processor::{Processor, WholeNumbers};
use crate::products::Output;
use crate::whole_rows::WholeRows;

/// Rows of `x` from which it is worth it to lay out the weights.
const LAID_OUT: usize = 8;
/// Rows of `x` up to which sums of pairs are quicker than f32.
#[cfg(target_arch = "x86_64")]
const PAIRS: usize = 16;

/// Rows of `x` that are to be multiplied with weights in blocks.
pub(crate) struct IntegerProduct {
    processor: Processor,
    laid_out: bool,
    x: WholeRows,
}

impl IntegerProduct {
    /// `x` (count, columns) for weights in `format`; none where f32 is wanted, or quicker, or pieces of 16 bits are.
    pub(crate) fn new(processor: Processor, format: BlockFormat, x: &[f32], columns: usize) -> Option<Self> {
        let count = x.len() / columns;
        #[cfg(target_arch = "x86_64")]
        if crate::pieces::pay(processor, format, count) {
            return None;
        }
        let laid_out = match processor.whole_numbers() {
            WholeNumbers::Fours | WholeNumbers::Tiles => count >= LAID_OUT,
            #[cfg(target_arch = "x86_64")]
            WholeNumbers::Pairs if count <= PAIRS => false,
            _ => return None,
        };
        let x = WholeRows::new(format, x, columns, laid_out.then_some(PART))?;
        Some(Self { processor, laid_out, x })
    }

    /// Rows of weights that are multiplied together.
    pub(crate) fn unit(&self) -> usize {
        if self.laid_out { PANEL_ROWS } else { 1 }
    }

    /// Adds the products with some rows of weights, the bytes of which are `rows`; their results are the columns from `column`
    /// on.
    ///
    /// # Safety
    /// The result lives, and nobody else uses these columns.
    pub(crate) unsafe fn add(&self, rows: &[u8], column: usize, output: Output) {
        if !self.laid_out {
            // SAFETY: `processor` had the instructions, and the caller promises the rest.
            return unsafe { add_rows(self.processor, &self.x, rows, column, output) };
        }
        for (index, rows) in rows.chunks(PANEL_ROWS * self.x.row_bytes).enumerate() {
            // SAFETY: as above.
            unsafe { add_panel(self.processor, &self.x, rows, column + index * PANEL_ROWS, output) };
        }
    }
}
