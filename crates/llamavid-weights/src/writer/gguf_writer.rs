//! The GGUF format, version 3: typed metadata, a list of tensors, then their numbers in blocks.
//!
//! Reference: ggml's `docs/gguf.md`. The quantisers are candle's, which are those of ggml.

use std::io::{Error, Result, Write};

use candle_core::{DType, Tensor};
use llamavid_kernels::BlockFormat;

use super::numbers;
use crate::gguf;

const VERSION: u32 = 3;
/// Where a tensor's numbers begin is a multiple of this: `general.alignment` where a file does not say it.
const ALIGNMENT: usize = 32;
/// Dimensions that the format has room for.
const MAX_RANK: usize = 4;
/// Numbers that are converted at a time, by all threads together: a matrix in f32 would be twice its file's size.
const CONVERTED_AT_ONCE: usize = 1 << 22;

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
}

impl GgufTensor {
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
    expected: std::vec::IntoIter<GgufTensor>,
}

impl<W: Write> GgufWriter<W> {
    /// Writes the header of a file with this metadata and these tensors, which then come in this order.
    ///
    /// # Errors
    /// Those of `out`, and a shape that the format has no room for.
    pub fn new(mut out: W, metadata: &[(String, GgufValue)], tensors: Vec<GgufTensor>) -> Result<Self> {
        out.write_all(&header(metadata, &tensors)?)?;
        Ok(Self { out, expected: tensors.into_iter() })
    }

    /// Bytes that the file with these tensors has.
    ///
    /// # Errors
    /// A shape that the format has no room for.
    pub fn length(metadata: &[(String, GgufValue)], tensors: &[GgufTensor]) -> Result<u64> {
        let numbers: u64 = tensors.iter().map(|tensor| aligned(tensor.bytes()) as u64).sum();
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

    /// Writes the next tensor, whose numbers come in its announced format, piece by piece.
    ///
    /// # Errors
    /// Those of `out`, and pieces that are together not as long as the tensor.
    pub fn write_encoded<P: AsRef<[u8]>>(&mut self, pieces: impl IntoIterator<Item = P>) -> Result<()> {
        let next = self.expected.next();
        let announced = next.as_ref().map_or(0, GgufTensor::bytes);
        let mut written = 0;
        for piece in pieces {
            written += piece.as_ref().len();
            self.out.write_all(piece.as_ref())?;
        }
        if next.is_none() || written != announced {
            return Err(Error::other(format!(
                "the header announces {next:?}, its blocks are {written} bytes"
            )));
        }
        self.pad(announced)
    }

    /// Fills up to where the next tensor begins, behind one of so many bytes.
    fn pad(&mut self, bytes: usize) -> Result<()> {
        self.out.write_all(&[0; ALIGNMENT][..aligned(bytes) - bytes])
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
    let at_once = (CONVERTED_AT_ONCE / columns.max(1)).max(1);
    for start in (0..rows).step_by(at_once) {
        let part = matrix.narrow(0, start, at_once.min(rows - start)).map_err(Error::other)?;
        match plain(as_.format) {
            Some(dtype) => numbers::write(&part.to_dtype(dtype).map_err(Error::other)?, out)?,
            None => out.write_all(&blocks(&part, as_.format).map_err(Error::other)?)?,
        }
    }
    Ok(())
}

fn blocks(rows: &Tensor, format: BlockFormat) -> candle_core::Result<Vec<u8>> {
    let (_rows, columns) = rows.dims2()?;
    format.encode(&rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?, columns)
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

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

fn header(metadata: &[(String, GgufValue)], tensors: &[GgufTensor]) -> Result<Vec<u8>> {
    let mut header = Header(b"GGUF".to_vec());
    header.number(VERSION);
    header.count(tensors.len());
    header.count(metadata.len());
    for (key, value) in metadata {
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
        header.text(&tensor.name);
        header.number(shape.len() as u32);
        shape.iter().rev().for_each(|size| header.count(*size));
        header.number(gguf::number(tensor.format));
        header.count(offset);
        offset += aligned(tensor.bytes());
    }
    header.0.resize(aligned(header.0.len()), 0);
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
        }
    }

    fn list(&mut self, list: u32, of: u32, length: usize) {
        self.number(list);
        self.number(of);
        self.count(length);
    }
}
