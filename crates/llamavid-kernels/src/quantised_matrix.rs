//! Matrices of weights in blocks: the products are computed in f32, the weights stay as they are stored.
//!
//! What a product gives is what it gives with the unpacked weights, up to the order of sums: only the weights are
//! rounded, never what they are multiplied with. Gradients take whole panels of unpacked rows.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::block_format::BlockFormat;
use crate::matrix::{Matrix, multiply};
use crate::products::{Layer, Weights};
use crate::rows::{rows_of_a_task, tensor, values, with_values};

/// Numbers of an unpacked panel: 8 MB, so that it stays in the last cache.
const PANEL: usize = 1 << 21;

/// Bytes that something keeps alive: a mapped file, or memory of their own.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl SharedBytes {
    /// A part of what `owner` holds; none when it does not hold that much.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<Self> {
        (*owner).as_ref().get(range.clone())?;
        Some(Self { owner, range })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        (*self.owner).as_ref().get(self.range.clone()).unwrap_or_default()
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Arc::new(bytes), range }
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes", self.range.len())
    }
}

/// A matrix (rows, columns) in a block format, on the CPU or on a device. Clones share the bytes.
#[derive(Debug, Clone)]
pub struct QuantisedMatrix {
    format: BlockFormat,
    rows: usize,
    columns: usize,
    row_bytes: usize,
    bytes: SharedBytes,
    /// The bytes on another device than the CPU, which holds none then.
    placed: Option<Arc<QTensor>>,
}

impl QuantisedMatrix {
    /// Takes rows that are stored already, one after the other.
    ///
    /// # Errors
    /// Rows that do not fill the format's blocks, and another number of bytes than they take.
    pub fn new(format: BlockFormat, rows: usize, columns: usize, bytes: SharedBytes) -> Result<Self> {
        let Some(row_bytes) = format.row_bytes(columns) else {
            let (length, name) = (format.block_length(), format.name());
            bail!("rows of {columns} numbers do not fill blocks of {length} ({name})");
        };
        if row_bytes.checked_mul(rows) != Some(bytes.range.len()) {
            bail!(
                "a matrix of {rows} x {columns} takes {row_bytes} bytes a row as {}, not {} in all",
                format.name(),
                bytes.range.len()
            );
        }
        Ok(Self { format, rows, columns, row_bytes, bytes, placed: None })
    }

    /// The same matrix on `device`, for products: they are candle's there, which round what the matrix is multiplied with to 8 bits,
    /// in blocks of 32, as ggml does.
    ///
    /// # Errors
    /// A matrix that is not on the CPU, a format without blocks, whose numbers make a tensor, and a device without memory.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        self.expect_bytes()?;
        if device.is_cpu() {
            return Ok(self.clone());
        }
        if self.format.block_length() == 1 {
            bail!("a matrix of {} is no matrix in blocks", self.format.name());
        }
        let bytes = self.bytes();
        // candle reads the blocks as structs of numbers of two bytes.
        let bytes = match bytes.as_ptr().addr().is_multiple_of(2) {
            true => Cow::Borrowed(bytes),
            false => Cow::Owned(bytes.to_vec()),
        };
        let storage = QStorage::from_data(bytes, device, self.format.of_candle())?;
        let placed = QTensor::new(storage, (self.rows, self.columns))?;
        Ok(Self { placed: Some(Arc::new(placed)), bytes: Vec::new().into(), ..self.clone() })
    }

    /// Stores a matrix (rows, columns) of finite numbers in `format`.
    ///
    /// # Errors
    /// Rows that do not fill the format's blocks.
    pub fn quantise(matrix: &Tensor, format: BlockFormat) -> Result<Self> {
        let (rows, columns) = matrix.dims2()?;
        let matrix = matrix.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let bytes = with_values([&matrix], |[values]| format.encode(values, columns))?;
        Self::new(format, rows, columns, bytes.into())
    }

    /// How it is stored.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Bytes that it takes.
    pub fn size_in_bytes(&self) -> usize {
        self.rows * self.row_bytes
    }

    /// Its bytes, row after row; none of one on a device.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// The same matrix with its rows in another order, as a copy: row r is row `order(r)` of this one.
    pub fn with_rows(&self, order: impl Fn(usize) -> usize) -> Result<Self> {
        self.expect_bytes()?;
        let mut bytes = Vec::with_capacity(self.size_in_bytes());
        for row in (0..self.rows).map(order) {
            if row >= self.rows {
                bail!("row {row} of a matrix of {}", self.rows);
            }
            bytes.extend_from_slice(self.row(row));
        }
        Self::new(self.format, self.rows, self.columns, bytes.into())
    }

    /// Some of its rows and columns: a view where all columns are taken, else a copy.
    ///
    /// # Errors
    /// A part outside the matrix, columns that do not begin and end with blocks, a matrix that is not on the CPU.
    pub fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Result<Self> {
        self.expect_bytes()?;
        let (length, name) = (self.format.block_length(), self.format.name());
        if rows.end > self.rows || columns.end > self.columns || rows.start > rows.end {
            bail!("rows {rows:?} and columns {columns:?} of a matrix of {} x {}", self.rows, self.columns);
        }
        let width = columns.len();
        let bounds = self.format.row_bytes(columns.start).zip(self.format.row_bytes(width));
        let Some((start, taken)) = bounds else {
            bail!("columns {columns:?} do not begin and end with blocks of {length} ({name})");
        };
        let range = rows.start * self.row_bytes..rows.end * self.row_bytes;
        let bytes = if taken == self.row_bytes {
            let start = self.bytes.range.start;
            SharedBytes { range: start + range.start..start + range.end, ..self.bytes.clone() }
        } else {
            let rows = self.bytes()[range].chunks_exact(self.row_bytes);
            rows.flat_map(|row| &row[start..start + taken]).copied().collect::<Vec<_>>().into()
        };
        Self::new(self.format, rows.len(), width, bytes)
    }

    /// All of it in f32, (rows, columns).
    pub fn dequantise(&self) -> Result<Tensor> {
        if let Some(placed) = &self.placed {
            return placed.dequantize(&placed.device())?.to_device(&Device::Cpu);
        }
        let mut result = vec![0f32; self.rows * self.columns];
        self.unpack(0, &mut result);
        Tensor::from_vec(result, (self.rows, self.columns), &Device::Cpu)
    }

    /// `x` (…, columns) times the transpose of this matrix: (…, rows), in the dtype of `x`.
    ///
    /// Gradients flow to `x`, and not to the matrix.
    pub fn linear(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(placed) = &self.placed {
            return self.placed_linear(placed, x);
        }
        if !x.device().is_cpu() {
            bail!("weights in blocks are on the CPU, the rows are on {:?}", x.device());
        }
        let dtype = x.dtype();
        let product = x.to_dtype(DType::F32)?.contiguous()?.apply_op1(Product(self.clone()))?;
        product.to_dtype(dtype)
    }

    fn placed_linear(&self, placed: &QTensor, x: &Tensor) -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == self.columns => *last = self.rows,
            _ => bail!("a matrix of {} x {} does not go with rows {:?}", self.rows, self.columns, x.dims()),
        }
        if x.track_op() {
            // candle's products in blocks record no backward pass.
            let weight = placed.dequantize(x.device())?.to_dtype(x.dtype())?;
            return crate::linear(x, &weight, None);
        }
        let rows = x.contiguous()?.reshape(((), self.columns))?;
        rows.apply_op1_no_bwd(placed)?.to_dtype(x.dtype())?.reshape(shape)
    }

    /// Rows by their numbers `ids` (u32, any shape): (…, columns) in f32, on the CPU.
    ///
    /// # Errors
    /// A number outside the matrix.
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        self.expect_bytes()?;
        let mut shape = ids.dims().to_vec();
        shape.push(self.columns);
        let ids = ids.flatten_all()?.to_vec1::<u32>()?;
        let mut result = vec![0f32; ids.len() * self.columns];
        for (id, values) in ids.iter().zip(result.chunks_exact_mut(self.columns.max(1))) {
            if *id as usize >= self.rows {
                bail!("row {id} of a matrix of {}", self.rows);
            }
            self.format.decode(self.row(*id as usize), values);
        }
        Tensor::from_vec(result, shape, &Device::Cpu)
    }

    /// Where its bytes lie on a CUDA device; none where they are elsewhere.
    #[cfg(feature = "cuda")]
    pub(crate) fn address(&self, device: &Device) -> Result<Option<u64>> {
        match &self.placed {
            Some(placed) if placed.device().same_device(device) => {
                Ok(Some(placed.device_ptr()?.addr() as u64))
            }
            _ => Ok(None),
        }
    }

    pub(crate) fn is_on_cpu(&self) -> bool {
        self.placed.is_none()
    }

    fn expect_bytes(&self) -> Result<()> {
        match &self.placed {
            Some(placed) => bail!("a matrix in blocks is on {:?}, not on the CPU", placed.device()),
            None => Ok(()),
        }
    }

    fn row(&self, row: usize) -> &[u8] {
        &self.bytes()[row * self.row_bytes..(row + 1) * self.row_bytes]
    }

    /// Unpacks as many rows from `first` on as `result` has room for.
    fn unpack(&self, first: usize, result: &mut [f32]) {
        let part = rows_of_a_task(self.columns);
        let bytes = &self.bytes()[first * self.row_bytes..];
        result
            .par_chunks_mut((part * self.columns).max(1))
            .zip(bytes.par_chunks((part * self.row_bytes).max(1)))
            .for_each(|(values, bytes)| self.format.decode(bytes, values));
    }

    /// Unpacks rows panel by panel: the number of the first one, and the panel.
    fn panels(&self, mut use_panel: impl FnMut(usize, Matrix)) {
        let rows = (PANEL / self.columns.max(1)).clamp(1, self.rows.max(1));
        let mut panel = vec![0f32; rows * self.columns];
        for first in (0..self.rows).step_by(rows) {
            let count = rows.min(self.rows - first);
            let panel = &mut panel[..count * self.columns];
            self.unpack(first, panel);
            use_panel(first, Matrix::new(panel, count, self.columns));
        }
    }

    /// Itself as a layer, with a bias (rows).
    pub(crate) fn layer<'a>(&'a self, bias: Option<&'a [f32]>) -> Layer<'a> {
        let weights = Weights::Blocks(self.format, self.bytes());
        Layer { weights, rows: self.rows, columns: self.columns, bias }
    }
}

struct Product(QuantisedMatrix);

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "linear-in-blocks"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut shape = layout.dims().to_vec();
        let (rows, columns) = self.0.shape();
        match shape.last_mut() {
            Some(last) if *last == columns => *last = rows,
            _ => bail!("a matrix of {rows} x {columns} does not go with rows of shape {:?}", layout.dims()),
        }
        let count = layout.dims().iter().rev().skip(1).product();
        let result = self.0.layer(None).forward(values(x, layout)?, count, true);
        Ok((CpuStorage::F32(result), shape.into()))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (rows, columns) = self.0.shape();
        let count = x.elem_count() / columns.max(1);
        let of_x = with_values([gradient], |[gradient]| {
            let mut of_x = vec![0f32; count * columns];
            self.0.panels(|first, panel| {
                let gradient = &gradient[first.min(gradient.len())..];
                let gradient = Matrix::strided(gradient, count, panel.rows(), rows);
                multiply(gradient, panel, &mut of_x, first > 0, true);
            });
            Ok(of_x)
        })?;
        tensor(of_x, x.shape()).map(Some)
    }
}
