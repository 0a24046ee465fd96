//! From the pickle of a checkpoint to the tensors it describes.

use std::collections::BTreeMap;

use crate::elements::{ElementType, Layout};
use crate::error::{Fault, shown};
use crate::pickle::{Object, Pickle, Value};
use crate::tensor_file::{Entry, Span};

/// Names under which training scripts put the weights beside their other state.
const WRAPPERS: [&str; 5] = ["model", "state_dict", "module", "model_state_dict", "model_state"];
/// Wrappers within wrappers.
const MAX_WRAPPERS: usize = 4;
/// A tensor may be wrapped in a parameter, and that in a subclass.
const MAX_REBUILDS: usize = 4;
/// Longer than any parameter's name.
const MAX_NAME: usize = 512;

/// The tensors of a checkpoint's pickle. `span_of` finds a storage by its key; `file_length` bounds what a tensor
/// may ask for.
pub(crate) fn tensors(
    pickle: &Pickle,
    file_length: usize,
    span_of: &dyn Fn(&str) -> Result<Span, Fault>,
) -> Result<BTreeMap<String, Entry>, Fault> {
    let reader = Reader { pickle, file_length, span_of };
    let mut dict = pickle.root;
    let mut keys = Vec::new();
    for _ in 0..=MAX_WRAPPERS {
        let Some(pairs) = pickle.pairs(dict) else { break };
        let entries = reader.entries(&pairs)?;
        if !entries.is_empty() {
            return Ok(entries);
        }
        let named: Vec<(&str, Value)> =
            pairs.iter().filter_map(|(key, value)| Some((pickle.text(*key)?, *value))).collect();
        if keys.is_empty() {
            keys = named.iter().take(10).map(|(key, _)| shown(key)).collect();
        }
        let inner = WRAPPERS.iter().find_map(|wrapper| named.iter().rev().find(|(key, _)| key == wrapper));
        match inner {
            Some((_, value)) => dict = *value,
            None => break,
        }
    }
    Err(no_tensors(pickle, &keys))
}

/// Says what was found instead, and that none of it was run.
fn no_tensors(pickle: &Pickle, keys: &[String]) -> Fault {
    let mut problem = "not a checkpoint: expected a dict of named tensors, found ".to_string();
    match keys {
        [] => problem.push_str("none"),
        keys => problem.push_str(&format!("none below `{}`", keys.join("`, `"))),
    }
    let foreign: Vec<String> = pickle
        .globals()
        .into_iter()
        .filter(|name| !["torch.", "collections."].iter().any(|known| name.starts_with(known)))
        .collect();
    if !foreign.is_empty() {
        problem.push_str(&format!(
            "; the file refers to {}, which is refused and was not executed",
            foreign.join(", ")
        ));
    }
    Fault::Invalid(problem)
}

struct Reader<'p, 'a> {
    pickle: &'p Pickle<'a>,
    file_length: usize,
    span_of: &'p dyn Fn(&str) -> Result<Span, Fault>,
}

/// A storage as a tensor refers to it.
struct Storage<'a> {
    key: &'a str,
    /// The element type, or the name of one that is not read.
    element: Result<ElementType, String>,
    /// Elements that the pickle says there are; those of a view when it is one.
    count: usize,
    /// First element of the view.
    start: usize,
}

impl<'a> Reader<'_, 'a> {
    /// The tensors among the values of a dict; other values are state that no model needs.
    fn entries(&self, pairs: &[(Value, Value)]) -> Result<BTreeMap<String, Entry>, Fault> {
        let mut entries = BTreeMap::new();
        for (key, value) in pairs {
            let Some(name) = self.pickle.text(*key) else { continue };
            let shown = shown(name);
            let entry =
                self.entry(*value, MAX_REBUILDS).map_err(|fault| fault.at(format!("tensor `{shown}`")))?;
            let Some(entry) = entry else { continue };
            if name.len() > MAX_NAME {
                return Err(Fault::invalid(format!("tensor `{shown}`: a name of {} bytes", name.len())));
            }
            entries.insert(name.to_string(), entry);
        }
        Ok(entries)
    }

    /// The tensor that a value describes, if it describes one.
    fn entry(&self, value: Value, depth: usize) -> Result<Option<Entry>, Fault> {
        let Some(((module, name), arguments)) = self.pickle.call(value) else { return Ok(None) };
        match (module, name, arguments) {
            (
                "torch._utils",
                "_rebuild_tensor" | "_rebuild_tensor_v2",
                &[storage, offset, size, stride, ..],
            ) => self.tensor(storage, offset, size, stride, None).map(Some),
            ("torch._utils", "_rebuild_tensor_v3", &[storage, offset, size, stride, _, _, dtype, ..]) => {
                self.tensor(storage, offset, size, stride, Some(dtype)).map(Some)
            }
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", &[data, ..])
                if depth > 0 =>
            {
                self.entry(data, depth - 1)
            }
            // A tensor with attributes: (function, type, arguments, state).
            ("torch._tensor", "_rebuild_from_type_v2", &[function, _, inner, ..]) => {
                match (self.pickle.global(function), self.pickle.sequence(inner)) {
                    (
                        Some(("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2")),
                        Some(&[storage, offset, size, stride, ..]),
                    ) => self.tensor(storage, offset, size, stride, None).map(Some),
                    (Some(("torch._utils", "_rebuild_parameter")), Some(&[data, ..])) if depth > 0 => {
                        self.entry(data, depth - 1)
                    }
                    _ => Ok(Some(Entry::Unsupported("a tensor of a class of its own".to_string()))),
                }
            }
            ("torch._utils", name, _) if name.starts_with("_rebuild_") => {
                let kind = shown(name.trim_start_matches("_rebuild_"));
                Ok(Some(Entry::Unsupported(format!("a tensor of kind `{kind}`, only dense ones are read"))))
            }
            _ => Ok(None),
        }
    }

    fn tensor(
        &self,
        storage: Value,
        offset: Value,
        size: Value,
        stride: Value,
        dtype: Option<Value>,
    ) -> Result<Entry, Fault> {
        let pickle = self.pickle;
        let mut storage = self.storage(storage)?;
        if let Some(dtype) = dtype {
            // The storage is of bytes and the tensor says what they are.
            let Some(("torch", name)) = pickle.global(dtype) else {
                return Err(Fault::invalid("a tensor without a dtype"));
            };
            storage.element = element_of_dtype(name);
            if let Ok(element) = storage.element {
                storage.count /= element.size();
                storage.start /= element.size();
            }
        }
        let element = match storage.element {
            Ok(element) => element,
            Err(name) => {
                return Ok(Entry::Unsupported(format!("its numbers are of type {name}, which is not read")));
            }
        };
        let shape =
            pickle.sizes(size).ok_or_else(|| Fault::invalid("a shape that is not a tuple of sizes"))?;
        let strides =
            pickle.sizes(stride).ok_or_else(|| Fault::invalid("strides that are not a tuple of sizes"))?;
        let offset = pickle.size(offset).ok_or_else(|| Fault::invalid("an offset that is not a size"))?;

        let span = (self.span_of)(storage.key)?;
        let stored = span.len() / element.size();
        let end = storage.start.checked_add(storage.count).filter(|end| *end <= stored).ok_or_else(|| {
            Fault::invalid(format!(
                "expected a storage of {} elements from {}, found one of {stored}",
                storage.count, storage.start
            ))
        })?;
        let offset = offset
            .checked_add(storage.start)
            .ok_or_else(|| Fault::invalid(format!("an offset of {offset} elements")))?;
        let layout = Layout::strided(shape, strides, offset, end, self.file_length / element.size())?;
        Ok(Entry::Tensor { element, layout, span })
    }

    /// `('storage', type, key, location, count)`, in the legacy format with a view `(key, start, count)` or `None`.
    fn storage(&self, value: Value) -> Result<Storage<'a>, Fault> {
        let pickle = self.pickle;
        let broken = || Fault::invalid("a tensor without a storage");
        let Some(Object::Persistent(id)) = pickle.object(value) else { return Err(broken()) };
        let Some(&[kind, class, key, _location, count, ref view @ ..]) = pickle.sequence(*id) else {
            return Err(broken());
        };
        if pickle.text(kind) != Some("storage") {
            return Err(broken());
        }
        let key = pickle.text(key).ok_or_else(broken)?;
        let element = match pickle.global(class) {
            Some(("torch" | "torch.storage" | "torch.cuda", name)) => element_of_storage(name),
            _ => return Err(Fault::invalid("a storage of unknown class")),
        };
        let count = pickle.size(count).ok_or_else(broken)?;
        match view.first() {
            None | Some(Value::None) => Ok(Storage { key, element, count, start: 0 }),
            Some(view) => match pickle.sequence(*view) {
                Some(&[_, start, length]) => {
                    let start = pickle.size(start).ok_or_else(broken)?;
                    let length = pickle.size(length).ok_or_else(broken)?;
                    match start.checked_add(length) {
                        Some(end) if end <= count => Ok(Storage { key, element, count: length, start }),
                        _ => Err(Fault::invalid(format!(
                            "a view of {length} elements from {start} leaves its storage of {count}"
                        ))),
                    }
                }
                _ => Err(broken()),
            },
        }
    }
}

fn element_of_storage(class: &str) -> Result<ElementType, String> {
    match class {
        "DoubleStorage" => Ok(ElementType::F64),
        "FloatStorage" => Ok(ElementType::F32),
        "HalfStorage" => Ok(ElementType::F16),
        "BFloat16Storage" => Ok(ElementType::Bf16),
        "LongStorage" => Ok(ElementType::I64),
        "IntStorage" => Ok(ElementType::I32),
        "ShortStorage" => Ok(ElementType::I16),
        "CharStorage" => Ok(ElementType::I8),
        "ByteStorage" | "UntypedStorage" => Ok(ElementType::U8),
        "BoolStorage" => Ok(ElementType::Bool),
        other => Err(shown(other)),
    }
}

fn element_of_dtype(name: &str) -> Result<ElementType, String> {
    match name {
        "float64" => Ok(ElementType::F64),
        "float32" => Ok(ElementType::F32),
        "float16" => Ok(ElementType::F16),
        "bfloat16" => Ok(ElementType::Bf16),
        "int64" => Ok(ElementType::I64),
        "int32" => Ok(ElementType::I32),
        "int16" => Ok(ElementType::I16),
        "int8" => Ok(ElementType::I8),
        "uint8" => Ok(ElementType::U8),
        "uint16" => Ok(ElementType::U16),
        "uint32" => Ok(ElementType::U32),
        "bool" => Ok(ElementType::Bool),
        other => Err(shown(other)),
    }
}

/// Bytes an element of a storage class has, also of those whose numbers are not read.
pub(super) fn storage_element_size(class: &str) -> Option<usize> {
    match (element_of_storage(class), class) {
        (Ok(element), _) => Some(element.size()),
        (_, "ComplexDoubleStorage") => Some(16),
        (_, "ComplexFloatStorage") => Some(8),
        (_, "QInt32Storage") => Some(4),
        (_, "QInt8Storage" | "QUInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage") => Some(1),
        _ => None,
    }
}
