//! A set of named tensors over one or more files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use llamavid_kernels::{BlockFormat, QuantisedMatrix, turned_row};

use crate::elements;
use crate::error::{Error, Fault, Result};
use crate::gguf::{GgufFile, Published};
use crate::index_file;
use crate::tensor_file::TensorFile;

/// File names of a checkpoint folder, the first that is there is read. Those of an index end in `.index.json`.
const FOLDER_FILES: [&str; 4] = [
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
];

/// Named tensors over one or more files. Opening reads names and shapes; the numbers are read with each tensor.
///
/// The files stay mapped while the checkpoint or a view of it lives; they must not be cut short meanwhile.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Folder or file that was opened.
    origin: PathBuf,
    /// What was cut off the names.
    prefix: String,
    tensors: BTreeMap<String, Located>,
}

/// A tensor's file and its name there, which a view's own name may be a part of.
#[derive(Debug, Clone)]
struct Located {
    file: Arc<TensorFile>,
    key: String,
    /// The width of a head whose rows lie in pairs.
    turned: Option<usize>,
}

impl Located {
    /// Rows of a tensor whose heads are `width` rows each.
    fn rows(&self, width: usize) -> Result<usize> {
        let rows = self.file.shape(&self.key)?.first().copied().unwrap_or(0);
        if rows.is_multiple_of(width) {
            return Ok(rows);
        }
        let problem = format!("{rows} rows are no whole heads of {width}");
        Err(Fault::Invalid(problem).in_tensor(self.file.path(), &self.key))
    }
}

impl Checkpoint {
    /// Opens a folder in the published layout: `model.safetensors` or `pytorch_model.bin`, in one file or in shards
    /// with an index.
    ///
    /// # Errors
    /// No such file, a missing shard, a shard outside the folder, or without a tensor that the index says it has.
    pub fn open_folder(folder: &Path) -> Result<Self> {
        let missing = |file: PathBuf, needed: String| Error::FileMissing { file, needed };
        if !folder.is_dir() {
            return Err(missing(folder.to_path_buf(), "a folder with weights is expected".to_string()));
        }
        let Some(name) = FOLDER_FILES.into_iter().find(|name| folder.join(name).exists()) else {
            let needed = format!("expected one of {}", FOLDER_FILES.join(", "));
            return Err(missing(folder.join(FOLDER_FILES[1]), needed));
        };
        let file = folder.join(name);
        let mut checkpoint = if name.ends_with(".index.json") {
            Self::open_shards(folder, &file)?
        } else {
            Self::open_file(&file)?
        };
        checkpoint.origin = folder.to_path_buf();
        Ok(checkpoint)
    }

    /// Opens one file: safetensors, or torch's zip or older stream format, told apart by content.
    ///
    /// # Errors
    /// A file that is missing, damaged, hostile or of another format.
    pub fn open_file(file: &Path) -> Result<Self> {
        let mut checkpoint = Self::empty(file);
        checkpoint.add(&Arc::new(TensorFile::open(file)?));
        Ok(checkpoint)
    }

    /// Takes the tensors of a GGUF file under their published names.
    ///
    /// # Errors
    /// A file of another architecture than `llama`, `qwen2` and `llamavid`, or with a tensor that these do not have.
    pub fn from_gguf(gguf: GgufFile) -> Result<Self> {
        let names = gguf.published_names()?;
        let mut checkpoint = Self::empty(gguf.path());
        let file = Arc::new(TensorFile::from_gguf(gguf));
        checkpoint.tensors.extend(
            names
                .into_iter()
                .map(|Published { name, key, turned }| (name, Located { file: file.clone(), key, turned })),
        );
        Ok(checkpoint)
    }

    fn empty(origin: &Path) -> Self {
        Self { origin: origin.to_path_buf(), prefix: String::new(), tensors: BTreeMap::new() }
    }

    fn open_shards(folder: &Path, index: &Path) -> Result<Self> {
        let mut checkpoint = Self::empty(folder);
        let mut indexed = Vec::new();
        for (path, names) in index_file::read(folder, index)? {
            let shard = Arc::new(TensorFile::open(&path)?);
            if let Some(absent) = names.iter().find(|name| !shard.contains(name)) {
                let problem =
                    format!("the index {} says it is in this shard, and it is not", index.display());
                return Err(Fault::Invalid(problem).in_tensor(&path, absent));
            }
            // Tensors that the index leaves out count too, so that loading can report them.
            checkpoint.add(&shard);
            indexed.extend(names.into_iter().map(|key| (shard.clone(), key)));
        }
        // Where two shards have a tensor, the index decides.
        for (file, key) in indexed {
            checkpoint.tensors.insert(key.clone(), Located { file, key, turned: None });
        }
        Ok(checkpoint)
    }

    fn add(&mut self, file: &Arc<TensorFile>) {
        for name in file.names() {
            let located = Located { file: file.clone(), key: name.to_string(), turned: None };
            self.tensors.insert(name.to_string(), located);
        }
    }

    /// The folder or file that was opened.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether a tensor of this name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor's shape, without reading its numbers.
    ///
    /// # Errors
    /// No tensor of this name, or one of a kind that is not read.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        let located = self.located(name)?;
        located.file.shape(&located.key).map(<[usize]>::to_vec)
    }

    /// The dtype that [`Checkpoint::read`] gives: the file's, or the next wider one that candle has (i8 → i16,
    /// u16 → u32, bool → u8).
    ///
    /// # Errors
    /// No tensor of this name, or one of a kind that is not read.
    pub fn dtype(&self, name: &str) -> Result<DType> {
        let located = self.located(name)?;
        located.file.dtype(&located.key)
    }

    /// Reads a tensor onto `device`, contiguous, in the dtype of [`Checkpoint::dtype`].
    ///
    /// # Errors
    /// No tensor of this name, one of a kind that is not read, or a device without memory.
    pub fn read(&self, name: &str, device: &Device) -> Result<Tensor> {
        let located = self.located(name)?;
        let mut tensor = located.file.read(&located.key)?;
        if let Some(width) = located.turned {
            let rows = located.rows(width)?;
            let order: Vec<u32> = (0..rows).map(|row| turned_row(row, width) as u32).collect();
            tensor = tensor.index_select(&Tensor::new(order, &Device::Cpu)?, 0)?;
        }
        Ok(tensor.to_device(device)?)
    }

    /// The same on the CPU, every number of it finite.
    ///
    /// # Errors
    /// Those of [`Checkpoint::read`], and a number that is not finite.
    pub fn read_finite(&self, name: &str) -> Result<Tensor> {
        let tensor = self.read(name, &Device::Cpu)?;
        self.expect_finite(name, &tensor)?;
        Ok(tensor)
    }

    /// Whether every number of a tensor, which was read from here, is finite.
    pub(crate) fn expect_finite(&self, name: &str, tensor: &Tensor) -> Result<()> {
        let Some((index, value)) = elements::first_not_finite(tensor) else { return Ok(()) };
        let (file, key) = self.place(name);
        Err(Error::NotFinite { file, key, index, value, overflows: None })
    }

    /// The same on the CPU, in f32 where it is stored in 16 bits.
    ///
    /// # Errors
    /// Those of [`Checkpoint::read`].
    pub(crate) fn read_widened(&self, name: &str) -> Result<Tensor> {
        let located = self.located(name)?;
        match located.file.read_widened(&located.key)? {
            Some(tensor) => Ok(tensor),
            None => self.read(name, &Device::Cpu),
        }
    }

    /// Gives the memory of a mapped tensor back to the system: reading a whole checkpoint then takes the memory of one
    /// tensor and not that of all files.
    pub fn release(&self, name: &str) {
        if let Ok(located) = self.located(name) {
            located.file.release(&located.key);
        }
    }

    /// How a matrix is stored, where it can stay in its file; none where it has to be read.
    ///
    /// # Errors
    /// No tensor of this name, or one of a kind that is not read.
    pub fn format(&self, name: &str) -> Result<Option<BlockFormat>> {
        let located = self.located(name)?;
        located.file.format(&located.key)
    }

    /// Whether it is a matrix in blocks whose rows are interleaved.
    ///
    /// # Errors
    /// No tensor of this name.
    pub fn is_interleaved(&self, name: &str) -> Result<bool> {
        let located = self.located(name)?;
        located.file.is_interleaved(&located.key)
    }

    /// Whether it is a tensor of a GGUF file in fewer than 32 bits, made to be used as it lies there.
    pub(crate) fn is_compact(&self, name: &str) -> Result<bool> {
        let located = self.located(name)?;
        located.file.is_compact(&located.key)
    }

    /// A matrix as it is stored, in its mapped file; none where [`Checkpoint::format`] gives none.
    /// Its numbers are not looked at.
    ///
    /// # Errors
    /// No tensor of this name, or one of a kind that is not read.
    pub fn matrix(&self, name: &str) -> Result<Option<QuantisedMatrix>> {
        let located = self.located(name)?;
        let matrix = located.file.matrix(&located.key)?;
        let Some((matrix, width)) = matrix.as_ref().zip(located.turned) else { return Ok(matrix) };
        located.rows(width)?;
        Ok(Some(matrix.clone().with_turned_heads(width)?))
    }

    /// The tensors whose names begin with `prefix`, without it. `prefix` is taken as it is, so mind its last dot.
    pub fn under(&self, prefix: &str) -> Self {
        let cut = |name: &str| name.strip_prefix(prefix).filter(|rest| !rest.is_empty()).map(str::to_string);
        let tensors =
            self.tensors.iter().filter_map(|(name, located)| Some((cut(name)?, located.clone()))).collect();
        Self { origin: self.origin.clone(), prefix: format!("{}{prefix}", self.prefix), tensors }
    }

    /// This checkpoint with `later` laid over it: where both have a tensor, the later one counts.
    #[must_use]
    pub fn overlaid_with(mut self, later: Self) -> Self {
        self.tensors.extend(later.tensors);
        self
    }

    /// The file that holds a tensor and its full name there, or what was opened where there is none.
    pub fn place(&self, name: &str) -> (PathBuf, String) {
        match self.tensors.get(name) {
            Some(located) => (located.file.path().to_path_buf(), located.key.clone()),
            None => (self.origin.clone(), format!("{}{name}", self.prefix)),
        }
    }

    fn located(&self, name: &str) -> Result<&Located> {
        self.tensors.get(name).ok_or_else(|| {
            let (file, key) = self.place(name);
            Error::TensorMissing { file, key }
        })
    }
}
