//! One file of named tensors, whatever its format: where each tensor lies, and how it is read from there.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::ops::Range;
use std::path::Path;

use candle_core::{DType, Tensor};
use zip::ZipArchive;

use crate::elements::{self, ElementType, Layout};
use crate::error::{Error, Fault, Result};
use crate::mapped_file::MappedFile;
use crate::{safetensors_file, torch};

/// Where the bytes of a storage are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Span {
    /// In the file as they are.
    Plain(Range<usize>),
    /// In the zip entry of this number, deflated; with their number after inflating.
    Deflated(usize, usize),
}

impl Span {
    /// Bytes of the storage.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Plain(range) => range.len(),
            Self::Deflated(_, length) => *length,
        }
    }
}

/// A tensor of a file.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    Tensor {
        element: ElementType,
        layout: Layout,
        span: Span,
    },
    /// A tensor of a kind that is not read, and why. An error only when it is asked for.
    Unsupported(String),
}

/// A mapped file and its tensors.
#[derive(Debug)]
pub(crate) struct TensorFile {
    file: MappedFile,
    entries: BTreeMap<String, Entry>,
}

impl TensorFile {
    /// Opens a file of any of the formats, told apart by content.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let entries = parse(file.bytes()).map_err(|fault| fault.in_file(path))?;
        Ok(Self { file, entries })
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    pub(crate) fn shape(&self, key: &str) -> Result<&[usize]> {
        self.located(key).map(|(_, layout, _)| layout.shape())
    }

    pub(crate) fn dtype(&self, key: &str) -> Result<DType> {
        self.located(key).map(|(element, _, _)| element.dtype())
    }

    /// The tensor, on the CPU.
    pub(crate) fn read(&self, key: &str) -> Result<Tensor> {
        let (element, layout, span) = self.located(key)?;
        match span {
            Span::Plain(range) => match self.file.bytes().get(range.clone()) {
                Some(bytes) => elements::tensor(bytes, element, layout),
                None => Err(Fault::invalid("lies outside the file").in_tensor(self.path(), key)),
            },
            Span::Deflated(index, length) => {
                let bytes = inflate(self.file.bytes(), *index, *length);
                elements::tensor(&bytes.map_err(|fault| fault.in_tensor(self.path(), key))?, element, layout)
            }
        }
    }

    /// Gives the memory of a tensor's bytes back to the system.
    pub(crate) fn release(&self, key: &str) {
        if let Ok((_, _, Span::Plain(range))) = self.located(key) {
            self.file.release(range.clone());
        }
    }

    fn located(&self, key: &str) -> Result<(ElementType, &Layout, &Span)> {
        match self.entries.get(key) {
            Some(Entry::Tensor { element, layout, span }) => Ok((*element, layout, span)),
            Some(Entry::Unsupported(problem)) => {
                Err(Fault::unsupported(problem.as_str()).in_tensor(self.path(), key))
            }
            None => Err(Error::TensorMissing { file: self.path().to_path_buf(), key: key.to_string() }),
        }
    }
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, Fault> {
    const ZIP: &[u8] = b"PK\x03\x04";
    const PICKLE: u8 = 0x80;
    if bytes.is_empty() {
        return Err(Fault::invalid("the file is empty"));
    }
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(Fault::invalid(
            "a Git LFS pointer and not the file itself, which `git lfs pull` would fetch",
        ));
    }
    if bytes.starts_with(ZIP) {
        return torch::read_zip(bytes);
    }
    // Before the legacy format: a safetensors header may be 128 bytes long, which is the same first byte.
    if bytes.get(8) == Some(&b'{') {
        return safetensors_file::read(bytes);
    }
    if bytes[0] == PICKLE {
        return torch::read_legacy(bytes);
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Err(Fault::unsupported("a tar file of torch before 0.1.10"));
    }
    if bytes.starts_with(b"GGUF") {
        return Err(Fault::unsupported("a GGUF file"));
    }
    let start: String = bytes[..bytes.len().min(16)].escape_ascii().to_string();
    Err(Fault::invalid(format!("expected a torch or safetensors file, found one that starts with `{start}`")))
}

/// The content of a deflated zip entry, which must be exactly as long as the archive says.
pub(crate) fn inflate(archive: &[u8], index: usize, length: usize) -> Result<Vec<u8>, Fault> {
    /// Deflate cannot do better than this.
    const MAX_RATIO: u64 = 1032;
    let broken = |error: &dyn std::fmt::Display| Fault::invalid(format!("zip entry {index}: {error}"));
    let mut archive = ZipArchive::new(Cursor::new(archive)).map_err(|error| broken(&error))?;
    let entry = archive.by_index(index).map_err(|error| broken(&error))?;
    // Before anything is allocated.
    if length as u64 > entry.compressed_size().saturating_mul(MAX_RATIO) {
        return Err(broken(&format!(
            "{} bytes cannot inflate to the {length} bytes that the archive declares",
            entry.compressed_size()
        )));
    }
    let mut bytes = Vec::with_capacity(length);
    entry.take(length as u64 + 1).read_to_end(&mut bytes).map_err(|error| broken(&error))?;
    if bytes.len() != length {
        let found = if bytes.len() > length { "more".to_string() } else { bytes.len().to_string() };
        return Err(broken(&format!("the archive declares {length} bytes, it inflates to {found}")));
    }
    Ok(bytes)
}
