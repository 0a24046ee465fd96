//! The stream form, before torch 1.6: five pickles (magic number, protocol version, system, the object, the keys of
//! the storages), then for each key the number of elements and the elements.

use std::collections::{BTreeMap, HashMap};

use super::state_dict;
use crate::error::{Fault, shown};
use crate::pickle::{Object, Pickle, Value};
use crate::tensor_file::{Entry, Span};

/// The magic number 0x1950a86a20f9469cfc6c as the pickle holds it.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The stream's version, the only one there was.
const VERSION: i64 = 1001;

/// The tensors of a torch legacy file.
pub(crate) fn read(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, Fault> {
    let mut at = 0;
    let mut next = |what: &str| -> Result<Pickle<'_>, Fault> {
        let pickle = Pickle::parse(bytes.get(at..).unwrap_or_default()).map_err(|fault| fault.at(what))?;
        at += pickle.length;
        Ok(pickle)
    };

    let magic = next("magic number")?;
    if !matches!(magic.object(magic.root), Some(Object::Long(long)) if *long == MAGIC) {
        return Err(foreign(&magic));
    }
    let version = next("version")?;
    if version.integer(version.root) != Some(VERSION) {
        return Err(Fault::unsupported(format!(
            "a torch stream of version {:?}, {VERSION} is read",
            version.integer(version.root)
        )));
    }
    let system = next("system")?;
    let little_endian =
        system.pairs(system.root).unwrap_or_default().into_iter().rev().find_map(|(key, value)| {
            match (system.text(key), value) {
                (Some("little_endian"), Value::Bool(little)) => Some(little),
                _ => None,
            }
        });
    match little_endian {
        Some(true) => {}
        Some(false) => return Err(Fault::unsupported("big-endian numbers, little-endian ones are read")),
        None => return Err(Fault::invalid("a torch stream that does not say its byte order")),
    }
    let object = next("object")?;
    let keys = next("storage keys")?;
    let keys: Option<Vec<&str>> =
        keys.sequence(keys.root).and_then(|sequence| sequence.iter().map(|key| keys.text(*key)).collect());
    let keys = keys.ok_or_else(|| Fault::invalid("storage keys: expected a list of names"))?;

    let spans = locate(bytes, at, &keys, &declared(&object)?)?;
    state_dict::tensors(&object, bytes.len(), &|key| {
        spans
            .get(key)
            .cloned()
            .ok_or_else(|| Fault::invalid(format!("its storage `{}` is missing", shown(key))))
    })
}

/// A pickle that does not begin as torch's do.
fn foreign(pickle: &Pickle) -> Fault {
    let mut problem = "not a checkpoint: a pickle, and not one written by torch.save".to_string();
    let names = pickle.globals();
    if !names.is_empty() {
        problem
            .push_str(&format!("; it refers to {}, which is refused and was not executed", names.join(", ")));
    }
    Fault::Invalid(problem)
}

/// Element count and element size of each storage, as the object's references declare them.
fn declared<'a>(object: &Pickle<'a>) -> Result<HashMap<&'a str, (usize, usize)>, Fault> {
    let mut declared = HashMap::new();
    for persistent in &object.objects {
        let Object::Persistent(id) = persistent else { continue };
        let Some(&[kind, class, key, _, count, ..]) = object.sequence(*id) else { continue };
        if object.text(kind) != Some("storage") {
            continue;
        }
        let (Some(key), Some(count), Some((_, class))) =
            (object.text(key), object.size(count), object.global(class))
        else {
            return Err(Fault::invalid("a reference to a storage without key, count or class"));
        };
        // Without its size, nothing that lies behind it can be found.
        let size = state_dict::storage_element_size(class)
            .ok_or_else(|| Fault::unsupported(format!("a storage of class {}", shown(class))))?;
        declared.insert(key, (count, size));
    }
    Ok(declared)
}

/// Where the storages lie: one after the other from `at`, each behind its count.
fn locate<'a>(
    bytes: &[u8],
    mut at: usize,
    keys: &[&'a str],
    declared: &HashMap<&'a str, (usize, usize)>,
) -> Result<HashMap<&'a str, Span>, Fault> {
    let mut spans = HashMap::new();
    for key in keys {
        let shown = shown(key);
        let Some((count, size)) = declared.get(key).copied() else {
            return Err(Fault::invalid(format!("storage `{shown}` belongs to no tensor")));
        };
        let rest = bytes.get(at..).unwrap_or_default();
        let Some((header, rest)) = rest.split_first_chunk::<8>() else {
            return Err(Fault::invalid(format!("the file is cut off in front of storage `{shown}`")));
        };
        let found = u64::from_le_bytes(*header);
        if usize::try_from(found) != Ok(count) {
            return Err(Fault::invalid(format!(
                "storage `{shown}`: expected {count} elements, found {found}"
            )));
        }
        let length = count.checked_mul(size).filter(|length| *length <= rest.len()).ok_or_else(|| {
            Fault::invalid(format!(
                "the file is cut off: storage `{shown}` needs {count} elements of {size} bytes, {} bytes are left",
                rest.len()
            ))
        })?;
        let start = at + header.len();
        at = start + length;
        spans.insert(*key, Span::Plain(start..at));
    }
    Ok(spans)
}
