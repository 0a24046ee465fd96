//! The kernels' own sources, compiled for the processor (see `emulation.hpp`), against their definitions in f64.
//!
//! This checks what they compute and how they are launched, where there is no device. It says nothing of a device's speed, and no more
//! of what a device does than `emulation.hpp` knows. Without a C++ compiler the tests say so and check nothing.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use libloading::{Library, Symbol};

use super::Source;
use super::arguments::{
    AttentionCall, AttentionPlan, Each, EachArguments, HeadRows, LargestArguments, Launch, NOT_FINITE,
    NormArguments, ProductArguments, RotateArguments, StoreArguments, Stored, UnpackArguments, each, largest,
    norm, product, rotate, store, unpack,
};
use crate::BlockFormat;

/// A kernel as the emulation has it: its arguments, and the grid, threads and shared bytes of its launch.
type Kernel = unsafe extern "C" fn(*const std::ffi::c_void, *const u32, u32, u32) -> i32;

/// The compiled sources, in the order of [`Source::ALL`].
fn libraries() -> Option<&'static [Library]> {
    static LIBRARIES: OnceLock<Result<Vec<Library>, String>> = OnceLock::new();
    let compiled = LIBRARIES.get_or_init(|| {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/kernels");
        let mut running = Vec::new();
        for source in Source::ALL {
            let library = folder.path().join(format!("{}.so", source.name()));
            let child = Command::new(&compiler)
                .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-x", "c++", "-o"])
                .arg(&library)
                .arg(sources.join(format!("{}.cu", source.name())))
                .spawn()
                .map_err(|error| format!("the C++ compiler {compiler} does not start: {error}"))?;
            running.push((child, library));
        }
        running
            .into_iter()
            .map(|(mut child, library)| {
                assert!(child.wait().unwrap().success(), "{} does not compile", library.display());
                // SAFETY: a library that was just made here, without code that runs when it is opened.
                Ok(unsafe { Library::new(&library) }.unwrap())
            })
            .collect()
    });
    match compiled {
        Ok(libraries) => Some(libraries),
        Err(reason) => {
            eprintln!("skipped: {reason}");
            None
        }
    }
}

/// Runs a kernel. Its pointers must be addresses of memory that is as large as it takes.
fn run<A>(launch: &Launch, arguments: &A) {
    let libraries = libraries().unwrap();
    let library = &libraries[Source::ALL.iter().position(|source| *source == launch.source).unwrap()];
    // SAFETY: kernels have this type; the caller's pointers are good.
    let outcome = unsafe {
        let kernel: Symbol<Kernel> = library.get(launch.kernel.as_bytes()).unwrap();
        kernel(std::ptr::from_ref(arguments).cast(), launch.grid.as_ptr(), launch.threads, launch.shared)
    };
    match outcome {
        0 => {}
        1 => panic!("threads of {} wait for each other", launch.kernel),
        2 => panic!("{} writes beyond its shared memory", launch.kernel),
        other => panic!("{} ends with {other}", launch.kernel),
    }
}

/// Memory that begins at a multiple of 16 bytes, with something behind it that must stay as it is.
struct Memory {
    words: Vec<u128>,
    bytes: usize,
}

const BEHIND: u128 = 0x5555_5555_5555_5555_5555_5555_5555_5555;

impl Memory {
    fn new(bytes: usize) -> Self {
        Self { words: vec![BEHIND; bytes.div_ceil(16) + 4], bytes }
    }

    fn of(dtype: DType, values: &[f64]) -> Self {
        let mut memory = Self::new(values.len() * dtype.size_in_bytes());
        for (place, value) in values.iter().enumerate() {
            let bytes = match dtype {
                DType::F32 => (*value as f32).to_le_bytes().to_vec(),
                DType::F16 => f16::from_f64(*value).to_le_bytes().to_vec(),
                DType::BF16 => bf16::from_f64(*value).to_le_bytes().to_vec(),
                other => panic!("{other:?}"),
            };
            memory.bytes_mut()[place * bytes.len()..][..bytes.len()].copy_from_slice(&bytes);
        }
        memory
    }

    fn pointer(&self) -> u64 {
        self.words.as_ptr() as u64
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the words take more than that.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.bytes) }
    }

    /// The numbers, if nothing was written behind them.
    fn values(&self, dtype: DType) -> Vec<f64> {
        assert_eq!(self.words[self.words.len() - 3..], [BEHIND; 3], "written beyond the end");
        let size = dtype.size_in_bytes();
        self.bytes()
            .chunks_exact(size)
            .map(|bytes| match *bytes {
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]).into(),
                [a, b] if dtype == DType::F16 => f16::from_le_bytes([a, b]).to_f64(),
                [a, b] => bf16::from_le_bytes([a, b]).to_f64(),
                _ => panic!("{dtype:?}"),
            })
            .collect()
    }
}

/// Numbers that follow no pattern.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// One of a few.
    fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.next() as usize % from.len()]
    }

    /// From -2 to 2, as they are after rounding to `dtype`.
    fn numbers(&mut self, count: usize, dtype: DType) -> Vec<f64> {
        (0..count)
            .map(|_| {
                let value = self.next() as f64 / f64::from(1 << 29) - 2.0;
                match dtype {
                    DType::F16 => f16::from_f64(value).to_f64(),
                    DType::BF16 => bf16::from_f64(value).to_f64(),
                    _ => f64::from(value as f32),
                }
            })
            .collect()
    }
}

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// What rounding to a dtype, once or twice, may change numbers of about 1.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2e-5,
        DType::F16 => 4e-3,
        _ => 3e-2,
    }
}

#[track_caller]
fn assert_close(actual: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1f64, |largest, value| largest.max(value.abs()));
    for (place, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        // Written so that not-a-number fails.
        assert!(
            (actual - expected).abs() <= tolerance * largest,
            "{what}: {actual} instead of {expected} at {place}"
        );
    }
}

/// An attention with its numbers, in f64.
struct Case {
    call: AttentionCall,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    /// (B, H or 1, Q or 1, K).
    bias: Option<(Vec<f64>, [usize; 4])>,
    biases: Option<[Vec<f64>; 2]>,
}

impl Case {
    /// (B, Q, H · d). Rows are (B, Q, H, d), and keys (B, key heads, K, d).
    fn expected(&self) -> Vec<f64> {
        let AttentionCall { batch, heads, key_heads, query_count, key_count, width, .. } = self.call;
        let mut result = Vec::new();
        for (sequence, query, head) in (0..batch).flat_map(|sequence| {
            (0..query_count).flat_map(move |query| (0..heads).map(move |head| (sequence, query, head)))
        }) {
            let at = |rows: &[f64], row: usize, place: usize| rows[row * width + place];
            let key_row = |key: usize| (sequence * key_heads + head / (heads / key_heads)) * key_count + key;
            let bias_of = |which: usize, place: usize| {
                self.biases.as_ref().map_or(0.0, |biases| biases[which][head * width + place])
            };
            let seen = if self.call.causal { key_count - query_count + query + 1 } else { key_count };
            let scores: Vec<f64> = (0..seen)
                .map(|key| {
                    let row = (sequence * query_count + query) * heads + head;
                    let product: f64 = (0..width)
                        .map(|place| {
                            (at(&self.q, row, place) + bias_of(0, place)) * at(&self.k, key_row(key), place)
                        })
                        .sum();
                    let bias = self.bias.as_ref().map_or(0.0, |(bias, [_, of_heads, of_queries, _])| {
                        let (head, query) = (head % of_heads, query % of_queries);
                        bias[((sequence * of_heads + head) * of_queries + query) * key_count + key]
                    });
                    product * f64::from(self.call.scale) + bias
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let probabilities: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = probabilities.iter().sum();
            result.extend((0..width).map(|place| {
                let seen = probabilities.iter().enumerate();
                let sum: f64 =
                    seen.map(|(key, probability)| probability * at(&self.v, key_row(key), place)).sum();
                sum / total + bias_of(1, place)
            }));
        }
        result
    }
}

/// Plans it, runs it, and compares. Keys and values have room for more rows than there are.
fn attend(mut case: Case, noise: &mut Noise) -> String {
    let AttentionCall { dtype, stored, batch, heads, key_heads, query_count, key_count, width, .. } =
        case.call;
    let capacity = key_count + noise.choose(&[0, 3, 40]);
    let memory_of = |numbers: &mut Vec<f64>| {
        let rows: Vec<&[f64]> = numbers.chunks_exact(width).collect();
        let format = match stored {
            Stored::Numbers(_) => None,
            Stored::EightBit => Some(BlockFormat::Q8_0),
            Stored::FourBit => Some(BlockFormat::Q4_0),
        };
        // What no row reads is no number.
        let mut room = vec![f64::NAN; batch * key_heads * capacity * width];
        for (row, numbers) in rows.iter().enumerate() {
            let place = (row / key_count * capacity + row % key_count) * width;
            room[place..place + width].copy_from_slice(numbers);
        }
        match (stored, format) {
            (Stored::Numbers(dtype), _) => (Memory::of(dtype, &room), width as i64),
            (_, Some(format)) => {
                let singles: Vec<f32> =
                    room.iter().map(|x| if x.is_nan() { 1.0 } else { *x as f32 }).collect();
                let bytes = format.encode(&singles, width).unwrap();
                let mut memory = Memory::new(bytes.len());
                memory.bytes_mut().copy_from_slice(&bytes);
                let mut read = vec![0f32; singles.len()];
                format.decode(&bytes, &mut read);
                for (row, numbers) in numbers.chunks_exact_mut(width).enumerate() {
                    let place = (row / key_count * capacity + row % key_count) * width;
                    numbers.copy_from_slice(
                        &read[place..place + width].iter().map(|x| f64::from(*x)).collect::<Vec<_>>(),
                    );
                }
                (memory, format.row_bytes(width).unwrap() as i64)
            }
            _ => panic!("{stored:?}"),
        }
    };
    let (keys, row) = memory_of(&mut case.k);
    let (values, _) = memory_of(&mut case.v);
    let queries = Memory::of(dtype, &case.q);
    let result = Memory::of(dtype, &vec![f64::NAN; case.q.len()]);
    let bias = case.bias.as_ref().map(|(bias, shape)| (Memory::of(DType::F32, bias), *shape));
    let biases = case.biases.as_ref().map(|biases| biases.each_ref().map(|bias| Memory::of(dtype, bias)));

    let place = (heads * width) as i64;
    let of_keys = |memory: &Memory| HeadRows {
        pointer: memory.pointer(),
        strides: [row * (key_heads * capacity) as i64, row * capacity as i64, row],
    };
    let call = AttentionCall {
        queries: HeadRows {
            pointer: queries.pointer(),
            strides: [place * query_count as i64, width as i64, place],
        },
        keys: of_keys(&keys),
        values: of_keys(&values),
        bias: bias.as_ref().map(|(memory, [_, of_heads, of_queries, keys])| {
            let row = *keys as i64;
            let stride = |size: usize, stride: i64| if size == 1 { 0 } else { stride };
            let head = stride(*of_heads, row * *of_queries as i64);
            (memory.pointer(), [row * (of_heads * of_queries) as i64, head, stride(*of_queries, row), 1])
        }),
        biases: biases.as_ref().map(|biases| biases.each_ref().map(Memory::pointer)),
        result: result.pointer(),
        ..case.call
    };
    let what = format!(
        "{dtype:?} of {stored:?}, {batch} x {heads}/{key_heads} heads, {query_count} of {key_count}, {width} wide, {}",
        if call.causal { "causal" } else { "all" }
    );
    let kernel = match call.plan().unwrap() {
        AttentionPlan::Tiles(launch, arguments) => {
            run(&launch, &arguments);
            launch.kernel
        }
        AttentionPlan::Rows(launch, mut arguments, parts) => {
            let room = Memory::of(DType::F32, &vec![f64::NAN; parts]);
            arguments.parts = room.pointer();
            // What a launch leaves behind is what the next one begins with.
            for _ in 0..2 {
                run(&launch, &arguments);
            }
            room.values(DType::F32);
            launch.kernel
        }
    };
    assert_close(&result.values(dtype), &case.expected(), tolerance(dtype), &format!("{kernel}: {what}"));
    kernel
}

fn case(
    noise: &mut Noise,
    (dtype, stored): (DType, Stored),
    [batch, heads, key_heads, query_count, key_count, width]: [usize; 6],
    causal: bool,
) -> Case {
    let nothing = HeadRows::default();
    let key_dtype = match stored {
        Stored::Numbers(dtype) => dtype,
        Stored::EightBit | Stored::FourBit => DType::F32,
    };
    let bias =
        noise.choose(&[None, None, Some((1, 1)), Some((heads, query_count))]).map(|(heads, queries)| {
            let mut bias = noise.numbers(batch * heads * queries * key_count, DType::F32);
            // Some are hidden, in one sequence all.
            for (place, bias) in bias.iter_mut().enumerate() {
                if place % 7 == 3 || (batch > 1 && place < heads * queries * key_count) {
                    *bias = f64::from(f32::MIN);
                }
            }
            (bias, [batch, heads, queries, key_count])
        });
    let with_biases = heads == key_heads && noise.choose(&[true, false]);
    Case {
        call: AttentionCall {
            dtype,
            stored,
            batch,
            heads,
            key_heads,
            query_count,
            key_count,
            width,
            scale: (width as f32).sqrt().recip(),
            causal,
            queries: nothing,
            keys: nothing,
            values: nothing,
            bias: None,
            biases: None,
            result: 0,
        },
        q: noise.numbers(batch * query_count * heads * width, dtype),
        k: noise.numbers(batch * key_heads * key_count * width, key_dtype),
        v: noise.numbers(batch * key_heads * key_count * width, key_dtype),
        bias,
        biases: with_biases.then(|| [(); 2].map(|()| noise.numbers(heads * width, dtype))),
    }
}

#[test]
fn attention_on_tensor_cores() {
    if libraries().is_none() {
        return;
    }
    let mut noise = Noise(1);
    for dtype in [DType::F16, DType::BF16] {
        for (width, kernel) in [(64, 64), (88, 96), (96, 96), (128, 128), (32, 64), (104, 128)] {
            let key_heads = noise.choose(&[1, 2]);
            let heads = key_heads * noise.choose(&[1, 2]);
            let query_count = noise.choose(&[17, 33, 64, 97, 130]);
            let key_count = query_count + noise.choose(&[0, 1, 47, 64, 90]);
            let sizes = [noise.choose(&[1, 2]), heads, key_heads, query_count, key_count, width];
            for causal in [false, true] {
                let case = case(&mut noise, (dtype, Stored::Numbers(dtype)), sizes, causal);
                let used = attend(case, &mut noise);
                assert!(used.starts_with("attention_f16_") || used.starts_with("attention_bf16_"));
                assert!(used.ends_with(&format!("_{kernel}")), "{used} for {width}");
            }
        }
    }
}

#[test]
fn attention_row_by_row() {
    if libraries().is_none() {
        return;
    }
    let mut noise = Noise(2);
    for dtype in DTYPES {
        for stored in [Stored::Numbers(dtype), Stored::Numbers(DType::F16), Stored::EightBit, Stored::FourBit]
        {
            for width in [64, 88, 128, 32, 7, 96] {
                if !matches!(stored, Stored::Numbers(_)) && width % 32 != 0 {
                    continue;
                }
                let key_heads = noise.choose(&[1, 2]);
                let group = noise.choose(&[1, 2, 3]);
                let query_count = noise.choose(&[1, 1, 2, 5]);
                let key_count = query_count + noise.choose(&[0, 1, 60, 300, 517]);
                let batch = noise.choose(&[1, 2]);
                let sizes = [batch, group * key_heads, key_heads, query_count, key_count, width];
                let causal = noise.choose(&[false, true]);
                let case = case(&mut noise, (dtype, stored), sizes, causal);
                let used = attend(case, &mut noise);
                assert!(used.starts_with("attention_rows_"), "{used}");
            }
        }
    }
}

/// Each row of `width` by a function.
fn by_rows(x: &[f64], width: usize, row: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    x.chunks_exact(width).flat_map(row).collect()
}

#[test]
fn norms() {
    if libraries().is_none() {
        return;
    }
    let mut noise = Noise(3);
    for (dtype, width) in
        DTYPES.into_iter().flat_map(|dtype| [1, 7, 88, 1408, 4100].map(|width| (dtype, width)))
    {
        for centred in [true, false] {
            // Many short rows are a warp's each, and the last block has fewer.
            let many = if width < 100 { 521 } else { 3 };
            let (rows, second, eps) = (noise.choose(&[1, many]), noise.choose(&[true, false]), 1e-5f32);
            // Far from zero, where a difference of squares has no digits left.
            let shift = if dtype == DType::F32 { 100.0 } else { 0.0 };
            let x: Vec<f64> = noise.numbers(rows * width, dtype).iter().map(|x| x + shift).collect();
            let x: Vec<f64> = x.iter().map(|x| f64::from(*x as f32)).collect();
            let added = noise.numbers(rows * width, dtype);
            let [added_bias, weight, bias] = [(); 3].map(|()| noise.numbers(width, dtype));
            let of = |numbers: &[f64]| Memory::of(dtype, numbers);
            let memories = [of(&x), of(&added), of(&added_bias), of(&weight), of(&bias)];
            let [result, sum] = [(); 2].map(|()| of(&vec![f64::NAN; rows * width]));
            let pointer = |place: usize, given: bool| if given { memories[place].pointer() } else { 0 };
            let mut arguments = NormArguments {
                x: pointer(0, true),
                added: pointer(1, second),
                added_bias: pointer(2, second),
                weight: pointer(3, true),
                bias: pointer(4, centred),
                result: result.pointer(),
                sum: sum.pointer(),
                rows: rows as i64,
                width: width as i64,
                vectors: 0,
                eps,
            };
            let launch = norm(dtype, centred, &mut arguments).unwrap();
            run(&launch, &arguments);
            let what = format!("{} of {rows} x {width}, {second}", launch.kernel);
            let mut whole = x.clone();
            if second {
                for (place, whole) in whole.iter_mut().enumerate() {
                    *whole += added[place] + added_bias[place % width];
                }
                let found = sum.values(dtype);
                assert_close(&found, &whole, tolerance(dtype), &what);
                whole = found;
            }
            let expected = by_rows(&whole, width, |row| {
                let mean = if centred { row.iter().sum::<f64>() / width as f64 } else { 0.0 };
                let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / width as f64;
                let scale = (variance + f64::from(eps)).sqrt().recip();
                let places = row.iter().enumerate();
                places
                    .map(|(place, x)| {
                        (x - mean) * scale * weight[place] + if centred { bias[place] } else { 0.0 }
                    })
                    .collect()
            });
            // A row of one number is its own mean, to as many digits as it has.
            let slack = if centred && dtype == DType::F32 { 20.0 } else { 1.0 };
            assert_close(&result.values(dtype), &expected, slack * tolerance(dtype), &what);
        }
    }
}

/// The error function by its series, for numbers that are not large.
fn error_function(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

#[test]
fn functions_of_each_number() {
    if libraries().is_none() {
        return;
    }
    let mut noise = Noise(4);
    for (dtype, width) in DTYPES.into_iter().flat_map(|dtype| [1, 5, 64, 264].map(|width| (dtype, width))) {
        for function in [Each::Gelu, Each::QuickGelu, Each::SwiGlu, Each::Sum] {
            let rows = noise.choose(&[1, 3, 40]);
            let (x, other) = (noise.numbers(rows * width, dtype), noise.numbers(rows * width, dtype));
            let bias = noise.numbers(width, dtype);
            let two = matches!(function, Each::SwiGlu | Each::Sum);
            let biased = function != Each::SwiGlu && noise.choose(&[true, false]);
            let [x_memory, other_memory, bias_memory] =
                [&x, &other, &bias].map(|numbers| Memory::of(dtype, numbers));
            let result = Memory::of(dtype, &vec![f64::NAN; x.len()]);
            let mut arguments = EachArguments {
                x: x_memory.pointer(),
                other: if two { other_memory.pointer() } else { 0 },
                bias: if biased { bias_memory.pointer() } else { 0 },
                result: result.pointer(),
                count: x.len() as i64,
                width: width as i64,
                ..Default::default()
            };
            let launch = each(dtype, function, &mut arguments).unwrap();
            run(&launch, &arguments);
            let expected: Vec<f64> = x
                .iter()
                .zip(&other)
                .enumerate()
                .map(|(place, (x, other))| {
                    let x = x + if biased { bias[place % width] } else { 0.0 };
                    match function {
                        Each::Gelu => 0.5 * x * (1.0 + error_function(x / 2f64.sqrt())),
                        Each::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
                        Each::SwiGlu => x / (1.0 + (-x).exp()) * other,
                        Each::Sum => x + other,
                    }
                })
                .collect();
            let what = format!("{} of {rows} x {width}, {biased}", launch.kernel);
            assert_close(&result.values(dtype), &expected, tolerance(dtype), &what);
        }
    }
}

#[test]
fn the_largest_number_of_a_row() {
    if libraries().is_none() {
        return;
    }
    let width = 1000;
    let mut x = Noise(5).numbers(5 * width, DType::F32);
    // The first of equal ones; in the last rows something is no number, or infinite.
    for place in [990, 17, 273] {
        x[place] = 9.0;
    }
    x[width + 999] = 8.0;
    x[2 * width..3 * width].fill(-3.0);
    x[3 * width + 500] = f64::NAN;
    x[4 * width + 3] = f64::INFINITY;
    let (memory, result) = (Memory::of(DType::F32, &x), Memory::new(5 * 4));
    let arguments = LargestArguments { x: memory.pointer(), result: result.pointer(), width: width as i64 };
    run(&largest(5), &arguments);
    let (found, _) = result.bytes().as_chunks();
    let found: Vec<u32> = found.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    assert_eq!(found, [17, 999, 0, NOT_FINITE, NOT_FINITE]);
}

/// A row of a head, its halves turned against each other.
fn turned(row: &[f64], cosines: &[f64], sines: &[f64]) -> Vec<f64> {
    let (low, high) = row.split_at(row.len() / 2);
    let pairs = || low.iter().zip(high).zip(cosines.iter().zip(sines));
    let first = pairs().map(|((low, high), (cosine, sine))| low * cosine - high * sine);
    first.chain(pairs().map(|((low, high), (cosine, sine))| low * sine + high * cosine)).collect()
}

#[test]
fn rows_are_rotated_and_written_to_their_caches() {
    if libraries().is_none() {
        return;
    }
    let mut noise = Noise(6);
    for (dtype, width) in DTYPES.into_iter().flat_map(|dtype| [2, 88, 128].map(|width| (dtype, width))) {
        for key_heads in [0, 1, 2] {
            let [batch, rows] = [noise.choose(&[1, 2]), noise.choose(&[1, 9])];
            let heads = key_heads.max(1) * noise.choose(&[1, 3]);
            // From (B, rows, heads, d) to (B, heads, rows, d), or to (B, key heads, capacity, d) from the third row on.
            let [q, k, v] =
                [heads, key_heads, key_heads].map(|heads| noise.numbers(batch * rows * heads * width, dtype));
            let [cosines, sines] = [(); 2].map(|()| noise.numbers(rows * width / 2, dtype));
            let [queries, keys, values, cosine, sine] =
                [&q, &k, &v, &cosines, &sines].map(|numbers| Memory::of(dtype, numbers));
            let capacity = rows + 5;
            let rotated = Memory::of(dtype, &vec![f64::NAN; q.len()]);
            let caches =
                [(); 2].map(|()| Memory::of(dtype, &vec![7.0; batch * key_heads * capacity * width]));
            let third = (3 * width * dtype.size_in_bytes()) as u64;
            let strides = |heads: usize| [rows * heads * width, width, heads * width].map(|size| size as i64);
            let mut arguments = RotateArguments {
                queries: queries.pointer(),
                keys: keys.pointer(),
                values: values.pointer(),
                rotated: rotated.pointer(),
                key_cache: caches[0].pointer() + third,
                value_cache: caches[1].pointer() + third,
                cosines: cosine.pointer(),
                sines: sine.pointer(),
                query_strides: strides(heads),
                key_strides: strides(key_heads),
                value_strides: strides(key_heads),
                cache_strides: [key_heads * capacity * width, capacity * width, width]
                    .map(|size| size as i64),
                sizes: [batch, heads, key_heads, rows, width].map(|size| size as i32),
                vectors: 0,
            };
            let launch = rotate(dtype, &mut arguments).unwrap();
            run(&launch, &arguments);
            let row_of = |numbers: &[f64], heads: usize, [sequence, head, row]: [usize; 3]| {
                numbers[((sequence * rows + row) * heads + head) * width..][..width].to_vec()
            };
            let half = |numbers: &[f64], row: usize| numbers[row * width / 2..(row + 1) * width / 2].to_vec();
            let places = |heads: usize| {
                (0..batch * heads * rows).map(move |row| [row / rows / heads, row / rows % heads, row % rows])
            };
            let mut expected = Vec::new();
            for place in places(heads) {
                expected.extend(turned(
                    &row_of(&q, heads, place),
                    &half(&cosines, place[2]),
                    &half(&sines, place[2]),
                ));
            }
            let what = format!("{dtype:?}, {heads} and {key_heads} heads, {width} wide");
            assert_close(&rotated.values(dtype), &expected, tolerance(dtype), &what);
            for (cache, numbers, is_key) in [(&caches[0], &k, true), (&caches[1], &v, false)] {
                let mut expected = vec![7.0; batch * key_heads * capacity * width];
                for place @ [sequence, head, row] in places(key_heads) {
                    let mut numbers = row_of(numbers, key_heads, place);
                    if is_key {
                        numbers = turned(&numbers, &half(&cosines, row), &half(&sines, row));
                    }
                    let to = ((sequence * key_heads + head) * capacity + row + 3) * width;
                    expected[to..to + width].copy_from_slice(&numbers);
                }
                assert_close(&cache.values(dtype), &expected, tolerance(dtype), &what);
            }
        }
    }
}

/// Rounds each 32 numbers to 8 bits of the largest of them.
fn rounded(row: &[f64]) -> Vec<f64> {
    by_rows(row, 32, |block| {
        let most = block.iter().fold(0f64, |most, value| most.max(value.abs()));
        block.iter().map(|value| (value * 127.0 / most).round_ties_even() * most / 127.0).collect()
    })
}

/// Weights of a matrix as they are stored, and what they stand for.
fn matrix(
    noise: &mut Noise,
    format: Option<BlockFormat>,
    dtype: DType,
    rows: usize,
    columns: usize,
) -> (Memory, Vec<f64>) {
    let Some(format) = format else {
        let numbers = noise.numbers(rows * columns, dtype);
        return (Memory::of(dtype, &numbers), numbers);
    };
    let singles: Vec<f32> = noise.numbers(rows * columns, DType::F32).iter().map(|x| *x as f32).collect();
    let bytes = format.encode(&singles, columns).unwrap();
    let mut memory = Memory::new(bytes.len());
    memory.bytes_mut().copy_from_slice(&bytes);
    let mut numbers = vec![0f32; singles.len()];
    format.decode(&bytes, &mut numbers);
    (memory, numbers.into_iter().map(f64::from).collect())
}

#[test]
fn products_of_a_row() {
    if libraries().is_none() {
        return;
    }
    let mut noise = Noise(8);
    let (four, six) = (Some(BlockFormat::Q4K), Some(BlockFormat::Q6K));
    let kinds: [[Option<BlockFormat>; 3]; 4] = [[None; 3], [four; 3], [six; 3], [four, four, six]];
    for (dtype, kind) in
        [DType::F16, DType::BF16].into_iter().flat_map(|dtype| kinds.map(|kind| (dtype, kind)))
    {
        let blocks = kind[0].is_some();
        for columns in if blocks { [256, 2048, 2816] } else { [8, 1024, 1368] } {
            for gated in [false, true] {
                let count = if gated { 2 } else { noise.choose(&[1, 3]) };
                let inner = noise.choose(&[1, 7, 40]);
                let rows: Vec<usize> =
                    (0..count).map(|_| if gated { inner } else { noise.choose(&[1, 6, 33]) }).collect();
                let kind = if gated { [kind[0]; 3] } else { kind };
                let (normed, added) = (noise.choose(&[true, false]), !gated && noise.choose(&[true, false]));
                let x = noise.numbers(columns, dtype);
                let weight: Vec<f64> = noise.numbers(columns, dtype);
                let residual = noise.numbers(rows[0], dtype);
                let of = |numbers: &[f64]| Memory::of(dtype, numbers);
                let (x_memory, norm_memory, residual_memory) = (of(&x), of(&weight), of(&residual));
                let matrices: Vec<_> = (0..count)
                    .map(|place| matrix(&mut noise, kind[place], dtype, rows[place], columns))
                    .collect();
                let biases: Vec<_> = rows.iter().map(|rows| noise.numbers(*rows, dtype)).collect();
                let bias_memories: Vec<_> = biases.iter().map(|bias| of(bias)).collect();
                let results: Vec<_> = rows.iter().map(|rows| of(&vec![f64::NAN; *rows])).collect();
                let each = |pointer: &dyn Fn(usize) -> u64| {
                    std::array::from_fn(|place| if place < count { pointer(place) } else { 0 })
                };
                let eps = 1e-5f32;
                let arguments = ProductArguments {
                    x: x_memory.pointer(),
                    norm: if normed { norm_memory.pointer() } else { 0 },
                    residual: if added { residual_memory.pointer() } else { 0 },
                    weights: each(&|place| matrices[place].0.pointer()),
                    biases: each(&|place| bias_memories[place].pointer()),
                    results: each(&|place| results[place].pointer()),
                    rows: std::array::from_fn(|place| rows.get(place).map_or(0, |rows| *rows as i32)),
                    six_bits: kind.map(|kind| (kind == six).into()),
                    columns: columns as i32,
                    eps,
                };
                let launch = product(dtype, blocks, gated, &arguments).unwrap().unwrap();
                run(&launch, &arguments);

                let mut row = x.clone();
                if normed {
                    row.iter_mut().zip(&weight).for_each(|(x, weight)| *x *= weight);
                }
                let row = if blocks { rounded(&row) } else { row };
                let mean = x.iter().map(|x| x * x).sum::<f64>() / columns as f64;
                let scale = if normed { (mean + f64::from(eps)).sqrt().recip() } else { 1.0 };
                let sums: Vec<Vec<f64>> = matrices
                    .iter()
                    .zip(&biases)
                    .map(|((_, numbers), bias)| {
                        let product =
                            |weights: &[f64]| row.iter().zip(weights).map(|(x, w)| x * w).sum::<f64>();
                        numbers
                            .chunks_exact(columns)
                            .zip(bias)
                            .map(|(w, bias)| product(w) * scale + bias)
                            .collect()
                    })
                    .collect();
                let what =
                    format!("{} of {rows:?} x {columns}, norm {normed}, residual {added}", launch.kernel);
                let close = |found: &Memory, expected: &[f64]| {
                    assert_close(&found.values(dtype), expected, tolerance(dtype), &what);
                };
                if gated {
                    let gate = |(gate, up): (&f64, &f64)| gate / (1.0 + (-gate).exp()) * up;
                    close(&results[0], &sums[0].iter().zip(&sums[1]).map(gate).collect::<Vec<_>>());
                    continue;
                }
                for (place, (found, sums)) in results.iter().zip(&sums).enumerate() {
                    let more = |row: usize| if added && place == 0 { residual[row] } else { 0.0 };
                    let expected: Vec<f64> =
                        sums.iter().enumerate().map(|(row, sum)| sum + more(row)).collect();
                    close(found, &expected);
                }
            }
        }
    }
}

#[test]
fn what_the_products_of_a_row_leave_to_others() {
    let good = ProductArguments { rows: [4, 0, 0], columns: 512, ..Default::default() };
    let takes = |dtype, blocks, arguments| product(dtype, blocks, false, &arguments).unwrap().is_some();
    assert!(takes(DType::F16, false, good) && takes(DType::BF16, true, good));
    assert!(!takes(DType::F32, false, good));
    assert!(!takes(DType::F16, false, ProductArguments { x: 8, ..good }));
    assert!(!takes(DType::F16, false, ProductArguments { weights: [0, 2, 0], ..good }));
    assert!(!takes(DType::F16, false, ProductArguments { columns: 516, ..good }));
    assert!(!takes(DType::F16, true, ProductArguments { columns: 640, ..good }));
    assert!(!takes(DType::F16, false, ProductArguments { columns: 1 << 16, ..good }));
}

#[test]
fn blocks_stand_for_what_they_do_on_the_cpu() {
    if libraries().is_none() {
        return;
    }
    let mut noise = Noise(9);
    for format in BlockFormat::ALL.into_iter().filter(|format| format.block_length() > 1) {
        let columns = noise.choose(&[256, 768]);
        let rows = noise.choose(&[1, 3, 9]);
        let (blocks, expected) = matrix(&mut noise, Some(format), DType::F32, rows, columns);
        for dtype in DTYPES {
            let result = Memory::of(dtype, &vec![f64::NAN; rows * columns]);
            let arguments = UnpackArguments {
                blocks: blocks.pointer(),
                result: result.pointer(),
                count: (rows * columns) as i64,
            };
            let launch = unpack(dtype, format, &arguments).unwrap().unwrap();
            run(&launch, &arguments);
            let rounded = Memory::of(dtype, &expected).values(dtype);
            // A processor without one instruction that multiplies and adds may have rounded to the other side.
            let slack = if dtype == DType::F32 { 1e-6 } else { tolerance(dtype) / 4.0 };
            let what = format!("{} of {rows} x {columns}", launch.kernel);
            let found = result.values(dtype);
            assert_close(&found, &rounded, slack, &what);
            let same = found.iter().zip(&rounded).filter(|(found, rounded)| found == rounded).count();
            assert!(same >= found.len() * 99 / 100 || dtype == DType::F32, "{what}: {same} are the same");
        }
    }
    let nothing = UnpackArguments { blocks: 0, result: 0, count: 256 };
    assert!(unpack(DType::F16, BlockFormat::F16, &nothing).unwrap().is_none());
    let askew = UnpackArguments { blocks: 2, ..nothing };
    assert!(unpack(DType::F16, BlockFormat::Q4_0, &askew).unwrap().is_none());
}

#[test]
fn numbers_are_held_as_on_the_cpu() {
    if libraries().is_none() {
        return;
    }
    let mut noise = Noise(7);
    let (batch, heads, rows, width) = (2usize, 3usize, 5usize, 64usize);
    for dtype in DTYPES {
        let mut x = noise.numbers(batch * heads * rows * width, dtype);
        x[..32].fill(0.0);
        // The largest twice, once with each sign: the first one counts.
        (x[32 + 9], x[32 + 20]) = (-2.0, 2.0);
        let singles: Vec<f32> = x.iter().map(|x| *x as f32).collect();
        let kinds = [
            (Stored::Numbers(DType::F16), BlockFormat::F16),
            (Stored::EightBit, BlockFormat::Q8_0),
            (Stored::FourBit, BlockFormat::Q4_0),
        ];
        for (stored, format) in kinds {
            let bytes = format.encode(&singles, width).unwrap();
            let row_bytes = format.row_bytes(width).unwrap() as i64;
            let (numbers, held) = (Memory::of(dtype, &x), Memory::new(bytes.len()));
            let [h, r, w] = [heads, rows, width].map(|size| size as i64);
            let mut arguments = StoreArguments {
                numbers: numbers.pointer(),
                held: held.pointer(),
                number_strides: [h * r * w, r * w, w],
                held_strides: [h * r * row_bytes, r * row_bytes, row_bytes],
                sizes: [batch, heads, rows, width].map(|size| size as i32),
            };
            run(&store(dtype, stored, false, &arguments).unwrap(), &arguments);
            assert!(held.bytes() == bytes, "{dtype:?} as {stored:?}");
            let back = Memory::of(dtype, &vec![f64::NAN; x.len()]);
            arguments.numbers = back.pointer();
            run(&store(dtype, stored, true, &arguments).unwrap(), &arguments);
            let mut expected = vec![0f32; x.len()];
            format.decode(&bytes, &mut expected);
            let expected = Tensor::from_vec(expected, x.len(), &Device::Cpu).unwrap();
            let expected = expected.to_dtype(dtype).unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
            assert_close(&back.values(dtype), &expected, 1e-6, &format!("{dtype:?} of {stored:?}"));
        }
    }
}
