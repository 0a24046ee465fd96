//! Which devices compute which layers of the decoder.

use std::ops::Range;

use candle_core::{Device, Tensor};
use llamavid_kernels::Ranks;

use crate::{Error, Result};

/// Layers in a row, computed by one device or by several together. Hidden states move to it from the stage before; its keys and values
/// stay.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Where their weights are, whole or a share on each device.
    pub ranks: Ranks,
    /// Which ones.
    pub layers: Range<usize>,
}

impl Stage {
    /// The same hidden states where this stage computes, one for each rank.
    pub(super) fn take(&self, hidden: &Tensor) -> Result<Vec<Tensor>> {
        let device = self.ranks.first();
        let between = hidden.device().is_cuda() && device.is_cuda() && !hidden.device().same_device(device);
        if between {
            // The copy runs on this stage's stream, which knows nothing of the other one's.
            hidden.device().synchronize()?;
        }
        let moved = hidden.to_device(device)?;
        if between {
            // And the other one uses the memory again as soon as its tensor is gone.
            device.synchronize()?;
        }
        Ok(self.ranks.share(&moved)?)
    }
}

/// All layers in stages, one behind the other.
#[derive(Debug, Clone)]
pub struct Placement(Vec<Stage>);

impl Placement {
    /// All layers on one device.
    pub fn single(device: &Device, layers: usize) -> Self {
        Self::shared(Ranks::one(device), layers)
    }

    /// All layers shared by devices that compute together.
    pub fn shared(ranks: Ranks, layers: usize) -> Self {
        Self(vec![Stage { ranks, layers: 0..layers }])
    }

    /// The next so many layers on each device; one without layers is no stage.
    ///
    /// # Errors
    /// [`Error::Argument`] without any layer.
    pub fn in_stages(counts: impl IntoIterator<Item = (Device, usize)>) -> Result<Self> {
        let mut first = 0;
        let mut stages = Vec::new();
        for (device, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            stages.push(Stage { ranks: Ranks::one(&device), layers: first..first + count });
            first += count;
        }
        if stages.is_empty() {
            return Err(Error::Argument("no device has a layer".to_owned()));
        }
        Ok(Self(stages))
    }

    /// The stages in the order of their layers; never none.
    pub fn stages(&self) -> &[Stage] {
        &self.0
    }

    /// Layers of all stages.
    pub fn layers(&self) -> usize {
        self.0.last().map_or(0, |stage| stage.layers.end)
    }

    /// Who computes a layer; the last one's for what comes behind.
    pub(super) fn ranks_of(&self, layer: usize) -> Option<&Ranks> {
        let stage = self.0.iter().find(|stage| stage.layers.contains(&layer)).or(self.0.last());
        stage.map(|stage| &stage.ranks)
    }
}
