//! Keys and values of the positions a sequence has passed.

use candle_core::{DType, Device, Tensor};
use llamavid_kernels::{
    BlockFormat, CachedRows, DeviceRows, cached_attention, reads_cache, rotary_embedding, rotate_into,
};
use rayon::prelude::*;

use crate::{Error, Result};

/// Keys and values of past positions, of every layer, for a batch of sequences of equal (padded) length.
///
/// Buffers are allocated ahead and written in place: a new position costs its own bytes and not a copy of the
/// past. They double when full, never beyond the context. In-place writing cuts gradients, so training
/// runs without a cache.
#[derive(Debug)]
pub struct KvCache {
    /// Of each layer those of each rank, which has some of the heads.
    layers: Vec<Vec<Option<LayerBuffers>>>,
    length: usize,
    first_capacity: usize,
    limit: usize,
    precision: CachePrecision,
    /// Positions of the prompt that are known of, read or not.
    announced: usize,
}

/// How the keys and values of past positions are held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CachePrecision {
    /// In the dtype that they are computed in.
    #[default]
    Full,
    /// In 16 bits a number, which are computed in f32.
    Half,
    /// In 8.5 bits a number.
    EightBit,
    /// In 4.5 bits a number, which is felt in long contexts.
    FourBit,
}

impl CachePrecision {
    /// What [`CachePrecision::Full`] is beside weights in blocks: 16 bits. Those are rounded more than that, and are computed
    /// in f32 only because there are no products in 16 bits on a CPU.
    pub fn beside_blocks(self) -> Self {
        match self {
            Self::Full => Self::Half,
            other => other,
        }
    }

    /// Bytes of a position's keys, or values, of a head of `width` numbers that are computed in `dtype`.
    ///
    /// # Errors
    /// [`Error::Argument`] where such numbers cannot be held so.
    pub fn row_bytes(self, width: usize, dtype: DType) -> Result<usize> {
        let Some(format) = self.format() else { return Ok(width * dtype.size_in_bytes()) };
        format.row_bytes(width).ok_or_else(|| {
            Error::Argument(format!(
                "keys and values of {width} numbers cannot be held in 8 or 4 bits ({}): that needs a multiple of {}",
                format.name(),
                format.block_length()
            ))
        })
    }

    /// The format of blocks; none where numbers stay as they are.
    fn format(self) -> Option<BlockFormat> {
        match self {
            Self::Full => None,
            Self::Half => Some(BlockFormat::F16),
            Self::EightBit => Some(BlockFormat::Q8_0),
            Self::FourBit => Some(BlockFormat::Q4_0),
        }
    }
}

/// Keys and values of a layer.
#[derive(Debug)]
struct LayerBuffers {
    keys: Buffer,
    values: Buffer,
}

/// Rows of heads for some positions.
#[derive(Debug)]
enum Buffer {
    /// (B, key heads, capacity, head width).
    Dense(Tensor),
    /// The same in blocks, row after row.
    Blocks { format: BlockFormat, shape: [usize; 4], row_bytes: usize, bytes: Vec<u8> },
    /// The same on a device.
    Device(DeviceRows),
}

impl KvCache {
    /// An empty cache whose buffers start with room for `capacity_hint` positions and end at `limit`. `layers` are the ranks of each.
    pub(super) fn new(
        layers: impl IntoIterator<Item = usize>,
        capacity_hint: usize,
        limit: usize,
        precision: CachePrecision,
    ) -> Self {
        Self {
            layers: layers.into_iter().map(|ranks| (0..ranks).map(|_| None).collect()).collect(),
            length: 0,
            first_capacity: capacity_hint.clamp(1, limit.max(1)),
            limit,
            precision,
            announced: 0,
        }
    }

    /// Says that the sequence will have `length` positions before the first new one. Angles of dynamic scaling depend on
    /// a prompt's whole length, however it is read.
    pub fn announce(&mut self, length: usize) {
        self.announced = length;
    }

    /// Positions of the sequence once `count` more are read: those announced, if they are more.
    pub(super) fn length_with(&self, count: usize) -> usize {
        (self.length + count).max(self.announced)
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Positions for which memory is allocated now.
    pub fn capacity(&self) -> usize {
        self.layers.iter().flatten().flatten().next().map_or(0, |layer| layer.keys.shape()[2])
    }

    /// Bytes of the buffers that are allocated now.
    pub fn bytes(&self) -> usize {
        self.layers.iter().flatten().flatten().map(|layer| layer.keys.bytes() + layer.values.bytes()).sum()
    }

    /// Forgets all positions from `length` on and keeps the memory. A longer `length` changes nothing.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Fails when `count` more positions do not fit.
    pub(super) fn reserve(&self, count: usize) -> Result<()> {
        let wanted = self.length + count;
        if wanted > self.limit {
            return Err(Error::ContextOverflow { prompt: wanted, visual: 0, new: 0, context: self.limit });
        }
        Ok(())
    }

    /// The places of one layer, one for each of its ranks.
    pub(super) fn places(&mut self, layer: usize, ranks: usize) -> Result<Vec<CachePlace<'_>>> {
        let Self { length, first_capacity, limit, precision, .. } = *self;
        let buffers = self.layers.get_mut(layer).filter(|buffers| buffers.len() == ranks);
        let Some(buffers) = buffers else {
            let problem =
                format!("the cache is of another model: it has no layer {layer} of {ranks} devices");
            return Err(Error::Argument(problem));
        };
        let place = |buffers| CachePlace { buffers, length, first_capacity, limit, precision };
        Ok(buffers.iter_mut().map(place).collect())
    }

    /// Counts `count` positions that every layer has written.
    pub(super) fn advance(&mut self, count: usize) {
        self.length += count;
    }
}

/// Where one rank has the keys and values of one layer.
pub(super) struct CachePlace<'a> {
    buffers: &'a mut Option<LayerBuffers>,
    /// Positions before the new ones.
    length: usize,
    first_capacity: usize,
    limit: usize,
    precision: CachePrecision,
}

impl CachePlace<'_> {
    /// Writes keys and values of new positions, (B, key heads, S, head width) each; gives how many there are then. Keys are turned to
    /// their positions by `angles` (S, head width / 2) on the way, and so are the queries (B, H, S, head width) that are given back.
    ///
    /// The length is moved by [`KvCache::advance`] once all layers are through: a pass that fails halfway
    /// leaves the cache as it was.
    pub(super) fn write(
        &mut self,
        [queries, keys, values]: [&Tensor; 3],
        angles: (&Tensor, &Tensor),
    ) -> Result<(Tensor, usize)> {
        let (batch, heads, count, width) = keys.dims4()?;
        let total = self.length + count;
        let held = self.buffers.as_ref().map(|buffers| buffers.keys.shape());
        if let Some([held, ..]) = held
            && held != batch
        {
            return Err(Error::Argument(format!("the cache holds {held} sequences, the input {batch}")));
        }
        let capacity = held.map_or(0, |[_, _, capacity, _]| capacity);
        if total > capacity {
            let grown = total.max(2 * capacity).max(self.first_capacity).min(self.limit.max(total));
            let shape = [batch, heads, grown, width];
            let old = self.buffers.take();
            let (old_keys, old_values) = old.map(|old| (old.keys, old.values)).unzip();
            *self.buffers = Some(LayerBuffers {
                keys: Buffer::new(old_keys, shape, keys, self.precision, self.length)?,
                values: Buffer::new(old_values, shape, values, self.precision, self.length)?,
            });
        }
        let Some(buffers) = self.buffers else {
            return Err(Error::Argument("a pass needs at least one position".to_string()));
        };
        if let (Buffer::Dense(of_keys), Buffer::Dense(of_values)) = (&buffers.keys, &buffers.values) {
            let rows = [queries, keys, values];
            return Ok((rotate_into(rows, angles, [of_keys, of_values], self.length)?, total));
        }
        buffers.keys.write(&rotary_embedding(keys, angles.0, angles.1)?, self.length)?;
        buffers.values.write(values, self.length)?;
        Ok((rotary_embedding(queries, angles.0, angles.1)?, total))
    }

    /// What `queries` (B, H, S, head width) of the newest positions get from the first `total`, (B, S, H · head
    /// width); `padding` (B, T) is 0 for positions that nobody sees. None where they cannot be read in place: in half precision
    /// on a CPU, for one.
    pub(super) fn attend(
        &self,
        queries: &Tensor,
        total: usize,
        padding: Option<&Tensor>,
    ) -> Result<Option<Tensor>> {
        match self.buffers.as_ref().filter(|_| reads_cache(queries)) {
            Some(LayerBuffers { keys, values }) => {
                let (keys, values) = (keys.in_place(), values.in_place());
                Ok(Some(cached_attention(queries, keys, values, total, padding)?))
            }
            None => Ok(None),
        }
    }

    /// The first `total` positions, (B, key heads, T, head width) each, in the dtype of `like`.
    pub(super) fn read(&self, total: usize, like: &Tensor) -> Result<(Tensor, Tensor)> {
        match self.buffers.as_ref() {
            Some(buffers) => Ok((buffers.keys.read(total, like)?, buffers.values.read(total, like)?)),
            None => Err(Error::Argument("nothing is cached of this layer".to_string())),
        }
    }
}

impl Buffer {
    /// Room for `shape`, with the first `held` positions of `old`. `like` has the dtype and the device.
    fn new(
        old: Option<Self>,
        shape: [usize; 4],
        like: &Tensor,
        precision: CachePrecision,
        held: usize,
    ) -> Result<Self> {
        // On a device half precision is what numbers are computed in, if they are not f32.
        let as_computed =
            !like.device().is_cpu() && precision == CachePrecision::Half && like.dtype() != DType::F32;
        let Some(format) = precision.format().filter(|_| !as_computed) else {
            let buffer = Tensor::zeros(&shape, like.dtype(), like.device())?;
            if let Some(Self::Dense(old)) = old {
                buffer.slice_set(&old, 2, 0)?;
            }
            return Ok(Self::Dense(buffer));
        };
        let [batch, heads, capacity, width] = shape;
        let row_bytes = precision.row_bytes(width, like.dtype())?;
        if !like.device().is_cpu() {
            let mut buffer = DeviceRows::new(format, shape, like.device())?;
            if let Some(Self::Device(old)) = old {
                buffer.copy_from(&old, held)?;
            }
            return Ok(Self::Device(buffer));
        }
        let mut bytes = vec![0; batch * heads * capacity * row_bytes];
        if let Some(Self::Blocks { shape, bytes: old, .. }) = old {
            let (old_room, room) = (shape[2] * row_bytes, capacity * row_bytes);
            for (new, old) in bytes.chunks_exact_mut(room).zip(old.chunks_exact(old_room)) {
                new[..held * row_bytes].copy_from_slice(&old[..held * row_bytes]);
            }
        }
        Ok(Self::Blocks { format, shape, row_bytes, bytes })
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Dense(buffer) => buffer.elem_count() * buffer.dtype().size_in_bytes(),
            Self::Blocks { bytes, .. } => bytes.len(),
            Self::Device(rows) => rows.size_in_bytes(),
        }
    }

    fn shape(&self) -> [usize; 4] {
        match self {
            Self::Dense(buffer) => [0, 1, 2, 3].map(|axis| buffer.dims()[axis]),
            Self::Blocks { shape, .. } => *shape,
            Self::Device(rows) => rows.shape(),
        }
    }

    /// Writes (B, key heads, S, head width) from position `at` on.
    fn write(&mut self, new: &Tensor, at: usize) -> Result<()> {
        match self {
            Self::Dense(buffer) => buffer.slice_set(&new.contiguous()?, 2, at)?,
            Self::Blocks { format, shape, row_bytes, bytes } => {
                let count = new.dims()[2];
                let values = new.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                let stored = format.encode(&values, shape[3])?;
                let heads = bytes.chunks_exact_mut(shape[2] * *row_bytes);
                for (head, stored) in heads.zip(stored.chunks_exact(count * *row_bytes)) {
                    head[at * *row_bytes..][..stored.len()].copy_from_slice(stored);
                }
            }
            Self::Device(rows) => rows.write(new, at)?,
        }
        Ok(())
    }

    /// Its rows, where they lie.
    fn in_place(&self) -> CachedRows<'_> {
        match self {
            Self::Dense(rows) => CachedRows::Numbers(rows),
            Self::Blocks { format, shape, bytes, .. } => {
                CachedRows::Blocks { format: *format, shape: *shape, bytes }
            }
            Self::Device(rows) => CachedRows::Device(rows),
        }
    }

    /// The first `total` positions (B, key heads, T, head width), in the dtype of `like`.
    fn read(&self, total: usize, like: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(buffer) => Ok(buffer.narrow(2, 0, total)?),
            Self::Blocks { format, shape: [batch, heads, capacity, width], row_bytes, bytes } => {
                let mut values = vec![0f32; batch * heads * total * width];
                values
                    .par_chunks_exact_mut(total * width)
                    .zip(bytes.par_chunks_exact(capacity * row_bytes))
                    .for_each(|(values, head)| format.decode(&head[..total * row_bytes], values));
                let shape = (*batch, *heads, total, *width);
                Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(like.dtype())?)
            }
            Self::Device(rows) => Ok(rows.read(total, like.dtype())?),
        }
    }
}
