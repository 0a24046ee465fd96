//! How several devices share the language model, and what they need for it.

use candle_core::Device as TensorDevice;
use llamavid_kernels::Ranks;
use llamavid_models::language_model::{LanguageModelConfig, Placement};
use serde::Deserialize;

use crate::{Device, DeviceKind, Error, Result, cuda};

/// How several devices share the language model. One device has all of it in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Split {
    /// Each has whole layers, and they take turns.
    #[default]
    Layers,
    /// Each has a share of every layer, and they compute side by side.
    Tensor,
}

impl Split {
    /// `layers` or `tensor`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for another name.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "layers" => Ok(Self::Layers),
            "tensor" => Ok(Self::Tensor),
            other => Err(Error::argument(format!("a split by {other:?}: there are layers and tensor"))),
        }
    }
}

/// Checks that devices of these names can share each layer of a model.
///
/// # Errors
/// `INVALID_ARGUMENT` for one device, for such that do not compute together, and for a number of them that the model's heads cannot be
/// shared among.
pub(crate) fn expect_shares(names: &[&str], config: &LanguageModelConfig) -> Result<()> {
    let wrong = |problem: &str| {
        let message = format!("a tensor split over {}: {problem}", names.join(","));
        Err(Error::argument(message).with_hint("Take several of cuda:0, cuda:1, …, or leave the split out."))
    };
    if names.len() < 2 {
        return wrong("one device has nothing to share");
    }
    if names.contains(&"cpu") != names.iter().all(|name| *name == "cpu") {
        return wrong("graphics processors and the CPU do not compute side by side");
    }
    let twice = |name: &&str| *name != "cpu" && names.iter().filter(|other| *other == name).count() > 1;
    if names.iter().any(twice) {
        return wrong("a graphics processor can have one share");
    }
    Ok(config.expect_shares(names.len())?)
}

/// Each layer on all of a device's devices.
///
/// # Errors
/// Those of [`expect_shares`], and `DEVICE_UNAVAILABLE` where graphics processors have no NCCL or it does not connect them.
pub(crate) fn shared_layers(device: &Device, config: &LanguageModelConfig) -> Result<Placement> {
    let stages = device.stages();
    let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
    expect_shares(&names, config)?;
    if device.kind() == DeviceKind::Cuda {
        cuda::nccl()?;
    }
    let tensors: Vec<TensorDevice> = stages.iter().map(|stage| stage.tensors.clone()).collect();
    let ranks = Ranks::of(tensors).map_err(|error| {
        cuda::unavailable(error.to_string(), "Check nvidia-smi topo -m, or leave the split out.")
    })?;
    Ok(Placement::shared(ranks, config.layers))
}
