//! Attention over the cached positions of a layer: `cargo bench --bench cached_attention -- <part of a name>`.
//!
//! The name says of which model, how keys and values are stored, how many queries there are and how many positions they see;
//! throughput is in bytes of keys and values.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark fails by panicking")]

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use llamavid_kernels::{BlockFormat, CachedRows, cached_attention, instruction_set};

/// Heads, those of them that keys and values are of, and the width of a head.
const MODELS: [(&str, [usize; 3]); 2] = [("7b", [32, 32, 128]), ("1b", [32, 4, 64])];
/// Queries, and positions that the last of them sees: an hour of video is 7,300.
const SEEN: [(usize, usize); 4] = [(1, 512), (1, 2048), (1, 7300), (512, 2560)];

fn attention(criterion: &mut Criterion) {
    println!("{} on {} threads", instruction_set().unwrap(), rayon::current_num_threads());
    let mut group = criterion.benchmark_group("attention");
    group.sample_size(10);
    for (model, [heads, key_heads, width]) in MODELS {
        for (queries, length) in SEEN {
            let q = Tensor::randn(0f32, 1., (1, heads, queries, width), &Device::Cpu).unwrap();
            let rows = Tensor::randn(0f32, 1., (1, key_heads, length, width), &Device::Cpu).unwrap();
            let numbers = rows.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for format in [BlockFormat::F32, BlockFormat::F16, BlockFormat::Q8_0, BlockFormat::Q4_0] {
                let bytes = format.encode(&numbers, width).unwrap();
                group.throughput(Throughput::Bytes(2 * bytes.len() as u64));
                let rows = match format {
                    BlockFormat::F32 => CachedRows::Numbers(&rows),
                    _ => CachedRows::Blocks { format, shape: [1, key_heads, length, width], bytes: &bytes },
                };
                let name = format!("{model}/{}/{queries}", format.name());
                group.bench_function(BenchmarkId::new(name, length), |bencher| {
                    bencher.iter(|| cached_attention(&q, rows, rows, length, None).unwrap());
                });
            }
        }
    }
}

criterion_group!(benches, attention);
criterion_main!(benches);
