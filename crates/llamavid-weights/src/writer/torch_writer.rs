//! torch's zip format: a pickle that describes the tensors, and an entry with the numbers of each.
//!
//! Reference: `torch.save` of a dictionary of tensors (torch 2.0). The pickle has the structure that `torch.load` reads,
//! also with `weights_only`; it memorises nothing, which costs some bytes and keeps it readable.

use std::collections::BTreeMap;
use std::io::{Error, Result, Seek, Write};

use candle_core::{DType, Layout, Shape, Tensor};
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

use super::numbers;

/// Numbers begin at multiples of this, as torch maps them.
const ALIGNMENT: u16 = 64;
/// Entries from this size on need the larger size fields.
const LARGE: usize = 1 << 31;

/// Writes tensors in their dtypes below the folder `archive`, which torch names after the file.
///
/// # Errors
/// Those of `out`, and a dtype that torch does not have.
pub fn write_torch(out: impl Write + Seek, archive: &str, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let announced: Vec<_> =
        tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dtype(), tensor.shape().clone())).collect();
    let mut tensors = tensors.values();
    write_torch_streamed(out, archive, &announced, |_| {
        tensors.next().cloned().ok_or_else(|| Error::other("a tensor was announced and is not there"))
    })
}

/// The same for tensors that are made one after the other: `announced` are their names, dtypes and shapes, and `make`
/// gives the one of a number.
///
/// # Errors
/// Those of [`write_torch`] and of `make`, and a tensor that is not what was announced.
pub fn write_torch_streamed(
    out: impl Write + Seek,
    archive: &str,
    announced: &[(String, DType, Shape)],
    mut make: impl FnMut(usize) -> Result<Tensor>,
) -> Result<()> {
    let mut zip = ZipWriter::new(out);
    let stored = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(ALIGNMENT)
        .large_file(false);
    zip.start_file(format!("{archive}/data.pkl"), stored)?;
    zip.write_all(&pickle(announced)?)?;
    for (index, (name, dtype, shape)) in announced.iter().enumerate() {
        let stored = stored.large_file(shape.elem_count() * dtype.size_in_bytes() >= LARGE);
        zip.start_file(format!("{archive}/data/{index}"), stored)?;
        let tensor = make(index)?;
        if (tensor.dtype(), tensor.shape()) != (*dtype, shape) {
            return Err(Error::other(format!("the tensor {name} is not of the shape and dtype announced")));
        }
        numbers::write(&tensor, &mut zip)?;
    }
    zip.start_file(format!("{archive}/version"), stored)?;
    zip.write_all(b"3\n")?;
    zip.finish()?.flush()
}

/// A dictionary of tensors; the numbers of the n-th lie in storage `n`.
fn pickle(tensors: &[(String, DType, Shape)]) -> Result<Vec<u8>> {
    let mut pickle = Pickle(vec![0x80, 2]);
    pickle.push(b"}(");
    for (index, (name, dtype, shape)) in tensors.iter().enumerate() {
        pickle.text(name);
        pickle.tensor(index, *dtype, shape)?;
    }
    pickle.push(b"u.");
    Ok(pickle.0)
}

/// A pickle of protocol 2 under construction.
struct Pickle(Vec<u8>);

impl Pickle {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.push(b"X");
        self.push(&(text.len() as u32).to_le_bytes());
        self.push(text.as_bytes());
    }

    fn integer(&mut self, value: usize) {
        match (u8::try_from(value), i32::try_from(value)) {
            (Ok(value), _) => self.push(&[b'K', value]),
            (_, Ok(value)) => {
                self.push(b"J");
                self.push(&value.to_le_bytes());
            }
            _ => {
                self.push(&[0x8a, 8]);
                self.push(&(value as i64).to_le_bytes());
            }
        }
    }

    fn integers(&mut self, values: &[usize]) {
        self.push(b"(");
        values.iter().for_each(|value| self.integer(*value));
        self.push(b"t");
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`.
    fn tensor(&mut self, storage: usize, dtype: DType, shape: &Shape) -> Result<()> {
        self.push(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage");
        self.push(format!("ctorch\n{}\n", storage_class(dtype)?).as_bytes());
        self.text(&storage.to_string());
        self.text("cpu");
        self.integer(shape.elem_count());
        self.push(b"tQ");
        self.integer(0);
        self.integers(shape.dims());
        self.integers(Layout::contiguous(shape).stride());
        // False, an empty dictionary of hooks, and the call.
        self.push(b"\x89ccollections\nOrderedDict\n)RtR");
        Ok(())
    }
}

fn storage_class(dtype: DType) -> Result<&'static str> {
    Ok(match dtype {
        DType::U8 => "ByteStorage",
        DType::I16 => "ShortStorage",
        DType::I32 => "IntStorage",
        DType::I64 => "LongStorage",
        DType::BF16 => "BFloat16Storage",
        DType::F16 => "HalfStorage",
        DType::F32 => "FloatStorage",
        DType::F64 => "DoubleStorage",
        other => return Err(Error::other(format!("torch has no numbers of type {}", other.as_str()))),
    })
}
