//! The zip form: `NAME/data.pkl`, `NAME/data/KEY` for each storage, `NAME/byteorder` since 2.1.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;

use zip::{CompressionMethod, ZipArchive};

use super::state_dict;
use crate::error::{Fault, shown};
use crate::pickle::{Pickle, Value};
use crate::tensor_file::{Entry, Span, inflate};

/// Largest deflated pickle; one of a 7 billion parameter model has 0.2 MB.
const MAX_INFLATED_PICKLE: usize = 64 << 20;

/// The tensors of a torch zip file.
pub(crate) fn read(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, Fault> {
    let Archive { entries, folder, pickle_bytes } = open(bytes)?;
    let pickle = Pickle::parse(&pickle_bytes).map_err(|fault| fault.at("data.pkl"))?;
    let longest = entries.values().map(Span::len).max().unwrap_or(0).max(bytes.len());
    state_dict::tensors(&pickle, longest, &|key| {
        // A look-up among the archive's own names, so a hostile key finds nothing else.
        entries
            .get(&format!("{folder}data/{key}"))
            .cloned()
            .ok_or_else(|| Fault::invalid(format!("its storage `data/{}` is missing", shown(key))))
    })
}

/// The whole numbers of the dict `name` within the dict that a torch zip file holds.
pub(crate) fn numbers(bytes: &[u8], name: &str) -> Result<BTreeMap<String, i64>, Fault> {
    let archive = open(bytes)?;
    let pickle = Pickle::parse(&archive.pickle_bytes).map_err(|fault| fault.at("data.pkl"))?;
    let find = |pairs: Vec<(Value, Value)>| {
        // The last pair of a name counts, as in Python.
        pairs.into_iter().rev().find(|(key, _)| pickle.text(*key) == Some(name)).map(|pair| pair.1)
    };
    let pairs = pickle.pairs(pickle.root).and_then(find).and_then(|dict| pickle.pairs(dict));
    let pairs = pairs.ok_or_else(|| Fault::invalid(format!("it holds no dict `{name}`")))?;
    let number = |(key, value): (Value, Value)| Some((pickle.text(key)?.to_owned(), pickle.integer(value)?));
    Ok(pairs.into_iter().filter_map(number).collect())
}

/// A zip file's entries, and the pickle that describes them.
struct Archive<'a> {
    entries: HashMap<String, Span>,
    /// What the names of its entries begin with.
    folder: String,
    pickle_bytes: Cow<'a, [u8]>,
}

fn open(bytes: &[u8]) -> Result<Archive<'_>, Fault> {
    let entries = list(bytes)?;
    let mut pickles = entries.keys().filter(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let (pickle_name, folder) = match (pickles.next(), pickles.next()) {
        (Some(name), None) => (name, name.trim_end_matches("data.pkl").to_owned()),
        (None, _) => return Err(Fault::invalid("a zip file without a data.pkl, so not one of torch.save")),
        (Some(_), Some(_)) => return Err(Fault::invalid("a zip file with several data.pkl")),
    };
    if entries.contains_key(&format!("{folder}constants.pkl")) {
        return Err(Fault::unsupported("a TorchScript program, only weights written by torch.save are read"));
    }
    if let Some(span) = entries.get(&format!("{folder}byteorder")) {
        match content(bytes, span, 16)?.as_ref() {
            b"little" => {}
            b"big" => return Err(Fault::unsupported("big-endian numbers, little-endian ones are read")),
            other => {
                return Err(Fault::invalid(format!(
                    "byteorder: expected `little`, found `{}`",
                    other.escape_ascii()
                )));
            }
        }
    }
    let span = entries.get(pickle_name).ok_or_else(|| Fault::invalid("no data.pkl"))?;
    let pickle_bytes = content(bytes, span, MAX_INFLATED_PICKLE)?;
    Ok(Archive { pickle_bytes, folder, entries })
}

/// Where each entry's content is.
fn list(bytes: &[u8]) -> Result<HashMap<String, Span>, Fault> {
    let damaged = |error: zip::result::ZipError| {
        Fault::invalid(format!("damaged or cut-off zip file of {} bytes: {error}", bytes.len()))
    };
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
    if archive.has_duplicate_names() {
        return Err(Fault::invalid("a zip file with two entries of one name"));
    }
    let mut entries = HashMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(damaged)?;
        let name = entry.name().map_err(damaged)?.into_owned();
        if entry.encrypted() {
            return Err(Fault::unsupported("an encrypted zip file"));
        }
        let size =
            usize::try_from(entry.size()).map_err(|_| Fault::invalid("an entry larger than memory"))?;
        let span = match entry.compression() {
            CompressionMethod::Stored => {
                let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
                let range = start.and_then(|start| Some(start..start.checked_add(size)?));
                let inside =
                    range.filter(|range| range.end <= bytes.len() && entry.compressed_size() == entry.size());
                Span::Plain(inside.ok_or_else(|| {
                    Fault::invalid(format!("zip entry `{}`: its {size} bytes leave the file", shown(&name)))
                })?)
            }
            CompressionMethod::Deflated => Span::Deflated(index, size),
            other => return Err(Fault::unsupported(format!("zip compression {other}"))),
        };
        entries.insert(name, span);
    }
    Ok(entries)
}

fn content<'a>(bytes: &'a [u8], span: &Span, most: usize) -> Result<Cow<'a, [u8]>, Fault> {
    match span {
        Span::Plain(range) => {
            let content = bytes.get(range.clone());
            content.map(Cow::Borrowed).ok_or_else(|| Fault::invalid("a zip entry leaves the file"))
        }
        Span::Deflated(_, length) if *length > most => {
            Err(Fault::invalid(format!("a zip entry inflates to {length} bytes, expected {most} at most")))
        }
        Span::Deflated(index, length) => inflate(bytes, *index, *length).map(Cow::Owned),
    }
}
