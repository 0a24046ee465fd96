//! What is drawn and how often.

use std::ops::RangeInclusive;

use crate::words::{Colour, Pair, Shape};

/// What happens to the pairs of [`Pair::NEVER_TRAINED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NeverTrainedPairs {
    /// They are drawn like any other pair.
    Allow,
    /// They are neither shown nor asked about: for training.
    #[default]
    Forbid,
    /// Nothing else is shown: for measuring generalisation.
    Only,
}

impl NeverTrainedPairs {
    /// The pairs that may be drawn.
    pub fn pairs(self) -> Vec<Pair> {
        Colour::ALL
            .into_iter()
            .flat_map(|colour| Shape::ALL.into_iter().map(move |shape| Pair { colour, shape }))
            .filter(|pair| match self {
                Self::Allow => true,
                Self::Forbid => !pair.is_never_trained(),
                Self::Only => pair.is_never_trained(),
            })
            .collect()
    }
}

/// What a video is drawn from. The default is what the embedded model is trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct WorldOptions {
    /// The pairs that may be shown.
    pub never_trained_pairs: NeverTrainedPairs,
    /// How often one object of a scene moves, 0 to 1.
    pub mover_probability: f64,
    /// How far a channel of an object's colour may be from its exact value, 0 to 255.
    pub colour_jitter: u8,
    /// The number of scenes of a video with cuts, within 1 to 6.
    pub multi_scenes: RangeInclusive<usize>,
    /// The number of scenes of a video with subtitles.
    pub long_scenes: RangeInclusive<usize>,
    /// How long a video with a needle is at least.
    pub needle_seconds: u32,
}

impl Default for WorldOptions {
    fn default() -> Self {
        Self {
            never_trained_pairs: NeverTrainedPairs::Forbid,
            mover_probability: 0.65,
            colour_jitter: 8,
            multi_scenes: 1..=6,
            long_scenes: 60..=150,
            needle_seconds: 600,
        }
    }
}
