//! Linear layers whose weights were laid out once and for all.

use std::ops::Range;

use candle_core::{Result, bail};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::bytes::{BytePanels, ByteRows, Sums};
use super::parts::{Ahead, PANEL, PART, Parts, Step, Target};
use super::tiles::{Rows, TILE_ROWS, Tiles};
use crate::block_format::{BlockFormat, decode};
use crate::panels::{TOGETHER, lay_out};
use crate::processor::Processor;
use crate::rows::with_values;
use crate::vector::widest;
use crate::{Projection, Weight};

/// Rows of `x` of a task at most: their parts and sums stay in the second cache.
const BLOCK: usize = 22 * TILE_ROWS;

/// A linear layer for products with many rows.
#[derive(Debug)]
pub(super) struct FrozenLinear {
    panels: Panels,
    rows: usize,
    columns: usize,
    /// Of each panel.
    bias: Vec<Step>,
}

/// Panels of weights one after the other: a number of each of [`PANEL`] rows, then the next number of each.
#[derive(Debug)]
enum Panels {
    Numbers(Vec<Step>),
    /// Numbers that 16 bits hold exactly. A part is widened when it is needed.
    Halves(Vec<HalfStep>),
    /// Rounded to 8 bits.
    Bytes(BytePanels),
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct HalfStep([f16; PANEL]);

/// What happens with the sums of a product.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ending {
    Written,
    /// Written after the GELU.
    Activated,
    /// Added to what is there.
    Added,
}

/// What a task needs beside its inputs.
struct Scratch {
    sums: Vec<Step>,
    whole: Vec<Sums>,
    widened: Vec<Step>,
}

impl FrozenLinear {
    /// Lays out the weights of a layer: those in blocks are rounded anew, to 8 bits with a scale for each row, others stay as
    /// they are.
    pub(super) fn new(layer: Projection) -> Result<Self> {
        let (rows, columns) = layer.weight.dims2()?;
        let values;
        let (values, in_blocks) = match layer.weight {
            Weight::Dense(weight) => (weight, false),
            Weight::Blocks(weight) => {
                values = weight.dequantise()?;
                (&values, weight.format().block_length() > 1)
            }
        };
        if rows == 0 || columns == 0 {
            bail!("a layer without weights");
        }
        let panels = with_values([values], |[values]| {
            Ok(match in_blocks {
                true => Panels::Bytes(BytePanels::new(values, rows, columns)),
                false => Panels::new(values, rows, columns),
            })
        })?;
        let mut bias = vec![Step::ZERO; rows.div_ceil(PANEL)];
        if let Some(found) = layer.bias {
            if found.dims() != [rows] {
                bail!("a bias of shape {:?} for {rows} outputs", found.dims());
            }
            with_values([found], |[found]| {
                Step::numbers(&mut bias)[..rows].copy_from_slice(found);
                Ok(())
            })?;
        }
        Ok(Self { panels, rows, columns, bias })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Writes what it makes of rows to `target`, or adds it; on all threads. `rounded` has room for the rows in 8 bits.
    ///
    /// # Safety
    /// `target` has as many rows as `x` and as many columns as this layer; it lives, and nobody else uses it.
    pub(super) unsafe fn forward(
        &self,
        processor: Processor,
        x: &Parts,
        rounded: &mut ByteRows,
        target: Target,
        ending: Ending,
    ) {
        assert_eq!(x.columns(), self.columns, "rows that do not go with the weights");
        let count = x.count();
        let whole = match &self.panels {
            Panels::Bytes(panels) if panels.multiplies(processor) => {
                rounded.fill(x);
                Some((panels, &*rounded))
            }
            _ => None,
        };
        let blocks = count.div_ceil(BLOCK).max(1);
        let length = count.div_ceil(blocks).next_multiple_of(TILE_ROWS);
        let scratch = || Scratch {
            sums: vec![Step::ZERO; length],
            whole: vec![Sums::ZERO; if whole.is_some() { length } else { 0 }],
            widened: vec![Step::ZERO; if matches!(self.panels, Panels::Numbers(_)) { 0 } else { PART }],
        };
        let tasks = self.rows.div_ceil(PANEL) * blocks;
        (0..tasks).into_par_iter().for_each_init(scratch, |scratch, task| {
            let (panel, first) = (task / blocks, task % blocks * length);
            let rows = length.min(count.saturating_sub(first));
            let sums = &mut scratch.sums[..rows];
            match whole {
                Some((panels, x)) => {
                    panels.multiply(
                        processor,
                        panel,
                        (x, first),
                        &mut scratch.whole[..rows],
                        &self.bias[panel],
                        sums,
                    );
                }
                None => {
                    sums.fill(self.bias[panel]);
                    for column in (0..self.columns).step_by(PART) {
                        let columns = column..self.columns.min(column + PART);
                        let (panel, ahead) = self.part(processor, panel, columns, &mut scratch.widened);
                        let x = Rows { values: x.from(column)[first..].as_flattened(), stride: PART };
                        processor.run(Tiles { panel, x, sums, ahead });
                    }
                }
            }
            let column = panel * PANEL;
            // SAFETY: as the caller promises, and each task has rows and columns of its own.
            finish(sums, first, column, PANEL.min(self.rows - column), target, ending);
        });
    }

    /// Some columns of a panel in f32, and what is read after them.
    fn part<'a>(
        &'a self,
        processor: Processor,
        panel: usize,
        columns: Range<usize>,
        widened: &'a mut [Step],
    ) -> (&'a [Step], Ahead<'a>) {
        let range = panel * self.columns + columns.start..panel * self.columns + columns.end;
        let after = range.end..range.end + PART;
        match &self.panels {
            Panels::Numbers(steps) => (&steps[range], Ahead::new(steps.get(after).unwrap_or_default())),
            Panels::Halves(steps) => {
                let widened = &mut widened[..columns.len()];
                let ahead = Ahead::new(steps.get(after).unwrap_or_default());
                let steps = &steps[range];
                // SAFETY: a step is an array of halves and nothing else.
                let bytes =
                    unsafe { std::slice::from_raw_parts(steps.as_ptr().cast::<u8>(), size_of_val(steps)) };
                decode(processor, BlockFormat::F16, bytes, Step::numbers(widened));
                (widened, ahead)
            }
            Panels::Bytes(panels) => {
                let widened = &mut widened[..columns.len()];
                panels.widen(panel, columns, widened);
                (widened, Ahead::NOTHING)
            }
        }
    }
}

impl Panels {
    /// Lays out numbers, in 16 bits where those hold all of them exactly.
    fn new(values: &[f32], rows: usize, columns: usize) -> Self {
        let panels = rows.div_ceil(PANEL);
        let panel = |index: usize, into: &mut [Step]| {
            let rows = &values[index * PANEL * columns..values.len().min((index + 1) * PANEL * columns)];
            for (place, rows) in rows.chunks(TOGETHER * columns).enumerate() {
                // The first stands in for those that are missing: nobody reads their sums.
                let rows: [&[f32]; TOGETHER] = std::array::from_fn(|row| {
                    rows.chunks_exact(columns).nth(row).unwrap_or(&rows[..columns])
                });
                lay_out(rows, place * TOGETHER, Step::numbers(into), PANEL);
            }
        };
        if !values.par_chunks(1 << 16).all(fit_halves) {
            let mut steps = vec![Step::ZERO; panels * columns];
            steps.par_chunks_exact_mut(columns).enumerate().for_each(|(index, into)| panel(index, into));
            return Self::Numbers(steps);
        }
        let mut steps = vec![HalfStep([f16::ZERO; PANEL]); panels * columns];
        let numbers = || vec![Step::ZERO; columns];
        steps.par_chunks_exact_mut(columns).enumerate().for_each_init(numbers, |numbers, (index, into)| {
            panel(index, numbers);
            for (into, step) in into.iter_mut().zip(numbers) {
                into.0.convert_from_f32_slice(&step.0);
            }
        });
        Self::Halves(steps)
    }
}

/// Whether 16 bits hold all of the numbers exactly.
fn fit_halves(values: &[f32]) -> bool {
    const TOGETHER: usize = 256;
    let (mut halves, mut back) = ([f16::ZERO; TOGETHER], [0f32; TOGETHER]);
    values.chunks(TOGETHER).all(|values| {
        let (halves, back) = (&mut halves[..values.len()], &mut back[..values.len()]);
        halves.convert_from_f32_slice(values);
        halves.convert_to_f32_slice(back);
        values.iter().zip(back).all(|(value, back)| value.is_finite() && value.to_bits() == back.to_bits())
    })
}

#[inline(always)]
fn finish_inline<const FUSED: bool>(
    sums: &mut [Step],
    row: usize,
    column: usize,
    width: usize,
    target: Target,
    ending: Ending,
) {
    if matches!(ending, Ending::Activated) {
        crate::gelu::activate::<FUSED>(Step::numbers(sums));
    }
    for (index, sums) in sums.iter().enumerate() {
        let sums = &sums.0[..width];
        // SAFETY: as the caller promises.
        unsafe {
            match ending {
                Ending::Added => target.add(row + index, column, sums),
                Ending::Written | Ending::Activated => target.write(row + index, column, sums),
            }
        }
    }
}
widest!(
    /// Writes sums of a panel to rows from `row` on, or adds them. Whoever calls it has these places of `target` alone.
    fn finish(
        sums: &mut [Step],
        row: usize,
        column: usize,
        width: usize,
        target: Target,
        ending: Ending,
    ) = finish_inline
);

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest number with a leading 1 in 16 bits, and the one above it by which smaller ones are counted.
    const LEAST_HALF: f32 = 6.103_515_6e-5;
    const HALVES: f32 = 16_777_216.0;

    #[test]
    fn halves_come_back_as_they_were() {
        let all: Vec<f32> = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32()).collect();
        let finite: Vec<f32> = all.into_iter().filter(|value| value.is_finite()).collect();
        assert!(fit_halves(&finite));
        // Rows of a number: a step has those of a panel.
        let Panels::Halves(steps) = Panels::new(&finite, finite.len(), 1) else { panic!("not in 16 bits") };
        assert_eq!(steps.len() * PANEL, finite.len());
        for (values, halves) in finite.chunks_exact(PANEL).zip(&steps) {
            for (value, half) in values.iter().zip(halves.0) {
                assert_eq!(half.to_f32().to_bits(), value.to_bits(), "{value}");
            }
        }
    }

    #[test]
    fn what_halves_do_not_hold_is_told_from_what_they_do() {
        for value in [0.1, 1.0 + f32::EPSILON, 65536.0, 1e-8, 2.5 / HALVES, f32::NAN, f32::INFINITY, f32::MIN]
        {
            assert!(!fit_halves(&[value]), "{value}");
        }
        for value in [0.0, -0.0, 1.0, -0.5, 65504.0, LEAST_HALF, 1.0 / HALVES, -3.0 / HALVES] {
            assert!(fit_halves(&[value]), "{value}");
        }
    }
}
