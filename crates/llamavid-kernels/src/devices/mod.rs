//! What lies on CUDA devices for the rest of the model: rows of a cache, numbers on their way there, and sums over several devices. Their
//! kernels are in `cuda`; a build without the feature has these types as well.

pub(crate) mod device_rows;
pub(crate) mod ranks;
pub(crate) mod staging;
