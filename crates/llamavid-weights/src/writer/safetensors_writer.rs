//! The safetensors format: the header's length, the header as JSON, the numbers.

use std::collections::BTreeMap;
use std::io::{Error, Result, Write};

use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};

use super::numbers;

/// Where the numbers begin is a multiple of this, so that a mapped file can be read in place.
const ALIGNMENT: usize = 8;

/// Writes tensors in their dtypes, with `metadata` in the header.
///
/// # Errors
/// Those of `out`, and a dtype that the format does not have.
pub fn write_safetensors(
    out: &mut dyn Write,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), json!(metadata));
    }
    let mut end = 0usize;
    for (name, tensor) in tensors {
        let start = end;
        end += numbers::length(tensor);
        let entry = json!({
            "dtype": dtype_name(tensor.dtype())?,
            "shape": tensor.dims(),
            "data_offsets": [start, end],
        });
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&Value::Object(header)).map_err(Error::other)?;
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    tensors.values().try_for_each(|tensor| numbers::write(tensor, out))
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
