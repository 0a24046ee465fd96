//! Which matrices are stored in fewer bits, and in which format.

use llamavid_kernels::BlockFormat;

/// How many bits the matrices of a part are to have whose files hold numbers of 16 or 32.
///
/// Norms, biases, positions and the small projections between the parts stay as they are: they are less than a
/// hundredth of the numbers. docs/benchmarks/quantisation.md has the errors that decided the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quantisation {
    /// 8.5 bits a number.
    EightBit,
    /// 4.5 bits a number.
    FourBit,
}

impl Quantisation {
    /// The format of a matrix by our name for it, or none where it stays a tensor.
    pub fn format(self, ours: &str, columns: usize) -> Option<BlockFormat> {
        // Large blocks do not fill every row; the next finer format takes those, as in llama.cpp.
        let first = |formats: &[BlockFormat]| {
            formats.iter().copied().find(|format| format.row_bytes(columns).is_some())
        };
        if ours.starts_with("context.") || ours.starts_with("projector.") || ours.starts_with("bert_proj.") {
            return None;
        }
        match (self, ours) {
            // A row is read at a time, so it costs memory only, and its error would be in every layer.
            (_, "embed_tokens.weight") => Some(BlockFormat::F16),
            (Self::EightBit, _) => first(&[BlockFormat::Q8_0]),
            (Self::FourBit, "lm_head.weight") => first(&[BlockFormat::Q6K, BlockFormat::Q8_0]),
            (Self::FourBit, _) => first(&[BlockFormat::Q4K, BlockFormat::Q8_0]),
        }
    }
}
