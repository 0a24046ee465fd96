//! How the rows of a sub-layer are split into parts.

use super::slices::Slices;

/// Rows that are computed from the norm to the residual before the next ones, so that what is in between stays in
/// the cache of a core.
const PART_ROWS: usize = 192;
/// Weights up to which a sub-layer is split into parts. Above, its products are large enough to be split themselves, and
/// sums of weights' gradients for each group would take more than they save.
const SPLIT_WEIGHTS: usize = 1 << 19;
/// Groups of parts at most, each with sums of its own of the weights' gradients.
const GROUPS: usize = 8;

/// How rows are split. It depends on the shapes only, and with it the order of every sum.
#[derive(Debug, Clone, Copy)]
pub(super) struct Split {
    pub(super) part_rows: usize,
    pub(super) group_parts: usize,
    /// One part, whose products take all threads.
    pub(super) whole: bool,
}

/// Some rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) first: usize,
    pub(super) rows: usize,
    /// Whether products take all threads, because there are no other parts.
    pub(super) parallel: bool,
}

impl Split {
    pub(super) fn new(slices: &Slices, unit: usize) -> Self {
        let rows = slices.x().len() / slices.width();
        let weights: usize = slices.values[1..].iter().map(|values| values.len()).sum();
        let in_blocks: usize =
            slices.blocks.iter().flatten().map(|blocks| blocks.shape().0 * blocks.shape().1).sum();
        let weights = weights + in_blocks;
        let part_rows = (PART_ROWS / unit).max(1) * unit;
        let parts = rows.div_ceil(part_rows);
        if weights > SPLIT_WEIGHTS || parts < GROUPS {
            return Self { part_rows: rows.max(1), group_parts: 1, whole: true };
        }
        Self { part_rows, group_parts: parts.div_ceil(GROUPS), whole: false }
    }

    pub(super) fn part(&self, index: usize, rows: usize) -> Part {
        Part { first: index * self.part_rows, rows, parallel: self.whole }
    }
}
