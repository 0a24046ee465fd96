//! Sub-layers of visual encoders, laid out for inference: `cargo bench --bench frozen -- <part of a name>`.
//!
//! The name says whose block it is, how its weights are held and how many frames go through it; throughput is in
//! multiplications and additions.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark fails by panicking")]

use candle_core::{DType, Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use llamavid_kernels::{
    Activation, BlockFormat, FrozenAttention, FrozenFeedForward, FrozenScratch, Norm, Projection,
    QuantisedMatrix, Weight, instruction_set,
};

/// Whose block it is, its width, heads, hidden width and rows of a frame.
const BLOCKS: [(&str, usize, usize, usize, usize); 3] =
    [("ViT-g", 1408, 16, 6144, 257), ("half of it", 704, 8, 3072, 257), ("embedded model", 128, 4, 512, 37)];

fn blocks(criterion: &mut Criterion) {
    println!("{} on {} threads", instruction_set().unwrap(), rayon::current_num_threads());
    for (name, width, heads, inner, rows) in BLOCKS {
        let random = |shape: (usize, usize)| Tensor::randn(0f32, 0.02, shape, &Device::Cpu).unwrap();
        let layers = [(3 * width, width), (width, width), (inner, width), (width, inner)].map(random);
        let halves =
            layers.each_ref().map(|layer| layer.to_dtype(DType::F16).unwrap().to_dtype(DType::F32).unwrap());
        let blocks =
            layers.each_ref().map(|layer| QuantisedMatrix::quantise(layer, BlockFormat::Q8_0).unwrap());
        let weight = Tensor::ones(width, DType::F32, &Device::Cpu).unwrap();
        let norm = Norm { weight: &weight, bias: None, eps: 1e-6 };
        for (held, layers) in [
            ("F32", layers.each_ref().map(Weight::Dense)),
            ("F16", halves.each_ref().map(Weight::Dense)),
            ("8 bits", blocks.each_ref().map(Weight::Blocks)),
        ] {
            let [packed, output, first, second] = layers.map(|weight| Projection { weight, bias: None });
            let attention = FrozenAttention::new(norm, &[packed], output, heads).unwrap();
            let feed_forward = FrozenFeedForward::new(norm, first, Activation::Gelu, second).unwrap();
            let mut scratch = FrozenScratch::default();
            for frames in [1, 4] {
                let x = Tensor::randn(0f32, 1., (frames, rows, width), &Device::Cpu).unwrap();
                let row = |numbers: usize| Throughput::Elements((2 * frames * rows * numbers) as u64);
                let mut group = criterion.benchmark_group(name);
                group.sample_size(10);
                group.throughput(row(4 * width * width + 2 * rows * width));
                group.bench_function(BenchmarkId::new(format!("attention {held}"), frames), |bencher| {
                    bencher.iter(|| attention.forward(&x, &mut scratch).unwrap());
                });
                group.throughput(row(2 * width * inner));
                group.bench_function(BenchmarkId::new(format!("feed forward {held}"), frames), |bencher| {
                    bencher.iter(|| feed_forward.forward(&x, &mut scratch).unwrap());
                });
            }
        }
    }
}

criterion_group!(benches, blocks);
criterion_main!(benches);
