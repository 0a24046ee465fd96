//! The learning rate over the steps.

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
