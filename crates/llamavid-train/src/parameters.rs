//! All weights of a model in training, by our names, behind a `VarBuilder`.
//!
//! A weight is made when a module first asks for it: read from the checkpoint of its part, or created from the seed.
//! A weight that trains is an f32 variable, whatever dtype the module computes in; one that does not is a plain
//! tensor, so no gradient is ever made for it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Shape, Tensor, Var, bail};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use llamavid_weights::{Checkpoint, KeyTable, Loader, Part};

use crate::creation::{as_published, create};
use crate::error::Result;
use crate::files;
use crate::freeze_plan::FreezePlan;

/// The weights. Cloning shares them.
#[derive(Clone)]
pub struct Parameters {
    shared: Arc<Shared>,
}

struct Shared {
    plan: FreezePlan,
    seed: u64,
    /// What a weight that does not train is kept in.
    frozen_dtype: DType,
    device: Device,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    weights: BTreeMap<String, Weight>,
    sources: Vec<Source>,
}

#[derive(Clone)]
enum Weight {
    Trained(Var),
    Frozen(Tensor),
}

/// The checkpoint of the weights below a name.
struct Source {
    prefix: String,
    loader: Loader,
    missing: Missing,
}

/// What to do about a weight that a checkpoint does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// It is an error that names it.
    Fail,
    /// Weights below these names, relative to the part, are created; others are errors.
    CreateBelow(&'static [&'static str]),
}

impl Parameters {
    /// No weights yet. `plan` says which will train; `seed` is that of all weights that are created.
    pub fn new(plan: FreezePlan, seed: u64, device: &Device) -> Self {
        Self::with(plan, seed, DType::F32, device, BTreeMap::new())
    }

    fn with(
        plan: FreezePlan,
        seed: u64,
        frozen_dtype: DType,
        device: &Device,
        weights: BTreeMap<String, Weight>,
    ) -> Self {
        let state = Mutex::new(State { weights, sources: Vec::new() });
        let device = device.clone();
        Self { shared: Arc::new(Shared { plan, seed, frozen_dtype, device, state }) }
    }

    /// The same weights; those that do not train and are made from now on are kept in `dtype`, to save memory.
    #[must_use]
    pub fn with_frozen_dtype(self, dtype: DType) -> Self {
        let Shared { plan, seed, device, .. } = &*self.shared;
        Self::with(plan.clone(), *seed, dtype, device, self.weights())
    }

    /// The same values, of which others train: the next stage. Modules of these weights have to be built anew.
    ///
    /// # Errors
    /// A device without memory.
    pub fn with_plan(&self, plan: FreezePlan) -> Result<Self> {
        let Shared { seed, frozen_dtype, device, .. } = &*self.shared;
        let mut weights = BTreeMap::new();
        for (name, weight) in self.weights() {
            let tensor = match &weight {
                // Later updates of the variable must not reach the copy.
                Weight::Trained(var) => var.as_detached_tensor().copy()?,
                Weight::Frozen(tensor) => tensor.clone(),
            };
            let trains = plan.trains(&name);
            weights.insert(name, Weight::new(&tensor, trains, *frozen_dtype)?);
        }
        Ok(Self::with(plan, *seed, *frozen_dtype, device, weights))
    }

    /// Weights below `prefix` will be read from `checkpoint`, whose names `table` knows, until
    /// [`Parameters::finish_reading`].
    pub fn read_from(
        &self,
        prefix: &str,
        checkpoint: Checkpoint,
        table: &'static KeyTable,
        missing: Missing,
    ) {
        let loader = Loader::new(checkpoint, table, DType::F32, &self.shared.device);
        self.state().sources.push(Source { prefix: format!("{prefix}."), loader, missing });
    }

    /// The same for a part in the published layout.
    pub fn read_part(&self, part: Part, checkpoint: Checkpoint, missing: Missing) {
        self.read_from(part.name(), checkpoint, part.table(), missing);
    }

    /// Ends reading, once the modules have been built.
    ///
    /// # Errors
    /// A checkpoint that has weights of a part which no module took.
    pub fn finish_reading(&self) -> Result<()> {
        let sources = std::mem::take(&mut self.state().sources);
        for source in sources {
            source.loader.finish()?;
        }
        Ok(())
    }

    /// The error behind one that a module's construction gave, with the file and the key where a file was the cause.
    pub fn explain(&self, error: llamavid_models::Error) -> crate::Error {
        let llamavid_models::Error::Tensor(error) = error else { return error.into() };
        let text = error.to_string();
        for source in &self.state().sources {
            match source.loader.explain(candle_core::Error::Msg(text.clone())) {
                llamavid_weights::Error::Tensor(_) => {}
                explained => return explained.into(),
            }
        }
        error.into()
    }

    /// A builder of modules that compute in f32.
    pub fn var_builder(&self) -> VarBuilder<'static> {
        self.var_builder_as(DType::F32)
    }

    /// A builder of modules that compute in `dtype`: weights that train are cast from their f32 master, and gradients
    /// go back through the cast. Such modules hold the weights of the moment: build them anew after an update.
    pub fn var_builder_as(&self, dtype: DType) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(Backend(self.clone())), dtype, self.shared.device.clone())
    }

    /// The device of all weights.
    pub fn device(&self) -> &Device {
        &self.shared.device
    }

    /// What trains.
    pub fn plan(&self) -> &FreezePlan {
        &self.shared.plan
    }

    /// The weights that train, sorted by name.
    pub fn trainable(&self) -> Vec<(String, Var)> {
        let trained = |(name, weight): (&String, &Weight)| match weight {
            Weight::Trained(var) => Some((name.clone(), var.clone())),
            Weight::Frozen(_) => None,
        };
        self.state().weights.iter().filter_map(trained).collect()
    }

    /// Names of all weights, sorted.
    pub fn names(&self) -> Vec<String> {
        self.state().weights.keys().cloned().collect()
    }

    /// A weight's numbers, which later updates change in place.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.state().weights.get(name).map(|weight| weight.tensor().detach())
    }

    /// All weights' numbers, sorted by name.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.weights().into_iter().map(|(name, weight)| (name, weight.tensor().detach())).collect()
    }

    /// Puts a weight in before a module asks for it, or gives one other numbers. Modules see the new numbers of a weight
    /// of the same shape that trains; others have to be built anew.
    ///
    /// # Errors
    /// A device without memory.
    pub fn set(&self, name: &str, tensor: &Tensor) -> Result<()> {
        let mut state = self.state();
        match state.weights.get(name) {
            Some(Weight::Trained(var)) if var.shape() == tensor.shape() => {
                var.set(&tensor.to_dtype(DType::F32)?.contiguous()?)?
            }
            _ => {
                let tensor = tensor.to_device(&self.shared.device)?;
                let weight = Weight::new(&tensor, self.shared.plan.trains(name), self.shared.frozen_dtype)?;
                state.weights.insert(name.to_owned(), weight);
            }
        }
        Ok(())
    }

    /// Numbers as a weight of this name would begin with where no file has it, without making it a weight.
    ///
    /// # Errors
    /// A device without memory.
    pub fn create(&self, name: &str, shape: impl Into<Shape>, asked: Init) -> candle_core::Result<Tensor> {
        let shape = shape.into();
        let init = as_published(name, &shape, asked);
        create(self.shared.seed, name, &shape, init, &self.shared.device)
    }

    /// Writes all weights by our names into one safetensors file: to a temporary name, then moved, so that a file of this
    /// name is always whole.
    ///
    /// # Errors
    /// [`crate::Error::DiskFull`], [`crate::Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        files::write_safetensors(path, &self.tensors(), &BTreeMap::new())
    }

    /// Reads what [`Parameters::save`] wrote.
    ///
    /// # Errors
    /// A file that is missing or damaged.
    pub fn load(path: &Path, plan: FreezePlan, seed: u64, device: &Device) -> Result<Self> {
        let parameters = Self::new(plan, seed, device);
        let checkpoint = Checkpoint::open_file(path)?;
        for name in checkpoint.names() {
            parameters.set(name, &checkpoint.read(name, device)?)?;
        }
        Ok(parameters)
    }

    fn weights(&self) -> BTreeMap<String, Weight> {
        self.state().weights.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves whole weights behind.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A weight that a module asks for; `asked` is absent where it takes any shape.
    fn weight(&self, name: &str, asked: Option<(&Shape, Init)>, dtype: DType) -> candle_core::Result<Tensor> {
        let mut state = self.state();
        if !state.weights.contains_key(name) {
            let tensor = match (state.read(name, asked.map(|(shape, _)| shape))?, asked) {
                (Some(tensor), _) => tensor,
                (None, Some((shape, init))) => self.create(name, shape, init)?,
                (None, None) => bail!("weight `{name}` does not exist"),
            };
            let weight = Weight::new(&tensor, self.shared.plan.trains(name), self.shared.frozen_dtype)?;
            state.weights.insert(name.to_owned(), weight);
        }
        let Some(weight) = state.weights.get(name) else { bail!("weight `{name}` does not exist") };
        let tensor = weight.tensor();
        if let Some((shape, _)) = asked
            && tensor.shape() != shape
        {
            bail!("weight `{name}` has shape {:?}, its module needs {shape:?}", tensor.shape());
        }
        tensor.to_dtype(dtype)
    }
}

impl State {
    /// A weight's numbers from the checkpoint of its part; none when it is to be created.
    fn read(&self, name: &str, shape: Option<&Shape>) -> candle_core::Result<Option<Tensor>> {
        let Some((source, rest)) = self
            .sources
            .iter()
            .rev()
            .find_map(|source| name.strip_prefix(&source.prefix).map(|rest| (source, rest)))
        else {
            return Ok(None);
        };
        let builder = source.loader.var_builder();
        let creatable = match source.missing {
            Missing::Fail => false,
            Missing::CreateBelow(prefixes) => FreezePlan::only(prefixes.iter().copied()).trains(rest),
        };
        if creatable && !builder.contains_tensor(rest) {
            return Ok(None);
        }
        match shape {
            Some(shape) => builder.get(shape.clone(), rest),
            None => builder.get_unchecked(rest),
        }
        .map(Some)
    }
}

impl Weight {
    fn new(tensor: &Tensor, trains: bool, frozen_dtype: DType) -> candle_core::Result<Self> {
        Ok(if trains {
            Self::Trained(Var::from_tensor(&tensor.to_dtype(DType::F32)?.contiguous()?)?)
        } else {
            Self::Frozen(tensor.to_dtype(frozen_dtype)?.contiguous()?)
        })
    }

    fn tensor(&self) -> &Tensor {
        match self {
            Self::Trained(var) => var.as_tensor(),
            Self::Frozen(tensor) => tensor,
        }
    }
}

struct Backend(Parameters);

impl SimpleBackend for Backend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        _device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.0.weight(name, Some((&shape, init)), dtype)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _device: &Device) -> candle_core::Result<Tensor> {
        self.0.weight(name, None, dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        let state = self.0.state();
        state.weights.contains_key(name)
            || state.sources.iter().any(|source| {
                name.strip_prefix(&source.prefix)
                    .is_some_and(|rest| source.loader.var_builder().contains_tensor(rest))
            })
    }
}

impl fmt::Debug for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Parameters")
            .field("plan", &self.shared.plan)
            .field("weights", &state.weights.len())
            .finish_non_exhaustive()
    }
}
