//! A decoder whose layers several ranks share, on the CPU, against the same decoder on one device.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use llamavid_kernels::{BlockFormat, QuantisedMatrix, Ranks, instruction_set};
use llamavid_models::language_model::{
    AttentionBias, CachePrecision, LanguageModel, LanguageModelConfig, LoraConfig, LoraTarget, Placement,
};
use llamavid_models::observer::Blind;
use llamavid_models::{Error, WeightSource};

/// Weights that look random, and are the same wherever one of a name and a shape is asked for.
#[derive(Clone, Copy)]
struct Noise;

impl Noise {
    fn weight(shape: &[usize], name: &str) -> Tensor {
        let mut state =
            name.bytes().fold(7u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619));
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let count = shape.iter().product::<usize>();
        let values: Vec<f32> = match shape {
            // Of norms and of biases.
            [_width] => (0..count).map(|_| 1.0 + 0.5 * next()).collect(),
            _ => (0..count).map(|_| next() / 9.0).collect(),
        };
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }
}

impl SimpleBackend for Noise {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _init: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        Self::weight(shape.dims(), name).to_dtype(dtype)?.to_device(device)
    }

    fn get_unchecked(&self, name: &str, _dtype: DType, _device: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("the shape of {name} is not known")
    }

    fn contains_tensor(&self, _name: &str) -> bool {
        true
    }
}

/// How weights are held: as numbers, or in blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Held {
    Numbers(DType),
    Blocks(BlockFormat),
}

impl Held {
    fn source(self) -> WeightSource<'static> {
        let numbers = |dtype| VarBuilder::from_backend(Box::new(Noise), dtype, Device::Cpu);
        match self {
            Self::Numbers(dtype) => numbers(dtype).into(),
            Self::Blocks(format) => WeightSource::new(numbers(DType::F32), move |name, (rows, columns)| {
                QuantisedMatrix::quantise(&Noise::weight(&[rows, columns], name), format).map(Some)
            }),
        }
    }

    /// How far logits may be apart, against the largest: sums are made in another order, in 16 bits they are rounded for each rank, and
    /// beside weights in blocks most processors round the rows to 8 bits, and keys and values are held in 16.
    fn tolerance(self) -> f32 {
        match (self, instruction_set().unwrap()) {
            (Self::Numbers(DType::F32), _) => 3e-6,
            (Self::Numbers(_), _) => 4e-3,
            (_, "avx512-f32" | "avx2-f32" | "neon" | "portable") => 1e-3,
            _ => 2e-2,
        }
    }
}

fn config(heads: usize, kv_heads: usize) -> LanguageModelConfig {
    LanguageModelConfig {
        vocab_size: 90,
        hidden_size: 256,
        // Three large blocks, which two ranks cannot have the same number of.
        intermediate_size: 768,
        layers: 2,
        heads,
        kv_heads,
        head_dim: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        max_positions: 400,
        tie_word_embeddings: false,
        attention_bias: AttentionBias::None,
        bos_id: 1,
        eos_ids: vec![2],
        pad_id: None,
    }
}

fn shared(config: &LanguageModelConfig, held: Held, ranks: usize) -> Result<LanguageModel, Error> {
    let ranks = Ranks::of(vec![Device::Cpu; ranks]).unwrap();
    LanguageModel::placed(config, held.source(), Placement::shared(ranks, config.layers))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_near(actual: &Tensor, expected: &Tensor, tolerance: f32, what: &str) {
    assert_eq!(actual.dims(), expected.dims(), "{what}");
    let (actual, expected) = (values(actual), values(expected));
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (actual, expected) in actual.iter().zip(&expected) {
        // Written so that not-a-number fails.
        assert!((actual - expected).abs() <= tolerance * largest, "{what}: {actual} instead of {expected}");
    }
}

/// Logits of a prompt in parts, of steps behind it for two sequences at once, and of whole sequences with padding.
fn logits(model: &LanguageModel, precision: CachePrecision) -> Vec<Tensor> {
    let of = |hidden: &Tensor| model.logits(hidden, &mut Blind).unwrap();
    let ids: Vec<u32> = (0..31).map(|place| place * 7 % 90).collect();
    let embeds = model.embed(&ids).unwrap().unsqueeze(0).unwrap();
    let mut seen = Vec::new();
    let mut caches = [(); 2].map(|()| model.new_cache_in(precision, 4));
    for (cache, first) in caches.iter_mut().zip([20, 9]) {
        for (start, count) in [(0, first), (first, 5), (first + 5, 1)] {
            let part = embeds.narrow(1, start, count).unwrap();
            seen.push(of(&model.forward(&part, cache, None, &mut Blind).unwrap()));
        }
    }
    for step in 0..3 {
        let next = model.embed(&[40 + step, 50 + step]).unwrap();
        let [first, second] = &mut caches;
        seen.push(of(&model.forward_each(&next, &mut [first, second]).unwrap()));
    }
    assert_eq!(caches.map(|cache| cache.len()), [29, 18]);

    let batch = embeds.reshape((31, 1, 256)).unwrap().narrow(0, 0, 30).unwrap();
    let batch = batch.reshape((2, 15, 256)).unwrap();
    let mask = Tensor::from_vec((0..30).map(|place| u8::from(place < 25)).collect(), (2, 15), &Device::Cpu);
    let whole = model.forward_uncached(&batch, Some(&mask.unwrap()), &mut Blind).unwrap();
    seen.push(of(&whole.narrow(1, 0, 10).unwrap()));
    seen
}

/// The likeliest tokens behind a prompt.
fn greedy(model: &LanguageModel, count: usize) -> Vec<u32> {
    let mut ids = vec![1, 20, 30, 40];
    let mut cache = model.new_cache(4);
    let mut answer = Vec::new();
    for _ in 0..count {
        let embeds = model.embed(&ids).unwrap().unsqueeze(0).unwrap();
        let hidden = model.forward(&embeds, &mut cache, None, &mut Blind).unwrap();
        let last = hidden.narrow(1, ids.len() - 1, 1).unwrap();
        let logits = values(&model.logits(&last, &mut Blind).unwrap());
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        ids = vec![best as u32];
        answer.push(best as u32);
    }
    answer
}

#[test]
fn ranks_together_give_what_one_device_gives() {
    use BlockFormat::{F16, Q4_0, Q4K, Q6K, Q8_0};
    let numbers = [DType::F32, DType::F16].map(Held::Numbers);
    let blocks = [Q8_0, Q4_0, Q4K, Q6K, F16].map(Held::Blocks);
    for held in numbers.into_iter().chain(blocks) {
        // Key heads are divided, and had by several.
        for (heads, kv_heads, ranks) in [(8, 4, 2), (8, 8, 4), (6, 3, 3), (8, 2, 4), (4, 1, 2)] {
            let large = matches!(held, Held::Blocks(format) if format.block_length() == 256);
            if large && heads / ranks * 64 % 256 != 0 {
                continue;
            }
            let config = config(heads, kv_heads);
            let one = LanguageModel::new(&config, held.source()).unwrap();
            let several = shared(&config, held, ranks).unwrap();
            assert_eq!(several.block_format(), one.block_format());
            let what = format!("{held:?}, {heads} heads, {kv_heads} key heads, {ranks} ranks");
            for (actual, expected) in
                logits(&several, CachePrecision::Full).iter().zip(&logits(&one, CachePrecision::Full))
            {
                assert_near(actual, expected, held.tolerance(), &what);
            }
            if held == Held::Numbers(DType::F32) {
                assert_eq!(greedy(&several, 24), greedy(&one, 24), "{what}");
            }
        }
    }
}

#[test]
fn biases_are_added_once_and_tied_tables_are_shared() {
    let held = Held::Numbers(DType::F32);
    for attention_bias in [AttentionBias::QueryKeyValue, AttentionBias::All] {
        let config = LanguageModelConfig { attention_bias, tie_word_embeddings: true, ..config(8, 4) };
        let one = LanguageModel::new(&config, held.source()).unwrap();
        let several = shared(&config, held, 4).unwrap();
        for (actual, expected) in
            logits(&several, CachePrecision::Full).iter().zip(&logits(&one, CachePrecision::Full))
        {
            assert_near(actual, expected, held.tolerance(), &format!("{attention_bias:?}"));
        }
        assert_eq!(greedy(&several, 24), greedy(&one, 24));
    }
}

#[test]
fn each_rank_holds_its_heads_in_the_cache() {
    let config = config(8, 4);
    let held = Held::Numbers(DType::F32);
    let one = LanguageModel::new(&config, held.source()).unwrap();
    let several = shared(&config, held, 2).unwrap();
    for precision in [CachePrecision::Half, CachePrecision::EightBit, CachePrecision::FourBit] {
        let [actual, expected] = [&several, &one].map(|model| logits(model, precision));
        for (actual, expected) in actual.iter().zip(&expected) {
            // Another last digit now and then rounds to another number of the cache.
            assert_near(actual, expected, 2e-2, &format!("{precision:?}"));
        }
    }
    let held_by = |model: &LanguageModel| {
        let mut cache = model.new_cache(8);
        let embeds = model.embed(&[1, 2, 3]).unwrap().unsqueeze(0).unwrap();
        model.forward(&embeds, &mut cache, None, &mut Blind).unwrap();
        (cache.bytes(), cache.capacity())
    };
    assert_eq!(held_by(&several), held_by(&one));
    // Four ranks for two key heads have each of them twice.
    let (few, many) = (LanguageModelConfig { kv_heads: 2, ..config.clone() }, config);
    assert_eq!(held_by(&shared(&few, held, 4).unwrap()).0, held_by(&shared(&many, held, 4).unwrap()).0);
}

#[test]
fn adapters_are_shared_with_their_layers() {
    let config = config(8, 4);
    let lora = LoraConfig { rank: 4, alpha: 8., targets: LoraTarget::ALL.to_vec() };
    let held = Held::Numbers(DType::F32);
    let one = LanguageModel::new(&config, held.source()).unwrap();
    let several = shared(&config, held, 2).unwrap();
    let adapted = |model: &LanguageModel| model.with_lora(&lora, held.source().pp("adapters")).unwrap();
    let [actual, expected] = [&several, &one].map(adapted);
    let plain = logits(&one, CachePrecision::Full);
    let merged = actual.with_merged_lora().unwrap();
    for model in [actual, merged] {
        let seen = logits(&model, CachePrecision::Full);
        for (actual, expected) in seen.iter().zip(&logits(&expected, CachePrecision::Full)) {
            assert_near(actual, expected, 1e-5, "adapters");
        }
        assert!(
            values(&seen[0])
                .iter()
                .zip(values(&plain[0]))
                .any(|(with, without)| (with - without).abs() > 1e-2)
        );
    }
}

#[test]
fn layers_that_cannot_be_shared_are_refused() {
    let numbers = Held::Numbers(DType::F32);
    let large = Held::Blocks(BlockFormat::Q4K);
    for (config, held, ranks, problem) in [
        (config(8, 4), numbers, 3, "8 heads"),
        (config(12, 4), numbers, 6, "4 key heads"),
        // Two heads are half a large block.
        (config(8, 4), large, 4, "blocks of 256 (Q4_K)"),
        // Of three large blocks, four ranks cannot have one each.
        (LanguageModelConfig { head_dim: 128, ..config(8, 4) }, large, 4, "feed-forward"),
        (LanguageModelConfig { vocab_size: 3, ..config(4, 4) }, numbers, 4, "3 rows"),
    ] {
        let error = shared(&config, held, ranks).unwrap_err();
        assert!(matches!(error, Error::Shares { .. }), "{error}");
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[test]
fn a_pass_that_fails_on_a_rank_ends_and_the_next_one_works() {
    let config = config(8, 4);
    let held = Held::Numbers(DType::F32);
    let (one, several) =
        (LanguageModel::new(&config, held.source()).unwrap(), shared(&config, held, 2).unwrap());
    let embeds = several.embed(&[5, 6, 7]).unwrap().unsqueeze(0).unwrap();
    let mut cache = several.new_cache(8);
    several.forward(&embeds, &mut cache, None, &mut Blind).unwrap();
    let two = Tensor::cat(&[&embeds, &embeds], 0).unwrap();
    // The ranks find that out on their own, in the middle of a layer.
    let error = several.forward(&two, &mut cache, None, &mut Blind).unwrap_err();
    assert!(error.to_string().contains("1 sequences"), "{error}");
    assert_eq!(cache.len(), 3);
    let mut expected = one.new_cache(8);
    let [actual, expected] = [(&several, &mut cache), (&one, &mut expected)].map(|(model, cache)| {
        while cache.len() < 6 {
            model.forward(&embeds, cache, None, &mut Blind).unwrap();
        }
        let hidden = model.forward(&embeds, cache, None, &mut Blind).unwrap();
        model.logits(&hidden, &mut Blind).unwrap()
    });
    assert_near(&actual, &expected, held.tolerance(), "after an error");

    let error = several.forward(&embeds, &mut one.new_cache(8), None, &mut Blind).unwrap_err();
    assert!(error.to_string().contains("another model"), "{error}");
}
