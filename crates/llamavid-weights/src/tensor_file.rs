//! One file of named tensors, whatever its format: where each tensor lies, and how it is read from there.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use llamavid_kernels::{BlockFormat, QuantisedMatrix, SharedBytes};
use zip::ZipArchive;

use crate::elements::{self, ElementType, Layout};
use crate::error::{Error, Fault, Result};
use crate::gguf::{self, Content, GgufFile, Placed};
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
    /// In a format of blocks.
    Blocks {
        format: BlockFormat,
        /// Whether the rows of the matrix are interleaved.
        interleaved: bool,
        shape: Vec<usize>,
        range: Range<usize>,
    },
    /// A tensor of a kind that is not read, and why. An error only when it is asked for.
    Unsupported(String),
}

/// A mapped file and its tensors.
#[derive(Debug)]
pub(crate) struct TensorFile {
    file: Arc<MappedFile>,
    entries: BTreeMap<String, Entry>,
}

impl TensorFile {
    /// Opens a file of any of the formats, told apart by content.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let entries = parse(file.bytes()).map_err(|fault| fault.in_file(path))?;
        Ok(Self { file: Arc::new(file), entries })
    }

    /// The tensors of a GGUF file.
    pub(crate) fn from_gguf(file: GgufFile) -> Self {
        let (file, tensors) = file.parts();
        Self { file, entries: gguf_entries(tensors) }
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
        match self.entry(key)? {
            Entry::Blocks { shape, .. } => Ok(shape),
            _ => self.located(key).map(|(_, layout, _)| layout.shape()),
        }
    }

    pub(crate) fn dtype(&self, key: &str) -> Result<DType> {
        match self.entry(key)? {
            Entry::Blocks { .. } => Ok(DType::F32),
            _ => self.located(key).map(|(element, _, _)| element.dtype()),
        }
    }

    /// How a matrix is stored, where it lies in the file as it is.
    pub(crate) fn format(&self, key: &str) -> Result<Option<BlockFormat>> {
        Ok(match self.entry(key)? {
            Entry::Blocks { format, .. } => Some(*format),
            Entry::Tensor { element, layout, span: Span::Plain(_) } if layout.is_contiguous() => {
                element.format()
            }
            _ => None,
        })
    }

    /// Whether it is a matrix whose rows are interleaved.
    pub(crate) fn is_interleaved(&self, key: &str) -> Result<bool> {
        Ok(matches!(self.entry(key)?, Entry::Blocks { interleaved: true, .. }))
    }

    /// Whether it is a tensor of a GGUF file in fewer than 32 bits, made to be used as it lies there.
    pub(crate) fn is_compact(&self, key: &str) -> Result<bool> {
        Ok(matches!(self.entry(key)?, Entry::Blocks { format, .. } if *format != BlockFormat::F32))
    }

    /// A matrix as it lies in the file, which stays mapped as long as the matrix lives; none where [`TensorFile::format`] gives
    /// none.
    pub(crate) fn matrix(&self, key: &str) -> Result<Option<QuantisedMatrix>> {
        let (shape, range) = match self.entry(key)? {
            Entry::Blocks { shape, range, .. } => (shape.as_slice(), range.clone()),
            Entry::Tensor { element, layout, span: Span::Plain(span) } => {
                let Some(range) = layout.contiguous_bytes(*element, span.start) else { return Ok(None) };
                (layout.shape(), range)
            }
            _ => return Ok(None),
        };
        let (Some(format), &[rows, columns]) = (self.format(key)?, shape) else { return Ok(None) };
        let matrix = QuantisedMatrix::new(format, rows, columns, self.shared(key, range)?)?;
        Ok(Some(if self.is_interleaved(key)? { matrix.with_interleaved_rows()? } else { matrix }))
    }

    /// The tensor in f32, on the CPU, where it is stored in 16 bits one number behind the other: widened by all threads as
    /// it is read. None of others.
    pub(crate) fn read_widened(&self, key: &str) -> Result<Option<Tensor>> {
        let Entry::Tensor { element, layout, span: Span::Plain(span) } = self.entry(key)? else {
            return Ok(None);
        };
        let format = element.format().filter(|format| format.block_bytes() == 2);
        let range = layout.contiguous_bytes(*element, span.start);
        let (Some(format), Some(range)) = (format, range) else { return Ok(None) };
        let (shape, columns) = (layout.shape(), layout.shape().last().copied().unwrap_or(1));
        let rows = range.len() / element.size() / columns.max(1);
        let matrix = QuantisedMatrix::new(format, rows, columns, self.shared(key, range)?)?;
        Ok(Some(matrix.dequantise()?.reshape(shape)?))
    }

    /// The tensor, on the CPU.
    pub(crate) fn read(&self, key: &str) -> Result<Tensor> {
        if let Entry::Blocks { format, interleaved, shape, range } = self.entry(key)? {
            let columns = shape.last().copied().unwrap_or(1);
            let rows = shape.iter().rev().skip(1).product();
            let matrix = QuantisedMatrix::new(*format, rows, columns, self.shared(key, range.clone())?)?;
            let matrix = if *interleaved { matrix.with_interleaved_rows()? } else { matrix };
            return Ok(matrix.dequantise()?.reshape(shape.as_slice())?);
        }
        let (element, layout, span) = self.located(key)?;
        match span {
            Span::Plain(range) => match self.file.bytes().get(range.clone()) {
                Some(bytes) => elements::tensor(bytes, element, layout),
                None => Err(self.outside(key)),
            },
            Span::Deflated(index, length) => {
                let bytes = inflate(self.file.bytes(), *index, *length);
                elements::tensor(&bytes.map_err(|fault| fault.in_tensor(self.path(), key))?, element, layout)
            }
        }
    }

    /// Gives the memory of a tensor's bytes back to the system.
    pub(crate) fn release(&self, key: &str) {
        if let Ok(Entry::Tensor { span: Span::Plain(range), .. } | Entry::Blocks { range, .. }) =
            self.entry(key)
        {
            self.file.release(range.clone());
        }
    }

    /// Bytes of a tensor, which stay mapped as long as they are used.
    fn shared(&self, key: &str, range: Range<usize>) -> Result<SharedBytes> {
        SharedBytes::new(self.file.clone(), range).ok_or_else(|| self.outside(key))
    }

    fn outside(&self, key: &str) -> Error {
        Fault::invalid("lies outside the file").in_tensor(self.path(), key)
    }

    fn entry(&self, key: &str) -> Result<&Entry> {
        self.entries
            .get(key)
            .ok_or_else(|| Error::TensorMissing { file: self.path().to_path_buf(), key: key.to_string() })
    }

    /// A tensor of numbers.
    fn located(&self, key: &str) -> Result<(ElementType, &Layout, &Span)> {
        match self.entry(key)? {
            Entry::Tensor { element, layout, span } => Ok((*element, layout, span)),
            Entry::Blocks { format, .. } => {
                let problem = format!("is stored as {}, in blocks", format.name());
                Err(Fault::unsupported(problem).in_tensor(self.path(), key))
            }
            Entry::Unsupported(problem) => {
                Err(Fault::unsupported(problem.as_str()).in_tensor(self.path(), key))
            }
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
        return Ok(gguf_entries(gguf::parse(bytes)?.tensors));
    }
    let start: String = bytes[..bytes.len().min(16)].escape_ascii().to_string();
    Err(Fault::invalid(format!("expected a torch or safetensors file, found one that starts with `{start}`")))
}

fn gguf_entries(tensors: BTreeMap<String, Placed>) -> BTreeMap<String, Entry> {
    let entry = |Placed { shape, content }| match content {
        Content::Stored { format, interleaved, range } => Entry::Blocks { format, interleaved, shape, range },
        Content::Unsupported(name) => {
            let known = BlockFormat::ALL.map(BlockFormat::name).join(", ");
            Entry::Unsupported(format!("its numbers are of type {name}; {known} are read"))
        }
    };
    tensors.into_iter().map(|(name, placed)| (name, entry(placed))).collect()
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
