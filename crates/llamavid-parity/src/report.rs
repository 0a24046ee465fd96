//! What was compared and how far apart it was, as a table or as JSON.

use candle_core::{DType, Device, Tensor};
use serde::Serialize;

/// One comparison.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// The case's id.
    pub case: String,
    /// The tensor's or the text's name.
    pub name: String,
    /// Shape of the recorded tensor; empty for texts and ids.
    pub shape: Vec<usize>,
    /// Largest absolute difference; `null` where numbers cannot be compared.
    pub max_absolute: Option<f64>,
    /// Largest absolute difference over the largest recorded magnitude.
    pub max_relative: Option<f64>,
    /// Largest relative difference that passes.
    pub tolerance: f64,
    /// Whether it passed.
    pub passed: bool,
    /// Why not, where numbers do not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// All comparisons of one folder.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FolderReport {
    /// The folder.
    pub folder: String,
    /// The comparisons in the order in which they were made.
    pub checks: Vec<Check>,
    /// Recorded tensors of parts that this program does not compare, each with its reason.
    pub left_out: Vec<String>,
    #[serde(skip)]
    case: String,
}

/// What the reference's README allows: 32-bit floats on a CPU.
pub const TENSOR: f64 = 1e-4;
/// Pixels, which go through bytes and must be almost exact.
pub const PIXELS: f64 = 1e-6;
/// Losses, sums of thousands of numbers.
pub const LOSS: f64 = 1e-5;
/// Gradients, which have been through every layer twice.
pub const GRADIENT: f64 = 2e-3;

impl FolderReport {
    /// An empty report.
    pub fn new(folder: String) -> Self {
        Self { folder, checks: Vec::new(), left_out: Vec::new(), case: String::new() }
    }

    /// Files later comparisons under this case.
    pub fn enter(&mut self, case: &str) {
        case.clone_into(&mut self.case);
    }

    /// Whether everything was equal within its tolerance.
    pub fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.passed)
    }

    /// Compares two tensors; shapes may differ in dimensions of size one only.
    pub fn tensor(&mut self, name: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
        let shape = expected.dims().to_vec();
        let squeezed = |dims: &[usize]| dims.iter().copied().filter(|&size| size != 1).collect::<Vec<_>>();
        if squeezed(actual.dims()) != squeezed(expected.dims()) {
            let problem = format!("shape {:?} instead of {:?}", actual.dims(), expected.dims());
            return self.push(name, shape, None, tolerance, Some(problem));
        }
        match difference(actual, expected) {
            Ok(difference) => self.push(name, shape, Some(difference), tolerance, None),
            Err(error) => self.push(name, shape, None, tolerance, Some(error.to_string())),
        }
    }

    /// Compares two tensors whose numbers are of no account below `floor`.
    pub fn tensor_above(
        &mut self,
        name: &str,
        actual: &Tensor,
        expected: &Tensor,
        tolerance: f64,
        floor: f64,
    ) {
        match difference(actual, expected) {
            Ok((absolute, relative)) if actual.dims() == expected.dims() => {
                let magnitude = if relative > 0.0 { absolute / relative } else { 0.0 };
                let relative = relative.min(absolute / magnitude.max(floor).max(f64::MIN_POSITIVE));
                self.push(name, expected.dims().to_vec(), Some((absolute, relative)), tolerance, None);
            }
            _ => self.tensor(name, actual, expected, tolerance),
        }
    }

    /// Compares two numbers that are of no account below `floor`.
    pub fn number(&mut self, name: &str, actual: f64, expected: f64, tolerance: f64, floor: f64) {
        let absolute = (actual - expected).abs();
        let relative = absolute / expected.abs().max(floor).max(f64::MIN_POSITIVE);
        self.push(name, Vec::new(), Some((absolute, relative)), tolerance, None);
    }

    /// Records a difference that may be as large as `allowed`.
    pub fn within(&mut self, name: &str, absolute: f64, allowed: f64) {
        self.push(name, Vec::new(), Some((absolute, absolute / allowed)), 1.0, None);
    }

    /// Compares what must be equal.
    pub fn equal<T: PartialEq + std::fmt::Debug>(&mut self, name: &str, actual: &T, expected: &T) {
        let problem = (actual != expected).then(|| {
            let short = |value: &T| format!("{value:?}").chars().take(160).collect::<String>();
            format!("{} instead of {}", short(actual), short(expected))
        });
        self.push(name, Vec::new(), None, 0.0, problem);
    }

    /// Records that something could not be computed at all.
    pub fn failed(&mut self, name: &str, problem: String) {
        self.push(name, Vec::new(), None, 0.0, Some(problem));
    }

    fn push(
        &mut self,
        name: &str,
        shape: Vec<usize>,
        difference: Option<(f64, f64)>,
        tolerance: f64,
        problem: Option<String>,
    ) {
        // A NaN compares as too far.
        let near = difference.is_none_or(|(_, relative)| relative <= tolerance);
        self.checks.push(Check {
            case: self.case.clone(),
            name: name.to_owned(),
            shape,
            max_absolute: difference.map(|(absolute, _)| absolute),
            max_relative: difference.map(|(_, relative)| relative),
            tolerance,
            passed: near && problem.is_none(),
            problem,
        });
    }

    /// Prints the table.
    pub fn print(&self) {
        println!("{}", self.folder);
        println!("  {:<18} {:<24} {:>18} {:>10} {:>10}  ", "case", "tensor", "shape", "max abs", "max rel");
        for check in &self.checks {
            let number =
                |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1e}"));
            let shape = check.shape.iter().map(usize::to_string).collect::<Vec<_>>().join("×");
            println!(
                "  {:<18} {:<24} {:>18} {:>10} {:>10}  {}{}",
                check.case,
                check.name,
                shape,
                number(check.max_absolute),
                number(check.max_relative),
                if check.passed { "ok" } else { "FAILED" },
                check.problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default(),
            );
        }
        for reason in &self.left_out {
            println!("  left out: {reason}");
        }
        let failed = self.checks.iter().filter(|check| !check.passed).count();
        println!("  {} compared, {failed} failed\n", self.checks.len());
    }
}

/// Largest absolute difference, and the same over the largest expected magnitude.
fn difference(actual: &Tensor, expected: &Tensor) -> candle_core::Result<(f64, f64)> {
    let flat = |tensor: &Tensor| {
        tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()
    };
    let (actual, expected) = (flat(actual)?, flat(expected)?);
    let mut largest = 0f64;
    let mut magnitude = 0f64;
    for (&actual, &expected) in actual.iter().zip(&expected) {
        let apart = (actual - expected).abs();
        if apart.is_nan() {
            return Ok((f64::NAN, f64::NAN));
        }
        largest = largest.max(apart);
        magnitude = magnitude.max(expected.abs());
    }
    Ok((largest, if largest == 0.0 { 0.0 } else { largest / magnitude.max(f64::MIN_POSITIVE) }))
}
