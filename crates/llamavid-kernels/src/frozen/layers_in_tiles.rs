//! Linear layers in AMX's tiles: whole numbers of 8 bits where weights and rows are rounded to such, else numbers of 32 bits in pieces
//! of 16 ([`super::lines`]).
//!
//! A part of a panel stays in the first cache while the rows of a task go by, which stay in the second one with their sums. Where
//! these rows are too long for that, the task goes through a part of them with all its panels first.

use super::bytes::{BytePanels, ByteRows, RoundedRow, Sums};
use super::groups;
use super::linear::{Ending, FrozenLinear, Input, Panels, finish, write};
use super::lines::{Line, Lines, SPAN, split_panel};
use super::matrices::{Begin, Product, ROWS, STEP, Whole, multiply};
use super::parts::{Ahead, PANEL, Step, Target};
use super::tasks::{Room, room, share_out};
use crate::Activation;
use crate::processor::{Processor, WholeNumbers};

/// Rows from which their products are quicker than in vectors, although weights are split for them.
const MANY: usize = 24;
/// Bytes of rows, and of sums, of a task: both stay in the second cache.
const KEPT: usize = 512 << 10;
/// Rows of a task at most, if all that tiles read of them is kept.
const MOST: usize = 18 * ROWS;
/// Rows of a task at most, if only a part of each is.
const BLOCK: usize = 9 * ROWS;

/// Rows for tiles.
#[derive(Debug, Clone, Copy)]
pub(super) struct InTiles<'a> {
    pub(super) lines: &'a Lines,
    /// What whole numbers stand for, with the panels that they are multiplied with; else lines are in pieces.
    whole: Option<(&'a [RoundedRow], &'a BytePanels)>,
}

/// Whether so many rows are multiplied in tiles.
pub(super) fn pay(processor: Processor, count: usize) -> bool {
    matches!(processor, Processor::Avx512(_, WholeNumbers::Tiles)) && count >= MANY
}

/// Begins sums of whole numbers.
static NOTHING: Step = Step::ZERO;

impl FrozenLinear {
    /// Rows that `make` has, as tiles multiply them. For processors of which [`pay`] tells.
    pub(super) fn in_tiles<'a>(
        &'a self,
        processor: Processor,
        count: usize,
        make: impl Fn(usize, &mut [f32]) + Sync,
        room: &'a mut ByteRows,
    ) -> Input<'a> {
        Input::InTiles(match self.whole(processor) {
            Some(panels) => {
                let (lines, rows) = room.fill_lines(count, self.columns, make);
                InTiles { lines, whole: Some((rows, panels)) }
            }
            None => {
                let lines = room.lines();
                // SAFETY: the processor has AVX-512, as all with tiles.
                unsafe { lines.fill(count, self.columns, make) };
                InTiles { lines, whole: None }
            }
        })
    }

    /// # Safety
    /// As [`Self::forward`], and the processor has AMX, which the process may use.
    pub(super) unsafe fn forward_in_tiles(
        &self,
        x: InTiles,
        rooms: &mut Vec<Room>,
        target: Target,
        ending: Ending,
    ) {
        let InTiles { lines: x, whole } = x;
        let product = match (whole, &self.panels) {
            (Some(_), _) => Product::Bytes,
            (None, Panels::Halves(_)) => Product::ThreeByTwo,
            (None, _) => Product::ThreeByThree,
        };
        let (count, steps) = (x.count(), x.steps());
        let of_a_step = product.of_x() * size_of::<Line>();
        let most = if 2 * KEPT / (steps * of_a_step) >= MOST { MOST } else { BLOCK };
        let blocks = count.div_ceil(most).max(1);
        let length = count.div_ceil(blocks).next_multiple_of(ROWS);
        let part = part(product);
        let threads = rayon::current_num_threads();
        // Rows that are too long are gone through in pieces, each with all panels of a task, the sums of which are kept.
        let panels = self.rows.div_ceil(PANEL);
        let (kept, group) = if steps * of_a_step * length <= 2 * KEPT {
            (steps, 1)
        } else {
            let groups = panels.div_ceil(KEPT / (length * size_of::<Step>())).next_multiple_of(threads);
            let kept = even(steps, KEPT / (length * of_a_step)).next_multiple_of(part);
            (kept, panels.div_ceil(groups))
        };
        let groups = panels.div_ceil(group);
        share_out(groups * blocks, rooms, |scratch, task| {
            // Rows stay from one task to the next.
            let (group_first, first) = (task % groups * group, task / groups * length);
            let of_group = group_first..panels.min(group_first + group);
            let rows = length.min(count.saturating_sub(first));
            let places = rows.next_multiple_of(ROWS);
            if rows == 0 {
                return;
            }
            let Room { sums: finished, whole: sums, widened, lines, .. } = scratch;
            let sums = room(sums, of_group.len() * places, Sums::ZERO);
            let finished = room(finished, ROWS, Step::ZERO);
            // SAFETY: the processor has them, as the caller promises, and nothing here makes others.
            let tiles = unsafe { Whole::new() };
            for begin in (0..steps).step_by(kept) {
                let until = steps.min(begin + kept);
                for (panel, sums) in of_group.clone().zip(sums.chunks_exact_mut(places)) {
                    let columns = panel * PANEL..self.rows.min((panel + 1) * PANEL);
                    let length = even(until - begin, part);
                    let mut of_x_ahead = {
                        // With each panel the next part of some rows.
                        let index = panel - of_group.start;
                        if until < steps && index * ROWS < rows {
                            let lines = x.from(first / ROWS + index, until);
                            let next = (steps - until).min(kept) * product.of_x() * STEP;
                            Ahead::new(&lines[..next], rows * (until - begin).div_ceil(length))
                        } else {
                            Ahead::nothing()
                        }
                    };
                    for step in (begin..until).step_by(length) {
                        let of_part = step..until.min(step + length);
                        let last = of_part.end == steps;
                        // Two parts further, since a part of few rows is done before memory answers.
                        let further = step + 2 * length;
                        let mut ahead = if further < until {
                            self.part_ahead(whole, panel, further..until.min(further + length), rows)
                        } else {
                            let next = begin + (further - until) / length * length;
                            let panel = if group == 1 { panel + threads } else { panel + 1 };
                            self.part_ahead(whole, panel, next..until.min(next + length), rows)
                        };
                        // SAFETY: the processor has AVX-512.
                        let weights = unsafe { self.part(whole, panel, of_part.clone(), lines, widened) };
                        for row in (0..rows).step_by(ROWS) {
                            let used = ROWS.min(rows - row);
                            ahead.read(used);
                            of_x_ahead.read(used);
                            let begin = match (step, whole) {
                                (0, Some(_)) => Begin::With(&NOTHING),
                                (0, None) => Begin::With(&self.bias[panel]),
                                _ => Begin::Sums,
                            };
                            let lines = x.from((first + row) / ROWS, step);
                            let sums = &mut sums[row..row + ROWS];
                            assert!(lines.len() >= of_part.len() * product.of_x() * STEP);
                            assert!(weights.len() == of_part.len() * product.of_weights() * STEP);
                            // SAFETY: there are as many lines, and sums of as many rows, of which a number takes 32 bits.
                            unsafe {
                                multiply(
                                    &tiles,
                                    product,
                                    used <= ROWS / 2,
                                    (lines.as_ptr(), weights.as_ptr()),
                                    of_part.len(),
                                    begin,
                                    sums.as_mut_ptr().cast(),
                                );
                            }
                            if !last {
                                continue;
                            }
                            let sums = &mut sums[..used];
                            let range = first + row..first + row + used;
                            let finished = match whole {
                                Some((rows, panels)) => {
                                    let finished = &mut finished[..used];
                                    panels.scale(panel, sums, &rows[range.clone()], &self.bias[panel], finished);
                                    finished
                                }
                                None => Sums::as_numbers(sums),
                            };
                            let width = ending.room(columns.len());
                            let strip = target.strip(range.clone(), ending.room(columns.start), width);
                            // SAFETY: as the caller promises, and each task has rows and columns of its own.
                            let ending = ending.from(range.start, columns.start);
                            if let Ending::Activated(Activation::Gelu, _) = ending {
                                // SAFETY: the processor has AVX-512.
                                unsafe { groups::activate(finished) };
                                write(finished, columns.len(), strip, ending);
                            } else {
                                finish(finished, columns.len(), strip, ending);
                            }
                        }
                    }
                }
            }
        });
    }

    /// A part of a panel, some steps of tiles; `lines` and `widened` have room for it.
    ///
    /// # Safety
    /// The processor has AVX-512.
    unsafe fn part<'a>(
        &'a self,
        whole: Option<(&[RoundedRow], &'a BytePanels)>,
        panel: usize,
        steps: std::ops::Range<usize>,
        lines: &'a mut Vec<Line>,
        widened: &mut Vec<Step>,
    ) -> &'a [Line] {
        if let Some((_, panels)) = whole {
            return panels.lines(panel, steps);
        }
        let columns = steps.start * SPAN..self.columns.min(steps.end * SPAN);
        let range = panel * self.columns + columns.start..panel * self.columns + columns.end;
        let length = steps.len() * STEP;
        // SAFETY: as the caller promises.
        unsafe {
            match &self.panels {
                Panels::Halves(numbers) => {
                    let lines = room(lines, 2 * length, Line::ZERO);
                    split_panel::<2, _>(&numbers[range], lines);
                    lines
                }
                Panels::Numbers(numbers) => {
                    let lines = room(lines, 3 * length, Line::ZERO);
                    split_panel::<3, _>(&numbers[range], lines);
                    lines
                }
                Panels::Bytes(panels) => {
                    let widened = room(widened, columns.len(), Step::ZERO);
                    panels.widen(panel, columns, widened);
                    let lines = room(lines, 3 * length, Line::ZERO);
                    split_panel::<3, _>(widened, lines);
                    lines
                }
            }
        }
    }

    /// The same as it lies in memory, as far as there is such a part, spread over so many rows.
    fn part_ahead<'a>(
        &'a self,
        whole: Option<(&[RoundedRow], &'a BytePanels)>,
        panel: usize,
        steps: std::ops::Range<usize>,
        rows: usize,
    ) -> Ahead<'a> {
        if panel * PANEL >= self.rows {
            return Ahead::nothing();
        }
        if let Some((_, panels)) = whole {
            return Ahead::new(panels.lines(panel, steps), rows);
        }
        let [first, last] = [steps.start, steps.end].map(|step| self.columns.min(step * SPAN));
        let range = panel * self.columns + first..panel * self.columns + last;
        match &self.panels {
            Panels::Halves(numbers) => Ahead::new(&numbers[range], rows),
            Panels::Numbers(numbers) => Ahead::new(&numbers[range], rows),
            Panels::Bytes(panels) => Ahead::new(panels.steps(panel, first..last), rows),
        }
    }
}

/// Steps of a part of a panel: with more the cache would be too small, and with fewer sums be read and written too often.
fn part(product: Product) -> usize {
    match product {
        Product::Bytes | Product::Halves => 8,
        Product::ThreeByTwo | Product::ThreeByThree => 4,
    }
}

/// The length of parts of a whole, which are `most` long at most and as even as may be.
fn even(whole: usize, most: usize) -> usize {
    whole.div_ceil(whole.div_ceil(most.max(1)).max(1)).max(1)
}
