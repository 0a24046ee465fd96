//! Loss and gradients of a batch, with all activations kept or with few of them.
//!
//! Reference for the second way: "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174).
//! Letters: B samples, S sequence length, D language width.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use llamavid_models::observer::Blind;

use crate::error::Result;
use crate::example::Example;
use crate::gradients;
use crate::model::{Loss, Model};

/// What is kept for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// All of them.
    #[default]
    Kept,
    /// Those between decoder layers; a layer's own are computed again when its gradients are. About a third
    /// more time, and memory for one layer instead of all.
    Recomputed,
}

/// Adds to `sum` the gradients of the `variables` with respect to the summed loss of a batch, times `factor` of its
/// number of labels, and gives the loss. A batch without labels adds nothing.
///
/// # Errors
/// As [`Model::loss`].
pub fn loss_and_gradients(
    model: &Model,
    examples: &[Example],
    variables: &[(String, Var)],
    activations: Activations,
    factor: impl Fn(usize) -> f64,
    sum: &mut GradStore,
) -> Result<Loss> {
    match activations {
        Activations::Kept => {
            let loss = model.loss(examples)?;
            if loss.labels > 0 {
                let scaled = (&loss.sum * factor(loss.labels))?;
                gradients::accumulate(sum, scaled.backward()?, variables)?;
            }
            Ok(loss)
        }
        Activations::Recomputed => recomputed(model, examples, variables, factor, sum),
    }
}

fn recomputed(
    model: &Model,
    examples: &[Example],
    variables: &[(String, Var)],
    factor: impl Fn(usize) -> f64,
    sum: &mut GradStore,
) -> Result<Loss> {
    let batch = model.batch(examples, &mut Blind)?;
    let language_model = model.language_model();
    let pass = language_model.pass(&batch.embeds, batch.padding()?)?;

    // Forwards. Each layer's input begins a graph of its own.
    let mut inputs = Vec::with_capacity(language_model.config().layers); // (B, S, D) each
    let mut hidden = batch.embeds.detach();
    for index in 0..language_model.config().layers {
        let output = language_model.layer(index, &hidden, &pass)?.detach();
        inputs.push(std::mem::replace(&mut hidden, output));
    }
    let last = Var::from_tensor(&hidden)?;
    drop(hidden);
    let loss = model.loss_of_hidden(&language_model.last_norm(&last)?, &batch)?;
    if loss.labels == 0 {
        return Ok(loss);
    }

    // Backwards. The gradient of a layer's output is pulled through that layer alone.
    let scaled = (&loss.sum * factor(loss.labels))?;
    let mut gradient = pull(&scaled, &last, variables, sum)?;
    for (index, input) in inputs.into_iter().enumerate().rev() {
        let Some(of_output) = gradient else { break };
        let input = Var::from_tensor(&input)?;
        let output = language_model.layer(index, &input, &pass)?;
        gradient = pull(&weighted(&output, &of_output)?, &input, variables, sum)?;
    }
    // The embeddings, and through them what makes visual tokens.
    if let Some(of_embeds) = gradient
        && batch.embeds.track_op()
    {
        let store = weighted(&batch.embeds, &of_embeds)?.backward()?;
        gradients::accumulate(sum, store, variables)?;
    }
    Ok(Loss { sum: loss.sum.detach(), ..loss })
}

/// A scalar whose gradient with respect to `output` is `gradient`.
fn weighted(output: &Tensor, gradient: &Tensor) -> candle_core::Result<Tensor> {
    (output * gradient)?.sum_all()
}

/// Goes back from `scalar`, adds the gradients of the `variables` to `sum`, and gives that of `input`.
fn pull(
    scalar: &Tensor,
    input: &Var,
    variables: &[(String, Var)],
    sum: &mut GradStore,
) -> Result<Option<Tensor>> {
    let mut store = scalar.backward()?;
    let gradient = store.remove(input.as_tensor()).map(|gradient| gradient.detach());
    gradients::accumulate(sum, store, variables)?;
    Ok(gradient)
}
