//! The gate of LLaMA's feed-forward layer.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::instructions::vector::{sigmoid, widest};
use crate::operations::rows::{fusible, tensor, values, with_values};

/// Values that one thread takes at a time.
const BLOCK: usize = 4096;

/// `silu(gate) · up`, both of one shape, with `silu(x) = x / (1 + e^-x)`.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::cuda::takes(&[gate, up]) {
        return crate::cuda::swiglu(gate, up);
    }
    if fusible(&[gate, up]) {
        gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu)
    } else {
        gate.silu()? * up
    }
}

struct SwiGlu;

#[inline(always)]
fn forward_inline<const FUSED: bool>(gate: &[f32], up: &[f32], result: &mut [f32]) {
    for ((result, gate), up) in result.iter_mut().zip(gate).zip(up) {
        *result = gate * sigmoid::<FUSED>(*gate) * up;
    }
}
widest!(fn forward(gate: &[f32], up: &[f32], result: &mut [f32]) = forward_inline);

/// The result of a place, and the gradients of gate and up.
#[inline(always)]
fn differentiate<const FUSED: bool>(gate: f32, up: f32, gradient: f32) -> [f32; 3] {
    let sigmoid = sigmoid::<FUSED>(gate);
    let silu = gate * sigmoid;
    [silu * up, gradient * up * (sigmoid + silu * (1.0 - sigmoid)), gradient * silu]
}

/// Writes the result, and the gradients of gate and up.
#[inline(always)]
fn both_inline<const FUSED: bool>(
    gate: &[f32],
    up: &[f32],
    gradient: &[f32],
    result: &mut [f32],
    of_gate: &mut [f32],
    of_up: &mut [f32],
) {
    let results = result.iter_mut().zip(of_gate.iter_mut()).zip(of_up.iter_mut());
    for ((((result, of_gate), of_up), (gate, up)), gradient) in results.zip(gate.iter().zip(up)).zip(gradient)
    {
        [*result, *of_gate, *of_up] = differentiate::<FUSED>(*gate, *up, *gradient);
    }
}
widest!(fn both(
    gate: &[f32],
    up: &[f32],
    gradient: &[f32],
    result: &mut [f32],
    of_gate: &mut [f32],
    of_up: &mut [f32],
) = both_inline);

#[inline(always)]
fn backward_inline<const FUSED: bool>(
    gate: &[f32],
    up: &[f32],
    gradient: &[f32],
    of_gate: &mut [f32],
    of_up: &mut [f32],
) {
    let places = of_gate.iter_mut().zip(of_up.iter_mut()).zip(gate).zip(up).zip(gradient);
    for ((((of_gate, of_up), gate), up), gradient) in places {
        [_, *of_gate, *of_up] = differentiate::<FUSED>(*gate, *up, *gradient);
    }
}
widest!(fn backward(
    gate: &[f32],
    up: &[f32],
    gradient: &[f32],
    of_gate: &mut [f32],
    of_up: &mut [f32],
) = backward_inline);

/// `silu(gate) · up` of each place.
pub(crate) fn activated(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut result = vec![0f32; gate.len()];
    let tasks = result.par_chunks_mut(BLOCK).zip(gate.par_chunks(BLOCK)).zip(up.par_chunks(BLOCK));
    tasks.for_each(|((result, gate), up)| forward(gate, up, result));
    result
}

/// `silu(gate) · up` again, and the gradients of gate and up.
pub(crate) fn activated_and_differentiated(gate: &[f32], up: &[f32], gradient: &[f32]) -> [Vec<f32>; 3] {
    let mut results = [(); 3].map(|()| vec![0f32; gate.len()]);
    let [result, of_gate, of_up] = &mut results;
    let inputs = gate.par_chunks(BLOCK).zip(up.par_chunks(BLOCK)).zip(gradient.par_chunks(BLOCK));
    let outputs =
        result.par_chunks_mut(BLOCK).zip(of_gate.par_chunks_mut(BLOCK)).zip(of_up.par_chunks_mut(BLOCK));
    outputs.zip(inputs).for_each(|(((result, of_gate), of_up), ((gate, up), gradient))| {
        both(gate, up, gradient, result, of_gate, of_up);
    });
    results
}

/// The gradients of gate and up.
pub(crate) fn differentiated(gate: &[f32], up: &[f32], gradient: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut of_gate, mut of_up) = (vec![0f32; gate.len()], vec![0f32; gate.len()]);
    let inputs = gate.par_chunks(BLOCK).zip(up.par_chunks(BLOCK)).zip(gradient.par_chunks(BLOCK));
    let tasks = of_gate.par_chunks_mut(BLOCK).zip(of_up.par_chunks_mut(BLOCK)).zip(inputs);
    tasks.for_each(|((of_gate, of_up), ((gate, up), gradient))| {
        backward(gate, up, gradient, of_gate, of_up);
    });
    (of_gate, of_up)
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = gate_layout.shape();
        if shape != up_layout.shape() {
            bail!("swiglu of a gate {shape:?} and values {:?}", up_layout.shape());
        }
        let (gate, up) = (values(gate, gate_layout)?, values(up, up_layout)?);
        Ok((CpuStorage::F32(activated(gate, up)), shape.clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let shape = gate.shape();
        let (of_gate, of_up) =
            with_values([gate, up, gradient], |[gate, up, gradient]| Ok(differentiated(gate, up, gradient)))?;
        let of_gate = gate.track_op().then(|| tensor(of_gate, shape)).transpose()?;
        let of_up = up.track_op().then(|| tensor(of_up, shape)).transpose()?;
        Ok((of_gate, of_up))
    }
}
