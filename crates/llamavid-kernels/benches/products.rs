//! Linear layers of the published models' sizes: `cargo bench --bench products -- <part of a name>`.
//!
//! The name says what the layer is, how its weights are stored and how many rows go through it; throughput is in
//! multiplications and additions, two for each weight and row.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark fails by panicking")]

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use llamavid_kernels::{BlockFormat, QuantisedMatrix, instruction_set, linear};

/// What a layer is, its outputs and inputs, and the numbers of rows that go through it.
const LAYERS: [(&str, usize, usize, &[usize]); 5] = [
    ("7B up", 11008, 4096, &[1, 2, 4, 16, 32, 64, 512]),
    ("7B down", 4096, 11008, &[1, 512]),
    ("7B attention", 4096, 4096, &[64, 512]),
    ("1B down", 2048, 5632, &[16, 64, 512]),
    ("ViT-g up", 6144, 1408, &[257]),
];

fn products(criterion: &mut Criterion) {
    println!("{} on {} threads", instruction_set().unwrap(), rayon::current_num_threads());
    for (name, outputs, inputs, counts) in LAYERS {
        let weights = Tensor::randn(0f32, 0.02, (outputs, inputs), &Device::Cpu).unwrap();
        let blocks: Vec<_> = BlockFormat::ALL
            .into_iter()
            .filter(|format| *format != BlockFormat::F32)
            .filter_map(|format| QuantisedMatrix::quantise(&weights, format).ok())
            .collect();
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10);
        for count in counts {
            group.throughput(Throughput::Elements(2 * (outputs * inputs * count) as u64));
            let x = Tensor::randn(0f32, 1., (*count, inputs), &Device::Cpu).unwrap();
            group.bench_function(BenchmarkId::new("F32", count), |bencher| {
                bencher.iter(|| linear(&x, &weights, None).unwrap());
            });
            for weights in &blocks {
                group.bench_function(BenchmarkId::new(weights.format().name(), count), |bencher| {
                    bencher.iter(|| weights.linear(&x).unwrap());
                });
            }
        }
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
