//! Feature files of long videos: a pickled dict with a numpy array `feats` (F, P+1, V) and a text `inputs`.

use std::borrow::Cow;
use std::path::Path;

use candle_core::Tensor;

use super::{Pickle, Value};
use crate::elements::{self, ElementType, Layout};
use crate::error::{Error, Fault, Result, shown};
use crate::mapped_file::MappedFile;

/// What a feature file holds.
#[derive(Debug, Clone)]
pub struct Features {
    /// Visual features (F, P+1, V), class row first, in the file's dtype (f16 as published), on the CPU.
    pub feats: Tensor,
    /// Text of the video: one `<image>` a frame, subtitles between them.
    pub inputs: String,
}

/// What a feature file holds, without its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureSummary {
    /// Shape of `feats`, (F, P+1, V) as published.
    pub shape: Vec<usize>,
    /// Text of the video: one `<image>` a frame, subtitles between them.
    pub inputs: String,
}

/// Reads a feature file as data: numpy arrays and strings only, whatever else the pickle names.
///
/// # Errors
/// A file that is missing, damaged, not a dict with `feats` and `inputs`, or with values that are not finite.
pub fn read_features(path: &Path) -> Result<Features> {
    let file = MappedFile::open(path)?;
    let pickle = Pickle::parse(file.bytes()).map_err(|fault| fault.in_file(path))?;
    let (feats, inputs) = fields(&pickle, path)?;
    let feats = array(&pickle, feats)
        .and_then(|array| array.tensor())
        .map_err(|fault| fault.in_tensor(path, "feats"))?;
    if let Some((index, value)) = elements::first_not_finite(&feats) {
        let (file, key) = (path.to_path_buf(), "feats".to_string());
        return Err(Error::NotFinite { file, key, index, value, overflows: None });
    }
    Ok(Features { feats, inputs: inputs.to_string() })
}

/// Reads a feature file as [`read_features`] does, but for its numbers, which it does not touch.
///
/// # Errors
/// As [`read_features`]; values that are not finite are not seen.
pub fn summarise_features(path: &Path) -> Result<FeatureSummary> {
    let file = MappedFile::open(path)?;
    let pickle = Pickle::parse(file.bytes()).map_err(|fault| fault.in_file(path))?;
    let (feats, inputs) = fields(&pickle, path)?;
    let array = array(&pickle, feats).map_err(|fault| fault.in_tensor(path, "feats"))?;
    Ok(FeatureSummary { shape: array.shape, inputs: inputs.to_string() })
}

/// `feats` and `inputs` of the pickled dict.
fn fields<'a>(pickle: &Pickle<'a>, path: &Path) -> Result<(Value, &'a str)> {
    let fault = |fault: Fault| fault.in_file(path);
    let Some(pairs) = pickle.pairs(pickle.root) else {
        return Err(fault(Fault::invalid(format!(
            "expected a pickled dict with `feats` and `inputs`, found something else{}",
            mentioned(pickle)
        ))));
    };
    // The last pair of a name counts, as in Python.
    let find =
        |name: &str| pairs.iter().rev().find(|(key, _)| pickle.text(*key) == Some(name)).map(|pair| pair.1);
    let missing = |name: &str| {
        let keys: Vec<String> =
            pairs.iter().filter_map(|(key, _)| pickle.text(*key)).take(10).map(shown).collect();
        fault(Fault::invalid(format!("expected a dict with `{name}`, found `{}`", keys.join("`, `"))))
    };
    let inputs = find("inputs").ok_or_else(|| missing("inputs"))?;
    let inputs = pickle.text(inputs).ok_or_else(|| fault(Fault::invalid("`inputs`: expected text")))?;
    let feats = find("feats").ok_or_else(|| missing("feats"))?;
    Ok((feats, inputs))
}

/// Says which names a pickle mentions, as they are the best clue to what it is.
fn mentioned(pickle: &Pickle) -> String {
    match pickle.globals().as_slice() {
        [] => String::new(),
        names => format!("; it names {}, which this reader does not execute", names.join(", ")),
    }
}

/// How the elements of a numpy array lie in its data.
enum Order {
    /// Row by row.
    Rows,
    /// Column by column.
    Columns,
    /// Row by row for the shape in the file, whose axes are then taken in this order.
    Axes(Vec<usize>),
}

/// A numpy array whose data fits its shape.
struct Array<'a> {
    shape: Vec<usize>,
    element: ElementType,
    layout: Layout,
    data: Cow<'a, [u8]>,
}

impl Array<'_> {
    fn tensor(&self) -> Result<Tensor, Fault> {
        elements::tensor(&self.data, self.element, &self.layout)
            .map_err(|error| Fault::invalid(error.to_string()))
    }
}

/// A numpy array, in either of the two forms that numpy writes.
fn array<'a>(pickle: &Pickle<'a>, value: Value) -> Result<Array<'a>, Fault> {
    let not_an_array = || Fault::invalid(format!("expected a numpy array{}", mentioned(pickle)));
    let (shape, dtype, order, data) = match pickle.call(value).ok_or_else(not_an_array)? {
        // Protocols 2 to 4: an empty array, then its state (version, shape, dtype, column by column, data).
        (("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct"), _) => {
            match pickle.state(value).and_then(|state| pickle.sequence(state)) {
                Some(&[_, shape, dtype, Value::Bool(columns), data]) => {
                    (shape, dtype, if columns { Order::Columns } else { Order::Rows }, data)
                }
                _ => return Err(Fault::invalid("a numpy array without its data")),
            }
        }
        // Protocol 5: (data, dtype, shape, order), since numpy 2 also the order of the axes.
        (
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer"),
            &[data, dtype, shape, order, ref axes @ ..],
        ) => {
            let axes = axes.first().and_then(|axes| pickle.sizes(*axes));
            let order = match (pickle.text(order), axes) {
                (Some("C"), _) => Order::Rows,
                (Some("F"), _) => Order::Columns,
                (Some("K"), Some(axes)) => Order::Axes(axes),
                _ => return Err(Fault::invalid("a numpy array without an order")),
            };
            (shape, dtype, order, data)
        }
        _ => return Err(not_an_array()),
    };
    let shape = pickle.sizes(shape).ok_or_else(|| Fault::invalid("a numpy array without a shape"))?;
    let element = dtype_of(pickle, dtype)?;
    let data = pickle.bytes(data).ok_or_else(|| Fault::unsupported("a numpy array of Python objects"))?;
    let count = elements::element_count(&shape)?;
    if count.checked_mul(element.size()) != Some(data.len()) {
        return Err(Fault::invalid(format!(
            "shape {shape:?} of {} bytes each does not fit {} bytes of data",
            element.size(),
            data.len()
        )));
    }
    let layout = match order {
        Order::Rows => Layout::contiguous(shape, count)?,
        Order::Columns => Layout::column_major(shape, count)?,
        Order::Axes(axes) => Layout::permuted(shape, &axes, count)?,
    };
    Ok(Array { shape: layout.shape().to_vec(), element, layout, data })
}

/// `numpy.dtype('f2', False, True)` with its state (version, byte order, …).
fn dtype_of(pickle: &Pickle, value: Value) -> Result<ElementType, Fault> {
    let name = match pickle.call(value) {
        Some((("numpy", "dtype"), &[name, ..])) => pickle.text(name),
        _ => None,
    };
    let name = name.ok_or_else(|| Fault::invalid("a numpy array without a dtype"))?;
    let state = pickle.state(value).and_then(|state| pickle.sequence(state)).unwrap_or_default();
    let order = state.get(1).and_then(|order| pickle.text(*order));
    let name = name.trim_start_matches(['<', '=', '|']);
    if order == Some(">") || name.starts_with('>') {
        return Err(Fault::unsupported("big-endian numbers, little-endian ones are read"));
    }
    match name {
        "f8" => Ok(ElementType::F64),
        "f4" => Ok(ElementType::F32),
        "f2" => Ok(ElementType::F16),
        other => Err(Fault::unsupported(format!("numpy dtype `{}`, f2, f4 and f8 are read", shown(other)))),
    }
}
