//! Conversion from whole files to answers, and everything that can be wrong with what it is given.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod adapters;
mod answers;
mod byte_pairs;
mod clip;
mod folders;
mod inspecting;
mod llama_cpp;
mod made;
mod parts;
mod processes;
mod published;
mod quantised;
mod results;
