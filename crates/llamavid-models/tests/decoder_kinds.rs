//! Decoders of other families, weights in blocks, and keys and values in fewer bits.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use candle_core::safetensors::BufferedSafetensors;
use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::VarBuilder;
use llamavid_kernels::{BlockFormat, QuantisedMatrix, instruction_set};
use llamavid_models::language_model::{
    AttentionBias, CachePrecision, Generation, GenerationOptions, LanguageModel, LanguageModelConfig,
    LoraConfig, LoraTarget, Prompt, RopeScaling, SamplingOptions, StopRule,
};
use llamavid_models::observer::Blind;
use llamavid_models::{Error, WeightSource};

/// Those of the kernels' tests.
#[path = "../../llamavid-kernels/src/noise.rs"]
mod numbers;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/decoders")).join(path)
}

fn tensors(path: &str) -> HashMap<String, Tensor> {
    let file = BufferedSafetensors::new(std::fs::read(fixture(path)).unwrap()).unwrap();
    let names: Vec<String> = file.tensors().into_iter().map(|(name, _)| name).collect();
    names.into_iter().map(|name| (name.clone(), file.load(&name, &Device::Cpu).unwrap())).collect()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

/// Largest difference against the largest value.
fn error(actual: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(actual.dims(), expected.dims());
    let (actual, expected) = (values(actual), values(expected));
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let differences = actual.iter().zip(&expected).map(|(actual, expected)| (actual - expected).abs());
    // Written so that not-a-number is the largest.
    differences.fold(0f32, |most, difference| if difference <= most { most } else { difference }) / largest
}

/// How far logits with weights in `format` may be from those with the same weights unpacked: most processors round the rows to 8 bits
/// beside weights in blocks, and some round many rows to 16 beside weights in 16.
fn rounding(format: BlockFormat) -> f32 {
    match (instruction_set().unwrap(), format.block_length()) {
        ("avx512-f32" | "avx2-f32" | "neon" | "portable", _) => 2e-5,
        ("avx512amx" | "avx512vnni" | "avxvnni" | "avx2", 1) => 1e-3,
        (_, 1) => 2e-5,
        _ => 2e-2,
    }
}

/// Inputs and logits written by `tools/reference/decoder_families.py`.
#[test]
fn families_match_transformers() {
    for (name, bias, scaling) in [
        ("qwen2", AttentionBias::QueryKeyValue, None),
        ("biased", AttentionBias::All, None),
        (
            "llama3",
            AttentionBias::None,
            Some(RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, trained: 8 }),
        ),
        ("dynamic", AttentionBias::None, Some(RopeScaling::Dynamic { factor: 4.0, trained: 32 })),
    ] {
        let json = std::fs::read(fixture(name).join("config.json")).unwrap();
        let config = LanguageModelConfig::from_json(&json).unwrap();
        assert_eq!((config.attention_bias, config.rope_scaling), (bias, scaling), "{name}");
        let weights = tensors(&format!("{name}/weights.safetensors"));
        let ours = |name: String| name.strip_prefix("model.").map(str::to_owned).unwrap_or(name);
        let weights = weights.into_iter().map(|(name, tensor)| (ours(name), tensor)).collect();
        let vb = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
        let model = LanguageModel::new(&config, vb).unwrap();

        let recorded = tensors(&format!("{name}/tensors.safetensors"));
        let ids: Vec<u32> = recorded["input_ids"].i(0).unwrap().to_vec1().unwrap();
        let embeds = model.embed(&ids).unwrap().unsqueeze(0).unwrap();
        let whole = model.forward_uncached(&embeds, None, &mut Blind).unwrap();
        let logits = model.logits(&whole, &mut Blind).unwrap();
        let most = error(&logits, &recorded["logits"]);
        assert!(most < 1e-5, "{name}: {most}");

        // A prompt's positions do not depend on how it is read.
        let mut cache = model.new_cache(ids.len());
        cache.announce(ids.len());
        let parts: Vec<Tensor> = (0..ids.len())
            .step_by(7)
            .map(|start| embeds.narrow(1, start, 7.min(ids.len() - start)).unwrap())
            .map(|part| model.forward(&part, &mut cache, None, &mut Blind).unwrap())
            .collect();
        let most = error(&Tensor::cat(&parts, 1).unwrap(), &whole);
        assert!(most < 1e-5, "{name} in parts: {most}");
    }
}

#[test]
fn scalings_that_cannot_be_are_refused() {
    let json = String::from_utf8(std::fs::read(fixture("llama3/config.json")).unwrap()).unwrap();
    for (from, to, told) in [
        ("\"factor\": 8.0", "\"factor\": 0.5", "factor 0.5"),
        ("\"low_freq_factor\": 1.0", "\"low_freq_factor\": 5.0", "no range"),
        ("\"original_max_position_embeddings\": 8", "\"original_max_position_embeddings\": 0", "positions"),
        ("\"rope_type\": \"llama3\"", "\"rope_type\": \"yarn\"", "yarn"),
        ("\"mlp_bias\": false", "\"mlp_bias\": true", "mlp_bias"),
    ] {
        assert!(json.contains(from), "{from}");
        let error = LanguageModelConfig::from_json(json.replace(from, to).as_bytes()).unwrap_err();
        assert!(error.to_string().contains(told), "{error}");
    }
}

const WIDTH: usize = 256;

fn config() -> LanguageModelConfig {
    LanguageModelConfig {
        vocab_size: 90,
        hidden_size: WIDTH,
        intermediate_size: 512,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        max_positions: 400,
        tie_word_embeddings: false,
        attention_bias: AttentionBias::QueryKeyValue,
        bos_id: 1,
        eos_ids: vec![2],
        pad_id: None,
    }
}

/// Numbers between -1 and 1 that follow no pattern.
fn noise(shape: &[usize], seed: u32) -> Tensor {
    Tensor::from_vec(numbers::noise(shape.iter().product(), seed), shape, &Device::Cpu).unwrap()
}

fn weights(config: &LanguageModelConfig) -> HashMap<String, Tensor> {
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut shapes = vec![
        ("embed_tokens.weight".to_owned(), vec![config.vocab_size, WIDTH]),
        ("lm_head.weight".to_owned(), vec![config.vocab_size, WIDTH]),
        ("norm.weight".to_owned(), vec![WIDTH]),
    ];
    for layer in 0..config.layers {
        for (name, shape) in [
            ("input_layernorm.weight", vec![WIDTH]),
            ("post_attention_layernorm.weight", vec![WIDTH]),
            ("self_attn.q_proj.weight", vec![queries, WIDTH]),
            ("self_attn.k_proj.weight", vec![keys, WIDTH]),
            ("self_attn.v_proj.weight", vec![keys, WIDTH]),
            ("self_attn.o_proj.weight", vec![WIDTH, queries]),
            ("self_attn.q_proj.bias", vec![queries]),
            ("self_attn.k_proj.bias", vec![keys]),
            ("self_attn.v_proj.bias", vec![keys]),
            ("mlp.gate_proj.weight", vec![config.intermediate_size, WIDTH]),
            ("mlp.up_proj.weight", vec![config.intermediate_size, WIDTH]),
            ("mlp.down_proj.weight", vec![WIDTH, config.intermediate_size]),
        ] {
            shapes.push((format!("layers.{layer}.{name}"), shape));
        }
    }
    let sized = |(index, (name, shape)): (usize, (String, Vec<usize>))| {
        let weight = noise(&shape, index as u32);
        let weight = if shape.len() > 1 { (weight / 9.0).unwrap() } else { weight.affine(0.5, 1.0).unwrap() };
        (name, weight)
    };
    shapes.into_iter().enumerate().map(sized).collect()
}

/// The model with its matrices in blocks, and the same with these unpacked.
fn both(format: BlockFormat) -> [LanguageModel; 2] {
    let config = config();
    let weights = weights(&config);
    let stored: HashMap<String, QuantisedMatrix> = weights
        .iter()
        .filter(|(_, weight)| weight.dims().len() == 2)
        .map(|(name, weight)| (name.clone(), QuantisedMatrix::quantise(weight, format).unwrap()))
        .collect();
    let unpacked = weights
        .iter()
        .map(|(name, weight)| match stored.get(name) {
            Some(stored) => (name.clone(), stored.dequantise().unwrap()),
            None => (name.clone(), weight.clone()),
        })
        .collect();
    let rest = weights.into_iter().filter(|(_, weight)| weight.dims().len() == 1).collect();
    let source =
        WeightSource::new(VarBuilder::from_tensors(rest, DType::F32, &Device::Cpu), move |name, shape| {
            assert_eq!(stored[name].shape(), shape);
            Ok(Some(stored[name].clone()))
        });
    let dense = VarBuilder::from_tensors(unpacked, DType::F32, &Device::Cpu);
    [LanguageModel::new(&config, source).unwrap(), LanguageModel::new(&config, dense).unwrap()]
}

#[test]
fn weights_in_blocks_give_what_they_give_unpacked() {
    for format in [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4K, BlockFormat::Q6K, BlockFormat::F16]
    {
        let [stored, dense] = both(format);
        assert_eq!((stored.block_format(), dense.block_format()), (Some(format), None));
        let ids: Vec<u32> = (0..31).map(|place| place * 7 % 90).collect();
        let embeds = stored.embed(&ids).unwrap().unsqueeze(0).unwrap();
        assert_eq!(values(&embeds), values(&dense.embed(&ids).unwrap()));
        let expected = dense.forward_uncached(&embeds, None, &mut Blind).unwrap();
        let expected = dense.logits(&expected, &mut Blind).unwrap();
        let whole = stored.forward_uncached(&embeds, None, &mut Blind).unwrap();
        let most = error(&stored.logits(&whole, &mut Blind).unwrap(), &expected);
        let rounding = rounding(format);
        assert!(most < rounding, "{}: {most}", format.name());

        // Many rows, few rows and one row go different ways.
        let mut cache = stored.new_cache(4);
        let mut parts = Vec::new();
        for (start, count) in [(0, 20), (20, 5), (25, 1), (26, 5)] {
            let part = embeds.narrow(1, start, count).unwrap();
            parts.push(stored.forward(&part, &mut cache, None, &mut Blind).unwrap());
        }
        let most = error(&Tensor::cat(&parts, 1).unwrap(), &whole);
        // Beside weights in blocks, keys and values are held in 16 bits.
        let least: f32 = if format.block_length() > 1 { 1e-3 } else { 2e-5 };
        assert!(most < least.max(rounding), "{} in parts: {most}", format.name());
    }
}

#[test]
fn gradients_and_adapters_go_through_weights_in_blocks() {
    let [stored, dense] = both(BlockFormat::Q8_0);
    let embeds = candle_core::Var::from_tensor(&noise(&[1, 9, WIDTH], 40)).unwrap();
    let gradient = |model: &LanguageModel| {
        let hidden = model.forward_uncached(&embeds, None, &mut Blind).unwrap();
        let loss = model.logits(&hidden, &mut Blind).unwrap().sqr().unwrap().sum_all().unwrap();
        loss.backward().unwrap().get(&embeds).unwrap().clone()
    };
    let most = error(&gradient(&stored), &gradient(&dense));
    assert!(most < rounding(BlockFormat::Q8_0), "{most}");

    let lora = LoraConfig { rank: 4, alpha: 8., targets: vec![LoraTarget::QueryProj, LoraTarget::DownProj] };
    let mut adapters = HashMap::new();
    for layer in 0..2 {
        for (name, input, output) in [("self_attn.q_proj", WIDTH, WIDTH), ("mlp.down_proj", 512, WIDTH)] {
            let key = |part: &str| format!("layers.{layer}.{name}.lora_{part}.weight");
            adapters.insert(key("A"), (noise(&[4, input], 50 + layer) / 9.0).unwrap());
            adapters.insert(key("B"), (noise(&[output, 4], 60 + layer) / 9.0).unwrap());
        }
    }
    let hidden = |model: &LanguageModel| {
        let vb = VarBuilder::from_tensors(adapters.clone(), DType::F32, &Device::Cpu);
        let adapted = model.with_lora(&lora, vb).unwrap().with_merged_lora().unwrap();
        adapted.forward_uncached(&embeds, None, &mut Blind).unwrap()
    };
    assert!(error(&hidden(&stored), &hidden(&dense)) < rounding(BlockFormat::Q8_0));
    let plain = dense.forward_uncached(&embeds, None, &mut Blind).unwrap();
    assert!(error(&hidden(&dense), &plain) > 1e-2);
}

#[test]
fn caches_of_fewer_bits_stay_near() {
    let [_, model] = both(BlockFormat::F32);
    let embeds = noise(&[2, 70, WIDTH], 41);
    let hidden = |precision: CachePrecision, parts: &[usize], capacity: usize| {
        let mut cache = model.new_cache_in(precision, capacity);
        let mut start = 0;
        let mut hidden = Vec::new();
        for count in parts {
            let part = embeds.narrow(1, start, *count).unwrap();
            hidden.push(model.forward(&part, &mut cache, None, &mut Blind).unwrap());
            start += count;
        }
        assert_eq!(cache.len(), 70);
        assert!(cache.capacity() >= 70);
        Tensor::cat(&hidden, 1).unwrap()
    };
    let exact = hidden(CachePrecision::Full, &[70], 70);
    for (precision, most) in [(CachePrecision::EightBit, 1e-2), (CachePrecision::FourBit, 2e-1)] {
        let whole = hidden(precision, &[70], 70);
        let off = error(&whole, &exact);
        assert!(off > 0.0 && off < most, "{precision:?}: {off}");
        // Growing by copies, and in steps of any size. Their sums differ in the last digit, which now and then rounds to
        // another number.
        let off = error(&hidden(precision, &[30, 1, 1, 38], 3), &whole);
        assert!(off < most / 5.0, "{precision:?}: {off}");
    }

    let mut cache = model.new_cache_in(CachePrecision::EightBit, 70);
    model.forward(&embeds, &mut cache, None, &mut Blind).unwrap();
    cache.truncate(69);
    let last = embeds.narrow(1, 69, 1).unwrap();
    let again = model.forward(&last, &mut cache, None, &mut Blind).unwrap();
    let whole = hidden(CachePrecision::EightBit, &[70], 70);
    assert!(error(&again, &whole.narrow(1, 69, 1).unwrap()) < 2e-3);
    let other_batch = model.forward(&embeds.narrow(0, 0, 1).unwrap(), &mut cache, None, &mut Blind);
    assert!(matches!(other_batch, Err(Error::Argument(_))));
}

#[test]
fn heads_that_fill_no_blocks_are_refused_by_an_argument() {
    let config = LanguageModelConfig { head_dim: 8, ..config() };
    let vb = VarBuilder::from_tensors(weights(&config), DType::F32, &Device::Cpu);
    let model = LanguageModel::new(&config, vb).unwrap();
    let mut cache = model.new_cache_in(CachePrecision::EightBit, 4);
    let refused = model.forward(&noise(&[1, 3, WIDTH], 42), &mut cache, None, &mut Blind).unwrap_err();
    assert!(matches!(&refused, Error::Argument(text) if text.contains("32")), "{refused}");
}

#[test]
fn answers_in_fewer_bits_run_side_by_side() {
    let [stored, _] = both(BlockFormat::Q8_0);
    let model = Arc::new(stored);
    let answer = |cache: CachePrecision| {
        let sampling = SamplingOptions::default();
        let options = GenerationOptions { cache, ..GenerationOptions::new(12, sampling) };
        let embeds = model.embed(&[1, 5, 9, 30, 44]).unwrap();
        let prompt = Prompt { embeds, visual_tokens: 0 };
        let mut generation = Generation::new(model.clone(), prompt, options, StopRule::new(&[])).unwrap();
        while !generation.prefill_step().unwrap().is_complete() {}
        while generation.decode_step(&|_| String::new()).unwrap().is_some() {}
        generation.new_ids().to_vec()
    };
    let expected = answer(CachePrecision::EightBit);
    assert_eq!(expected.len(), 12);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(answer(CachePrecision::EightBit), expected));
        }
    });
}

/// Prompts of one model that differ in length, and how many new tokens each gets.
const SIDE_BY_SIDE: [(&[u32], usize); 4] =
    [(&[1], 9), (&[1, 5, 9, 30, 44], 12), (&[1, 77, 3], 1), (&[1, 8, 8, 61, 2, 17, 40], 5)];

/// Their generations, with the prompts read.
fn side_by_side(model: &Arc<LanguageModel>, cache: CachePrecision, temperature: f64) -> Vec<Generation> {
    let generation = |(place, &(ids, new)): (usize, &(&[u32], usize))| {
        let sampling = SamplingOptions { temperature, seed: place as u64, ..SamplingOptions::default() };
        let options = GenerationOptions { cache, ..GenerationOptions::new(new, sampling) };
        let prompt = Prompt { embeds: model.embed(ids).unwrap(), visual_tokens: 0 };
        let mut generation = Generation::new(model.clone(), prompt, options, StopRule::new(&[])).unwrap();
        while !generation.prefill_step().unwrap().is_complete() {}
        generation
    };
    SIDE_BY_SIDE.iter().enumerate().map(generation).collect()
}

#[test]
fn sequences_that_are_read_together_get_what_each_gets_alone() {
    let models = [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4K].into_iter().flat_map(both);
    for model in models.map(Arc::new) {
        for cache in [CachePrecision::Full, CachePrecision::EightBit, CachePrecision::FourBit] {
            // Greedy, and with a generator of random numbers each.
            for temperature in [0.0, 1.5] {
                let name = format!("{:?} {cache:?} {temperature}", model.block_format());
                let mut alone = side_by_side(&model, cache, temperature);
                for generation in &mut alone {
                    while generation.decode_step(&|_| String::new()).unwrap().is_some() {}
                }
                let mut together = side_by_side(&model, cache, temperature);
                for _ in 0..12 {
                    Generation::read_together(&mut together.iter_mut().collect::<Vec<_>>()).unwrap();
                    for generation in &mut together {
                        generation.decode_step(&|_| String::new()).unwrap();
                    }
                }
                for (alone, together) in alone.iter().zip(&together) {
                    assert_eq!(together.new_ids(), alone.new_ids(), "{name}");
                    assert_eq!(together.finish(), alone.finish(), "{name}");
                    assert_eq!(together.cached_positions(), alone.cached_positions(), "{name}");
                }
            }
        }
    }
}

#[test]
fn one_pass_gives_each_sequence_its_own_logits() {
    // Products with dense weights add up in another order for more rows; rounded keys may then fall to the next number.
    // Beside weights in blocks, `Full` is 16 bits.
    for (cache, most) in [(CachePrecision::Full, 2e-4), (CachePrecision::EightBit, 2e-3)] {
        for model in [BlockFormat::Q8_0, BlockFormat::Q4K].into_iter().flat_map(both) {
            let lengths = [1, 30, 7];
            let read = |length: &usize| {
                let mut held = model.new_cache_in(cache, 4);
                let ids: Vec<u32> = (0..*length as u32).map(|place| place * 7 % 90).collect();
                let embeds = model.embed(&ids).unwrap().unsqueeze(0).unwrap();
                model.forward(&embeds, &mut held, None, &mut Blind).unwrap();
                held
            };
            let next = model.embed(&[3, 50, 8]).unwrap();
            let mut caches: Vec<_> = lengths.iter().map(read).collect();
            let mut held: Vec<_> = caches.iter_mut().collect();
            let together = model.forward_each(&next, &mut held).unwrap();
            assert_eq!(caches.iter().map(|cache| cache.len()).collect::<Vec<_>>(), [2, 31, 8]);
            for (row, length) in lengths.iter().enumerate() {
                let alone = next.narrow(0, row, 1).unwrap().unsqueeze(0).unwrap();
                let alone = model.forward(&alone, &mut read(length), None, &mut Blind).unwrap();
                let off = error(&together.narrow(0, row, 1).unwrap(), &alone.squeeze(0).unwrap());
                assert!(off < most, "{:?} {cache:?}, sequence {row}: {off}", model.block_format());
            }
        }
    }
}

#[test]
fn what_cannot_be_read_together_changes_nothing() {
    let [stored, dense] = both(BlockFormat::Q8_0).map(Arc::new);
    let mut one = side_by_side(&stored, CachePrecision::Full, 0.0);
    let mut other = side_by_side(&dense, CachePrecision::Full, 0.0);
    // Nothing is to be read before the first token.
    Generation::read_together(&mut [&mut one[0], &mut other[0]]).unwrap();
    for generation in [&mut one[0], &mut other[0]] {
        generation.decode_step(&|_| String::new()).unwrap();
    }
    let refused = Generation::read_together(&mut [&mut one[0], &mut other[0]]).unwrap_err();
    assert!(refused.to_string().contains("different models"), "{refused}");
    while one[0].decode_step(&|_| String::new()).unwrap().is_some() {}
    assert_eq!(one[0].new_ids().len(), SIDE_BY_SIDE[0].1);

    let mut full = stored.new_cache(1);
    let context = stored.embed(&vec![4; stored.context_length()]).unwrap().unsqueeze(0).unwrap();
    stored.forward(&context, &mut full, None, &mut Blind).unwrap();
    let mut empty = stored.new_cache(1);
    let next = stored.embed(&[5, 6]).unwrap();
    let refused = stored.forward_each(&next, &mut [&mut empty, &mut full]).unwrap_err();
    assert!(matches!(refused, Error::ContextOverflow { prompt: 401, .. }), "{refused}");
    assert!(empty.is_empty());
    let refused = stored.forward_each(&next, &mut [&mut empty]).unwrap_err();
    assert!(refused.to_string().contains("2 positions do not go with 1 caches"), "{refused}");
}
