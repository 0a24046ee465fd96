//! The safetensors format: the header's length, the header as JSON, the numbers.

use std::collections::BTreeMap;
use std::io::{Error, Result, Write};

use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};

use super::numbers;

/// Where the numbers begin is a multiple of this, so that a mapped file can be read in place.
const ALIGNMENT: usize = 8;

/// A tensor that a file will hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorHeader {
    /// Its name.
    pub name: String,
    /// The dtype of its numbers.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TensorHeader {
    /// Bytes of its numbers.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size_in_bytes()
    }
}

/// A file that is written tensor by tensor: what it will hold is said first.
#[derive(Debug)]
pub struct SafetensorsWriter<W> {
    out: W,
    expected: std::vec::IntoIter<TensorHeader>,
}

impl<W: Write> SafetensorsWriter<W> {
    /// Writes the header of a file with these tensors, which then come in this order.
    ///
    /// # Errors
    /// Those of `out`, and a dtype that the format does not have.
    pub fn new(mut out: W, tensors: Vec<TensorHeader>, metadata: &BTreeMap<String, String>) -> Result<Self> {
        let header = header(&tensors, metadata)?;
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        Ok(Self { out, expected: tensors.into_iter() })
    }

    /// Bytes that the file with these tensors has.
    ///
    /// # Errors
    /// A dtype that the format does not have.
    pub fn length(tensors: &[TensorHeader], metadata: &BTreeMap<String, String>) -> Result<u64> {
        let numbers: u64 = tensors.iter().map(|tensor| tensor.bytes() as u64).sum();
        Ok(8 + header(tensors, metadata)?.len() as u64 + numbers)
    }

    /// Writes the next tensor.
    ///
    /// # Errors
    /// Those of `out`, and a tensor that is not what the header says.
    pub fn write(&mut self, tensor: &Tensor) -> Result<()> {
        match self.expected.next() {
            Some(next) if next.dtype == tensor.dtype() && next.shape == tensor.dims() => {
                numbers::write(tensor, &mut self.out)
            }
            next => Err(Error::other(format!(
                "the header announces {next:?}, the tensor is {:?} of {:?}",
                tensor.dtype(),
                tensor.dims()
            ))),
        }
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

/// Writes tensors in their dtypes, with `metadata` in the header.
///
/// # Errors
/// Those of `out`, and a dtype that the format does not have.
pub fn write_safetensors(
    out: &mut dyn Write,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let headers = tensors
        .iter()
        .map(|(name, tensor)| TensorHeader {
            name: name.clone(),
            dtype: tensor.dtype(),
            shape: tensor.dims().to_vec(),
        })
        .collect();
    let mut writer = SafetensorsWriter::new(out, headers, metadata)?;
    tensors.values().try_for_each(|tensor| writer.write(tensor))?;
    writer.finish().map(|_| ())
}

fn header(tensors: &[TensorHeader], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut end = 0usize;
    for tensor in tensors {
        let start = end;
        end += tensor.bytes();
        let entry = json!({
            "dtype": dtype_name(tensor.dtype)?,
            "shape": tensor.shape,
            "data_offsets": [start, end],
        });
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&Value::Object(header)).map_err(Error::other)?;
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    Ok(header)
}

fn dtype_name(dtype: DType) -> Result<&'static str> {
    Ok(match dtype {
        DType::U8 => "U8",
        DType::U32 => "U32",
        DType::I16 => "I16",
        DType::I32 => "I32",
        DType::I64 => "I64",
        DType::BF16 => "BF16",
        DType::F16 => "F16",
        DType::F32 => "F32",
        DType::F64 => "F64",
        other => return Err(numbers::unsupported(other)),
    })
}
