//! Python pickles read as data. Nothing is imported and nothing is called: a class or function is kept as its name,
//! a call as the name and its arguments, and whoever reads the result picks out the few names it knows.
//!
//! Source: the opcode list of CPython's `pickletools`, protocols 0 to 5 without the text strings of protocol 0.

mod features;
mod features_writer;
mod machine;
mod value;

pub use features::{FeatureSummary, Features, read_features, summarise_features};
pub use features_writer::FeatureWriter;
pub(crate) use value::{Object, Pickle, Value};
