//! Training data: records, samples, orders and reports, against the reference's and against hostile input.

#![allow(clippy::unwrap_used, clippy::panic)]

mod checks;
mod features;
mod oracle;
mod orders;
mod records;
mod samples;
