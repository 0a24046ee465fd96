//! Linear layers whose weights were laid out once and for all.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::attention::Precision;
#[cfg(target_arch = "x86_64")]
use super::groups;
use super::int8::{BYTES, Int8Panels, Int8Rows, Int8Step, Sums, add_products};
#[cfg(target_arch = "x86_64")]
use super::layers_in_tiles::{self, InTiles};
use super::parts::{PANEL, PART, Parts, PrefetchQueue, Step, Strip, Target};
use super::tasks::{ThreadScratch, resized, share_out};
use super::tiles::{HalfStep, Rows, TILE_ROWS, Tiles, widen};
use crate::instructions::processor::Processor;
use crate::instructions::vector::widest;
use crate::operations::gelu;
use crate::operations::rows::with_values;
use crate::products::panels::{TOGETHER, lay_out};
use crate::{Activation, Projection, Weight};

/// Rows of `x` of a task at most: their parts and sums stay in the L2 cache.
const BLOCK: usize = 22 * TILE_ROWS;
/// Tiles whose sums are written together: what they wait for at memory, the next ones compute meanwhile.
const ENDED: usize = 2;

/// A linear layer for products with many rows.
#[derive(Debug)]
pub(super) struct FrozenLinear {
    pub(super) panels: Panels,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Of each panel.
    pub(super) bias: Vec<Step>,
}

/// Panels of weights one after the other: a number of each of [`PANEL`] rows, then the next number of each.
#[derive(Debug)]
pub(super) enum Panels {
    F32(Vec<Step>),
    /// f16 that stand for all numbers exactly. A part is widened when it is needed.
    F16(Vec<HalfStep>),
    /// Quantised to int8.
    Int8(Int8Panels),
}

/// Rows that are multiplied.
#[derive(Debug, Clone, Copy)]
pub(super) enum Input<'a> {
    F32(&'a Parts),
    /// Quantised to int8, with the panels that are multiplied with such.
    Int8(&'a Int8Rows, &'a Int8Panels),
    #[cfg(target_arch = "x86_64")]
    InTiles(InTiles<'a>),
}

impl Input<'_> {
    fn count(self) -> usize {
        match self {
            Self::F32(rows) => rows.count(),
            Self::Int8(rows, _) => rows.count(),
            #[cfg(target_arch = "x86_64")]
            Self::InTiles(rows) => rows.lines.count(),
        }
    }

    fn columns(self) -> usize {
        match self {
            Self::F32(rows) => rows.columns(),
            Self::Int8(rows, _) => rows.columns(),
            #[cfg(target_arch = "x86_64")]
            Self::InTiles(rows) => rows.lines.columns(),
        }
    }
}

/// What happens with the sums of a product.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ending<'a> {
    /// Written in this precision.
    Written(Precision),
    /// The same of what an activation makes of them.
    Activated(Activation, Precision),
    /// Written after rows, which are as long as those of the result, are added to them.
    Added(Rows<'a>),
}

impl Ending<'_> {
    /// Room that so many numbers take where they are written.
    pub(super) fn room(self, numbers: usize) -> usize {
        match self {
            Self::Written(precision) | Self::Activated(_, precision) => precision.room(numbers),
            Self::Added(_) => numbers,
        }
    }

    /// The same for rows and columns from some on.
    pub(super) fn from(self, row: usize, column: usize) -> Self {
        match self {
            Self::Added(Rows { values, stride }) => {
                Self::Added(Rows { values: &values[row * stride + column..], stride })
            }
            _ => self,
        }
    }
}

/// Rows, and a part of a panel's weights that they are multiplied with.
#[derive(Clone, Copy)]
enum Factors<'a> {
    F32(&'a Parts, &'a [Step]),
    Int8(&'a Int8Rows, &'a Int8Panels, &'a [Int8Step]),
}

impl FrozenLinear {
    /// Lays out the weights of layers, whose outputs follow one another: those in blocks are quantised anew, to int8 with a scale
    /// for each row, others stay as they are.
    pub(super) fn new(layers: &[Projection]) -> Result<Self> {
        let mut in_blocks = false;
        let numbers = layers.iter().map(|layer| match layer.weight {
            Weight::Dense(weight) => Ok(weight.clone()),
            Weight::Blocks(weight) => {
                in_blocks |= weight.format().block_length() > 1;
                weight.dequantise()
            }
        });
        let numbers = numbers.collect::<Result<Vec<_>>>()?;
        let values = Tensor::cat(&numbers, 0)?;
        let (rows, columns) = values.dims2()?;
        if rows == 0 || columns == 0 {
            bail!("a layer without weights");
        }
        let panels = with_values([&values], |[values]| {
            Ok(match in_blocks {
                true => Panels::Int8(Int8Panels::new(values, rows, columns)),
                false => Panels::new(values, rows, columns),
            })
        })?;
        let mut bias = vec![Step::ZERO; rows.div_ceil(PANEL)];
        let mut places = Step::numbers(&mut bias);
        for (layer, numbers) in layers.iter().zip(&numbers) {
            let (into, others) = places.split_at_mut(numbers.dim(0)?);
            if let Some(found) = layer.bias {
                if found.dims() != [into.len()] {
                    bail!("a bias of shape {:?} for {} outputs", found.dims(), into.len());
                }
                with_values([found], |[found]| {
                    into.copy_from_slice(found);
                    Ok(())
                })?;
            }
            places = others;
        }
        Ok(Self { panels, rows, columns, bias })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Its int8 weights, where rows are quantised before they are multiplied with them.
    pub(super) fn int8_panels(&self, processor: Processor) -> Option<&Int8Panels> {
        match &self.panels {
            Panels::Int8(panels) if panels.multiplies(processor) => Some(panels),
            _ => None,
        }
    }

    /// Whether it quantises rows to int8.
    pub(super) fn rounds(&self, processor: Processor) -> bool {
        self.int8_panels(processor).is_some()
    }

    /// How its input may be written before it is rounded further.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "rows stay as they are there"))]
    pub(super) fn input_precision(&self, processor: Processor) -> Precision {
        #[cfg(target_arch = "x86_64")]
        if self.rounds(processor) {
            return Precision::of(processor, self.columns);
        }
        Precision::F32
    }

    /// Rows as it multiplies them, which come in a precision; `rounded` has room for them.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables, reason = "rows stay as they are there"))]
    pub(super) fn input<'a>(
        &'a self,
        processor: Processor,
        (x, precision): (&'a Parts, Precision),
        rounded: &'a mut Int8Rows,
        scratches: &mut Vec<ThreadScratch>,
    ) -> Input<'a> {
        let make = |row: usize, into: &mut [f32]| match precision {
            Precision::F32 => x.read(row, into),
            // SAFETY: the processor has AVX-512, see `Precision::of`.
            #[cfg(target_arch = "x86_64")]
            Precision::Bf16 => unsafe { groups::read_pairs(x, row, into) },
        };
        #[cfg(target_arch = "x86_64")]
        if layers_in_tiles::pay(processor, x.count()) {
            return self.in_tiles(processor, x.count(), make, rounded, scratches);
        }
        let Some(panels) = self.int8_panels(processor) else { return Input::F32(x) };
        rounded.fill(x.count(), self.columns, make, scratches);
        Input::Int8(rounded, panels)
    }

    /// The same of `count` rows that `make` writes; `numbers` and `rounded` have room for them.
    pub(super) fn made_input<'a>(
        &'a self,
        processor: Processor,
        count: usize,
        make: impl Fn(usize, &mut [f32]) + Sync,
        numbers: &'a mut Parts,
        rounded: &'a mut Int8Rows,
        scratches: &mut Vec<ThreadScratch>,
    ) -> Input<'a> {
        #[cfg(target_arch = "x86_64")]
        if layers_in_tiles::pay(processor, count) {
            return self.in_tiles(processor, count, make, rounded, scratches);
        }
        if let Some(panels) = self.int8_panels(processor) {
            rounded.fill(count, self.columns, make, scratches);
            Input::Int8(rounded, panels)
        } else {
            numbers.fill(count, self.columns, make, scratches);
            Input::F32(numbers)
        }
    }

    /// Writes what it makes of rows to `target`; on all threads.
    ///
    /// # Safety
    /// `target` has as many rows as `x` and as many columns as this layer; it lives, and nobody else uses it.
    pub(super) unsafe fn forward(
        &self,
        processor: Processor,
        x: Input,
        scratches: &mut Vec<ThreadScratch>,
        target: Target,
        ending: Ending,
    ) {
        assert_eq!(x.columns(), self.columns, "rows that do not go with the weights");
        #[cfg(target_arch = "x86_64")]
        if let Input::InTiles(x) = x {
            // SAFETY: as the caller promises.
            return unsafe { self.forward_in_tiles(x, scratches, target, ending) };
        }
        let count = x.count();
        let blocks = count.div_ceil(BLOCK).max(1);
        let together = if let Input::Int8(..) = x { BYTES } else { PART };
        let length = count.div_ceil(blocks).next_multiple_of(TILE_ROWS);
        share_out(self.rows.div_ceil(PANEL) * blocks, scratches, |scratch, task| {
            let (panel, first) = (task / blocks, task % blocks * length);
            let of_panel = panel * PANEL..self.rows.min((panel + 1) * PANEL);
            let rows = length.min(count.saturating_sub(first));
            let ThreadScratch { sums, integer_sums, widened, .. } = scratch;
            let (sums, integer_sums) =
                (resized(sums, rows, Step::ZERO), resized(integer_sums, rows, Sums::ZERO));
            for column in (0..self.columns).step_by(together) {
                let columns = column..self.columns.min(column + together);
                let last = columns.end == self.columns;
                // What this thread multiplies next, if all are as quick.
                let mut queue = match last {
                    true => self.prefetch_queue((task + 1) / blocks, 0..together, rows),
                    false => self.prefetch_queue(panel, columns.end..columns.end + together, rows),
                };
                let factors = self.factors(processor, x, panel, columns, widened);
                let step = if last { ENDED * TILE_ROWS } else { rows };
                for begin in (0..rows).step_by(step.max(1)) {
                    let range = begin..rows.min(begin + step);
                    let sums = &mut sums[range.clone()];
                    let row = first + begin;
                    match factors {
                        Factors::F32(x, steps) => {
                            if column == 0 {
                                sums.fill(self.bias[panel]);
                            }
                            let x = Rows { values: x.from(column)[row..].as_flattened(), stride: PART };
                            processor.run(Tiles { panel: steps, x, sums, queue: &mut queue });
                        }
                        Factors::Int8(x, panels, steps) => {
                            let integer_sums = &mut integer_sums[range];
                            if column == 0 {
                                integer_sums.fill(Sums::ZERO);
                            }
                            add_products(processor, steps, x.from(column, row), integer_sums, &mut queue);
                            if last {
                                let x = x.rows(row..row + sums.len());
                                panels.scale(processor, panel, (integer_sums, x), &self.bias[panel], sums);
                            }
                        }
                    }
                    if last {
                        let width = ending.room(of_panel.len());
                        let rows = row..row + sums.len();
                        let strip = target.strip(rows, ending.room(of_panel.start), width);
                        // SAFETY: as the caller promises, and each task has rows and columns of its own.
                        unsafe { finish(processor, sums, strip, ending.from(row, of_panel.start)) };
                    }
                }
            }
        });
    }

    /// Rows and some columns of a panel, as they are multiplied.
    fn factors<'a>(
        &'a self,
        processor: Processor,
        x: Input<'a>,
        panel: usize,
        columns: Range<usize>,
        widened: &'a mut Vec<Step>,
    ) -> Factors<'a> {
        let range = panel * self.columns + columns.start..panel * self.columns + columns.end;
        let x = match x {
            Input::Int8(x, panels) => return Factors::Int8(x, panels, panels.steps(panel, columns)),
            Input::F32(x) => x,
            #[cfg(target_arch = "x86_64")]
            Input::InTiles(_) => unreachable!("rows of other products"),
        };
        match &self.panels {
            Panels::F32(steps) => Factors::F32(x, &steps[range]),
            Panels::F16(steps) => {
                let widened = resized(widened, columns.len(), Step::ZERO);
                widen(processor, &steps[range], widened);
                Factors::F32(x, widened)
            }
            Panels::Int8(panels) => {
                let widened = resized(widened, columns.len(), Step::ZERO);
                panels.widen(panel, columns, widened);
                Factors::F32(x, widened)
            }
        }
    }

    /// Some columns of a panel, as far as there are such, spread over so many rows.
    fn prefetch_queue(&self, panel: usize, columns: Range<usize>, rows: usize) -> PrefetchQueue<'_> {
        let first = panel * self.columns;
        let part = |length: usize| length.min(first + columns.start)..length.min(first + columns.end);
        match &self.panels {
            Panels::F32(steps) => PrefetchQueue::new(&steps[part(steps.len())], rows),
            Panels::F16(steps) => PrefetchQueue::new(&steps[part(steps.len())], rows),
            Panels::Int8(panels) => PrefetchQueue::new(panels.steps(panel, columns), rows),
        }
    }
}

impl Panels {
    /// Lays out numbers, in f16 where those are all of them exactly.
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
            return Self::F32(steps);
        }
        let mut steps = vec![HalfStep([f16::ZERO; PANEL]); panels * columns];
        let numbers = || vec![Step::ZERO; columns];
        steps.par_chunks_exact_mut(columns).enumerate().for_each_init(numbers, |numbers, (index, into)| {
            panel(index, numbers);
            for (into, step) in into.iter_mut().zip(numbers) {
                into.0.convert_from_f32_slice(&step.0);
            }
        });
        Self::F16(steps)
    }
}

/// Whether f16 stand for all of the numbers exactly.
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

/// Writes sums of a panel, of which as many are used as the strip is wide, to their rows.
///
/// # Safety
/// The rows live, and whoever calls has these places of `target` alone; the processor has bf16 where rows are to be written in
/// it.
unsafe fn finish(processor: Processor, sums: &mut [Step], target: Strip, ending: Ending) {
    match processor {
        // SAFETY: the processor has AVX-512; as the caller promises.
        #[cfg(target_arch = "x86_64")]
        Processor::Avx512(..) => unsafe { finish_in_vectors(sums, target, ending) },
        _ => finish_in_lanes(sums, target, ending),
    }
}

/// The same in vectors.
///
/// # Safety
/// As [`finish`], and the processor has AVX-512.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn finish_in_vectors(sums: &mut [Step], target: Strip, ending: Ending) {
    // SAFETY: as the caller promises.
    unsafe {
        match ending {
            Ending::Activated(Activation::Gelu, Precision::Bf16) => {
                return groups::write_narrow::<true>(sums, target);
            }
            Ending::Activated(Activation::Gelu, Precision::F32) => groups::activate(sums),
            Ending::Activated(Activation::QuickGelu, _) => activate_quick(sums),
            Ending::Written(_) | Ending::Added(_) => {}
        }
        match ending {
            Ending::Written(Precision::Bf16) | Ending::Activated(_, Precision::Bf16) => {
                groups::write_narrow::<false>(sums, target);
            }
            Ending::Written(Precision::F32) | Ending::Activated(_, Precision::F32) => {
                groups::write(sums, None, target);
            }
            Ending::Added(others) => groups::write(sums, Some(others), target),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn activate_quick_inline<const FUSED: bool>(sums: &mut [Step]) {
    gelu::activate_quick::<FUSED>(Step::numbers(sums));
}
#[cfg(target_arch = "x86_64")]
widest!(fn activate_quick(sums: &mut [Step]) = activate_quick_inline);

#[inline(always)]
fn finish_inline<const FUSED: bool>(sums: &mut [Step], target: Strip, ending: Ending) {
    match ending {
        Ending::Activated(Activation::Gelu, _) => gelu::activate::<FUSED>(Step::numbers(sums)),
        Ending::Activated(Activation::QuickGelu, _) => gelu::activate_quick::<FUSED>(Step::numbers(sums)),
        Ending::Written(_) | Ending::Added(_) => {}
    }
    for (row, sums) in sums.iter_mut().enumerate() {
        let width = target.width();
        if let Ending::Added(others) = ending {
            sums.add(&others.from(row).values[..width]);
        }
        // SAFETY: as the caller promises.
        unsafe { target.write(row, &sums.0[..width]) };
    }
}
widest!(
    /// [`finish`] of f32, as no vectors but those of AVX-512 write them.
    fn finish_in_lanes(sums: &mut [Step], target: Strip, ending: Ending) = finish_inline
);

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest normal f16, and the one above it by which smaller ones are counted.
    const LEAST_HALF: f32 = 6.103_515_6e-5;
    const HALVES: f32 = 16_777_216.0;

    #[test]
    fn halves_come_back_as_they_were() {
        let all: Vec<f32> = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32()).collect();
        let finite: Vec<f32> = all.into_iter().filter(|value| value.is_finite()).collect();
        assert!(fit_halves(&finite));
        // Rows of a number: a step has those of a panel.
        let Panels::F16(steps) = Panels::new(&finite, finite.len(), 1) else { panic!("not in 16 bits") };
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
