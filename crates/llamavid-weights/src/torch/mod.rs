//! Files written by `torch.save`: a zip with a pickle and one entry a storage (since 1.6), or the older stream of
//! pickles with the storages behind them.

mod legacy;
mod state_dict;
mod zip_archive;

pub(crate) use legacy::read as read_legacy;
pub(crate) use zip_archive::read as read_zip;
