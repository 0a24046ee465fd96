//! How a product is shared out among rayon's threads, and what keeps them from sleeping in between.

pub(crate) mod shared_floats;
mod spin;
pub(crate) mod tasks;
