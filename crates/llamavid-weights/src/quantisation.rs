//! Which matrices are stored in fewer bits, and in which format.

use llamavid_kernels::BlockFormat;

/// How many bits the matrices of a part are to have whose files hold numbers of 16 or 32: the same whether they are rounded
/// while they are loaded or once and for all.
///
/// Norms, biases, positions and the small projections between the parts stay as they are: they are less than a
/// hundredth of the numbers. docs/benchmarks/quantisation.md has the errors that decided the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quantisation {
    /// 8.5 bits a number, in blocks of 32.
    Q8_0,
    /// 4.5 bits a number, in blocks of 32.
    Q4_0,
    /// 4.5 bits a number, in blocks of 256; 6.6 for the values.
    Q4K,
    /// 5.5 bits a number, in blocks of 256.
    Q5K,
    /// 6.6 bits a number, in blocks of 256.
    Q6K,
}

impl Quantisation {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Q8_0, Self::Q4_0, Self::Q4K, Self::Q5K, Self::Q6K];

    /// The name that commands have for it: `q4_k`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }

    /// The format of a matrix by our name for it, or none where it stays as it is.
    pub fn format(self, ours: &str, columns: usize) -> Option<BlockFormat> {
        if ours.starts_with("context.") || ours.starts_with("projector.") || ours.starts_with("bert_proj.") {
            return None;
        }
        let most = match self {
            Self::Q8_0 => BlockFormat::Q8_0,
            Self::Q4_0 => BlockFormat::Q4_0,
            Self::Q4K => BlockFormat::Q4K,
            Self::Q5K => BlockFormat::Q5K,
            Self::Q6K => BlockFormat::Q6K,
        };
        let wanted = match (self, ours) {
            // A row is read at a time, so it costs memory only, and its error would be in every layer.
            (_, "embed_tokens.weight") => BlockFormat::F16,
            (Self::Q8_0, "lm_head.weight") => BlockFormat::Q8_0,
            (_, "lm_head.weight") => BlockFormat::Q6K,
            // An eighth of the error for a thirtieth of the bits, and less where heads share values.
            (Self::Q4K, _) if ours.ends_with(".v_proj.weight") => BlockFormat::Q6K,
            _ => most,
        };
        // Large blocks do not fill every row; the next finer format takes those, as in llama.cpp.
        [wanted, BlockFormat::Q8_0].into_iter().find(|format| format.row_bytes(columns).is_some())
    }
}
