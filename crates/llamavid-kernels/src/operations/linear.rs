//! Linear layer.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor, bail};

use crate::operations::rows::{column_sums, fusible, tensor, values, with_values};
use crate::products::matrix::{Matrix, multiply};
use crate::products::{Layer, Weights};

/// `x` (…, in) times the transpose of `weight` (out, in), plus `bias` (out): (…, out).
///
/// An input without a gradient costs nothing in the backward pass.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let Some(bias) = bias else {
        return match fusible(&[x, weight]) {
            true => x.contiguous()?.apply_op2(&weight.contiguous()?, Linear),
            false => decomposed(x, weight),
        };
    };
    match fusible(&[x, weight, bias]) {
        true => x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Linear),
        false => decomposed(x, weight)?.broadcast_add(bias),
    }
}

fn decomposed(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (output, input) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    if shape.pop() != Some(input) {
        bail!("a weight of shape {:?} does not go with rows of shape {:?}", weight.dims(), x.dims());
    }
    let rows: usize = shape.iter().product();
    shape.push(output);
    x.reshape((rows, input))?.matmul(&weight.t()?)?.reshape(shape)
}

struct Linear;

/// Rows, width of the input and width of the output.
fn sizes(x: &Shape, weight: &Shape) -> Result<(usize, usize, usize)> {
    match (x.dims().split_last(), weight.dims()) {
        (Some((width, rows)), &[output, input]) if *width == input => {
            Ok((rows.iter().product(), input, output))
        }
        _ => bail!("linear: a weight of shape {weight:?} does not go with rows of shape {x:?}"),
    }
}

fn forward(
    (x, x_layout): (&CpuStorage, &Layout),
    (weight, weight_layout): (&CpuStorage, &Layout),
    bias: Option<&[f32]>,
) -> Result<(CpuStorage, Shape)> {
    let (rows, input, output) = sizes(x_layout.shape(), weight_layout.shape())?;
    if let Some(bias) = bias
        && bias.len() != output
    {
        bail!("linear: {} biases do not go with {output} outputs", bias.len());
    }
    let weights = Weights::F32(values(weight, weight_layout)?);
    let layer = Layer { weights, rows: output, columns: input, bias };
    let result = layer.forward(values(x, x_layout)?, rows, true);
    let mut shape = x_layout.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = output;
    }
    Ok((CpuStorage::F32(result), shape.into()))
}

/// Gradients of `x` and `weight`, where they track.
fn backward(x: &Tensor, weight: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (rows, input, output) = sizes(x.shape(), weight.shape())?;
    with_values([x, weight, gradient], |[x_values, weight_values, gradient]| {
        let gradient = Matrix::new(gradient, rows, output);
        let of_x = || {
            let mut result = vec![0f32; rows * input];
            multiply(gradient, Matrix::new(weight_values, output, input), &mut result, false, true);
            tensor(result, x.shape())
        };
        let of_weight = || {
            let mut result = vec![0f32; output * input];
            let x = Matrix::new(x_values, rows, input);
            multiply(gradient.transposed(), x, &mut result, false, true);
            tensor(result, weight.shape())
        };
        Ok((x.track_op().then(of_x).transpose()?, weight.track_op().then(of_weight).transpose()?))
    })
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        forward((x, x_layout), (weight, weight_layout), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        backward(x, weight, gradient)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear-with-bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        forward((x, x_layout), (weight, weight_layout), Some(values(bias, bias_layout)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (of_x, of_weight) = backward(x, weight, gradient)?;
        let of_bias = || {
            let width = gradient.dim(D::Minus1)?;
            with_values([gradient], |[gradient]| tensor(column_sums(gradient, width), bias.shape()))
        };
        Ok((of_x, of_weight, bias.track_op().then(of_bias).transpose()?))
    }
}
