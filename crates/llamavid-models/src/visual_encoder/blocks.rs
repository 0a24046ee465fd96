//! The blocks of a tower, as they were read or laid out for inference.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, Tensor};
use llamavid_kernels::{FrozenAttention, FrozenFeedForward, FrozenScratch};
use tracing::info_span;

use crate::observer::Observer;

/// A block with weights as they were read.
pub(super) trait Block: Sized {
    /// `x` (F, R, V) gives (F, R, V).
    fn forward(&self, x: &Tensor) -> Result<Tensor>;

    /// The same block, laid out for inference.
    fn frozen(self) -> Result<FrozenBlock>;
}

/// A block whose weights were laid out for inference.
#[derive(Debug)]
pub(super) struct FrozenBlock {
    pub attention: FrozenAttention,
    pub feed_forward: FrozenFeedForward,
}

/// All blocks that are computed.
#[derive(Debug, Clone)]
pub(super) enum Blocks<B> {
    AsRead(Vec<B>),
    /// With memory that one call leaves to the next.
    Frozen(Arc<[FrozenBlock]>, Arc<Mutex<FrozenScratch>>),
}

impl<B: Block> Blocks<B> {
    /// `count` blocks, which `block` reads by their numbers.
    pub fn new(count: usize, frozen: bool, block: impl Fn(usize) -> Result<B>) -> Result<Self> {
        Ok(match frozen {
            // One after the other, so that weights are in memory once.
            true => Self::Frozen(
                (0..count).map(|index| block(index)?.frozen()).collect::<Result<_>>()?,
                Arc::default(),
            ),
            false => Self::AsRead((0..count).map(block).collect::<Result<_>>()?),
        })
    }

    /// `x` (F, R, V) gives (F, R, V); what each block gives is seen.
    pub fn forward(&self, mut x: Tensor, observer: &mut dyn Observer) -> Result<Tensor> {
        let mut see = |index: usize, x: &Tensor| observer.see(&format!("vit.block{index}"), x);
        match self {
            Self::AsRead(blocks) => {
                for (index, block) in blocks.iter().enumerate() {
                    x = block.forward(&x)?;
                    see(index, &x);
                }
            }
            Self::Frozen(blocks, left) => {
                // Never locked while something is computed: a thread that waits for others may begin another call.
                let mut scratch = std::mem::take(&mut *left.lock().unwrap_or_else(PoisonError::into_inner));
                for (index, block) in blocks.iter().enumerate() {
                    x = info_span!("attention").in_scope(|| block.attention.forward(&x, &mut scratch))?;
                    x = info_span!("feed forward")
                        .in_scope(|| block.feed_forward.forward(&x, &mut scratch))?;
                    see(index, &x);
                }
                *left.lock().unwrap_or_else(PoisonError::into_inner) = scratch;
            }
        }
        Ok(x)
    }
}
