//! From questions, frames and subtitles to the rows the language model reads.
//!
//! A conversation is rendered with a template, cut at its `<image>` tags into ids and placeholders, and
//! the placeholders are replaced by visual tokens.

pub mod conversation;
pub mod movie;
pub mod placeholders;
pub mod sampling;
pub mod splice;
pub mod subtitles;
