//! The operations of a transformer one by one, each with a backward pass: fused for f32 on a CPU, put together from candle's own
//! elsewhere. `rows` reads their tensors as rows of f32.

pub(crate) mod cross_entropy;
pub(crate) mod dropout;
pub(crate) mod embedding;
pub(crate) mod gelu;
pub(crate) mod largest;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod rms_norm;
pub(crate) mod rotary;
pub(crate) mod rows;
pub(crate) mod softmax;
pub(crate) mod swiglu;
pub(crate) mod weight;
