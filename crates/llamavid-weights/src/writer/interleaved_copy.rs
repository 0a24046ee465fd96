//! A GGUF file again, with the rows of its matrices interleaved.

use std::io::{Error, Result, Write};

use super::gguf_writer::{GgufTensor, GgufValue, GgufWriter};
use crate::gguf::{ALIGNMENT_KEY, Content, GgufFile};

/// Bytes that go from one file to the other at a time.
const PIECE: usize = 1 << 20;

/// A GGUF file with the rows of its matrices in blocks interleaved, and all else as it is in the file that it is made of: what it says
/// of itself, and every number.
#[derive(Debug)]
pub struct InterleavedCopy {
    source: GgufFile,
    metadata: Vec<(String, GgufValue)>,
    tensors: Vec<GgufTensor>,
}

impl InterleavedCopy {
    /// Of the matrices that are `wanted` by their names in the file. Those that are interleaved there stay so.
    ///
    /// # Errors
    /// A tensor of a kind that is not read.
    pub fn new(source: GgufFile, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        // Where tensors begin depends on what the copy holds.
        let said = source.encoded_metadata().filter(|(key, _)| *key != ALIGNMENT_KEY);
        let metadata =
            said.map(|(key, value)| (key.to_owned(), GgufValue::Encoded(value.to_vec()))).collect();
        let mut placed = source
            .tensors()
            .iter()
            .map(|(name, placed)| match &placed.content {
                Content::Stored { format, interleaved, range } => {
                    let tensor = GgufTensor {
                        interleaved: *interleaved,
                        ..GgufTensor::new(name, placed.shape.as_slice(), *format)
                    };
                    let chosen = !interleaved && wanted(name);
                    Ok((range.start, if chosen { tensor.interleaved() } else { tensor }))
                }
                Content::Unsupported(kind) => {
                    Err(Error::other(format!("{name}: its numbers are of type {kind}, which is not read")))
                }
            })
            .collect::<Result<Vec<_>>>()?;
        // In the order of the file, which is read once from front to back.
        placed.sort_by_key(|(start, _)| *start);
        let tensors = placed.into_iter().map(|(_, tensor)| tensor).collect();
        Ok(Self { source, metadata, tensors })
    }

    /// The tensors of the copy.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// Bytes that the copy has.
    ///
    /// # Errors
    /// A shape that the format has no room for.
    pub fn length(&self) -> Result<u64> {
        GgufWriter::<Vec<u8>>::length(&self.metadata, &self.tensors)
    }

    /// Writes the copy. The memory of what is read is given back, a tensor at a time.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: impl Write) -> Result<()> {
        let file = self.source.file();
        let mut writer = GgufWriter::new(out, &self.metadata, self.tensors.clone())?;
        for tensor in &self.tensors {
            let Some(Content::Stored { interleaved, range, .. }) =
                self.source.tensors().get(&tensor.name).map(|placed| &placed.content)
            else {
                return Err(Error::other(format!("{} is not in the file", tensor.name)));
            };
            let bytes = file.bytes().get(range.clone()).unwrap_or_default();
            if *interleaved {
                writer.write_laid_out(bytes)?;
            } else {
                writer.write_encoded(bytes.chunks(PIECE))?;
            }
            file.release(range.clone());
        }
        writer.finish()?;
        Ok(())
    }
}
