//! The optimisers: AdamW as torch computes it, and Muon for hidden matrices.
//!
//! On the CPU an update runs in place over the weights' own f32 numbers on all cores, without temporaries; its result
//! does not depend on the number of cores.

mod adamw;
pub(crate) mod in_place;
mod muon;

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};

use crate::error::{Error, Result};

/// How a weight follows its gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Update {
    /// Adam with decoupled weight decay (arXiv 1711.05101).
    AdamW {
        /// Share of the old mean that is kept.
        beta1: f64,
        /// Share of the old mean square that is kept.
        beta2: f64,
        /// Added to the root of the mean square.
        epsilon: f64,
    },
    /// Momentum made orthogonal by five Newton–Schulz steps; for matrices inside a network, not for embeddings
    /// or heads. Reference: Keller Jordan, "Muon" (2024).
    Muon {
        /// Share of the old momentum that is kept.
        momentum: f64,
        /// Whether the gradient counts once more on top of the momentum.
        nesterov: bool,
    },
}

impl Update {
    /// AdamW with the reference's numbers: 0.9, 0.999, 1e-8.
    pub const fn adamw() -> Self {
        Self::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }

    /// Muon with its usual numbers: momentum 0.95, Nesterov.
    pub const fn muon() -> Self {
        Self::Muon { momentum: 0.95, nesterov: true }
    }
}

/// Weights that are updated alike.
#[derive(Debug, Clone)]
pub struct ParameterGroup {
    /// The weights with their names.
    pub variables: Vec<(String, Var)>,
    /// How they follow their gradients.
    pub update: Update,
    /// The rate at a schedule's factor of 1.
    pub learning_rate: f64,
    /// Share of a weight that a rate of 1 takes away in a step.
    pub weight_decay: f64,
}

/// Updates weights from gradients.
#[derive(Debug)]
pub struct Optimizer {
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    update: Update,
    learning_rate: f64,
    weight_decay: f64,
    members: Vec<Member>,
}

/// A weight and what the optimiser remembers of it.
#[derive(Debug)]
struct Member {
    name: String,
    var: Var,
    /// Updates so far; a step without a gradient for this weight does not count.
    steps: u64,
    /// AdamW: mean of the gradients. Muon: momentum.
    first: Tensor,
    /// AdamW: mean of the squared gradients.
    second: Option<Tensor>,
}

impl Optimizer {
    /// An optimiser that has made no step.
    ///
    /// # Errors
    /// [`Error::Setting`] for a rate, decay or other number outside its range, for Muon on something else than matrices,
    /// and for a weight in two groups.
    pub fn new(groups: Vec<ParameterGroup>) -> Result<Self> {
        let mut names = std::collections::BTreeSet::new();
        let mut made = Vec::with_capacity(groups.len());
        for group in groups {
            check(&group)?;
            let mut members = Vec::with_capacity(group.variables.len());
            for (name, var) in group.variables {
                if !names.insert(name.clone()) {
                    return Err(setting("variables", format!("`{name}` is in two groups")));
                }
                if var.dtype() != DType::F32 {
                    let problem = format!("`{name}` is {:?}; an optimiser updates f32 masters", var.dtype());
                    return Err(setting("variables", problem));
                }
                if matches!(group.update, Update::Muon { .. }) && var.rank() != 2 {
                    let problem = format!("`{name}` of shape {:?} is no matrix, as Muon needs", var.shape());
                    return Err(setting("update", problem));
                }
                let first = var.zeros_like()?.detach();
                let second = match group.update {
                    Update::AdamW { .. } => Some(var.zeros_like()?.detach()),
                    Update::Muon { .. } => None,
                };
                members.push(Member { name, var, steps: 0, first, second });
            }
            let ParameterGroup { update, learning_rate, weight_decay, .. } = group;
            made.push(Group { update, learning_rate, weight_decay, members });
        }
        Ok(Self { groups: made })
    }

    /// One step at `rate_factor` (see [`crate::schedule`]) of each group's rate. A weight without a gradient stays as it
    /// is, its decay too, as in torch.
    ///
    /// # Errors
    /// A device without memory.
    pub fn step(&mut self, gradients: &GradStore, rate_factor: f64) -> Result<()> {
        self.step_scaled(gradients, rate_factor, 1.)
    }

    /// The same with gradients times `gradient_factor`: clipping and averaging without a pass over them.
    ///
    /// # Errors
    /// A device without memory.
    pub fn step_scaled(
        &mut self,
        gradients: &GradStore,
        rate_factor: f64,
        gradient_factor: f64,
    ) -> Result<()> {
        for group in &mut self.groups {
            let rate = group.learning_rate * rate_factor;
            let decay = rate * group.weight_decay;
            for member in &mut group.members {
                let Some(gradient) = gradients.get(member.var.as_tensor()) else { continue };
                let gradient = gradient.to_dtype(DType::F32)?.contiguous()?;
                member.steps += 1;
                match (group.update, &member.second) {
                    (Update::AdamW { beta1, beta2, epsilon }, Some(square)) => adamw::Step {
                        beta1,
                        beta2,
                        epsilon,
                        rate,
                        decay,
                        gradient_factor,
                        count: member.steps,
                    }
                    .apply(&member.var, &gradient, &member.first, square)?,
                    (Update::Muon { momentum, nesterov }, _) => {
                        muon::Step { momentum, nesterov, rate, decay, gradient_factor }.apply(
                            &member.var,
                            &gradient,
                            &member.first,
                        )?;
                    }
                    // `new` makes a mean square for every weight of AdamW.
                    (Update::AdamW { .. }, None) => {}
                }
            }
        }
        Ok(())
    }

    /// The weights that are updated.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.members().map(|member| (member.name.as_str(), &member.var))
    }

    /// What is remembered between steps: `NAME/steps` (1) i64, `NAME/first` and, with AdamW, `NAME/second`.
    ///
    /// The tensors share the optimiser's memory: write them before the next step.
    ///
    /// # Errors
    /// A device without memory.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for member in self.members() {
            let steps = Tensor::new(&[member.steps as i64], &Device::Cpu)?;
            state.insert(format!("{}/steps", member.name), steps);
            state.insert(format!("{}/first", member.name), member.first.clone());
            if let Some(second) = &member.second {
                state.insert(format!("{}/second", member.name), second.clone());
            }
        }
        Ok(state)
    }

    /// Goes on where [`Optimizer::state`] was taken, bit for bit.
    ///
    /// # Errors
    /// The name of what is missing, left over, or of another shape.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), String> {
        let mut used = 0;
        for member in self.groups.iter_mut().flat_map(|group| &mut group.members) {
            let mut find = |what: &str, like: Option<&Tensor>| {
                let name = format!("{}/{what}", member.name);
                let tensor = state.get(&name).ok_or(format!("`{name}` is missing"))?;
                if let Some(like) = like
                    && like.shape() != tensor.shape()
                {
                    return Err(format!(
                        "`{name}` has shape {:?} instead of {:?}",
                        tensor.shape(),
                        like.shape()
                    ));
                }
                used += 1;
                // A copy: the state may be that of a running optimiser, or a mapped file.
                tensor
                    .to_device(member.var.device())
                    .and_then(|t| t.copy())
                    .map_err(|error| error.to_string())
            };
            let steps = find("steps", None)?.flatten_all().and_then(|steps| steps.to_vec1::<i64>());
            let steps = steps.map_err(|error| error.to_string())?;
            member.first = find("first", Some(&member.first.clone()))?;
            if let Some(second) = member.second.clone() {
                member.second = Some(find("second", Some(&second))?);
            }
            member.steps = steps.first().copied().unwrap_or(0).max(0) as u64;
        }
        if used < state.len() {
            return Err(format!("{} tensors belong to weights that do not train here", state.len() - used));
        }
        Ok(())
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        self.groups.iter().flat_map(|group| &group.members)
    }
}

fn check(group: &ParameterGroup) -> Result<()> {
    let share = |name, value: f64| match (0. ..1.).contains(&value) {
        true => Ok(()),
        false => Err(setting(name, format!("{value} is not at least 0 and below 1"))),
    };
    if !(group.learning_rate.is_finite() && group.learning_rate > 0.) {
        return Err(setting("learning_rate", format!("{} is not a positive number", group.learning_rate)));
    }
    if !(group.weight_decay.is_finite() && group.weight_decay >= 0.) {
        return Err(setting("weight_decay", format!("{} is not a number of at least 0", group.weight_decay)));
    }
    match group.update {
        Update::AdamW { beta1, beta2, epsilon } => {
            share("beta1", beta1)?;
            share("beta2", beta2)?;
            if !(epsilon.is_finite() && epsilon > 0.) {
                return Err(setting("epsilon", format!("{epsilon} is not a positive number")));
            }
            Ok(())
        }
        Update::Muon { momentum, .. } => share("momentum", momentum),
    }
}

fn setting(name: &'static str, problem: String) -> Error {
    Error::Setting { name, problem }
}
