//! int8 dot products with weights in blocks.
//!
//! The numbers of a block are integers as they are. Rows that are multiplied with them are quantised to int8, with a scale
//! for as many as share one in the weights, as llama.cpp does; their int32 sums are exact. Those are multiplied with both
//! scales and added up in f32.

mod interleaved;
#[cfg(target_arch = "x86_64")]
mod interleaved_tiles;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
pub(super) mod panels;
mod quantised_rows;
#[cfg(target_arch = "x86_64")]
mod rows;

#[cfg(target_arch = "x86_64")]
use crate::formats::block_format::BlockFormat;
use crate::formats::interleaved::has_products;
use crate::instructions::processor::{IntegerDot, Processor};
use crate::products::integer::interleaved::add_interleaved;
#[cfg(target_arch = "x86_64")]
use crate::products::integer::interleaved_tiles::{add_in_tiles, fit_tiles};
#[cfg(target_arch = "aarch64")]
use crate::products::integer::neon::{
    PANEL_ROWS, PANEL_ROWS as MOST_ROWS, PART, add_panel as add_panels, add_rows,
};
#[cfg(target_arch = "x86_64")]
use crate::products::integer::panels::{MOST_ROWS, PANEL_ROWS, PART, add_panels, sharing};
use crate::products::integer::quantised_rows::QuantisedRows;
#[cfg(target_arch = "x86_64")]
use crate::products::integer::rows::add_rows;
use crate::products::{Output, Weights};

/// Rows of `x` from which it is worth it to lay out the weights.
const LAID_OUT: usize = 8;
/// The same of weights that are interleaved where AMX multiplies those that are laid out.
#[cfg(target_arch = "x86_64")]
const INTERLEAVED: usize = 25;
/// The same of weights, interleaved or not, whose products are added up in pairs.
#[cfg(target_arch = "x86_64")]
const PAIRS: usize = 12;
/// Rows of `x` up to which such sums are quicker than f32 where panels of them are not.
#[cfg(target_arch = "x86_64")]
const FEW_PAIRS: usize = 16;

/// Whether panels whose products are added up in pairs are quicker than those in f32: vectors of AVX-512 have twice as many f32, and
/// without VNNI no integers. Weights of more than five bits leave little room in 16 bits.
#[cfg(target_arch = "x86_64")]
fn panels_of_pairs_pay(processor: Processor, format: BlockFormat) -> bool {
    let narrow = matches!(processor, Processor::Avx2(..));
    narrow || matches!(format, BlockFormat::Q4_0 | BlockFormat::Q4K | BlockFormat::Q5K)
}

/// How weights are multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As they lie.
    AsTheyLie,
    /// As they lie, interleaved, in AMX tiles.
    #[cfg(target_arch = "x86_64")]
    Tiles,
    /// Laid out anew.
    Panels,
}

/// Rows of `x` that are to be multiplied with weights in blocks.
pub(crate) struct IntegerProduct {
    processor: Processor,
    way: Way,
    /// Numbers of a row of weights.
    columns: usize,
    x: QuantisedRows,
}

impl IntegerProduct {
    /// `x` (count, columns) for weights of this kind; none where f32 is wanted, or quicker, or bf16 pieces are.
    pub(crate) fn new(processor: Processor, weights: Weights, x: &[f32], columns: usize) -> Option<Self> {
        let count = x.len() / columns;
        #[cfg(target_arch = "x86_64")]
        if crate::products::pieces::pay(processor, weights.format(), count) {
            return None;
        }
        let dot = processor.integer_dot();
        #[cfg(target_arch = "x86_64")]
        let interleaved = matches!(weights, Weights::Interleaved(..)) && has_products(processor);
        let way = match dot {
            #[cfg(target_arch = "x86_64")]
            IntegerDot::Tiles if interleaved && fit_tiles(weights.format(), count, columns) => Way::Tiles,
            IntegerDot::Quads | IntegerDot::Tiles => {
                let fewest = match dot {
                    #[cfg(target_arch = "x86_64")]
                    IntegerDot::Tiles if interleaved => INTERLEAVED,
                    // There is nothing to unpack in those, and so many rows are multiplied at once.
                    #[cfg(target_arch = "x86_64")]
                    _ if interleaved && weights.format() == BlockFormat::Q8_0 => LAID_OUT + 1,
                    _ => LAID_OUT,
                };
                match count >= fewest {
                    true => Way::Panels,
                    false => Way::AsTheyLie,
                }
            }
            #[cfg(target_arch = "x86_64")]
            IntegerDot::Pairs => match panels_of_pairs_pay(processor, weights.format()) {
                true if count >= PAIRS => Way::Panels,
                false if count > FEW_PAIRS => return None,
                _ => Way::AsTheyLie,
            },
            IntegerDot::None => return None,
        };
        let part = match way {
            Way::AsTheyLie => None,
            // One part, with room for the rows that a tile reads.
            #[cfg(target_arch = "x86_64")]
            Way::Tiles => Some(columns),
            Way::Panels => Some(PART),
        };
        let x = match way {
            #[cfg(target_arch = "x86_64")]
            Way::Panels => {
                QuantisedRows::sharing(weights.format(), x, columns, part, sharing(weights.format()))?
            }
            _ => QuantisedRows::new(weights.format(), x, columns, part)?,
        };
        Some(Self { processor, way, columns, x })
    }

    /// Rows of weights that are multiplied together.
    pub(crate) fn unit(&self) -> usize {
        if self.way == Way::Panels { PANEL_ROWS } else { 1 }
    }

    /// Adds the products with some rows of weights; their results are the columns from `column` on.
    ///
    /// # Safety
    /// The result lives, and nobody else uses these columns.
    pub(crate) unsafe fn add(&self, weights: Weights, column: usize, output: Output) {
        let (mut room, row_bytes) = (Vec::new(), self.x.row_bytes);
        let as_they_lie = cfg!(target_arch = "x86_64") || self.way != Way::Panels;
        let weights = match as_they_lie && has_products(self.processor) {
            true => weights,
            false => weights.deinterleaved(self.columns, &mut room),
        };
        if self.way == Way::Panels {
            let rows = weights.bytes().len() / row_bytes;
            for first in (0..rows).step_by(MOST_ROWS) {
                let weights = weights.part(first..rows.min(first + MOST_ROWS), self.columns);
                // SAFETY: `processor` had the instructions, and the caller promises the rest.
                unsafe { add_panels(self.processor, &self.x, weights, column + first, output) };
            }
            return;
        }
        let (groups, rows) = weights.groups(row_bytes);
        // SAFETY: as above.
        unsafe {
            match self.way {
                _ if groups.is_empty() => {}
                #[cfg(target_arch = "x86_64")]
                Way::Tiles => add_in_tiles(&self.x, groups, column, output),
                _ => add_interleaved(self.processor, &self.x, groups, column, output),
            }
            add_rows(self.processor, &self.x, rows, column + groups.len() / row_bytes, output);
        }
    }
}
