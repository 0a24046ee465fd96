//! What must hold of training whatever the model: gradients, accumulation, resuming, files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod checkpoints;
mod model;
mod optimizer;
mod trainer;
