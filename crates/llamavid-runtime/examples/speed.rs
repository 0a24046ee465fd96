//! Times one part of a model as `pnpm bench:peers` asks for it, without Node between: `speed '<task as JSON>'`.
//!
//! A line of JSON comes out for each thing that was timed, in seconds. The names of a language model's numbers are those that
//! llama.cpp's `llama-batched-bench` writes.

use std::error::Error;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use llamavid_models::language_model::{
    CachePrecision, Generation, GenerationOptions, Prompt, SamplingOptions, StopRule,
};
use llamavid_runtime::model_folder::ModelFolder;
use llamavid_runtime::{
    Cancellation, Device, FeatureKind, Fit, LanguageModel, Pixels, Precision, Preprocessing, RgbImage, Split,
    TokenGenerator, VisualEncoder, VisualFeatures,
};
use pulp::{Simd, WithSimd};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::json;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Tokens that are read before anything is timed, as many as `llama-batched-bench` reads.
const WARM_UP: usize = 16;

#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Task {
    /// Reads prompts of so many tokens, one after the other, and goes on with new ones.
    Language { model: PathBuf, prompts: Vec<usize>, new_tokens: usize, eight_bit_cache: bool },
    /// Goes on with so many prompts of a token side by side.
    Together { model: PathBuf, batches: Vec<usize>, new_tokens: usize },
    /// Loads, reads a short prompt and gives a token.
    FirstToken { model: PathBuf },
    /// Encodes batches of different frames.
    Encoder { model: PathBuf, eight_bit: bool, batch: usize, runs: usize },
    /// Makes pixels of a 1080p frame.
    Resize { runs: usize },
    /// Reads memory and multiplies, with all threads; and whether interleaved rows are multiplied quicker.
    Limits,
    /// Makes the visual tokens of frames for one question.
    Tokens { model: PathBuf, frames: usize, question: String, runs: usize },
}

fn main() -> Result<()> {
    let task: Task = serde_json::from_str(&std::env::args().nth(1).ok_or("no task")?)?;
    let device = Device::open("cpu")?;
    match task {
        Task::Language { model, prompts, new_tokens, eight_bit_cache } => {
            let cache = if eight_bit_cache { CachePrecision::EightBit } else { CachePrecision::Full };
            let model = language_model(model, device)?;
            in_pool(|| {
                generate(&model, WARM_UP, 1, cache)?;
                for prompt in prompts {
                    let (read, decoded) = generate(&model, prompt, new_tokens, cache)?;
                    println!("{}", json!({ "pp": prompt, "tg": new_tokens, "t_pp": read, "t_tg": decoded }));
                }
                Ok(())
            })?;
        }
        Task::Together { model, batches, new_tokens } => {
            let model = language_model(model, device)?;
            in_pool(|| {
                generate(&model, WARM_UP, 1, CachePrecision::Full)?;
                for batch in batches {
                    let decoded = generate_together(&model, batch, new_tokens)?;
                    println!("{}", json!({ "pl": batch, "tg": new_tokens, "t_tg": decoded }));
                }
                Ok(())
            })?;
        }
        Task::FirstToken { model } => {
            let model = language_model(model, device)?;
            in_pool(|| generate(&model, WARM_UP, 1, CachePrecision::Full))?;
        }
        Task::Encoder { model, eight_bit, batch, runs } => encode(model, device, eight_bit, batch, runs)?,
        Task::Resize { runs } => resize(runs)?,
        Task::Limits => {
            let interleaving = llamavid_kernels::interleaving_pays();
            println!(
                "{}",
                json!({ "read": read_bandwidth(), "multiply": multiplications(), "interleaving": interleaving })
            );
        }
        Task::Tokens { model, frames, question, runs } => tokens(model, device, frames, &question, runs)?,
    }
    Ok(())
}

/// Works in the pool of threads, as the jobs of a device do.
fn in_pool<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    rayon::scope(|_| work())
}

fn language_model(file: PathBuf, device: Arc<Device>) -> Result<LanguageModel> {
    Ok(LanguageModel::load(file, device, Precision::default(), Split::Layers, Cancellation::default())
        .wait()?)
}

/// Seconds for reading `prompt` random tokens, up to the choice of the next one, and for `new` more passes.
fn generate(model: &LanguageModel, prompt: usize, new: usize, cache: CachePrecision) -> Result<(f64, f64)> {
    let began = Instant::now();
    let mut generation = begin(model, prompt, new, cache)?;
    let read = began.elapsed().as_secs_f64();
    while generation.decode_step(&|_| String::new())?.is_some() {}
    Ok((read, began.elapsed().as_secs_f64() - read))
}

/// Seconds for `new` passes of `batch` generations, each behind a prompt of one token.
fn generate_together(model: &LanguageModel, batch: usize, new: usize) -> Result<f64> {
    let mut generations =
        (0..batch).map(|_| begin(model, 1, new, CachePrecision::Full)).collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    for _ in 0..new {
        Generation::read_together(&mut generations.iter_mut().collect::<Vec<_>>())?;
        for generation in &mut generations {
            generation.decode_step(&|_| String::new())?;
        }
    }
    Ok(began.elapsed().as_secs_f64())
}

/// A generation of `new` tokens and one, the first of which is chosen, behind `prompt` random tokens.
fn begin(model: &LanguageModel, prompt: usize, new: usize, cache: CachePrecision) -> Result<Generation> {
    let vocabulary = model.model().config().vocab_size as u32;
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let ids: Vec<u32> = (0..prompt).map(|_| random.random_range(0..vocabulary)).collect();
    let options = GenerationOptions {
        cache,
        prefill_chunk: model.prefill_chunk(),
        // The prompt's last pass gives the first of them.
        ..GenerationOptions::new(new + 1, SamplingOptions::default())
    };
    let prompt = Prompt { embeds: model.model().embed(&ids)?, visual_tokens: 0 };
    let mut generation = Generation::new(Arc::clone(model.model()), prompt, options, StopRule::new(&[]))?;
    while !generation.prefill_step()?.is_complete() {}
    generation.decode_step(&|_| String::new())?;
    Ok(generation)
}

fn encode(model: PathBuf, device: Arc<Device>, eight_bit: bool, batch: usize, runs: usize) -> Result<()> {
    let quantisation = Precision::parse_bits(if eight_bit { "8bit" } else { "16bit" })?;
    let precision = Precision { quantisation, ..Precision::default() };
    let encoder = VisualEncoder::load(model, device, precision, Cancellation::default()).wait()?;
    let side = encoder.preprocessing().size;
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for run in 0..=runs {
        let mut frames = vec![vec![0; 3 * side * side]; batch];
        frames.iter_mut().for_each(|frame| random.fill_bytes(frame));
        let images: Vec<RgbImage> = frames
            .iter()
            .map(|data| RgbImage { data, width: side, height: side, stride: 3 * side })
            .collect();
        let pixels = Arc::new(Pixels::from_rgb(&images, encoder.preprocessing())?);
        let began = Instant::now();
        encoder.encode(pixels, &Cancellation::default()).wait()?;
        report(run, began);
    }
    Ok(())
}

fn tokens(model: PathBuf, device: Arc<Device>, frames: usize, question: &str, runs: usize) -> Result<()> {
    let folder = ModelFolder::open(&model)?;
    let visual = &folder.config().visual;
    let shape = [frames, visual.patches() + 1, visual.width()];
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let values = (0..shape.iter().product()).map(|_| random.random_range(-1f32..1.)).collect();
    let features =
        Arc::new(VisualFeatures::from_values(values, shape, device.clone(), FeatureKind::Pixels)?.wait()?);
    let generator =
        TokenGenerator::load(model, device, Precision::default(), Cancellation::default()).wait()?;
    for run in 0..=runs {
        let began = Instant::now();
        let questions = vec![question.to_owned()];
        generator.generate(features.clone(), questions, None, &Cancellation::default()).wait()?;
        report(run, began);
    }
    Ok(())
}

fn resize(runs: usize) -> Result<()> {
    let (width, height) = (1920, 1080);
    let mut data = vec![0; 3 * width * height];
    ChaCha8Rng::seed_from_u64(4).fill_bytes(&mut data);
    let image = RgbImage { data: &data, width, height, stride: 3 * width };
    let preprocessing = Preprocessing::clip(224, Fit::Crop);
    for run in 0..=runs {
        let began = Instant::now();
        Pixels::from_rgb(std::slice::from_ref(&image), &preprocessing)?;
        report(run, began);
    }
    Ok(())
}

/// Gigabytes a second, read from memory by all threads: the best of some passes over more than any cache holds.
fn read_bandwidth() -> f64 {
    const NUMBERS: usize = 1 << 27;
    const PART: usize = 1 << 20;
    let numbers: Vec<u64> = (0..NUMBERS as u64).into_par_iter().collect();
    let quickest = (0..8).map(|_| {
        let began = Instant::now();
        let sum: u64 = numbers
            .par_chunks(PART)
            .map(|part| part.iter().fold(0u64, |sum, number| sum.wrapping_add(*number)))
            .reduce(|| 0, u64::wrapping_add);
        black_box(sum);
        began.elapsed().as_secs_f64()
    });
    size_of_val(numbers.as_slice()) as f64 / quickest.fold(f64::INFINITY, f64::min) / 1e9
}

/// Billions of multiplications and additions of f32 a second, each counted, in the widest vectors and with all threads.
fn multiplications() -> f64 {
    const ROUNDS: usize = 20_000_000;
    let arch = pulp::Arch::new();
    let quickest = (0..3).map(|_| {
        let began = Instant::now();
        let done: Vec<f64> =
            rayon::broadcast(|_| arch.dispatch(Multiply { rounds: ROUNDS })).into_iter().collect();
        done.iter().sum::<f64>() / began.elapsed().as_secs_f64()
    });
    quickest.fold(0., f64::max) / 1e9
}

/// Enough sums side by side that each instruction finds its operands ready. Gives how much was computed.
struct Multiply {
    rounds: usize,
}

impl WithSimd for Multiply {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let (factor, addend) = (simd.splat_f32s(0.5), simd.splat_f32s(1.));
        let mut sums = [simd.splat_f32s(0.); 12];
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(*sum, factor, addend);
            }
        }
        sums.iter().for_each(|sum| {
            black_box(simd.reduce_sum_f32s(*sum));
        });
        (2 * self.rounds * sums.len() * S::F32_LANES) as f64
    }
}

/// Writes what a run took; the first one warms up.
fn report(run: usize, began: Instant) {
    if run > 0 {
        println!("{}", json!({ "seconds": began.elapsed().as_secs_f64() }));
    }
}
