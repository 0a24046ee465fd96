//! The learning rate over the steps.

use serde::{Deserialize, Serialize};

/// How the learning rate goes over the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", deny_unknown_fields)]
pub enum Schedule {
    /// See [`cosine_with_warmup`].
    Cosine {
        /// Steps from 0 to the full rate.
        warmup: u64,
        /// Steps to 0 again.
        total: u64,
    },
    /// The full rate behind the warmup.
    Constant {
        /// Steps from 0 to the full rate.
        warmup: u64,
    },
}

impl Schedule {
    /// Factor of the learning rate at a step.
    pub fn factor(self, step: u64) -> f64 {
        match self {
            Self::Cosine { warmup, total } => cosine_with_warmup(step, warmup, total),
            Self::Constant { warmup } if step < warmup => step as f64 / warmup as f64,
            Self::Constant { .. } => 1.,
        }
    }
}

/// Factor of the learning rate at `step`: linear from 0 over `warmup` steps, then half a cosine down to 0 at `total`.
///
/// Reference: `get_cosine_schedule_with_warmup` of transformers. Step 0 has a rate of 0 when there is a warmup.
pub fn cosine_with_warmup(step: u64, warmup: u64, total: u64) -> f64 {
    if step < warmup {
        return step as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    (0.5 * (1. + (std::f64::consts::PI * progress).cos())).max(0.)
}

/// Steps of warmup for a share of all steps, rounded up as in the reference (0.03 in all published recipes).
pub fn warmup_steps(ratio: f64, total: u64) -> u64 {
    (ratio * total as f64).ceil() as u64
}
