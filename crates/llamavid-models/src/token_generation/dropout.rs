//! Dropout of the query model, where BERT has it: after the first norm, on the shares of attention, and on what an
//! attention or feed-forward layer adds to its input. Only training asks for it.

use std::cell::Cell;

use candle_core::{Result, Tensor};
use llamavid_kernels::Dropout;

/// How much is dropped, and by which seed.
#[derive(Debug, Clone, Copy)]
pub(super) struct DropoutPlan {
    pub(super) rate: f32,
    pub(super) seed: u64,
}

/// The dropouts of one pass, each with a seed of its own. Equal seeds of the pass give equal dropouts.
pub(super) struct Dropouts {
    plan: Option<DropoutPlan>,
    given: Cell<u64>,
}

impl Dropouts {
    /// Those of a pass; none at all without a plan.
    pub(super) fn new(plan: Option<DropoutPlan>) -> Self {
        Self { plan, given: Cell::new(0) }
    }

    /// Whether anything is dropped.
    pub(super) fn are_wanted(&self) -> bool {
        self.plan.is_some()
    }

    /// The next one.
    pub(super) fn next(&self) -> Option<Dropout> {
        let plan = self.plan?;
        self.given.set(self.given.get() + 1);
        Some(Dropout { rate: plan.rate, seed: mix(plan.seed, self.given.get()) })
    }

    /// `x` after the next one.
    pub(super) fn apply(&self, x: Tensor) -> Result<Tensor> {
        match self.next() {
            Some(dropout) => dropout.apply(&x),
            None => Ok(x),
        }
    }
}

/// A seed for each number (SplitMix64).
fn mix(seed: u64, number: u64) -> u64 {
    let mut bits = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
