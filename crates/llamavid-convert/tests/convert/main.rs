//! Conversion from whole files to answers, and everything that can be wrong with what it is given.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod adapters;
mod answers;
mod folders;
mod inspecting;
mod parts;
mod processes;
mod published;
mod quantised;
mod results;
