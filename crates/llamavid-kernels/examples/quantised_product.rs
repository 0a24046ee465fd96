//! Times of products with weights in blocks: `cargo run --release --example quantised_product`.

use std::time::Instant;

use candle_core::{Device, Result, Tensor};
use llamavid_kernels::{BlockFormat, QuantisedMatrix, linear};

/// The best of a few runs, in milliseconds.
fn best(mut run: impl FnMut() -> Result<Tensor>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let begun = Instant::now();
        run()?;
        best = best.min(begun.elapsed().as_secs_f64() * 1e3);
    }
    Ok(best)
}

fn main() -> Result<()> {
    let (outputs, width) = (11_008, 4096);
    let values: Vec<f32> =
        (0..outputs * width).map(|place| ((place * 7919 % 1009) as f32 - 504.0) / 504.0).collect();
    let dense = Tensor::from_vec(values, (outputs, width), &Device::Cpu)?;
    let rows = [1usize, 2, 4, 8, 16, 64, 256];
    println!("{outputs} x {width}, milliseconds for rows {rows:?}");
    let x = |count: usize| Tensor::ones((count, width), candle_core::DType::F32, &Device::Cpu);
    let times: Vec<String> = rows
        .iter()
        .map(|count| Ok(format!("{:.1}", best(|| linear(&x(*count)?, &dense, None))?)))
        .collect::<Result<_>>()?;
    println!("dense f32: {}", times.join(" "));
    for format in BlockFormat::ALL {
        let weight = QuantisedMatrix::quantise(&dense, format)?;
        let times: Vec<String> = rows
            .iter()
            .map(|count| Ok(format!("{:.1}", best(|| weight.linear(&x(*count)?))?)))
            .collect::<Result<_>>()?;
        println!("{}: {}", format.name(), times.join(" "));
    }
    Ok(())
}
