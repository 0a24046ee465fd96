//! From records in LLaVA's format to samples: ids, labels, questions for the query model, and what to look at.
//!
//! Reference: `train.py`, `llava_trainer.py`. A record that cannot be used is an error with its number, its id and what
//! is wrong; it is never replaced by another.

mod check;
mod error;
mod features;
mod folders;
mod labels;
mod order;
mod picture;
pub mod published;
mod raw_record;
mod record;
mod record_file;
mod sample;
mod scan;
mod split_chat;
mod training_template;

pub use check::{
    CheckEvent, CheckReport, CheckTotals, Finding, SampleCheck, Severity, VideoReference, check, check_each,
};
pub use error::{Error, Fault, FaultCode, Result};
pub use features::{MovieFeatures, inspect_features, read_features};
pub use folders::Folders;
pub use labels::IGNORED;
pub use order::{Order, Sampler, grouped_order, shuffled_order};
pub use record::{Media, Message, Record, Speaker};
pub use record_file::RecordFile;
pub use sample::{Movie, Sample, SampleOptions, movie_sample, sample};
pub use split_chat::split_chat;
pub use training_template::{Guidance, TrainingTemplate};
