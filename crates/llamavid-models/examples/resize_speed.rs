//! Prints how long a 1080p frame takes from RGB bytes to 224 x 224 pixels, on one thread and on two.
//!
//! Run it with the flags of `tools/cargo.mjs`, so that candle is not compiled again.

use std::time::Instant;

use llamavid_models::preprocess::{Fit, Preprocessing, RgbImage};

const WIDTH: usize = 1920;
const HEIGHT: usize = 1080;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let noise = |index: usize| (index.wrapping_mul(2_654_435_761) >> 13) as u8;
    let data: Vec<u8> = (0..WIDTH * HEIGHT * 3).map(noise).collect();
    let image = RgbImage { data: &data, width: WIDTH, height: HEIGHT, stride: WIDTH * 3 };
    let preprocessing = Preprocessing::clip(224, Fit::Crop);
    let mut pixels = vec![0f32; 3 * 224 * 224];
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let mut best = f64::MAX;
        for _ in 0..50 {
            let begun = Instant::now();
            pool.install(|| preprocessing.pixels(&image, &mut pixels))?;
            best = best.min(begun.elapsed().as_secs_f64());
        }
        println!("{threads} threads: {:.2} ms, the best of 50", best * 1e3);
    }
    Ok(())
}
