//! The head of a GGUF file: what it says of itself, and where each tensor lies.
//!
//! Reference: the specification of ggml. Every count and length is checked against the file before memory is taken.

use std::collections::BTreeMap;
use std::ops::Range;

use llamavid_kernels::BlockFormat;

use crate::elements::element_count;
use crate::error::{Fault, shown};

/// The published files have some dozen entries, and some hundred tensors.
const MAX_ENTRIES: u64 = 1 << 16;
/// Values of all lists together: the largest vocabularies have a few 100 000 words, with a score and a type each.
const MAX_VALUES: u64 = 1 << 22;
/// Of the format itself.
const MAX_RANK: u32 = 4;
/// Where tensors begin when the file does not say.
const ALIGNMENT: u64 = 32;
/// The entry that says it.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";
const LARGEST_ALIGNMENT: u64 = 1 << 16;

/// A value of a file's description.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A whole number of any width.
    Whole(i128),
    /// A number of either width.
    Real(f64),
    /// Yes or no.
    Flag(bool),
    /// A text; bytes that are none are shown as such.
    Text(String),
    /// Values of one kind.
    List(Vec<Value>),
}

/// What is known of a tensor without its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    /// The slowest dimension first, as everywhere here.
    pub(crate) shape: Vec<usize>,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// Where it lies in the file.
    Stored {
        format: BlockFormat,
        /// Whether its rows are interleaved, see [`INTERLEAVED`].
        interleaved: bool,
        range: Range<usize>,
    },
    /// Of a kind that is not read; its name.
    Unsupported(String),
}

/// The head of a file.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, Value>,
    /// Where the value of each entry lies in the file, behind the number of its kind.
    pub(crate) entries: Vec<(String, Range<usize>)>,
    pub(crate) tensors: BTreeMap<String, Placed>,
}

/// Reads the head of a file, of which `file` are all bytes.
pub(crate) fn parse(file: &[u8]) -> Result<Header, Fault> {
    let mut reader = Reader { rest: file, values: MAX_VALUES };
    if reader.take(4)? != b"GGUF" {
        return Err(Fault::invalid("not a GGUF file"));
    }
    match reader.u32()? {
        2 | 3 => {}
        1 => return Err(Fault::unsupported("a GGUF file of version 1; 2 and 3 are read")),
        version if version.swap_bytes() <= 3 => {
            return Err(Fault::unsupported("a GGUF file of a big-endian machine"));
        }
        version => {
            return Err(Fault::unsupported(format!("a GGUF file of version {version}; 2 and 3 are read")));
        }
    }
    let (tensor_count, entry_count) = (reader.u64()?, reader.u64()?);
    for (count, what) in [(tensor_count, "tensors"), (entry_count, "entries of its description")] {
        if count > MAX_ENTRIES {
            return Err(Fault::invalid(format!("{count} {what}, {MAX_ENTRIES} at most")));
        }
    }
    let (mut metadata, mut entries) = (BTreeMap::new(), Vec::new());
    for _ in 0..entry_count {
        let key = reader.text()?;
        let start = file.len() - reader.rest.len();
        let kind = reader.u32()?;
        let value = reader.value(kind, true).map_err(|fault| fault.at(format!("entry `{}`", shown(&key))))?;
        entries.push((key.clone(), start..file.len() - reader.rest.len()));
        if metadata.insert(key.clone(), value).is_some() {
            return Err(Fault::invalid(format!("two entries `{}`", shown(&key))));
        }
    }
    let mut found = Vec::new();
    for _ in 0..tensor_count {
        let name = reader.text()?;
        let tensor = reader.tensor().map_err(|fault| fault.at(format!("tensor `{}`", shown(&name))))?;
        found.push((name, tensor));
    }
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => ALIGNMENT,
        Some(Value::Whole(alignment)) => u64::try_from(*alignment).unwrap_or(0),
        Some(_) => 0,
    };
    if !alignment.is_power_of_two() || alignment > LARGEST_ALIGNMENT {
        return Err(Fault::invalid("`general.alignment` is not a power of 2 up to 65536"));
    }
    let head = (file.len() - reader.rest.len()) as u64;
    let data = head.next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for (name, (shape, kind, offset)) in found {
        let placed = place(shape, kind, offset, data, alignment, file.len())
            .map_err(|fault| fault.at(format!("tensor `{}`", shown(&name))))?;
        if tensors.insert(name.clone(), placed).is_some() {
            return Err(Fault::invalid(format!("two tensors `{}`", shown(&name))));
        }
    }
    Ok(Header { metadata, entries, tensors })
}

fn place(
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
    data: u64,
    alignment: u64,
    length: usize,
) -> Result<Placed, Fault> {
    let count = element_count(&shape)?;
    let (format, interleaved) = match format(kind) {
        Ok(known) => known,
        Err(name) => return Ok(Placed { shape, content: Content::Unsupported(name) }),
    };
    let columns = shape.last().copied().unwrap_or(1);
    let Some(row) = format.row_bytes(columns) else {
        let (block, name) = (format.block_length(), format.name());
        return Err(Fault::invalid(format!(
            "rows of {columns} numbers do not fill blocks of {block} ({name})"
        )));
    };
    if interleaved && !matches!(shape[..], [rows, columns] if rows > 0 && columns > 0) {
        let name = layout_name(format, interleaved);
        return Err(Fault::invalid(format!("shape {shape:?} as {name}, which only matrices can be")));
    }
    if !offset.is_multiple_of(alignment) {
        return Err(Fault::invalid(format!("begins at {offset}, which is no multiple of {alignment}")));
    }
    let size = row.checked_mul(count / columns.max(1));
    let start = data.checked_add(offset).and_then(|start| usize::try_from(start).ok());
    let range = start.zip(size).and_then(|(start, size)| Some(start..start.checked_add(size)?));
    match range.filter(|range| range.end <= length) {
        Some(range) => Ok(Placed { shape, content: Content::Stored { format, interleaved, range } }),
        None => Err(Fault::invalid(format!(
            "{count} numbers as {} from {offset} on reach beyond the file of {length} bytes",
            format.name()
        ))),
    }
}

/// What is added to ggml's number of a format where the rows of a matrix are interleaved: a layout that ggml has not. Its own
/// numbers count up from 0 and are some forty so far; every reader refuses one beyond those that it knows, so no other program takes
/// such a file for what it is not.
const INTERLEAVED: u32 = 0x4c56_0000;

/// The number of a format in a file: ggml's, or one of ours.
pub(crate) fn number(format: BlockFormat, interleaved: bool) -> u32 {
    let number = match format {
        BlockFormat::F32 => 0,
        BlockFormat::F16 => 1,
        BlockFormat::Q4_0 => 2,
        BlockFormat::Q8_0 => 8,
        BlockFormat::Q4K => 12,
        BlockFormat::Q5K => 13,
        BlockFormat::Q6K => 14,
        BlockFormat::BF16 => 30,
    };
    if interleaved { INTERLEAVED | number } else { number }
}

/// What a format is called, with how its rows lie.
pub fn layout_name(format: BlockFormat, interleaved: bool) -> String {
    let name = format.name();
    if interleaved { format!("{name} interleaved") } else { name.to_owned() }
}

/// The format of a number, and whether rows are interleaved; or the name of one that is not read.
fn format(kind: u32) -> Result<(BlockFormat, bool), String> {
    let plain = BlockFormat::ALL.into_iter().map(|format| (format, false));
    let interleaved = BlockFormat::ALL.into_iter().filter(|format| format.interleaves());
    let mut known = plain.chain(interleaved.map(|format| (format, true)));
    if let Some(known) = known.find(|(format, interleaved)| number(*format, *interleaved) == kind) {
        return Ok(known);
    }
    let other = match kind {
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        29 => "IQ1_M",
        24..=27 => "a whole number",
        28 => "F64",
        other => return Err(format!("number {other}")),
    };
    Err(other.to_owned())
}

/// Takes what the format has from the front of the bytes that are left.
struct Reader<'a> {
    rest: &'a [u8],
    /// How many values lists may still have.
    values: u64,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], Fault> {
        let taken = usize::try_from(count).ok().and_then(|count| self.rest.split_at_checked(count));
        let Some((taken, rest)) = taken else {
            let left = self.rest.len();
            return Err(Fault::invalid(format!(
                "cut short: its head goes on for {count} bytes, {left} are left"
            )));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, Fault> {
        let length = self.u64()?;
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    fn value(&mut self, kind: u32, lists: bool) -> Result<Value, Fault> {
        Ok(match kind {
            0 => Value::Whole(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Whole(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Whole(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Whole(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Whole(u32::from_le_bytes(self.array()?).into()),
            5 => Value::Whole(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Real(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Flag(self.array::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 if lists => {
                let (kind, count) = (self.u32()?, self.u64()?);
                // Each value takes a byte at least.
                if count > self.values.min(self.rest.len() as u64) {
                    return Err(Fault::invalid(format!("a list of {count} values, {MAX_VALUES} at most")));
                }
                self.values -= count;
                Value::List((0..count).map(|_| self.value(kind, false)).collect::<Result<_, _>>()?)
            }
            9 => return Err(Fault::unsupported("a list of lists")),
            10 => Value::Whole(u64::from_le_bytes(self.array()?).into()),
            11 => Value::Whole(i64::from_le_bytes(self.array()?).into()),
            12 => Value::Real(f64::from_le_bytes(self.array()?)),
            other => return Err(Fault::invalid(format!("a value of an unknown kind, {other}"))),
        })
    }

    /// Shape, kind of numbers and place.
    fn tensor(&mut self) -> Result<(Vec<usize>, u32, u64), Fault> {
        let rank = self.u32()?;
        if rank > MAX_RANK {
            return Err(Fault::invalid(format!("{rank} dimensions, {MAX_RANK} at most")));
        }
        let mut shape = Vec::new();
        for _ in 0..rank {
            let size = self.u64()?;
            let size = usize::try_from(size).map_err(|_| Fault::invalid(format!("a dimension of {size}")))?;
            shape.push(size);
        }
        shape.reverse();
        Ok((shape, self.u32()?, self.u64()?))
    }
}
