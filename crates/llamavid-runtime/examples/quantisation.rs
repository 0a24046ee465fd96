//! What fewer bits cost: errors of logits and changed answers of the embedded model, and errors of a random model of a
//! billion weights. Prints the tables of docs/benchmarks/quantisation.md: `pnpm bench:quant [tiny] [small] [1b] [model folder]`,
//! without arguments `tiny` and `1b`.
//!
//! The large random model takes 9 GB and some minutes, the small one half a minute; `--videos 3` asks about fewer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use llamavid_kernels::{BlockFormat, QuantisedMatrix};
use llamavid_models::WeightSource;
use llamavid_models::language_model::{
    AttentionBias, CachePrecision, Generation, GenerationOptions, LanguageModel, LanguageModelConfig, Prompt,
    SamplingOptions, StopRule,
};
use llamavid_models::observer::Blind;
use llamavid_models::preprocess::{Preprocessing, RgbImage};
use llamavid_models::prompt::conversation::{ImageTag, Template, question_with_media};
use llamavid_models::prompt::placeholders::tokenize_with_images;
use llamavid_models::prompt::splice::{SpliceKind, splice};
use llamavid_models::token_generation::{FeatureKind, Questions, TokenGenerator};
use llamavid_models::visual_encoder::VisualEncoder;
use llamavid_runtime::model_folder::ModelFolder;
use llamavid_runtime::weight_shapes;
use llamavid_weights::key_table::LANGUAGE;
use llamavid_weights::{Checkpoint, Loader, Quantisation};
use llamavid_world::{MediaKind, Phrasing, Video, WorldOptions, questions, seeded_item};
use rayon::prelude::*;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const CPU: Device = Device::Cpu;
/// Videos of each kind, unless the caller wants fewer.
const VIDEOS: u32 = 12;
const SEED: u64 = 5;
/// Tokens of the longest answer.
const LONGEST: usize = 64;

/// Formats of the decoder's matrices; none leaves them as tensors.
#[derive(Clone, Copy)]
struct Formats {
    name: &'static str,
    layers: Option<BlockFormat>,
    /// Of the values' and downward projections, where it is not that of the layers.
    values: Option<BlockFormat>,
    down: Option<BlockFormat>,
    head: Option<BlockFormat>,
    table: Option<BlockFormat>,
}

const NONE: Formats =
    Formats { name: "nothing (f32)", layers: None, values: None, down: None, head: None, table: None };

/// Each part alone, then finer matrices in the layers, then all together.
const DECODERS: [Formats; 31] = {
    use BlockFormat::{F16, Q4_0, Q4K, Q5K, Q6K, Q8_0};
    const fn layers(name: &'static str, layers: BlockFormat) -> Formats {
        Formats { name, layers: Some(layers), ..NONE }
    }
    const fn head(name: &'static str, head: BlockFormat) -> Formats {
        Formats { name, head: Some(head), ..NONE }
    }
    const fn table(name: &'static str, table: BlockFormat) -> Formats {
        Formats { name, table: Some(table), ..NONE }
    }
    const fn whole(
        name: &'static str,
        layers: BlockFormat,
        head: BlockFormat,
        table: BlockFormat,
    ) -> Formats {
        Formats { name, layers: Some(layers), head: Some(head), table: Some(table), ..NONE }
    }
    [
        whole("all F16", F16, F16, F16),
        layers("layers Q8_0", Q8_0),
        layers("layers Q6_K", Q6K),
        layers("layers Q5_K", Q5K),
        layers("layers Q4_K", Q4K),
        layers("layers Q4_0", Q4_0),
        head("head Q8_0", Q8_0),
        head("head Q6_K", Q6K),
        head("head Q4_K", Q4K),
        head("head Q4_0", Q4_0),
        table("table Q8_0", Q8_0),
        table("table Q6_K", Q6K),
        table("table Q4_K", Q4K),
        table("table Q4_0", Q4_0),
        Formats { values: Some(Q6K), ..layers("layers Q4_K, values Q6_K", Q4K) },
        Formats { down: Some(Q6K), ..layers("layers Q4_K, downward Q6_K", Q4K) },
        Formats { values: Some(Q6K), down: Some(Q6K), ..layers("layers Q4_K, both Q6_K", Q4K) },
        Formats { values: Some(Q8_0), ..layers("layers Q4_0, values Q8_0", Q4_0) },
        Formats { down: Some(Q8_0), ..layers("layers Q4_0, downward Q8_0", Q4_0) },
        Formats { values: Some(Q8_0), down: Some(Q8_0), ..layers("layers Q4_0, both Q8_0", Q4_0) },
        whole("all Q8_0, table F16 (q8_0)", Q8_0, Q8_0, F16),
        whole("all Q6_K, table F16 (q6_k)", Q6K, Q6K, F16),
        whole("layers Q5_K, head Q6_K, table F16 (q5_k)", Q5K, Q6K, F16),
        whole("layers Q4_K, head Q6_K, table F16", Q4K, Q6K, F16),
        Formats { values: Some(Q6K), ..whole("the same, values Q6_K (q4_k)", Q4K, Q6K, F16) },
        whole("layers Q4_0, head Q6_K, table F16 (q4_0)", Q4_0, Q6K, F16),
        whole("layers Q4_0, head Q8_0, table F16", Q4_0, Q8_0, F16),
        whole("layers and head Q4_K, table F16", Q4K, Q4K, F16),
        whole("layers Q4_K, head Q6_K, table Q4_K", Q4K, Q6K, Q4K),
        whole("layers and head Q4_K, table Q4_K", Q4K, Q4K, Q4K),
        Formats {
            values: Some(Q6K),
            down: Some(Q6K),
            ..whole("layers Q4_K, both Q6_K, head Q6_K, table F16", Q4K, Q6K, F16)
        },
    ]
};

impl Formats {
    fn of(self, name: &str) -> Option<BlockFormat> {
        match name {
            "embed_tokens.weight" => self.table,
            "lm_head.weight" => self.head,
            _ if name.ends_with("v_proj.weight") => self.values.or(self.layers),
            _ if name.ends_with("down_proj.weight") => self.down.or(self.layers),
            _ => self.layers,
        }
    }

    /// Mean bits of a number of the decoder, where those that are not rounded have 16; none where rows do not fill the
    /// blocks.
    fn bits(self, config: &LanguageModelConfig) -> Result<Option<f64>> {
        let (mut bits, mut count) = (0.0, 0.0);
        for weight in weight_shapes(|source| LanguageModel::new(config, source))? {
            let columns = weight.shape.dims().last().copied().unwrap_or(1);
            let numbers = weight.shape.elem_count() as f64;
            let a_number = match self.of(&weight.name).filter(|_| weight.is_matrix) {
                None => 16.0,
                Some(format) => match format.row_bytes(columns) {
                    Some(bytes) => 8.0 * bytes as f64 / columns as f64,
                    None => return Ok(None),
                },
            };
            bits += a_number * numbers;
            count += numbers;
        }
        Ok(Some(bits / count))
    }
}

/// Sums over positions.
#[derive(Default)]
struct Errors {
    positions: f64,
    difference: f64,
    size: f64,
    divergence: f64,
    same_best: f64,
}

impl Errors {
    /// Adds logits (S, vocabulary) against the exact ones.
    fn add(&mut self, actual: &Tensor, exact: &Tensor) -> Result<()> {
        for (actual, exact) in actual.to_vec2::<f32>()?.iter().zip(exact.to_vec2::<f32>()?) {
            let mean = exact.iter().map(|value| f64::from(*value)).sum::<f64>() / exact.len() as f64;
            for (actual, exact) in actual.iter().zip(&exact) {
                self.difference += f64::from(actual - exact).powi(2);
                self.size += (f64::from(*exact) - mean).powi(2);
            }
            let (exact_log, actual_log) = (log_shares(&exact), log_shares(actual));
            let terms =
                exact_log.iter().zip(&actual_log).map(|(exact, actual)| exact.exp() * (exact - actual));
            self.divergence += terms.sum::<f64>();
            self.same_best += f64::from(u8::from(best(actual) == best(&exact)));
            self.positions += 1.0;
        }
        Ok(())
    }

    fn row(&self) -> String {
        format!(
            "{:.2} % | {:.1e} | {:.1} %",
            100.0 * (self.difference / self.size).sqrt(),
            self.divergence / self.positions,
            100.0 * self.same_best / self.positions
        )
    }
}

fn log_shares(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |largest, value| largest.max(f64::from(*value)));
    let sum: f64 = logits.iter().map(|value| (f64::from(*value) - largest).exp()).sum();
    logits.iter().map(|value| f64::from(*value) - largest - sum.ln()).collect()
}

fn best(logits: &[f32]) -> usize {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |largest, value| largest.max(*value));
    logits.iter().position(|value| *value == largest).unwrap_or(0)
}

fn main() -> Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut videos = VIDEOS;
    if let Some(place) = arguments.iter().position(|argument| argument == "--videos") {
        videos = arguments.get(place + 1).ok_or("--videos needs a number")?.parse()?;
        arguments.drain(place..place + 2);
    }
    if arguments.is_empty() {
        arguments = vec!["tiny".to_owned(), "1b".to_owned()];
    }
    for argument in &arguments {
        match argument.as_str() {
            "1b" => random("TinyLlama's sizes", &large())?,
            "small" => random("70 million weights", &small())?,
            "tiny" => {
                answers(
                    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../packages/tiny/model")),
                    videos,
                )?;
            }
            folder => answers(Path::new(folder), videos)?,
        }
    }
    Ok(())
}

/// A question with what the exact model says to it.
struct Asked {
    question: String,
    right: String,
    /// Number of its video, and its frames (F, 3, S, S).
    video: usize,
    pixels: Tensor,
    visual: Tensor,
    ids: Vec<i64>,
    answer: Vec<u32>,
    /// (answer, vocabulary).
    logits: Tensor,
}

/// The parts in front of the decoder.
struct Front {
    folder: ModelFolder,
    encoder: VisualEncoder,
    generator: TokenGenerator,
}

impl Front {
    fn open(place: &Path, quantisation: Option<Quantisation>) -> Result<Self> {
        let folder = ModelFolder::open(place)?.with_quantisation(quantisation);
        let encoder = folder.visual_encoder(DType::F32, &CPU)?;
        let generator = folder.token_generator(DType::F32, &CPU)?;
        Ok(Self { folder, encoder, generator })
    }

    fn visual(&self, features: &Tensor, question: &str) -> Result<Tensor> {
        let (ids, mask) = self.folder.query_tokenizer()?.encode_batch(&[question.to_owned()])?;
        let questions =
            Questions { input_ids: Tensor::new(ids, &CPU)?, attention_mask: Tensor::new(mask, &CPU)? };
        let (features, kind) = match self.folder.config().features {
            FeatureKind::Pixels => (features.clone(), FeatureKind::Pixels),
            FeatureKind::Precomputed => {
                (features.narrow(1, 1, features.dims()[1] - 1)?, FeatureKind::Precomputed)
            }
        };
        Ok(self.generator.generate(&features, kind, &questions, &mut Blind)?.squeeze(0)?)
    }
}

/// The decoder of a folder in some formats.
fn decoder(folder: &Path, config: &LanguageModelConfig, formats: Formats) -> Result<Arc<LanguageModel>> {
    let checkpoint = Checkpoint::open_folder(folder)?;
    let loader = Loader::new(checkpoint.clone(), &LANGUAGE, DType::F32, &CPU);
    let matrices = move |name: &str, _shape: (usize, usize)| {
        let Some(format) = formats.of(name) else { return Ok(None) };
        let upstream = LANGUAGE.upstream(name).unwrap_or_default();
        let weight = checkpoint.read(&upstream, &CPU).map_err(candle_core::Error::wrap)?;
        QuantisedMatrix::quantise(&weight, format).map(Some)
    };
    Ok(Arc::new(LanguageModel::new(config, WeightSource::new(loader.var_builder(), matrices))?))
}

/// Logits (answer, vocabulary) with which an answer is given, when it is read along.
fn read_along(
    model: &LanguageModel,
    ids: &[i64],
    answer: &[u32],
    visual: &Tensor,
    cache: CachePrecision,
) -> Result<Tensor> {
    let visual = std::slice::from_ref(visual);
    let prompt = splice(ids, visual, SpliceKind::PerPlaceholder, |ids| model.embed(ids))?.embeds;
    let answer = model.embed(&answer[..answer.len() - 1])?;
    let all = Tensor::cat(&[&prompt, &answer], 0)?.unsqueeze(0)?;
    let mut cache = model.new_cache_in(cache, all.dims()[1]);
    let hidden = model.forward(&all, &mut cache, None, &mut Blind)?;
    Ok(model.logits(&hidden.i((0, prompt.dims()[0] - 1..))?, &mut Blind)?)
}

fn generate(
    model: &Arc<LanguageModel>,
    ids: &[i64],
    visual: &Tensor,
    cache: CachePrecision,
) -> Result<Vec<u32>> {
    let visual = std::slice::from_ref(visual);
    let embeds = splice(ids, visual, SpliceKind::PerPlaceholder, |ids| model.embed(ids))?.embeds;
    let prompt = Prompt { embeds, visual_tokens: visual[0].dims()[0] };
    let options = GenerationOptions { cache, ..GenerationOptions::new(LONGEST, SamplingOptions::default()) };
    let stop = StopRule::new(&model.config().eos_ids);
    let mut generation = Generation::new(model.clone(), prompt, options, stop)?;
    while !generation.prefill_step()?.is_complete() {}
    while generation.decode_step(&|_| String::new())?.is_some() {}
    Ok(generation.new_ids().to_vec())
}

/// Videos of the toy world, with every question that can be asked about them, and what the exact model answers.
fn ask(front: &Front, decoder: &Arc<LanguageModel>, videos: u32) -> Result<Vec<Asked>> {
    let folder = &front.folder;
    let template = Template::by_name(folder.conversation().unwrap_or("vicuna_v1"))?;
    let tokenizer = folder.llama_tokenizer()?;
    let tag = if folder.config().image_start_end { ImageTag::StartEnd } else { ImageTag::Bare };
    let mut all = Vec::new();
    for (number, kind) in [MediaKind::Image, MediaKind::Clip, MediaKind::Multi].into_iter().enumerate() {
        for index in 0..videos {
            let mut rng = seeded_item(SEED, kind, index);
            let scenes = Video::random(&mut rng, kind, &WorldOptions::default());
            let pixels = frames(&scenes, folder.preprocessing())?;
            let features = front.encoder.forward(&pixels, &mut Blind)?;
            for question in questions(&scenes, kind, Phrasing::Trained, &mut rng) {
                let visual = front.visual(&features, &question.text)?;
                let turns = [(question_with_media(&question.text, tag), None)];
                let ids = tokenize_with_images(&tokenizer, &template.render(&turns)?);
                let answer = generate(decoder, &ids, &visual, CachePrecision::Full)?;
                all.push(Asked {
                    question: question.text,
                    right: question.answer,
                    video: number * videos as usize + index as usize,
                    pixels: pixels.clone(),
                    logits: read_along(decoder, &ids, &answer, &visual, CachePrecision::Full)?,
                    visual,
                    ids,
                    answer,
                });
            }
        }
    }
    Ok(all)
}

/// One frame a second, (F, 3, S, S).
fn frames(video: &Video, preprocessing: &Preprocessing) -> Result<Tensor> {
    const SIDE: usize = 160;
    let (count, size) = (video.frames_at_one_a_second(), preprocessing.size);
    let mut pixels = vec![0f32; count * 3 * size * size];
    for (second, pixels) in pixels.chunks_exact_mut(3 * size * size).enumerate() {
        let (scene, progress) = video.frame(second as f64);
        let mut picture = Vec::new();
        video.scenes[scene].render(progress, SIDE, &mut picture);
        let image = RgbImage { data: &picture, width: SIDE, height: SIDE, stride: 3 * SIDE };
        preprocessing.pixels(&image, pixels)?;
    }
    Ok(Tensor::from_vec(pixels, (count, 3, size, size), &CPU)?)
}

fn answers(place: &Path, videos: u32) -> Result<()> {
    let front = Front::open(place, None)?;
    let config = front.folder.config().language.clone();
    let exact = decoder(place, &config, NONE)?;
    let all = ask(&front, &exact, videos)?;
    let tokenizer = front.folder.llama_tokenizer()?;
    let right = |answer: &[u32], asked: &Asked| tokenizer.decode(answer, true).trim() == asked.right;
    println!("\n{} questions about {} pictures and videos\n", all.len(), 3 * videos);
    println!(
        "| what is rounded | bits | logits, relative | KL | same first choice | same answer | right answers |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let line = |name: &str,
                bits: Option<f64>,
                decoder: &Arc<LanguageModel>,
                front: Option<&Front>,
                cache: CachePrecision|
     -> Result<()> {
        let (mut errors, mut same, mut right_count) = (Errors::default(), 0, 0);
        let mut features: HashMap<usize, Tensor> = HashMap::new();
        for asked in &all {
            let visual = match front {
                None => asked.visual.clone(),
                Some(front) => {
                    if let Entry::Vacant(missing) = features.entry(asked.video) {
                        missing.insert(front.encoder.forward(&asked.pixels, &mut Blind)?);
                    }
                    front.visual(&features[&asked.video], &asked.question)?
                }
            };
            let logits = read_along(decoder, &asked.ids, &asked.answer, &visual, cache)?;
            errors.add(&logits, &asked.logits)?;
            let answer = generate(decoder, &asked.ids, &visual, cache)?;
            same += usize::from(answer == asked.answer);
            right_count += usize::from(right(&answer, asked));
        }
        let [same, right] = [same, right_count].map(|count| 100.0 * count as f64 / all.len() as f64);
        let bits = bits.map(|bits| format!("{bits:.2}")).unwrap_or_default();
        println!("| {name} | {bits} | {} | {same:.1} % | {right:.1} % |", errors.row());
        Ok(())
    };
    let full = CachePrecision::Full;
    line(NONE.name, None, &exact, None, full)?;
    for formats in DECODERS {
        if let Some(bits) = formats.bits(&config)? {
            line(formats.name, Some(bits), &decoder(place, &config, formats)?, None, full)?;
        }
    }
    let eight = Front::open(place, Some(Quantisation::Q8_0))?;
    line("visual encoder and query model Q8_0", None, &exact, Some(&eight), full)?;
    if BlockFormat::Q8_0.row_bytes(config.head_dim).is_some() {
        line("keys and values in 8 bits", None, &exact, None, CachePrecision::EightBit)?;
        line("keys and values in 4 bits", None, &exact, None, CachePrecision::FourBit)?;
    }
    for (name, quantisation) in [("8bit", Quantisation::Q8_0), ("4bit", Quantisation::Q4K)] {
        let folder = ModelFolder::open(place)?.with_quantisation(Some(quantisation));
        let decoder = Arc::new(folder.language_model(DType::F32, &CPU)?);
        line(&format!("all parts, as `--load {name}` has them"), None, &decoder, Some(&eight), full)?;
    }
    Ok(())
}

/// TinyLlama's sizes.
fn large() -> LanguageModelConfig {
    LanguageModelConfig {
        vocab_size: 32_000,
        hidden_size: 2048,
        intermediate_size: 5632,
        layers: 22,
        heads: 32,
        kv_heads: 4,
        head_dim: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        max_positions: 2048,
        tie_word_embeddings: false,
        attention_bias: AttentionBias::None,
        bos_id: 1,
        eos_ids: vec![2],
        pad_id: None,
    }
}

/// The same build, for a minute: 70 million weights.
fn small() -> LanguageModelConfig {
    LanguageModelConfig {
        vocab_size: 8192,
        hidden_size: 1024,
        intermediate_size: 2816,
        layers: 4,
        heads: 16,
        kv_heads: 16,
        ..large()
    }
}

/// Weights from a bell curve whose width keeps the size of what passes through, the same for a name in each call.
fn weight(name: &str, shape: &[usize]) -> candle_core::Result<Tensor> {
    let count: usize = shape.iter().product();
    if shape.len() == 1 {
        return Tensor::ones(shape, DType::F32, &CPU);
    }
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let size = (1.0 / shape[1] as f32).sqrt();
    let mut values = vec![0f32; count];
    values.par_chunks_mut(shape[1]).enumerate().for_each(|(row, values)| {
        let mut state = seed ^ (row as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 + 0.5) / (1u64 << 24) as f32
        };
        for value in values {
            let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f32::consts::TAU * uniform());
            *value = size * radius * angle.cos();
        }
    });
    Tensor::from_vec(values, shape, &CPU)
}

/// Random weights, made once, and each rounded once to each format.
#[derive(Clone, Default)]
struct RandomWeights {
    dense: Arc<Mutex<HashMap<String, Tensor>>>,
    blocks: Arc<Mutex<HashMap<(String, BlockFormat), QuantisedMatrix>>>,
}

impl RandomWeights {
    fn dense(&self, name: &str, shape: &[usize]) -> candle_core::Result<Tensor> {
        let mut known = self.dense.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weight) = known.get(name) {
            return Ok(weight.clone());
        }
        let made = weight(name, shape)?;
        known.insert(name.to_owned(), made.clone());
        Ok(made)
    }

    fn rounded(
        &self,
        name: &str,
        shape: &[usize],
        format: BlockFormat,
    ) -> candle_core::Result<QuantisedMatrix> {
        let mut known = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(matrix) = known.get(&(name.to_owned(), format)) {
            return Ok(matrix.clone());
        }
        let made = QuantisedMatrix::quantise(&self.dense(name, shape)?, format)?;
        known.insert((name.to_owned(), format), made.clone());
        Ok(made)
    }
}

impl candle_nn::var_builder::SimpleBackend for RandomWeights {
    fn get(
        &self,
        shape: candle_core::Shape,
        name: &str,
        _init: candle_nn::Init,
        _dtype: DType,
        _device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.dense(name, shape.dims())
    }

    fn get_unchecked(&self, name: &str, _dtype: DType, _device: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name}: a weight of any shape")
    }

    fn contains_tensor(&self, _name: &str) -> bool {
        true
    }
}

fn random(name: &str, config: &LanguageModelConfig) -> Result<()> {
    let weights = RandomWeights::default();
    let random = |formats: Formats| -> Result<LanguageModel> {
        let vb = VarBuilder::from_backend(Box::new(weights.clone()), DType::F32, CPU);
        let weights = weights.clone();
        let matrices = move |name: &str, (rows, columns): (usize, usize)| {
            formats.of(name).map(|format| weights.rounded(name, &[rows, columns], format)).transpose()
        };
        Ok(LanguageModel::new(config, WeightSource::new(vb, matrices))?)
    };
    let words = config.vocab_size as u32 - 10;
    let ids: Vec<u32> = (0..96u32).map(|place| 3 + place.wrapping_mul(2_654_435_761) % words).collect();
    let logits = |model: &LanguageModel, cache: CachePrecision| -> Result<Tensor> {
        let embeds = model.embed(&ids)?.unsqueeze(0)?;
        let hidden = model.forward(&embeds, &mut model.new_cache_in(cache, ids.len()), None, &mut Blind)?;
        Ok(model.logits(&hidden.i(0)?, &mut Blind)?)
    };
    let exact = random(NONE)?;
    let expected = logits(&exact, CachePrecision::Full)?;
    println!("\nA random model of {name}, {} positions\n", ids.len());
    println!("| what is rounded | bits | logits, relative | KL | same first choice |");
    println!("| --- | --- | --- | --- | --- |");
    for (bits, cache) in [("8", CachePrecision::EightBit), ("4", CachePrecision::FourBit)] {
        let mut errors = Errors::default();
        errors.add(&logits(&exact, cache)?, &expected)?;
        println!("| keys and values in {bits} bits | | {} |", errors.row());
    }
    drop(exact);
    for formats in DECODERS {
        let Some(bits) = formats.bits(config)? else { continue };
        let mut errors = Errors::default();
        errors.add(&logits(&random(formats)?, CachePrecision::Full)?, &expected)?;
        println!("| {} | {bits:.2} | {} |", formats.name, errors.row());
    }
    Ok(())
}
