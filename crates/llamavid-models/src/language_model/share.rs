//! What each of several devices has of the decoder's layers when they compute them together.
//!
//! Paper: "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism" (arXiv 1909.08053), section 3. A rank
//! has some of the heads and some of the numbers inside the feed-forward layer: rows of the matrices that make them, columns of those
//! that read them. What these give are addends, and one sum behind each makes the layer's.

use std::ops::Range;

use candle_core::Device;
use llamavid_kernels::{BlockFormat, Ranks};

use super::config::LanguageModelConfig;
use crate::{Error, Result};

/// One rank of several.
#[derive(Debug)]
pub(super) struct Share {
    rank: usize,
    ranks: usize,
    pub(super) device: Device,
}

impl Share {
    /// One for each of `ranks`.
    pub(super) fn of_each(ranks: &Ranks) -> impl Iterator<Item = Self> {
        let count = ranks.devices().len();
        let numbered = ranks.devices().iter().enumerate();
        numbered.map(move |(rank, device)| Self { rank, ranks: count, device: device.clone() })
    }

    /// Its part of `count` numbers, of which `unit` stay together. The parts differ by one unit at most.
    pub(super) fn of(&self, count: usize, unit: usize) -> Range<usize> {
        let end = |ranks: usize| count / unit * ranks / self.ranks * unit;
        end(self.rank)..end(self.rank + 1)
    }

    /// Its part of so few that there may be less than ranks: it has one at least, and others then have the same.
    pub(super) fn of_few(&self, count: usize) -> Range<usize> {
        let start = count * self.rank / self.ranks;
        start..start + (count / self.ranks).max(1)
    }

    /// Checks that columns of a matrix in blocks, which this rank reads as `what`, are whole blocks and some at all.
    pub(super) fn expect_blocks(
        &self,
        columns: &Range<usize>,
        format: Option<BlockFormat>,
        what: &str,
    ) -> Result<()> {
        let length = format.map_or(1, BlockFormat::block_length);
        if !columns.is_empty() && columns.start.is_multiple_of(length) && columns.end.is_multiple_of(length) {
            return Ok(());
        }
        let name = format.map_or("numbers", BlockFormat::name);
        let problem =
            format!("{what} {columns:?} of rank {} are no whole blocks of {length} ({name})", self.rank);
        Err(Error::Shares { ranks: self.ranks, problem })
    }
}

/// Where a weight is read: by one rank on its device, for several on the CPU, once, where each takes its part from.
pub(super) fn read_on(ranks: &Ranks) -> &Device {
    match ranks.devices() {
        [only] => only,
        _ => &Device::Cpu,
    }
}

impl LanguageModelConfig {
    /// Checks that so many devices can share each layer.
    ///
    /// # Errors
    /// [`Error::Shares`] where their number does not divide the heads, or is neither a divisor nor a multiple of that of the key heads.
    pub fn expect_shares(&self, ranks: usize) -> Result<()> {
        let shared = |problem: String| Err(Error::Shares { ranks, problem });
        if ranks == 0 || !self.heads.is_multiple_of(ranks) {
            return shared(format!("it has {} heads", self.heads));
        }
        if !self.kv_heads.is_multiple_of(ranks) && !ranks.is_multiple_of(self.kv_heads) {
            return shared(format!("it has {} key heads", self.kv_heads));
        }
        let least = self.intermediate_size.min(self.vocab_size);
        if least < ranks {
            return shared(format!("one of its matrices has {least} rows"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_whole_units_and_add_up() {
        let ranks = Ranks::of(vec![Device::Cpu; 2]).unwrap();
        let of = |count, unit| Share::of_each(&ranks).map(|share| share.of(count, unit)).collect::<Vec<_>>();
        assert_eq!(of(32, 1), [0..16, 16..32]);
        // The feed-forward layer of LLaMA 7B has 43 large blocks.
        assert_eq!(of(11_008, 256), [0..5376, 5376..11_008]);
        assert_eq!(of(3, 1), [0..1, 1..3]);
    }

    #[test]
    fn few_heads_are_had_by_several() {
        let ranks = Ranks::of(vec![Device::Cpu; 4]).unwrap();
        let of = |count| Share::of_each(&ranks).map(|share| share.of_few(count)).collect::<Vec<_>>();
        assert_eq!(of(8), [0..2, 2..4, 4..6, 6..8]);
        assert_eq!(of(2), [0..1, 0..1, 1..2, 1..2]);
        assert_eq!(of(1), [0..1, 0..1, 0..1, 0..1]);
    }
}
