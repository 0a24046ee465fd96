//! In which order samples are learned from: the same for the same seed and epoch, and resumable at any place.
//!
//! Reference: `get_modality_length_grouped_indices` of `llava_trainer.py`.

use std::num::NonZeroUsize;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// How the samples of an epoch are put in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As in the list.
    Listed,
    /// Shuffled.
    Shuffled,
    /// Batches of one kind (with a picture or video, or text alone) and of like lengths, see [`grouped_order`].
    Grouped {
        /// Samples of a batch of one device.
        batch: NonZeroUsize,
        /// Batches that are learned from at once: devices.
        world: NonZeroUsize,
    },
}

/// A random permutation of `0..count`.
pub fn shuffled_order(count: usize, rng: &mut impl rand::Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(rng);
    order
}

/// An order in which every `batch * world` neighbours are of one kind and of like lengths, longest first, dealt out to
/// `world` batches of like totals; only the neighbours left over mix both kinds. Lengths are negative for text alone.
///
/// `permutation(n)` must permute `0..n`. It is drawn for the samples with a picture or video, then for those without,
/// then for the groups; for one kind alone only once, where the reference fails.
pub fn grouped_order(
    lengths: &[i64],
    batch: NonZeroUsize,
    world: NonZeroUsize,
    permutation: &mut dyn FnMut(usize) -> Vec<usize>,
) -> Vec<usize> {
    let size = batch.get().saturating_mul(world.get());
    let (multimodal, text): (Vec<usize>, Vec<usize>) =
        (0..lengths.len()).partition(|index| lengths.get(*index).is_some_and(|length| *length >= 0));
    let mut groups = Vec::new();
    let mut rest = Vec::new();
    let one_kind = multimodal.is_empty() || text.is_empty();
    for samples in [multimodal, text] {
        if samples.is_empty() {
            continue;
        }
        let mut of_kind = by_length(&samples, lengths, size, world, permutation(samples.len()));
        if !one_kind {
            // The last group of a kind may be smaller than the others.
            rest.extend(of_kind.pop().unwrap_or_default());
        }
        groups.extend(of_kind);
    }
    if one_kind {
        return groups.concat();
    }
    let mut shuffled: Vec<Vec<usize>> = permutation(groups.len())
        .into_iter()
        .map(|index| groups.get_mut(index).map(std::mem::take).unwrap_or_default())
        .collect();
    let behind = rest.split_off(rest.len().min(size));
    if rest.len() == size {
        shuffled.insert(0, rest);
        shuffled.push(behind);
    } else {
        shuffled.push(rest);
    }
    shuffled.concat()
}

/// Groups of `size` samples, longest first in each, dealt out to `world` batches.
fn by_length(
    samples: &[usize],
    lengths: &[i64],
    size: usize,
    world: NonZeroUsize,
    permutation: Vec<usize>,
) -> Vec<Vec<usize>> {
    let length = |sample: &usize| lengths.get(*sample).map_or(0, |length| length.unsigned_abs());
    let permuted: Vec<usize> =
        permutation.into_iter().filter_map(|index| samples.get(index).copied()).collect();
    permuted
        .chunks(size)
        .map(|group| {
            let mut group = group.to_vec();
            group.sort_by_key(|sample| std::cmp::Reverse(length(sample)));
            dealt(&group, world.get(), length).concat()
        })
        .collect()
}

/// `samples`, longest first, in `world` parts: one after the other to the part whose total is smallest so far and that
/// is not full. A number that does not divide is dealt in turns.
fn dealt(samples: &[usize], world: usize, length: impl Fn(&usize) -> u64) -> Vec<Vec<usize>> {
    let mut parts = vec![Vec::new(); world];
    if !samples.len().is_multiple_of(world) {
        for (index, sample) in samples.iter().enumerate() {
            if let Some(part) = parts.get_mut(index % world) {
                part.push(*sample);
            }
        }
        return parts;
    }
    let full = samples.len() / world;
    let mut totals = vec![0u64; world];
    for sample in samples {
        let open = parts.iter_mut().zip(&mut totals).filter(|(part, _)| part.len() < full);
        if let Some((part, total)) = open.min_by_key(|(_, total)| **total) {
            part.push(*sample);
            *total += length(sample);
        }
    }
    parts
}

/// Hands out sample numbers, epoch after epoch. Its whole state is [`Sampler::position`].
#[derive(Debug, Clone)]
pub struct Sampler {
    lengths: Vec<i64>,
    order: Order,
    seed: u64,
    position: u64,
    /// The epoch that `current` is the order of.
    epoch: Option<u64>,
    current: Vec<usize>,
}

impl Sampler {
    /// Orders the samples of these lengths (see [`RecordFile::lengths`](super::RecordFile::lengths)).
    pub fn new(lengths: Vec<i64>, order: Order, seed: u64) -> Self {
        Self { lengths, order, seed, position: 0, epoch: None, current: Vec::new() }
    }

    /// Samples handed out since the first epoch began.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on behind that many samples, as if they had been handed out.
    pub fn resume(&mut self, position: u64) {
        self.position = position;
    }

    /// The order of an epoch, counted from 0.
    pub fn epoch(&self, epoch: u64) -> Vec<usize> {
        let count = self.lengths.len();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        // Streams of one seed do not overlap.
        rng.set_stream(epoch);
        match self.order {
            Order::Listed => (0..count).collect(),
            Order::Shuffled => shuffled_order(count, &mut rng),
            Order::Grouped { batch, world } => {
                grouped_order(&self.lengths, batch, world, &mut |count| shuffled_order(count, &mut rng))
            }
        }
    }
}

/// Endless, but for no samples at all.
impl Iterator for Sampler {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let count = self.lengths.len() as u64;
        let epoch = self.position.checked_div(count)?;
        if self.epoch != Some(epoch) {
            self.current = self.epoch(epoch);
            self.epoch = Some(epoch);
        }
        let index = usize::try_from(self.position % count).ok()?;
        let sample = self.current.get(index).copied()?;
        self.position += 1;
        Some(sample)
    }
}
