//! Rows of a table by their numbers.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::operations::rows::{add_rows, fusible, tensor, values, with_values};

/// Rows of `table` (rows, width) by their numbers `ids` (u32, any shape): (…, width).
///
/// A number outside the table is an error.
pub fn embedding(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (rows, width) = table.dims2()?;
    let mut shape = ids.dims().to_vec();
    shape.push(width);
    if !fusible(&[table]) {
        return table.index_select(&ids.flatten_all()?, 0)?.reshape(shape);
    }
    let ids = ids.flatten_all()?.to_vec1::<u32>()?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
        bail!("row {id} of a table of {rows}");
    }
    table.contiguous()?.apply_op1(Embedding { ids, shape: shape.into() })
}

struct Embedding {
    ids: Vec<u32>,
    shape: Shape,
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_rows, width) = layout.shape().dims2()?;
        let table = values(table, layout)?;
        let mut result = Vec::with_capacity(self.ids.len() * width);
        for id in &self.ids {
            let start = *id as usize * width;
            result.extend_from_slice(&table[start..start + width]);
        }
        Ok((CpuStorage::F32(result), self.shape.clone()))
    }

    fn bwd(&self, table: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (rows, width) = table.dims2()?;
        let of_table = with_values([gradient], |[gradient]| {
            let mut of_table = vec![0f32; rows * width];
            if width == 0 {
                return Ok(of_table);
            }
            // Each thread looks at all numbers and adds the rows that are its own, in their order.
            let own = rows.div_ceil(rayon::current_num_threads()).max(1);
            of_table.par_chunks_mut(own * width).enumerate().for_each(|(part, sums)| {
                let first = part * own;
                for (id, row) in self.ids.iter().zip(gradient.chunks_exact(width)) {
                    let place = (*id as usize).wrapping_sub(first).wrapping_mul(width);
                    if let Some(sum) = sums.get_mut(place..place.saturating_add(width)) {
                        add_rows(row, sum);
                    }
                }
            });
            Ok(of_table)
        })?;
        tensor(of_table, table.shape()).map(Some)
    }
}
