//! Matrices of quantised weights: they stay as they are stored.
//!
//! Where a gradient flows, a product gives what it gives with the unpacked weights, up to the order of sums. Elsewhere what they are
//! multiplied with is quantised as suits the processor. Gradients take whole panels of unpacked rows.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{QStorage, QTensor};
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::formats::block_format::BlockFormat;
use crate::formats::interleaved::INTERLEAVED_ROWS;
use crate::operations::rows::{fusible, rows_of_a_task, tensor, values, with_values};
use crate::products::matrix::{Matrix, multiply};
use crate::products::{Layer, Weights};

/// Numbers of an unpacked panel: 8 MB, so that it stays in the last-level cache.
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
    /// Rows of a head, where the bytes hold its two halves' rows in turn.
    turned: Option<usize>,
    /// Whether the blocks of each sixteen rows are interleaved.
    interleaved: bool,
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
        Ok(Self { format, rows, columns, row_bytes, bytes, turned: None, interleaved: false, placed: None })
    }

    /// Takes rows that are stored already, of queries or keys as llama.cpp orders them: of each head of `head` rows the first row,
    /// the first of its second half, and so on. Its products are in the order of the halves, like all else that it gives.
    ///
    /// # Errors
    /// Rows that are no whole heads, and a matrix that is not on the CPU or not in the order of its bytes.
    pub fn with_turned_heads(self, head: usize) -> Result<Self> {
        self.expect_bytes()?;
        if self.turned.is_some() || head == 0 || !head.is_multiple_of(2) || !self.rows.is_multiple_of(head) {
            bail!("{} rows are no heads of {head} rows, two halves in turn", self.rows);
        }
        Ok(Self { turned: Some(head), ..self })
    }

    /// Takes rows that are stored already, with blocks that [`BlockFormat::interleave`] has interleaved.
    ///
    /// # Errors
    /// A format without blocks, and a matrix that is not on the CPU.
    pub fn with_interleaved_rows(self) -> Result<Self> {
        self.expect_bytes()?;
        if !self.format.interleaves() {
            bail!("a matrix of {} has no blocks that could be interleaved", self.format.name());
        }
        Ok(Self { interleaved: true, ..self })
    }

    /// The same matrix with interleaved blocks, which products of few rows are quicker with where [`crate::interleaving_pays`].
    ///
    /// # Errors
    /// As [`Self::with_interleaved_rows`].
    pub fn interleaved(&self) -> Result<Self> {
        if self.interleaved {
            return Ok(self.clone());
        }
        let bytes = self.format.interleave(self.bytes(), self.columns)?;
        Self { bytes: bytes.into(), ..self.clone() }.with_interleaved_rows()
    }

    /// Whether its blocks are interleaved.
    pub fn is_interleaved(&self) -> bool {
        self.interleaved
    }

    /// The same matrix on `device`, for products. Those of few rows quantise what the matrix is multiplied with to int8, in blocks of
    /// 32, as ggml does; for many rows of f16 or bf16, and where a gradient flows, the matrix is unpacked.
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
        let ordered = self.in_order();
        let bytes = ordered.bytes();
        // candle reads the blocks as structs of numbers of two bytes.
        let bytes = match bytes.as_ptr().addr().is_multiple_of(2) {
            true => Cow::Borrowed(bytes),
            false => Cow::Owned(bytes.to_vec()),
        };
        let storage = QStorage::from_data(bytes, device, self.format.of_candle())?;
        let placed = QTensor::new(storage, (self.rows, self.columns))?;
        Ok(Self { placed: Some(Arc::new(placed)), bytes: Vec::new().into(), ..ordered.into_owned() })
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

    /// Its bytes as they are stored, row after row or interleaved; none of one on a device.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// Some of its rows and columns: a view where all columns are taken, of whole heads where halves lie in turn, and of whole
    /// sixteens where they are interleaved; else a copy, in which rows are not.
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
        let whole = |head| rows.start.is_multiple_of(head) && rows.end.is_multiple_of(head);
        let sixteens = !self.interleaved || whole(INTERLEAVED_ROWS);
        if taken == self.row_bytes && self.turned.is_none_or(whole) && sixteens {
            let first = self.bytes.range.start + rows.start * self.row_bytes;
            let bytes = SharedBytes { range: first..first + rows.len() * taken, ..self.bytes.clone() };
            return Ok(Self { rows: rows.len(), bytes, ..self.clone() });
        }
        let mut bytes = Vec::with_capacity(rows.len() * taken);
        rows.clone().for_each(|row| bytes.extend_from_slice(&self.row(row)[start..start + taken]));
        Self::new(self.format, rows.len(), width, bytes.into())
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
        let product = x
            .to_dtype(DType::F32)?
            .contiguous()?
            .apply_op1(Product { matrix: self.clone(), exactly: x.track_op() })?;
        product.to_dtype(dtype)
    }

    /// The same for three matrices; none unless all are on a CPU and no gradient flows.
    pub(crate) fn linear_three(matrices: [&Self; 3], x: &Tensor) -> Result<Option<[Tensor; 3]>> {
        let mut shape = x.dims().to_vec();
        let Some(width) = shape.pop() else { return Ok(None) };
        let fits = |matrix: &&Self| matrix.is_on_cpu() && matrix.columns == width;
        if !matrices.iter().all(fits) || !fusible(&[x]) || x.track_op() {
            return Ok(None);
        }
        let count = shape.iter().product();
        let results = with_values([x], |[x]| {
            Ok(Layer::forward_each(matrices.map(|matrix| matrix.layer(None)), x, count, true))
        })?;
        let of = |mut values: Vec<f32>, matrix: &Self| {
            matrix.order(&mut values);
            Tensor::from_vec(values, [shape.as_slice(), &[matrix.rows]].concat(), &Device::Cpu)
        };
        let ([a, b, c], [q, k, v]) = (matrices, results);
        Ok(Some([of(q, a)?, of(k, b)?, of(v, c)?]))
    }

    fn placed_linear(&self, placed: &QTensor, x: &Tensor) -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        match shape.last_mut() {
            Some(last) if *last == self.columns => *last = self.rows,
            _ => bail!("a matrix of {} x {} does not go with rows {:?}", self.rows, self.columns, x.dims()),
        }
        #[cfg(feature = "cuda")]
        if let Some(weight) = crate::cuda::unpacked(self, x)? {
            return crate::linear(x, &weight, None);
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
            self.format.decode(&self.row(*id as usize), values);
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

    fn row(&self, row: usize) -> Cow<'_, [u8]> {
        let place = match self.turned {
            Some(head) => turned_row(row, head),
            None => row,
        };
        match self.interleaved {
            true => Cow::Owned(self.format.deinterleaved_row(self.bytes(), self.row_bytes, place)),
            false => Cow::Borrowed(&self.bytes()[place * self.row_bytes..(place + 1) * self.row_bytes]),
        }
    }

    /// The same with its bytes in the order of its rows.
    fn in_order(&self) -> Cow<'_, Self> {
        if self.turned.is_none() && !self.interleaved {
            return Cow::Borrowed(self);
        }
        let mut bytes = Vec::with_capacity(self.size_in_bytes());
        (0..self.rows).for_each(|row| bytes.extend_from_slice(&self.row(row)));
        Cow::Owned(Self { bytes: bytes.into(), turned: None, interleaved: false, ..self.clone() })
    }

    /// Brings what the matrix' bytes make of rows into the order of its rows.
    fn order(&self, result: &mut [f32]) {
        let Some(head) = self.turned else { return };
        result.par_chunks_exact_mut(self.rows).with_min_len(rows_of_a_task(self.rows)).for_each(|row| {
            let mut turned = vec![0f32; head];
            for numbers in row.chunks_exact_mut(head) {
                turned.copy_from_slice(numbers);
                let (first, second) = numbers.split_at_mut(head / 2);
                for (index, pair) in turned.chunks_exact(2).enumerate() {
                    (first[index], second[index]) = (pair[0], pair[1]);
                }
            }
        });
    }

    /// Unpacks as many rows from `first` on as `result` has room for.
    fn unpack(&self, first: usize, result: &mut [f32]) {
        result
            .par_chunks_exact_mut(self.columns.max(1))
            .enumerate()
            .with_min_len(rows_of_a_task(self.columns))
            .for_each(|(index, values)| self.format.decode(&self.row(first + index), values));
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

    /// Whether its bytes lie in the order of its rows.
    pub(crate) fn is_in_order(&self) -> bool {
        self.turned.is_none()
    }

    /// Its bytes as a layer, with a bias (rows).
    pub(crate) fn layer<'a>(&'a self, bias: Option<&'a [f32]>) -> Layer<'a> {
        let weights = match self.interleaved {
            true => Weights::Interleaved(self.format, self.bytes()),
            false => Weights::Blocks(self.format, self.bytes()),
        };
        Layer { weights, rows: self.rows, columns: self.columns, bias }
    }
}

/// Where row `row` lies in a matrix whose heads' rows are turned, see [`QuantisedMatrix::with_turned_heads`].
pub fn turned_row(row: usize, head: usize) -> usize {
    let (first, within) = (row / head * head, row % head);
    first + within % (head / 2) * 2 + within / (head / 2)
}

struct Product {
    matrix: QuantisedMatrix,
    /// Whether the rows are never rounded, so that the gradient is that of the product.
    exactly: bool,
}

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "linear-in-blocks"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut shape = layout.dims().to_vec();
        let (rows, columns) = self.matrix.shape();
        match shape.last_mut() {
            Some(last) if *last == columns => *last = rows,
            _ => bail!("a matrix of {rows} x {columns} does not go with rows of shape {:?}", layout.dims()),
        }
        let count = layout.dims().iter().rev().skip(1).product();
        let (layer, x) = (self.matrix.layer(None), values(x, layout)?);
        let mut result =
            if self.exactly { layer.forward_exactly(x, count) } else { layer.forward(x, count, true) };
        self.matrix.order(&mut result);
        Ok((CpuStorage::F32(result), shape.into()))
    }

    fn bwd(&self, x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (rows, columns) = self.matrix.shape();
        let count = x.elem_count() / columns.max(1);
        let of_x = with_values([gradient], |[gradient]| {
            let mut of_x = vec![0f32; count * columns];
            self.matrix.panels(|first, panel| {
                let gradient = &gradient[first.min(gradient.len())..];
                let gradient = Matrix::strided(gradient, count, panel.rows(), rows);
                multiply(gradient, panel, &mut of_x, first > 0, true);
            });
            Ok(of_x)
        })?;
        tensor(of_x, x.shape()).map(Some)
    }
}
