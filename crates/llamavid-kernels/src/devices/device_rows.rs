//! Keys or values in blocks, in the memory of a CUDA device.

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::BlockFormat;

/// Rows (B, key heads, capacity, d) in one of the formats that a cache is held in: 16, 8 or 4 bits a number. Blocks are those of the CPU,
/// byte for byte.
#[derive(Debug)]
pub struct DeviceRows {
    format: BlockFormat,
    width: usize,
    /// (B, key heads, capacity, bytes of a row).
    bytes: Tensor,
}

impl DeviceRows {
    /// Room for rows of `shape`.
    ///
    /// # Errors
    /// Rows that do not fill the format's blocks, a format that no cache is held in, a device without memory.
    pub fn new(format: BlockFormat, shape: [usize; 4], device: &Device) -> Result<Self> {
        let [batch, heads, capacity, width] = shape;
        let Some(row_bytes) = format
            .row_bytes(width)
            .filter(|_| matches!(format, BlockFormat::F16 | BlockFormat::Q8_0 | BlockFormat::Q4_0))
        else {
            bail!("rows of {width} numbers are not held as {} on a device", format.name());
        };
        let bytes = Tensor::zeros((batch, heads, capacity, row_bytes), DType::U8, device)?;
        Ok(Self { format, width, bytes })
    }

    /// How they are stored.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// B, key heads, capacity and d.
    pub fn shape(&self) -> [usize; 4] {
        let dims = self.bytes.dims();
        [dims[0], dims[1], dims[2], self.width]
    }

    /// Bytes that they take.
    pub fn size_in_bytes(&self) -> usize {
        self.bytes.elem_count()
    }

    /// Copies the first `count` positions of `other`, of equal heads.
    ///
    /// # Errors
    /// Another shape or format.
    pub fn copy_from(&mut self, other: &Self, count: usize) -> Result<()> {
        if (other.format, other.width) != (self.format, self.width) {
            bail!("rows of {} cannot be copied to rows of {}", other.format.name(), self.format.name());
        }
        self.bytes.slice_set(&other.bytes.narrow(2, 0, count)?.contiguous()?, 2, 0)
    }

    /// Writes numbers (B, key heads, S, d) from position `at` on.
    ///
    /// # Errors
    /// Numbers of another shape, or on another device.
    pub fn write(&mut self, numbers: &Tensor, at: usize) -> Result<()> {
        #[cfg(feature = "cuda")]
        return crate::cuda::store_rows(numbers, &self.bytes, self.format, at, false);
        #[cfg(not(feature = "cuda"))]
        bail!("{:?} at {at}: this build has no CUDA", numbers.shape())
    }

    /// The first `total` positions in `dtype`, (B, key heads, total, d).
    ///
    /// # Errors
    /// A device without memory.
    pub fn read(&self, total: usize, dtype: DType) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        return crate::cuda::read_rows(&self.bytes, self.format, (total, self.width), dtype);
        #[cfg(not(feature = "cuda"))]
        bail!("{total} positions in {dtype:?}: this build has no CUDA")
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn bytes(&self) -> &Tensor {
        &self.bytes
    }
}
