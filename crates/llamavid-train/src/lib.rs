//! The three stages of LLaMA-VID training: samples, losses, freeze plans, optimisers, checkpoints.
pub mod data;
