//! Frames of the toy world as the visual encoder sees them after a video file: rendered at a random size, chroma halved,
//! blurred by a codec, brightness shifted, resized by the preprocessing of the model.

use llamavid_models::preprocess::{Fit, Preprocessing, RgbImage};
use llamavid_world::Scene;
use rand::Rng;

use crate::Result;
use crate::sizes::IMAGE_SIZE;

/// Numbers of a frame's pixels (3, S, S).
pub const PIXELS: usize = 3 * IMAGE_SIZE * IMAGE_SIZE;

/// Draws a moment of a scene into `pixels`, as some video file would show it.
pub fn draw(scene: &Scene, progress: f64, rng: &mut impl Rng, pixels: &mut [f32]) -> Result<()> {
    let side = rng.random_range(96..=224usize);
    let mut picture = Vec::with_capacity(side * side * 3);
    scene.render(progress, side, &mut picture);
    if rng.random_bool(0.9) {
        encode(&mut picture, side, rng);
    }
    let image = RgbImage { data: &picture, width: side, height: side, stride: side * 3 };
    Preprocessing::clip(IMAGE_SIZE, Fit::Crop).pixels(&image, pixels)?;
    Ok(())
}

/// What 4:2:0 video at a middling rate does to a picture: chroma at half the size, rounding of what is left of each
/// block's detail, and levels that differ a little from the source's.
fn encode(picture: &mut [u8], side: usize, rng: &mut impl Rng) {
    let gain = rng.random_range(0.94..1.06f32);
    let shift = rng.random_range(-8.0..8.0f32);
    let noise = rng.random_range(0.0..6.0f32);
    let detail = rng.random_range(0.55..1.0f32);
    let mut luma = vec![0f32; side * side];
    let half = side.div_ceil(2);
    let mut chroma = vec![[0f32; 3]; half * half];
    for (index, pixel) in picture.chunks_exact(3).enumerate() {
        let [r, g, b] = [0, 1, 2].map(|channel| f32::from(pixel[channel]) * gain + shift);
        luma[index] = 0.299 * r + 0.587 * g + 0.114 * b;
        let block = &mut chroma[index / side / 2 * half + index % side / 2];
        block[0] += b - luma[index];
        block[1] += r - luma[index];
        block[2] += 1.;
    }
    smooth(&mut luma, side, detail);
    let blotch = rng.random_range(0.0..5.0f32);
    for block in &mut chroma {
        let drift = [rng.random_range(-1.0..1.0f32) * blotch, rng.random_range(-1.0..1.0f32) * blotch];
        block[0] = block[0] / block[2].max(1.) + drift[0];
        block[1] = block[1] / block[2].max(1.) + drift[1];
    }
    for (index, pixel) in picture.chunks_exact_mut(3).enumerate() {
        let y = luma[index] + rng.random_range(-1.0..1.0f32) * noise;
        let [cb, cr, _] = chroma[index / side / 2 * half + index % side / 2];
        let (b, r) = (y + cb, y + cr);
        let g = (y - 0.299 * r - 0.114 * b) / 0.587;
        for (value, byte) in [r, g, b].into_iter().zip(pixel) {
            *byte = value.round().clamp(0., 255.) as u8;
        }
    }
}

/// Keeps a share of what a pixel differs from the mean of its neighbours.
fn smooth(luma: &mut [f32], side: usize, detail: f32) {
    let source = luma.to_vec();
    for y in 1..side.saturating_sub(1) {
        for x in 1..side - 1 {
            let at = y * side + x;
            let mean = (source[at - 1] + source[at + 1] + source[at - side] + source[at + side]) / 4.;
            luma[at] = mean + (source[at] - mean) * detail;
        }
    }
}
