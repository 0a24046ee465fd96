//! Operations of any number of inputs; candle's own take three at most.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};

/// What an operation does in the backward pass.
pub(crate) trait Differentiable: Send + Sync + 'static {
    /// The operation's name in errors.
    fn name(&self) -> &'static str;

    /// Gradients of the inputs, in their order, from the gradient of the result; none for an input that doesn't track.
    fn gradients(&self, inputs: &[Tensor], gradient: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

/// A tensor of `values`, which `operation` differentiates with respect to `inputs`.
///
/// Candle sees a chain of operations. Each but the last takes some of the inputs and gives a scalar that the next
/// one takes beside further inputs; the last gives the values. Backwards the last one comes first, computes all
/// gradients and leaves the others' for them.
pub(crate) fn record(
    inputs: Vec<Tensor>,
    values: Vec<f32>,
    shape: Shape,
    operation: impl Differentiable,
) -> Result<Tensor> {
    if !inputs.iter().any(Tensor::track_op) {
        return Tensor::from_vec(values, shape, &Device::Cpu);
    }
    let shared = Arc::new(Shared {
        operation: Box::new(operation),
        inputs,
        values: Mutex::new(Some((values, shape))),
        gradients: Mutex::new(Vec::new()),
    });
    let mut handle: Option<Tensor> = None;
    let mut first = 0;
    loop {
        let room = if handle.is_some() { 2 } else { 3 };
        let own = &shared.inputs[first..(first + room).min(shared.inputs.len())];
        let last = first + own.len() == shared.inputs.len();
        let link = Link { shared: shared.clone(), first, continues: handle.is_some(), last };
        let arguments: Vec<&Tensor> = handle.iter().chain(own).collect();
        let result = match *arguments.as_slice() {
            [a] => a.apply_op1(link),
            [a, b] => a.apply_op2(b, link),
            [a, b, c] => a.apply_op3(b, c, link),
            _ => bail!("{}: an operation without inputs", shared.operation.name()),
        }?;
        if last {
            return Ok(result);
        }
        first += own.len();
        handle = Some(result);
    }
}

struct Shared {
    operation: Box<dyn Differentiable>,
    inputs: Vec<Tensor>,
    /// Taken by the last link.
    values: Mutex<Option<(Vec<f32>, Shape)>>,
    /// Those of the inputs, from the last link's backward pass on.
    gradients: Mutex<Vec<Option<Tensor>>>,
}

struct Link {
    shared: Arc<Shared>,
    /// Number of the first input that is its own.
    first: usize,
    /// Whether its first argument is the scalar of the link before.
    continues: bool,
    last: bool,
}

impl Link {
    fn result(&self) -> Result<(CpuStorage, Shape)> {
        if !self.last {
            return Ok((CpuStorage::F32(vec![0.0]), Shape::from(())));
        }
        let mut values = self.shared.values.lock().unwrap_or_else(PoisonError::into_inner);
        match values.take() {
            Some((values, shape)) => Ok((CpuStorage::F32(values), shape)),
            None => bail!("{}: its result was taken before", self.shared.operation.name()),
        }
    }

    /// Gradients of its arguments.
    fn gradients<const N: usize>(
        &self,
        arguments: [&Tensor; N],
        gradient: &Tensor,
    ) -> Result<[Option<Tensor>; N]> {
        let mut gradients = self.shared.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        if self.last {
            *gradients = self.shared.operation.gradients(&self.shared.inputs, gradient)?;
        }
        let mut result = [const { None }; N];
        for (index, result) in result.iter_mut().enumerate() {
            *result = match index.checked_sub(usize::from(self.continues)) {
                Some(own) => gradients.get_mut(self.first + own).and_then(Option::take),
                // The scalar of the link before; its gradient says nothing but that there is one.
                None => arguments[0].track_op().then(|| arguments[0].zeros_like()).transpose()?,
            };
        }
        Ok(result)
    }
}

impl CustomOp1 for Link {
    fn name(&self) -> &'static str {
        self.shared.operation.name()
    }

    fn cpu_fwd(&self, _a: &CpuStorage, _a_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.result()
    }

    fn bwd(&self, a: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let [a] = self.gradients([a], gradient)?;
        Ok(a)
    }
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        self.shared.operation.name()
    }

    fn cpu_fwd(
        &self,
        _a: &CpuStorage,
        _a_layout: &Layout,
        _b: &CpuStorage,
        _b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.result()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.gradients([a, b], gradient)?;
        Ok((a, b))
    }
}

impl CustomOp3 for Link {
    fn name(&self) -> &'static str {
        self.shared.operation.name()
    }

    fn cpu_fwd(
        &self,
        _a: &CpuStorage,
        _a_layout: &Layout,
        _b: &CpuStorage,
        _b_layout: &Layout,
        _c: &CpuStorage,
        _c_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.result()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.gradients([a, b, c], gradient)?;
        Ok((a, b, c))
    }
}
