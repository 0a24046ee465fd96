//! The toy world that the embedded model is trained on: scenes, their pictures, and questions with answers.
//!
//! Everything is drawn from the caller's generator; [`seeded`] makes one that gives the same video and the same
//! questions everywhere.
//!
//! ```
//! use llamavid_world::{MediaKind, Phrasing, Video, WorldOptions, questions, seeded};
//!
//! let mut rng = seeded(7);
//! let video = Video::random_clip(&mut rng, &WorldOptions::default());
//! let mut pixels = Vec::new();
//! let (scene, progress) = video.frame(1.0);
//! video.scenes[scene].render(progress, 84, &mut pixels);
//! for question in questions(&video, MediaKind::Clip, Phrasing::Trained, &mut rng) {
//!     println!("{} {}", question.text, question.answer);
//! }
//! ```

mod options;
mod phrasing;
mod question;
mod recording;
mod render;
mod scene;
mod video;
mod words;

pub use options::{NeverTrainedPairs, WorldOptions};
pub use phrasing::{Phrasing, QuestionType, vocabulary};
pub use question::{Question, Subject, describe, questions};
pub use recording::Recording;
pub use scene::{Object, Pose, Scene};
pub use video::{Fact, MediaKind, SpokenCue, Subtitle, Video};
pub use words::{Background, Cell, Colour, Cue, FactKind, Motion, Pair, Shape, Size, number};

/// A generator that draws the same things for the same seed on every machine.
pub fn seeded(seed: u64) -> rand_chacha::ChaCha8Rng {
    rand::SeedableRng::seed_from_u64(seed)
}

/// The generator of one of many videos of a seed: what it draws depends on no other video.
pub fn seeded_item(seed: u64, kind: MediaKind, index: u32) -> rand_chacha::ChaCha8Rng {
    let mut rng = seeded(seed);
    rng.set_stream(((kind as u64 + 1) << 32) | u64::from(index));
    rng
}
