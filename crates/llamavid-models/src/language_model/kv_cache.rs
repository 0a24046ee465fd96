//! Keys and values of the positions a sequence has passed.

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};

/// Keys and values of past positions, of every layer, for a batch of sequences of equal (padded) length.
///
/// Buffers are allocated ahead and written in place: a new position costs its own bytes and not a copy of the
/// past. They double when full, never beyond the context. In-place writing cuts gradients, so training
/// runs without a cache.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<Option<LayerBuffers>>,
    length: usize,
    first_capacity: usize,
    limit: usize,
}

/// Each (B, key heads, capacity, head width).
#[derive(Debug)]
struct LayerBuffers {
    keys: Tensor,
    values: Tensor,
}

impl KvCache {
    /// An empty cache whose buffers start with room for `capacity_hint` positions and end at `limit`.
    pub(super) fn new(layers: usize, capacity_hint: usize, limit: usize) -> Self {
        Self {
            layers: (0..layers).map(|_| None).collect(),
            length: 0,
            first_capacity: capacity_hint.clamp(1, limit.max(1)),
            limit,
        }
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Positions it can ever hold: the model's context.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Positions for which memory is allocated now.
    pub fn capacity(&self) -> usize {
        self.layers.first().and_then(Option::as_ref).map_or(0, |layer| layer.keys.dims()[2])
    }

    /// Forgets all positions from `length` on and keeps the memory. A longer `length` changes nothing.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Forgets everything and frees the memory.
    pub fn clear(&mut self) {
        self.length = 0;
        self.layers.iter_mut().for_each(|layer| *layer = None);
    }

    /// Fails when `count` more positions do not fit.
    pub(super) fn reserve(&self, count: usize) -> Result<()> {
        let wanted = self.length + count;
        if wanted > self.limit {
            return Err(Error::ContextOverflow { prompt: wanted, visual: 0, new: 0, context: self.limit });
        }
        Ok(())
    }

    /// Writes the new positions of one layer, (B, key heads, S, head width) each, and gives all T of them.
    ///
    /// The length is moved by [`KvCache::advance`] once all layers are through: a pass that fails halfway
    /// leaves the cache as it was.
    pub(super) fn write(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let (batch, heads, count, width) = keys.dims4()?;
        let total = self.length + count;
        let slot = &mut self.layers[layer];
        let capacity = slot.as_ref().map_or(0, |buffers| buffers.keys.dims()[2]);
        if let Some(buffers) = slot.as_ref() {
            let held = buffers.keys.dims()[0];
            if held != batch {
                return Err(Error::Argument(format!("the cache holds {held} sequences, the input {batch}")));
            }
        }
        if total > capacity {
            let grown = total.max(2 * capacity).max(self.first_capacity).min(self.limit.max(total));
            let shape = (batch, heads, grown, width);
            let buffers = LayerBuffers {
                keys: grow(slot.as_ref().map(|b| &b.keys), shape, keys.dtype(), keys.device())?,
                values: grow(slot.as_ref().map(|b| &b.values), shape, values.dtype(), values.device())?,
            };
            *slot = Some(buffers);
        }
        let Some(buffers) = slot.as_ref() else {
            return Err(Error::Argument("a pass needs at least one position".to_string()));
        };
        buffers.keys.slice_set(&keys.contiguous()?, 2, self.length)?;
        buffers.values.slice_set(&values.contiguous()?, 2, self.length)?;
        Ok((buffers.keys.narrow(2, 0, total)?, buffers.values.narrow(2, 0, total)?))
    }

    /// Counts `count` positions that every layer has written.
    pub(super) fn advance(&mut self, count: usize) {
        self.length += count;
    }
}

fn grow(
    old: Option<&Tensor>,
    shape: (usize, usize, usize, usize),
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let buffer = Tensor::zeros(shape, dtype, device)?;
    if let Some(old) = old {
        buffer.slice_set(old, 2, 0)?;
    }
    Ok(buffer)
}
