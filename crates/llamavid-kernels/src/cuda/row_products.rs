//! Products of one row with matrices, as decoding has them.

use candle_core::{D, Result, Tensor};

use super::arguments::{ProductArguments, product};
use super::device::{device_of, run, takes, unwritten, with_pointers};
use crate::{BlockFormat, Norm, Projection, Weight};

/// One to three `projections` of the one row `x` (…, columns), or of its norm: a result (…, rows) of each, to the first of which
/// `residual` is added. When `gated`, the first of two makes the gate of the second, and there is one result.
///
/// The first weights are read before what was launched earlier has ended, so they must be constant: made by the host or long ago.
///
/// None for what no kernel takes: several rows, f32, other blocks than those of Q4_K and Q6_K.
pub(crate) fn row_products(
    x: &Tensor,
    norm: Option<Norm>,
    projections: &[Projection],
    residual: Option<&Tensor>,
    gated: bool,
) -> Result<Option<Vec<Tensor>>> {
    let columns = x.dim(D::Minus1)?;
    if x.elem_count() != columns || !(1..=3).contains(&projections.len()) {
        return Ok(None);
    }
    let (mut weights, mut biases) = ([None; 3], [None; 3]);
    let mut arguments = ProductArguments { columns: columns as i32, ..Default::default() };
    let mut inputs = vec![x];
    inputs.extend(residual);
    if let Some(Norm { weight, bias, eps }) = norm {
        if bias.is_some() || weight.elem_count() != columns {
            return Ok(None);
        }
        arguments.eps = eps as f32;
        inputs.push(weight);
    }
    for (place, Projection { weight, bias }) in projections.iter().enumerate() {
        let (rows, of_weight) = weight.dims2()?;
        if of_weight != columns || bias.is_some_and(|bias| bias.elem_count() != rows) {
            return Ok(None);
        }
        arguments.rows[place] = rows as i32;
        biases[place] = *bias;
        inputs.extend(bias);
        match weight {
            Weight::Dense(weight) => {
                weights[place] = Some(*weight);
                inputs.push(weight);
            }
            Weight::Blocks(weight) => {
                let Some(address) = weight.address(x.device())? else { return Ok(None) };
                arguments.weights[place] = address;
                arguments.six_bits[place] = match weight.format() {
                    BlockFormat::Q4K => 0,
                    BlockFormat::Q6K => 1,
                    _ => return Ok(None),
                };
            }
        }
    }
    let dense = weights.iter().flatten().count();
    let alike = dense == 0 || dense == projections.len();
    // A gate and its value are read side by side.
    let beside =
        !gated || arguments.rows[0] == arguments.rows[1] && arguments.six_bits[0] == arguments.six_bits[1];
    let sum_fits = residual.is_none_or(|residual| residual.elem_count() == arguments.rows[0] as usize);
    let contiguous = inputs.iter().all(|input| input.is_contiguous());
    if !alike || !beside || !sum_fits || !contiguous || !takes(&inputs) {
        return Ok(None);
    }
    let (device, dtype) = (device_of(x)?, x.dtype());
    let count = if gated { 1 } else { projections.len() };
    let results = arguments.rows[..count].iter().map(|rows| {
        let mut shape = x.dims().to_vec();
        shape[x.rank() - 1] = *rows as usize;
        unwritten(&device, dtype, shape)
    });
    let results = results.collect::<Result<Vec<_>>>()?;
    let result = |place: usize| results.get(place);
    let ([w0, w1, w2], [b0, b1, b2]) = (weights, biases);
    let norm = norm.map(|norm| norm.weight);
    let tensors = [Some(x), norm, residual, w0, w1, w2, b0, b1, b2, result(0), result(1), result(2)];
    let launched =
        with_pointers(&device, tensors, |[x, norm, residual, w0, w1, w2, b0, b1, b2, r0, r1, r2]| {
            (arguments.x, arguments.norm, arguments.residual) = (x, norm, residual);
            (arguments.biases, arguments.results) = ([b0, b1, b2], [r0, r1, r2]);
            if dense > 0 {
                arguments.weights = [w0, w1, w2];
            }
            match product(dtype, dense == 0, gated, &arguments)? {
                Some(launch) => run(&device, &launch, &arguments).map(|()| true),
                None => Ok(false),
            }
        })?;
    Ok(launched.then_some(results))
}
