//! From a checkpoint to modules, strictly: every weight that a module asks for must be there, in the shape asked for
//! and with finite numbers, and every weight that is there must be asked for.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use llamavid_kernels::{BlockFormat, QuantisedMatrix, interleaving_pays};

use crate::checkpoint::Checkpoint;
use crate::elements;
use crate::error::{Error, Fault, Result};
use crate::key_table::{KeyTable, LANGUAGE};
use crate::quantisation::Quantisation;

/// Names of unused keys that an error lists.
const LISTED: usize = 10;
/// Errors that are kept for [`Loader::explain`].
const KEPT: usize = 32;

/// Builds one part of a model from a checkpoint, and keeps account of the weights it used.
#[derive(Debug)]
pub struct Loader {
    source: Arc<Source>,
    dtype: DType,
    device: Device,
}

/// Where a weight is, and of which kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its published name.
    pub name: String,
    /// The file that holds it.
    pub file: PathBuf,
    /// Its name in that file.
    pub key: String,
    /// The dtype in which it is read.
    pub dtype: DType,
    /// How it is stored, where it lies in its file as it is.
    pub format: Option<BlockFormat>,
    /// Whether its rows are interleaved there.
    pub interleaved: bool,
}

#[derive(Debug)]
struct Source {
    checkpoint: Checkpoint,
    table: &'static KeyTable,
    quantisation: Option<Quantisation>,
    /// Whether the rows of matrices that are rounded here are interleaved.
    interleaves: bool,
    account: Mutex<Account>,
}

#[derive(Debug, Default)]
struct Account {
    /// Upstream's names of the weights that modules took.
    used: BTreeSet<String>,
    /// What went wrong, because candle's errors cannot carry it.
    errors: Vec<Error>,
}

impl Loader {
    /// A loader of the part that `table` describes. Its weights become `dtype` on `device`.
    pub fn new(checkpoint: Checkpoint, table: &'static KeyTable, dtype: DType, device: &Device) -> Self {
        Self::quantising(checkpoint, table, None, dtype, device)
    }

    /// The same, whose [`Loader::matrices`] are stored in fewer bits as they are read, one at a time.
    pub fn quantising(
        checkpoint: Checkpoint,
        table: &'static KeyTable,
        quantisation: Option<Quantisation>,
        dtype: DType,
        device: &Device,
    ) -> Self {
        // The other parts have many rows to multiply at any time, and lay their weights out for those themselves.
        let decodes = table.part == LANGUAGE.part;
        let interleaves = decodes && device.is_cpu() && interleaving_pays();
        let account = Mutex::new(Account::default());
        let source = Source { checkpoint, table, quantisation, interleaves, account };
        Self { source: Arc::new(source), dtype, device: device.clone() }
    }

    /// A builder that knows the weights by our names. Its errors are candle's; [`Loader::explain`] gives ours.
    pub fn var_builder(&self) -> VarBuilder<'static> {
        let backend = Backend { source: self.source.clone() };
        VarBuilder::from_backend(Box::new(backend), self.dtype, self.device.clone())
    }

    /// Gives matrices by our names in blocks: those that a file holds in blocks, as they lie there, and those that are to be
    /// quantised. Others are for the builder, and on another device than the CPU those of formats without blocks too.
    pub fn matrices(
        &self,
    ) -> impl Fn(&str, (usize, usize)) -> candle_core::Result<Option<QuantisedMatrix>> + Send + Sync + 'static
    {
        let (source, on_cpu) = (self.source.clone(), self.device.is_cpu());
        move |ours, shape| {
            let matrix = source.matrix(ours, shape).map_err(|error| source.keep(error))?;
            Ok(matrix.filter(|matrix| on_cpu || matrix.format().block_length() > 1))
        }
    }

    /// The format of blocks in which a matrix by our name would be held with this quantisation; none for a tensor.
    ///
    /// # Errors
    /// A tensor of a kind that is not read.
    pub fn format(
        &self,
        quantisation: Option<Quantisation>,
        ours: &str,
        columns: usize,
    ) -> Result<Option<BlockFormat>> {
        let source = &self.source;
        let Some(name) = source.table.upstream(ours).filter(|name| source.checkpoint.contains(name)) else {
            return Ok(quantisation.and_then(|quantisation| quantisation.format(ours, columns)));
        };
        let wanted = source.wanted(quantisation, &name, ours, columns)?;
        match source.checkpoint.is_compact(&name)? {
            true => Ok(wanted.or(source.checkpoint.format(&name)?)),
            false => Ok(wanted),
        }
    }

    /// The error behind one that a builder of this loader gave, or that error itself when it is of another origin.
    pub fn explain(&self, error: candle_core::Error) -> Error {
        let text = error.to_string();
        let mut account = self.source.account();
        // By content: a module may have tried one name, failed, and gone on with another.
        match account.errors.iter().position(|kept| text.contains(&kept.to_string())) {
            Some(index) => account.errors.remove(index),
            None => Error::Tensor(error),
        }
    }

    /// Whether the checkpoint has a weight, by our name.
    pub fn contains(&self, ours: &str) -> bool {
        self.source.table.upstream(ours).is_some_and(|name| self.source.checkpoint.contains(&name))
    }

    /// Looks a weight up without reading its numbers, and counts it as used.
    ///
    /// # Errors
    /// No such weight, another shape, or numbers that are no floating-point ones.
    pub fn find(&self, ours: &str, shape: &[usize]) -> Result<Found> {
        let found = self.source.find(ours, Some(&Shape::from(shape)), true)?;
        self.source.account().used.insert(found.name.clone());
        Ok(found)
    }

    /// Reads a weight by our name in `dtype` and gives the memory of the mapped file back.
    ///
    /// # Errors
    /// No such weight, or one that is not finite in `dtype`.
    pub fn read(&self, ours: &str, dtype: DType) -> Result<Tensor> {
        let tensor = self.source.load(ours, None, dtype, &self.device)?;
        if let Some(name) = self.source.table.upstream(ours) {
            self.source.checkpoint.release(&name);
        }
        Ok(tensor)
    }

    /// Ends loading.
    ///
    /// # Errors
    /// [`Error::Unused`] when the checkpoint has weights of this part that no module took.
    pub fn finish(self) -> Result<()> {
        let Source { checkpoint, table, .. } = &*self.source;
        let account = self.source.account();
        let unused: Vec<&str> = checkpoint
            .names()
            .filter(|name| table.claims(name) && !account.used.contains(*name))
            .filter(|name| !table.ignores(name, &account.used))
            .collect();
        let Some(first) = unused.first() else { return Ok(()) };
        let keys = unused.iter().take(LISTED).map(|name| checkpoint.place(name).1).collect();
        let file =
            if unused.len() == 1 { checkpoint.place(first).0 } else { checkpoint.origin().to_path_buf() };
        Err(Error::Unused { file, keys, count: unused.len() })
    }
}

impl Source {
    fn account(&self) -> MutexGuard<'_, Account> {
        // A panic elsewhere leaves names and errors as they were, so they can be used on.
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an error, of which candle's can carry the text only.
    fn keep(&self, error: Error) -> candle_core::Error {
        match error {
            Error::Tensor(error) => error,
            error => {
                let text = error.to_string();
                let mut account = self.account();
                if account.errors.len() < KEPT {
                    account.errors.push(error);
                }
                candle_core::Error::Msg(text)
            }
        }
    }

    /// A matrix by our name in blocks, or none where it is to be a tensor.
    fn matrix(&self, ours: &str, (rows, columns): (usize, usize)) -> Result<Option<QuantisedMatrix>> {
        let Some(name) = self.table.upstream(ours).filter(|name| self.checkpoint.contains(name)) else {
            // The builder says what is missing.
            return Ok(None);
        };
        let stored = self.checkpoint.format(&name)?;
        let wanted = self.wanted(self.quantisation, &name, ours, columns)?;
        if wanted.is_none() && !self.checkpoint.is_compact(&name)? {
            return Ok(None);
        }
        let found = self.checkpoint.shape(&name)?;
        if found != [rows, columns] {
            let (file, key) = self.checkpoint.place(&name);
            return Err(Error::ShapeMismatch { file, key, expected: vec![rows, columns], found });
        }
        let matrix = match wanted {
            None => self.checkpoint.matrix(&name)?,
            Some(format) => {
                let numbers = self.checkpoint.read_widened(&name)?;
                self.checkpoint.expect_finite(&name, &numbers)?;
                match (format, stored) {
                    // In 16 bits of either kind already.
                    (BlockFormat::F16, Some(BlockFormat::F16 | BlockFormat::BF16)) => {
                        self.checkpoint.matrix(&name)?
                    }
                    _ => {
                        self.checkpoint.release(&name);
                        let matrix = QuantisedMatrix::quantise(&numbers, format)?;
                        drop(numbers);
                        Some(if self.interleaves && format.interleaves() {
                            matrix.interleaved()?
                        } else {
                            matrix
                        })
                    }
                }
            }
        };
        self.account().used.insert(name);
        Ok(matrix)
    }

    /// The format that a matrix is to be rounded to.
    fn wanted(
        &self,
        quantisation: Option<Quantisation>,
        name: &str,
        ours: &str,
        columns: usize,
    ) -> Result<Option<BlockFormat>> {
        let stored = self.checkpoint.format(name)?;
        let wanted = quantisation.and_then(|quantisation| quantisation.format(ours, columns));
        // Rounded numbers are not rounded again.
        Ok(wanted.filter(|_| stored.is_none_or(|format| format.block_length() == 1)))
    }

    /// Where a weight is by our name; `expected` is absent where the module takes any shape.
    fn find(&self, ours: &str, expected: Option<&Shape>, float: bool) -> Result<Found> {
        let Some(name) = self.table.upstream(ours) else {
            let (file, key) = (self.checkpoint.origin().to_path_buf(), ours.to_string());
            return Err(Error::TensorMissing { file, key });
        };
        let found = self.checkpoint.shape(&name)?;
        let (file, key) = self.checkpoint.place(&name);
        if let Some(expected) = expected
            && expected.dims() != found
        {
            return Err(Error::ShapeMismatch { file, key, expected: expected.dims().to_vec(), found });
        }
        let dtype = self.checkpoint.dtype(&name)?;
        if dtype.is_int() && float {
            let problem = format!("expected floating-point numbers, found {}", dtype.as_str());
            return Err(Fault::Invalid(problem).in_tensor(&file, &key));
        }
        let format = self.checkpoint.format(&name)?;
        let interleaved = self.checkpoint.is_interleaved(&name)?;
        Ok(Found { name, file, key, dtype, format, interleaved })
    }

    /// A weight by our name, in the dtype asked for.
    fn load(&self, ours: &str, expected: Option<&Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
        let Found { name, file, key, .. } = self.find(ours, expected, dtype.is_float())?;
        let tensor = match dtype {
            DType::F32 => self.checkpoint.read_widened(&name)?,
            _ => self.checkpoint.read(&name, &Device::Cpu)?,
        };
        self.checkpoint.release(&name);
        self.checkpoint.expect_finite(&name, &tensor)?;
        let narrowed = dtype.is_float() && dtype != tensor.dtype();
        let converted = tensor.to_dtype(dtype)?;
        if narrowed && let Some((index, _)) = elements::first_not_finite(&converted) {
            let value = tensor.flatten_all()?.get(index)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            return Err(Error::NotFinite { file, key, index, value, overflows: Some(dtype.as_str()) });
        }
        let tensor = converted.to_device(device)?;
        self.account().used.insert(name);
        Ok(tensor)
    }
}

struct Backend {
    source: Arc<Source>,
}

impl Backend {
    fn load(
        &self,
        name: &str,
        shape: Option<&Shape>,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.source.load(name, shape, dtype, device).map_err(|error| self.source.keep(error))
    }
}

impl SimpleBackend for Backend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _init: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.load(name, Some(&shape), dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.load(name, None, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.source.table.upstream(name).is_some_and(|name| self.source.checkpoint.contains(&name))
    }
}
