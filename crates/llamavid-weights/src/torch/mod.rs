//! Files written by `torch.save`: a zip with a pickle and one entry a storage (since 1.6), or the older stream of
//! pickles with the storages behind them.

mod legacy;
mod state_dict;
mod zip_archive;

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Result;
use crate::mapped_file::MappedFile;

pub(crate) use legacy::read as read_legacy;
pub(crate) use zip_archive::read as read_zip;

/// The whole numbers of the dict `name` beside the weights of a file of `torch.save`, such as a model's sizes.
///
/// # Errors
/// A file that is missing, damaged, not torch's zip form, or without such a dict.
pub fn torch_numbers(file: &Path, name: &str) -> Result<BTreeMap<String, i64>> {
    let mapped = MappedFile::open(file)?;
    zip_archive::numbers(mapped.bytes(), name).map_err(|fault| fault.in_file(file))
}
