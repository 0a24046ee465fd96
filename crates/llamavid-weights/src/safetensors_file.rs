//! The safetensors format: a JSON header with shapes and byte ranges, then the bytes.

use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors};

use crate::elements::{ElementType, Layout};
use crate::error::{Fault, shown};
use crate::tensor_file::{Entry, Span};

/// The tensors of a safetensors file. The library checks that the ranges fit the shapes, do not overlap and fill the file.
pub(crate) fn read(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, Fault> {
    let (header, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|error| Fault::invalid(format!("damaged safetensors file: {error}")))?;
    let outside = || Fault::invalid("damaged safetensors file: a tensor lies outside it");
    // The header's length, then the header.
    let data = header.checked_add(8).ok_or_else(outside)?;
    let mut entries = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let start = data.checked_add(info.data_offsets.0).ok_or_else(outside)?;
        let end = data.checked_add(info.data_offsets.1).ok_or_else(outside)?;
        if start > end || end > bytes.len() {
            return Err(outside());
        }
        let entry = match element_type(info.dtype) {
            Some(element) => {
                let layout = Layout::contiguous(info.shape.clone(), (end - start) / element.size())
                    .map_err(|fault| fault.at(format!("tensor `{}`", shown(&name))))?;
                Entry::Tensor { element, layout, span: Span::Plain(start..end) }
            }
            None => {
                Entry::Unsupported(format!("its numbers are of type {:?}, which is not read", info.dtype))
            }
        };
        entries.insert(name, entry);
    }
    Ok(entries)
}

fn element_type(dtype: Dtype) -> Option<ElementType> {
    match dtype {
        Dtype::F64 => Some(ElementType::F64),
        Dtype::F32 => Some(ElementType::F32),
        Dtype::F16 => Some(ElementType::F16),
        Dtype::BF16 => Some(ElementType::Bf16),
        Dtype::I64 => Some(ElementType::I64),
        Dtype::I32 => Some(ElementType::I32),
        Dtype::I16 => Some(ElementType::I16),
        Dtype::I8 => Some(ElementType::I8),
        Dtype::U8 => Some(ElementType::U8),
        Dtype::U16 => Some(ElementType::U16),
        Dtype::U32 => Some(ElementType::U32),
        Dtype::BOOL => Some(ElementType::Bool),
        _ => None,
    }
}
