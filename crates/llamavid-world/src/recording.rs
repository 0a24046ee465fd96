//! How a video is filmed: the size, rate and quality of its file.

use rand::Rng;

use crate::scene::pick;
use crate::video::MediaKind;

/// Size, rate and quality of a file. Half of the files are not square: the picture has grey bars at its sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recording {
    /// Pixels in a row, even.
    pub width: usize,
    /// Rows, even.
    pub height: usize,
    /// Frames a second.
    pub fps: u32,
    /// H.264's constant rate factor: 23 is good, 34 shows its blocks.
    pub crf: u32,
}

impl Recording {
    /// A file of 240 to 640 pixels a side, 24 to 30 frames a second and a rate factor of 23 to 34. A long video has 240 to 320
    /// pixels and 12 frames a second, one with a needle 2 frames a second; both and pictures are square.
    pub fn random(rng: &mut impl Rng, kind: MediaKind) -> Self {
        let even = |value: usize| value / 2 * 2;
        let is_long = matches!(kind, MediaKind::Long | MediaKind::Needle);
        let side = even(rng.random_range(if is_long { 240..=320 } else { 240..=480 }));
        let wide = even(if rng.random_bool(0.5) { side * 4 / 3 } else { (side * 16 / 9).min(640) });
        let (width, height) = match (kind, rng.random_range(0..6)) {
            (MediaKind::Image | MediaKind::Long | MediaKind::Needle, _) | (_, 0..3) => (side, side),
            (_, 3 | 4) => (wide, side),
            _ => (side, wide),
        };
        let fps = match kind {
            MediaKind::Long => 12,
            MediaKind::Needle => 2,
            _ => pick(rng, &[24, 25, 30]),
        };
        Self { width, height, fps, crf: rng.random_range(23..=34) }
    }
}
