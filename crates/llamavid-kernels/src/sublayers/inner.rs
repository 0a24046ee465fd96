//! What sub-layers do between norm and residual.

use candle_core::Result;

use super::backward::Sums;
use super::slices::Slices;
use super::split::Part;
use crate::attention::{Attention, Sequences};

/// What a sub-layer does with some rows, norm and residual aside.
pub(super) trait Inner: Send + Sync + 'static {
    const NAME: &'static str;
    /// What the backward pass needs of the rows.
    type Saved: Send + Sync;

    /// Adds what it makes of `rows` to `result`.
    fn forward(&self, slices: &Slices, part: Part, rows: &[f32], result: &mut [f32]) -> Result<Self::Saved>;

    /// The same, and nothing is kept.
    fn add_result(&self, slices: &Slices, part: Part, rows: &[f32], result: &mut [f32]) -> Result<()> {
        self.forward(slices, part, rows, result).map(drop)
    }

    /// Adds gradients of its projections to `sums`, and gives those of what its first projections made of `rows`;
    /// none at all when nothing before its last projection wants one.
    fn backward(
        &self,
        slices: &Slices,
        part: Part,
        saved: &Self::Saved,
        rows: &[f32],
        gradient: &[f32],
        sums: &mut Sums,
    ) -> Result<Vec<Vec<f32>>>;
}

pub(super) struct SelfAttention {
    pub(super) attention: Attention,
    /// One of packed rows, or three.
    pub(super) sources: usize,
    pub(super) batch: usize,
    /// Of a sequence.
    pub(super) rows: usize,
}

impl SelfAttention {
    fn sequences(&self, part: Part) -> Sequences {
        let rows = self.rows.max(1);
        Sequences { first: part.first / rows, count: part.rows / rows, whole: self.batch, rows: self.rows }
    }
}

pub(super) struct Attended {
    sources: Vec<Vec<f32>>,
    attended: Vec<f32>,
}

fn slices_of(parts: &[Vec<f32>]) -> Vec<&[f32]> {
    parts.iter().map(Vec::as_slice).collect()
}

impl Inner for SelfAttention {
    const NAME: &'static str = "attention-block";
    type Saved = Attended;

    fn forward(&self, slices: &Slices, part: Part, rows: &[f32], result: &mut [f32]) -> Result<Attended> {
        let sources: Vec<_> = (0..self.sources).map(|layer| slices.project(layer, part, rows)).collect();
        let attended = self.attention.attend(self.sequences(part), &slices_of(&sources))?;
        slices.add_projected(self.sources, part, &attended, result);
        Ok(Attended { sources, attended })
    }

    fn backward(
        &self,
        slices: &Slices,
        part: Part,
        saved: &Attended,
        rows: &[f32],
        gradient: &[f32],
        sums: &mut Sums,
    ) -> Result<Vec<Vec<f32>>> {
        let output = self.sources;
        sums.projection(slices, output, part, &saved.attended, gradient);
        if !sums.wants_before(output) {
            return Ok(Vec::new());
        }
        let of_attended = slices.through(output, part, gradient);
        let sources = slices_of(&saved.sources);
        let of_sources = self.attention.differentiate(self.sequences(part), &sources, &of_attended)?;
        for (layer, of_source) in of_sources.iter().enumerate() {
            sums.projection(slices, layer, part, rows, of_source);
        }
        Ok(of_sources)
    }
}

pub(super) struct SwiGlu;

impl Inner for SwiGlu {
    const NAME: &'static str = "swiglu-block";
    /// Gate and up.
    type Saved = [Vec<f32>; 2];

    fn forward(&self, slices: &Slices, part: Part, rows: &[f32], result: &mut [f32]) -> Result<Self::Saved> {
        let [gate, up] = slices.project_each([0, 1], part, rows);
        slices.add_projected(2, part, &crate::operations::swiglu::activated(&gate, &up), result);
        Ok([gate, up])
    }

    fn backward(
        &self,
        slices: &Slices,
        part: Part,
        [gate, up]: &Self::Saved,
        rows: &[f32],
        gradient: &[f32],
        sums: &mut Sums,
    ) -> Result<Vec<Vec<f32>>> {
        let of_inner = slices.through(2, part, gradient);
        let [inner, of_gate, of_up] =
            crate::operations::swiglu::activated_and_differentiated(gate, up, &of_inner);
        sums.projection(slices, 2, part, &inner, gradient);
        if !sums.wants_before(2) {
            return Ok(Vec::new());
        }
        sums.projection(slices, 0, part, rows, &of_gate);
        sums.projection(slices, 1, part, rows, &of_up);
        Ok(vec![of_gate, of_up])
    }
}

pub(super) struct Gelu;

impl Inner for Gelu {
    const NAME: &'static str = "gelu-block";
    /// What goes into the GELU.
    type Saved = Vec<f32>;

    fn forward(&self, slices: &Slices, part: Part, rows: &[f32], result: &mut [f32]) -> Result<Vec<f32>> {
        let hidden = slices.project(0, part, rows);
        slices.add_projected(1, part, &crate::operations::gelu::activated(&hidden), result);
        Ok(hidden)
    }

    fn add_result(&self, slices: &Slices, part: Part, rows: &[f32], result: &mut [f32]) -> Result<()> {
        let mut hidden = slices.project(0, part, rows);
        crate::operations::gelu::activate_all(&mut hidden);
        slices.add_projected(1, part, &hidden, result);
        Ok(())
    }

    fn backward(
        &self,
        slices: &Slices,
        part: Part,
        hidden: &Vec<f32>,
        rows: &[f32],
        gradient: &[f32],
        sums: &mut Sums,
    ) -> Result<Vec<Vec<f32>>> {
        let of_inner = slices.through(1, part, gradient);
        let [inner, of_hidden] = crate::operations::gelu::activated_and_differentiated(hidden, &of_inner);
        sums.projection(slices, 1, part, &inner, gradient);
        if !sums.wants_before(1) {
            return Ok(Vec::new());
        }
        sums.projection(slices, 0, part, rows, &of_hidden);
        Ok(vec![of_hidden])
    }
}
