//! The GGUF format, version 3: typed metadata, a list of tensors, then their numbers in blocks.
//!
//! Reference: ggml's `docs/gguf.md`.

use std::io::{Error, Result, Write};

use candle_core::{DType, Tensor};
use llamavid_kernels::{BlockFormat, INTERLEAVED_ROWS};

use super::numbers;
use crate::gguf;

const VERSION: u32 = 3;
/// Where a tensor's numbers begin is a multiple of this: `general.alignment` where a file does not say it.
const ALIGNMENT: usize = 32;
/// The same in files with interleaved rows, which are read in vectors of so many bytes.
const INTERLEAVED_ALIGNMENT: usize = 64;
/// Dimensions that the format has room for.
const MAX_RANK: usize = 4;
/// Numbers that are converted at a time, by all threads together: a matrix in f32 would be twice its file's size.
const CONVERTED_AT_ONCE: usize = 1 << 22;
/// Bytes of rows that are interleaved at a time, at least: enough for all threads.
const INTERLEAVED_AT_ONCE: usize = 1 << 20;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// A whole number.
    U32(u32),
    /// A number.
    F32(f32),
    /// Yes or no.
    Bool(bool),
    /// A text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// A list of numbers.
    F32s(Vec<f32>),
    /// A list of whole numbers.
    I32s(Vec<i32>),
    /// A value of another file as it is there: the number of its kind, and what comes behind it.
    Encoded(Vec<u8>),
}

/// A tensor that a file will hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Its shape as elsewhere here, rows first; the file has it the other way round.
    pub shape: Vec<usize>,
    /// The format of its numbers.
    pub format: BlockFormat,
    /// Whether the rows of a matrix are interleaved, which no other program reads.
    pub interleaved: bool,
}

impl GgufTensor {
    /// A tensor that is stored row by row, as llama.cpp has it.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>, format: BlockFormat) -> Self {
        Self { name: name.into(), shape: shape.into(), format, interleaved: false }
    }

    /// The same with its rows interleaved, where that changes anything: a matrix in blocks with enough rows.
    #[must_use]
    pub fn interleaved(self) -> Self {
        let enough = matches!(self.shape[..], [rows, _] if rows >= INTERLEAVED_ROWS);
        Self { interleaved: enough && self.format.interleaves(), ..self }
    }

    /// Numbers in a row, which is cut into blocks.
    fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Bytes of its numbers.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() / self.format.block_length() * self.format.block_bytes()
    }
}

/// A file that is written tensor by tensor: what it will hold is said first.
#[derive(Debug)]
pub struct GgufWriter<W> {
    out: W,
    alignment: usize,
    expected: std::vec::IntoIter<GgufTensor>,
}

impl<W: Write> GgufWriter<W> {
    /// Writes the header of a file with this metadata and these tensors, which then come in this order.
    ///
    /// # Errors
    /// Those of `out`, and a shape that the format has no room for.
    pub fn new(mut out: W, metadata: &[(String, GgufValue)], tensors: Vec<GgufTensor>) -> Result<Self> {
        out.write_all(&header(metadata, &tensors)?)?;
        Ok(Self { out, alignment: alignment(&tensors), expected: tensors.into_iter() })
    }

    /// Bytes that the file with these tensors has.
    ///
    /// # Errors
    /// A shape that the format has no room for.
    pub fn length(metadata: &[(String, GgufValue)], tensors: &[GgufTensor]) -> Result<u64> {
        let alignment = alignment(tensors);
        let aligned = |tensor: &GgufTensor| tensor.bytes().next_multiple_of(alignment) as u64;
        let numbers: u64 = tensors.iter().map(aligned).sum();
        Ok(header(metadata, tensors)?.len() as u64 + numbers)
    }

    /// Writes the next tensor, in its announced format.
    ///
    /// # Errors
    /// Those of `out`, and a tensor that is not what the header says.
    pub fn write(&mut self, tensor: &Tensor) -> Result<()> {
        let next = match self.expected.next() {
            Some(next) if next.shape == tensor.dims() => next,
            next => {
                let shape = tensor.dims();
                return Err(Error::other(format!("the header announces {next:?}, the tensor is {shape:?}")));
            }
        };
        write_blocks(tensor, &next, &mut self.out)?;
        self.pad(next.bytes())
    }

    /// Writes the next tensor, whose numbers come in its announced format, row by row and piece by piece. Rows are interleaved
    /// here.
    ///
    /// # Errors
    /// Those of `out`, and pieces that are together not as long as the tensor.
    pub fn write_encoded<P: AsRef<[u8]>>(&mut self, pieces: impl IntoIterator<Item = P>) -> Result<()> {
        let next = self.expected.next();
        let (announced, columns) = next.as_ref().map_or((0, 0), |next| (next.bytes(), next.columns()));
        let layout = next.as_ref().filter(|next| next.interleaved).map(|next| next.format);
        let interleave =
            |format: BlockFormat, rows: &[u8]| format.interleave(rows, columns).map_err(Error::other);
        let row = layout.and_then(|format| format.row_bytes(columns)).unwrap_or(1).max(1);
        let (mut written, mut waiting) = (0, Vec::new());
        for piece in pieces {
            let piece = piece.as_ref();
            written += piece.len();
            let Some(format) = layout else {
                self.out.write_all(piece)?;
                continue;
            };
            waiting.extend_from_slice(piece);
            let whole = waiting.len() - waiting.len() % (INTERLEAVED_ROWS * row);
            if whole >= INTERLEAVED_AT_ONCE {
                self.out.write_all(&interleave(format, &waiting[..whole])?)?;
                waiting.drain(..whole);
            }
        }
        if next.is_none() || written != announced {
            return Err(Error::other(format!(
                "the header announces {next:?}, its blocks are {written} bytes"
            )));
        }
        if let Some(format) = layout {
            self.out.write_all(&interleave(format, &waiting)?)?;
        }
        self.pad(announced)
    }

    /// Writes the next tensor, whose bytes come as they lie in a file.
    pub(super) fn write_laid_out(&mut self, bytes: &[u8]) -> Result<()> {
        let next = self.expected.next();
        if next.as_ref().map(GgufTensor::bytes) != Some(bytes.len()) {
            let written = bytes.len();
            return Err(Error::other(format!("the header announces {next:?}, its bytes are {written}")));
        }
        self.out.write_all(bytes)?;
        self.pad(bytes.len())
    }

    /// Fills up to where the next tensor begins, behind one of so many bytes.
    fn pad(&mut self, bytes: usize) -> Result<()> {
        let end = bytes.next_multiple_of(self.alignment);
        self.out.write_all(&[0; INTERLEAVED_ALIGNMENT][..end - bytes])
    }

    /// Ends the file and gives its stream back.
    ///
    /// # Errors
    /// A tensor that the header announces and that never came.
    pub fn finish(mut self) -> Result<W> {
        match self.expected.next() {
            Some(next) => Err(Error::other(format!("the tensor {} was announced and never came", next.name))),
            None => Ok(self.out),
        }
    }
}

/// Writes some rows at a time, so that no second copy of the matrix is in memory.
fn write_blocks(tensor: &Tensor, as_: &GgufTensor, out: &mut impl Write) -> Result<()> {
    let columns = as_.columns();
    let matrix = tensor.reshape(((), columns)).map_err(Error::other)?;
    let rows = matrix.dims()[0];
    let at_once = (CONVERTED_AT_ONCE / columns.max(1)).max(1).next_multiple_of(INTERLEAVED_ROWS);
    for start in (0..rows).step_by(at_once) {
        let part = matrix.narrow(0, start, at_once.min(rows - start)).map_err(Error::other)?;
        match plain(as_.format) {
            Some(dtype) => numbers::write(&part.to_dtype(dtype).map_err(Error::other)?, out)?,
            None => out.write_all(&blocks(&part, as_).map_err(Error::other)?)?,
        }
    }
    Ok(())
}

fn blocks(rows: &Tensor, as_: &GgufTensor) -> candle_core::Result<Vec<u8>> {
    let (_rows, columns) = rows.dims2()?;
    let values = rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let blocks = as_.format.encode(&values, columns)?;
    if as_.interleaved { as_.format.interleave(&blocks, columns) } else { Ok(blocks) }
}

/// The dtype of a format whose blocks are single numbers.
fn plain(format: BlockFormat) -> Option<DType> {
    match format {
        BlockFormat::F32 => Some(DType::F32),
        BlockFormat::F16 => Some(DType::F16),
        BlockFormat::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// Where the tensors of a file begin is a multiple of this.
fn alignment(tensors: &[GgufTensor]) -> usize {
    let interleaved = tensors.iter().any(|tensor| tensor.interleaved);
    if interleaved { INTERLEAVED_ALIGNMENT } else { ALIGNMENT }
}

fn header(metadata: &[(String, GgufValue)], tensors: &[GgufTensor]) -> Result<Vec<u8>> {
    let mut header = Header(b"GGUF".to_vec());
    let alignment = alignment(tensors);
    let said = (gguf::ALIGNMENT_KEY.to_owned(), GgufValue::U32(alignment as u32));
    let said = Some(&said).filter(|_| alignment != ALIGNMENT);
    header.number(VERSION);
    header.count(tensors.len());
    header.count(metadata.len() + usize::from(said.is_some()));
    for (key, value) in metadata.iter().chain(said) {
        header.text(key);
        header.value(value);
    }
    let mut offset = 0;
    for tensor in tensors {
        let (shape, block) = (&tensor.shape, tensor.format.block_length());
        if shape.is_empty() || shape.len() > MAX_RANK || !tensor.columns().is_multiple_of(block) {
            let (name, format) = (&tensor.name, tensor.format.name());
            return Err(Error::other(format!("{name}: {shape:?} cannot be written in {format}")));
        }
        if tensor.interleaved && *tensor != tensor.clone().interleaved() {
            let (name, format) = (&tensor.name, tensor.format.name());
            return Err(Error::other(format!("{name}: {shape:?} in {format} has no rows to interleave")));
        }
        header.text(&tensor.name);
        header.number(shape.len() as u32);
        shape.iter().rev().for_each(|size| header.count(*size));
        header.number(gguf::number(tensor.format, tensor.interleaved));
        header.count(offset);
        offset += tensor.bytes().next_multiple_of(alignment);
    }
    header.0.resize(header.0.len().next_multiple_of(alignment), 0);
    Ok(header.0)
}

/// A header under construction.
struct Header(Vec<u8>);

impl Header {
    fn number(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn count(&mut self, value: usize) {
        self.0.extend_from_slice(&(value as u64).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    /// A value behind the number of its type.
    fn value(&mut self, value: &GgufValue) {
        const U32: u32 = 4;
        const I32: u32 = 5;
        const F32: u32 = 6;
        const BOOL: u32 = 7;
        const TEXT: u32 = 8;
        const LIST: u32 = 9;
        match value {
            GgufValue::U32(value) => {
                self.number(U32);
                self.number(*value);
            }
            GgufValue::F32(value) => {
                self.number(F32);
                self.0.extend_from_slice(&value.to_le_bytes());
            }
            GgufValue::Bool(value) => {
                self.number(BOOL);
                self.0.push(u8::from(*value));
            }
            GgufValue::Text(text) => {
                self.number(TEXT);
                self.text(text);
            }
            GgufValue::Texts(texts) => {
                self.list(LIST, TEXT, texts.len());
                texts.iter().for_each(|text| self.text(text));
            }
            GgufValue::F32s(values) => {
                self.list(LIST, F32, values.len());
                values.iter().for_each(|value| self.0.extend_from_slice(&value.to_le_bytes()));
            }
            GgufValue::I32s(values) => {
                self.list(LIST, I32, values.len());
                values.iter().for_each(|value| self.0.extend_from_slice(&value.to_le_bytes()));
            }
            GgufValue::Encoded(bytes) => self.0.extend_from_slice(bytes),
        }
    }

    fn list(&mut self, list: u32, of: u32, length: usize) {
        self.number(list);
        self.number(of);
        self.count(length);
    }
}
