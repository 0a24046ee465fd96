//! Parts of a model from many files made one folder, quantised on the way, and looked at.
//!
//! [`convert`] knows its inputs by their content, finds every weight that the model asks for before it writes the first
//! byte, and then carries one at a time from the mapped files to the new ones. The result is there when it is whole.

mod adapter;
mod configuration;
mod conversion;
mod convert;
mod inputs;
mod inspection;
pub mod language_gguf;
mod layout;
mod output;
mod plan;

pub use conversion::{Conversion, ConversionPart};
pub use convert::{ConvertOptions, Converted, convert};
pub use inspection::{
    Inspection, PartInspection, Problem, SideFile, TensorInspection, inspect, inspect_json,
};
pub use output::Progress;
