//! Token generation against the reference's recorded tensors, and the laws it keeps.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use candle_core::pickle::PthTensors;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use llamavid_models::Error;
use llamavid_models::observer::{Blind, Observer};
use llamavid_models::token_generation::{
    Compression, FeatureKind, Projector, QueryKind, QueryModelConfig, Questions, TokenGenerationConfig,
    TokenGenerator, TokenRows,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

const CASES: [&str; 9] = [
    "image-224",
    "image-336",
    "image-grid4",
    "video-mean",
    "video-grid2",
    "eps-probe",
    "start-end",
    "long-video",
    "raw-bert",
];

/// Largest difference over the largest expected number.
const F32_TOLERANCE: f32 = 1e-4;

/// One folder of the oracle.
struct Oracle {
    name: &'static str,
    folder: PathBuf,
    tensors: HashMap<String, Tensor>,
    cases: Vec<Value>,
}

impl Oracle {
    fn open(name: &'static str) -> Self {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/oracle")).join(name);
        let tensors =
            candle_core::safetensors::load(folder.join("tensors.safetensors"), &Device::Cpu).unwrap();
        let cases = json(&folder.join("cases.json"))["cases"].as_array().unwrap().clone();
        Self { name, folder, tensors, cases }
    }

    fn config(&self) -> TokenGenerationConfig {
        let (model, bert) =
            (json(&self.folder.join("model/config.json")), json(&self.folder.join("bert/config.json")));
        let size = |file: &Value, key: &str| file[key].as_u64().unwrap_or_else(|| panic!("{key}")) as usize;
        TokenGenerationConfig {
            query: QueryModelConfig {
                kind: QueryKind::parse(model["bert_type"].as_str().unwrap()).unwrap(),
                width: size(&bert, "hidden_size"),
                layers: size(&bert, "num_hidden_layers"),
                heads: size(&bert, "num_attention_heads"),
                mlp_width: size(&bert, "intermediate_size"),
                queries: size(&model, "num_query"),
                vocab_size: size(&bert, "vocab_size") + 1,
                max_positions: size(&bert, "max_position_embeddings"),
                type_vocab_size: size(&bert, "type_vocab_size"),
                projected_width: None,
            },
            visual_width: size(&model, "mm_hidden_size"),
            language_width: size(&model, "hidden_size"),
            projector: Projector::parse(model["mm_projector_type"].as_str().unwrap()).unwrap(),
            compression: Compression::parse(model["compress_type"].as_str()).unwrap(),
            rows: TokenRows::parse(model["mm_vision_select_feature"].as_str().unwrap()).unwrap(),
        }
    }

    /// The checkpoint's weights under our names.
    fn weights(&self) -> HashMap<String, Tensor> {
        let index = json(&self.folder.join("model/pytorch_model.bin.index.json"));
        let mut shards: HashMap<&str, PthTensors> = HashMap::new();
        let mut weights = HashMap::new();
        for (upstream, shard) in index["weight_map"].as_object().unwrap() {
            let Some(ours) = our_name(upstream) else { continue };
            let shard = shard.as_str().unwrap();
            let shard = shards
                .entry(shard)
                .or_insert_with(|| PthTensors::new(self.folder.join("model").join(shard), None).unwrap());
            weights.insert(ours, shard.get(upstream).unwrap().unwrap());
        }
        weights
    }

    fn generator(&self, dtype: DType) -> TokenGenerator {
        let vb = VarBuilder::from_tensors(self.weights(), dtype, &Device::Cpu);
        TokenGenerator::new(&self.config(), vb).unwrap()
    }

    /// The cases with a picture, a video or features.
    fn visual_cases(&self) -> impl Iterator<Item = &Value> {
        self.cases.iter().filter(|case| !case["qformer_prompts"].is_null())
    }

    fn input(&self, case: &Value) -> (Tensor, FeatureKind, Questions) {
        let id = case["id"].as_str().unwrap();
        let (features, kind) = if case["long_video"].as_bool().unwrap() {
            let features = &self.tensors[case["feats_tensor"].as_str().unwrap()];
            (features.narrow(1, 1, features.dim(1).unwrap() - 1).unwrap(), FeatureKind::Precomputed)
        } else {
            (self.tensors[&format!("{id}/vit.out")].clone(), FeatureKind::Pixels)
        };
        let words = |name: &str| self.tensors[&format!("{id}/{name}.0")].to_dtype(DType::U32).unwrap();
        let questions =
            Questions { input_ids: words("qf.input_ids"), attention_mask: words("qf.attention_mask") };
        (features, kind, questions)
    }

    /// Recorded `qf.*` and `tok.*` tensors of a case, without the sample's number.
    fn recorded(&self, case: &Value) -> BTreeMap<&str, &Tensor> {
        let prefix = format!("{}/", case["id"].as_str().unwrap());
        let names = self.tensors.iter().filter_map(|(name, tensor)| {
            let name = name.strip_prefix(&prefix)?.strip_suffix(".0")?;
            (name.starts_with("qf.") || name.starts_with("tok.")).then_some((name, tensor))
        });
        names.collect()
    }
}

fn json(path: &PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|error| panic!("{path:?}: {error}"))).unwrap()
}

fn our_name(upstream: &str) -> Option<String> {
    let name = upstream.strip_prefix("model.")?;
    if name.ends_with("position_ids") {
        return None;
    }
    [
        ("vlm_att_ln.", "query_norm."),
        ("vlm_att_query", "query_tokens"),
        ("vlm_att_encoder.", "query_model."),
        ("vlm_att_projector.", "context.query_proj."),
        ("vlm_att_key_projector.", "context.key_proj."),
        ("vlm_att_val_projector.", "context.value_proj."),
        ("vlm_att_bert_proj.", "bert_proj."),
        ("mm_projector.", "projector."),
    ]
    .iter()
    .find_map(|(theirs, ours)| Some(format!("{ours}{}", name.strip_prefix(theirs)?)))
}

#[derive(Default)]
struct Recorder(HashMap<String, Tensor>);

impl Observer for Recorder {
    fn see(&mut self, name: &str, tensor: &Tensor) {
        assert!(self.0.insert(name.to_owned(), tensor.clone()).is_none(), "{name} was seen twice");
    }

    fn wants(&self) -> bool {
        true
    }
}

fn error(actual: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(actual.dims(), expected.dims());
    let (actual, expected) = (actual.to_dtype(DType::F32).unwrap(), expected.to_dtype(DType::F32).unwrap());
    let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let gap = largest(&(actual - &expected).unwrap());
    assert!(!gap.is_nan());
    if gap == 0. { 0. } else { gap / largest(&expected) }
}

/// Worst error over all cases of a folder, with its place.
fn compare(name: &'static str) -> (usize, f32, String) {
    let oracle = Oracle::open(name);
    let generator = oracle.generator(DType::F32);
    let (mut count, mut worst, mut place) = (0, 0f32, String::new());
    for case in oracle.visual_cases() {
        let (features, kind, questions) = oracle.input(case);
        let mut recorder = Recorder::default();
        let tokens = generator.generate(&features, kind, &questions, &mut recorder).unwrap();
        let recorded = oracle.recorded(case);
        assert!(recorded.contains_key("tok.features"), "{}: {}", oracle.name, case["id"]);
        assert_eq!(error(&tokens, &recorder.0["tok.features"]), 0.);
        for (tensor, expected) in recorded {
            let seen =
                recorder.0.get(tensor).unwrap_or_else(|| panic!("{name} {}: {tensor} not seen", case["id"]));
            let error = error(seen, expected);
            assert!(error <= F32_TOLERANCE, "{name} {} {tensor}: {error}", case["id"]);
            count += 1;
            if error > worst {
                (worst, place) = (error, format!("{} {tensor}", case["id"]));
            }
        }
        let blind = generator.generate(&features, kind, &questions, &mut Blind).unwrap();
        assert!(error(&blind, &tokens) < 1e-6, "{name} {}: looking changes the tokens", case["id"]);
    }
    (count, worst, place)
}

#[test]
fn matches_the_reference() {
    for name in CASES {
        let (count, worst, place) = compare(name);
        println!("{name}: {count} tensors, largest error {worst:.1e} ({place})");
        assert!(count > 0, "{name}");
    }
}

/// The shares of attention are the reference's.
#[test]
fn relevance_is_how_far_recorded_attention_is_from_an_even_one() {
    for name in CASES {
        let oracle = Oracle::open(name);
        let generator = oracle.generator(DType::F32);
        for case in oracle.visual_cases() {
            let (features, kind, questions) = oracle.input(case);
            let relevance = generator.relevance(&features, kind, &questions).unwrap(); // (P, F)
            let shares = oracle.recorded(case)["tok.scores"]; // (P * F, Q, N)
            let even = (shares.dim(2).unwrap() as f64).ln();
            let expected =
                (shares.log().unwrap().mean(2).unwrap().mean(1).unwrap().neg().unwrap() - even).unwrap();
            let expected = expected.reshape(relevance.dims()).unwrap();
            let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (actual, expected) in values(&relevance).into_iter().zip(values(&expected)) {
                assert!(
                    (actual - expected).abs() < 1e-4 * expected.abs().max(1.0),
                    "{name}: {actual}, {expected}"
                );
                assert!(actual > -1e-5, "{name}: {actual}");
            }
        }
    }
}

#[test]
fn checkpoints_have_no_weight_that_is_not_read() {
    for name in CASES {
        let oracle = Oracle::open(name);
        let read = VarMap::new();
        let vb = VarBuilder::from_varmap(&read, DType::F32, &Device::Cpu);
        TokenGenerator::new(&oracle.config(), vb).unwrap();
        let shapes = |weights: &HashMap<String, Tensor>| -> BTreeMap<String, Vec<usize>> {
            weights.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect()
        };
        let read =
            read.data().lock().unwrap().iter().map(|(k, v)| (k.clone(), v.as_tensor().clone())).collect();
        assert_eq!(shapes(&read), shapes(&oracle.weights()), "{name}");
    }
}

#[test]
fn blocks_do_not_change_the_tokens() {
    let oracle = Oracle::open("long-video");
    let generator = oracle.generator(DType::F32);
    let case = oracle.visual_cases().find(|case| case["id"] == "movie").unwrap();
    let (features, kind, questions) = oracle.input(case);
    let whole = generator.generate(&features, kind, &questions, &mut Blind).unwrap();
    assert_eq!(features.dim(0).unwrap(), 70, "more frames than a block");
    let pieces: Vec<Tensor> = (0..70)
        .step_by(7)
        .map(|start| {
            generator.generate(&features.narrow(0, start, 7).unwrap(), kind, &questions, &mut Blind).unwrap()
        })
        .collect();
    assert!(error(&Tensor::cat(&pieces, 1).unwrap(), &whole) < 1e-5);
}

#[test]
fn many_questions_in_blocks_are_observed_whole() {
    let oracle = Oracle::open("video-mean");
    let generator = oracle.generator(DType::F32);
    let case = oracle.visual_cases().find(|case| case["id"] == "video-multi-prompt").unwrap();
    let (features, kind, questions) = oracle.input(case);
    let copies = 20; // 40 questions: a block is a single frame
    let many = Questions {
        input_ids: questions.input_ids.repeat((copies, 1)).unwrap(),
        attention_mask: questions.attention_mask.repeat((copies, 1)).unwrap(),
    };
    let (mut once, mut often) = (Recorder::default(), Recorder::default());
    generator.generate(&features, kind, &questions, &mut once).unwrap();
    generator.generate(&features, kind, &many, &mut often).unwrap();
    assert_eq!(once.0.len(), often.0.len());
    for (name, tensor) in once.0 {
        let rank = tensor.rank();
        let wanted = tensor.repeat([&[copies][..], &vec![1; rank - 1]].concat()).unwrap();
        assert!(error(&often.0[&name], &wanted) < 1e-5, "{name}");
    }
}

#[test]
fn a_batch_of_questions_equals_its_items() {
    for name in ["video-mean", "image-224", "raw-bert"] {
        let oracle = Oracle::open(name);
        let generator = oracle.generator(DType::F32);
        let case =
            oracle.visual_cases().find(|case| case["id"].as_str().unwrap().contains("multi-prompt")).unwrap();
        let (features, kind, questions) = oracle.input(case);
        let batch = generator.generate(&features, kind, &questions, &mut Blind).unwrap();
        for index in 0..questions.input_ids.dim(0).unwrap() {
            // Plain BERT makes text queries of padding too, so that only the Q-Former can leave it out.
            let words = match oracle.config().query.kind {
                QueryKind::RawBert => questions.input_ids.dim(1).unwrap(),
                QueryKind::QFormer { .. } => {
                    let mask = questions.attention_mask.get(index).unwrap();
                    mask.sum_all().unwrap().to_scalar::<u32>().unwrap() as usize
                }
            };
            let item = |x: &Tensor| x.narrow(0, index, 1).unwrap().narrow(1, 0, words).unwrap();
            let single = Questions {
                input_ids: item(&questions.input_ids),
                attention_mask: item(&questions.attention_mask),
            };
            let single = generator.generate(&features, kind, &single, &mut Blind).unwrap();
            assert!(error(&single, &batch.narrow(0, index, 1).unwrap()) < 1e-5, "{name} {index}");
        }
    }
}

#[test]
fn frames_with_questions_of_their_own_equal_single_ones() {
    for kind in [QueryKind::QFormer { visual_norm: true }, QueryKind::RawBert] {
        let config = small(kind);
        let (generator, _) = trainable(&config);
        let features = random(7, &[3, 17, config.visual_width]);
        let both = small_questions();
        let choice = Tensor::new(&[1u32, 0, 1], &Device::Cpu).unwrap();
        let questions = Questions {
            input_ids: both.input_ids.index_select(&choice, 0).unwrap(),
            attention_mask: both.attention_mask.index_select(&choice, 0).unwrap(),
        };
        let paired =
            generator.generate_paired(&features, FeatureKind::Pixels, &questions, &mut Blind).unwrap();
        for frame in 0..3 {
            let question = Questions {
                input_ids: questions.input_ids.narrow(0, frame, 1).unwrap(),
                attention_mask: questions.attention_mask.narrow(0, frame, 1).unwrap(),
            };
            let one = features.narrow(0, frame, 1).unwrap();
            let alone = generator.generate(&one, FeatureKind::Pixels, &question, &mut Blind).unwrap();
            assert!(error(&paired.narrow(0, frame, 1).unwrap(), &alone) < 1e-5, "{kind:?} {frame}");
        }
        assert!(generator.generate_paired(&features, FeatureKind::Pixels, &both, &mut Blind).is_err());
    }
}

#[test]
fn dropout_is_only_what_its_seed_says() {
    for name in ["video-mean", "raw-bert"] {
        let oracle = Oracle::open(name);
        let (features, kind, questions) = oracle.input(&oracle.cases[0]);
        let generator = oracle.generator(DType::F32);
        let tokens =
            |generator: &TokenGenerator| generator.generate(&features, kind, &questions, &mut Blind).unwrap();
        let dropping = |rate, seed| tokens(&generator.with_dropout(rate, seed).unwrap());
        let plain = tokens(&generator);
        assert_eq!(error(&dropping(0.0, 1), &plain), 0.0);
        assert!(error(&dropping(0.1, 1), &plain) > 1e-3);
        assert_eq!(error(&dropping(0.1, 1), &dropping(0.1, 1)), 0.0);
        assert!(error(&dropping(0.1, 1), &dropping(0.1, 2)) > 1e-3);
        for wrong in [-0.1, 1.0, f32::NAN] {
            assert!(matches!(generator.with_dropout(wrong, 1), Err(Error::Argument(_))));
        }
    }
}

#[test]
fn grid_of_one_equals_mean() {
    let oracle = Oracle::open("video-mean");
    let (features, kind, questions) = oracle.input(&oracle.cases[0]);
    let tokens = |compression| {
        let vb = VarBuilder::from_tensors(oracle.weights(), DType::F32, &Device::Cpu);
        let config = TokenGenerationConfig { compression, ..oracle.config() };
        TokenGenerator::new(&config, vb).unwrap().generate(&features, kind, &questions, &mut Blind).unwrap()
    };
    assert!(error(&tokens(Compression::Grid(1)), &tokens(Compression::Mean)) < 1e-5);
}

#[test]
fn tokens_per_frame_counts_what_is_generated() {
    for name in CASES {
        let oracle = Oracle::open(name);
        let generator = oracle.generator(DType::F32);
        let case = oracle.visual_cases().next().unwrap();
        let (features, kind, questions) = oracle.input(case);
        let tokens = generator.generate(&features, kind, &questions, &mut Blind).unwrap();
        let (frames, rows, _width) = features.dims3().unwrap();
        assert_eq!(tokens.dim(1).unwrap(), frames * generator.config().tokens_per_frame(rows), "{name}");
    }
}

/// A small model of each kind, from nothing.
fn small(kind: QueryKind) -> TokenGenerationConfig {
    TokenGenerationConfig {
        query: QueryModelConfig {
            kind,
            width: 12,
            layers: 3,
            heads: 2,
            mlp_width: 20,
            queries: 4,
            vocab_size: 11,
            max_positions: 16,
            type_vocab_size: 2,
            projected_width: None,
        },
        visual_width: 10,
        language_width: 14,
        projector: Projector::MlpGelu { layers: 2 },
        compression: Compression::Grid(2),
        rows: TokenRows::Patches,
    }
}

fn small_questions() -> Questions {
    let device = &Device::Cpu;
    Questions {
        input_ids: Tensor::new(&[[1u32, 5, 7, 2], [1, 9, 2, 0]], device).unwrap(),
        attention_mask: Tensor::new(&[[1u32, 1, 1, 1], [1, 1, 1, 0]], device).unwrap(),
    }
}

/// Numbers between -1 and 1, the same in each run.
fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut source = ChaCha8Rng::seed_from_u64(seed);
    let numbers: Vec<f32> = (0..shape.iter().product()).map(|_| source.random_range(-1f32..1.)).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

/// A generator with weights that can be trained, the same in each run.
fn trainable(config: &TokenGenerationConfig) -> (TokenGenerator, BTreeMap<String, Var>) {
    let weights = VarMap::new();
    let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
    let generator = TokenGenerator::new(config, vb).unwrap();
    let weights: BTreeMap<String, Var> = weights.data().lock().unwrap().clone().into_iter().collect();
    for (seed, (name, weight)) in weights.iter().enumerate() {
        let middle = if name.ends_with("orm.weight") { 1. } else { 0. };
        weight.set(&random(seed as u64, weight.dims()).affine(0.5, middle).unwrap()).unwrap();
    }
    (generator, weights)
}

#[test]
fn every_weight_gets_a_gradient() {
    let mut configs = vec![
        small(QueryKind::QFormer { visual_norm: true }),
        small(QueryKind::QFormer { visual_norm: false }),
        small(QueryKind::RawBert),
    ];
    let mut projected = small(QueryKind::QFormer { visual_norm: true });
    projected.query.projected_width = Some(18);
    projected.projector = Projector::Linear;
    projected.compression = Compression::None;
    configs.push(projected);
    for config in configs {
        let (generator, weights) = trainable(&config);
        let features = random(100, &[3, 17, 10]);
        let tokens =
            generator.generate(&features, FeatureKind::Pixels, &small_questions(), &mut Blind).unwrap();
        let loss = (&tokens * random(101, tokens.dims())).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let last_words = [".2.intermediate.", ".2.output."];
        for (name, weight) in &weights {
            let gradient = gradients.get(weight).unwrap_or_else(|| panic!("{:?} {name}", config.query.kind));
            let largest = gradient.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(largest.is_finite(), "{name}");
            // Softmax cancels a bias of keys, and nothing reads the Q-Former's last words.
            let cancelled = name.ends_with("key.bias") || name.ends_with("key_proj.bias");
            let unread =
                config.query.kind != QueryKind::RawBert && last_words.iter().any(|x| name.contains(x));
            assert_eq!(largest < 1e-6, cancelled || unread, "{:?} {name}: {largest}", config.query.kind);
        }
    }
}

/// Weights that are trained are multiplied with all rows, others with the few queries where that is cheaper.
#[test]
fn folded_projections_give_what_plain_ones_give() {
    for kind in [
        QueryKind::QFormer { visual_norm: true },
        QueryKind::QFormer { visual_norm: false },
        QueryKind::RawBert,
    ] {
        let (plain, weights) = trainable(&small(kind));
        let fixed = weights.iter().map(|(name, weight)| (name.clone(), weight.as_tensor().detach()));
        let vb = VarBuilder::from_tensors(fixed.collect(), DType::F32, &Device::Cpu);
        let folding = TokenGenerator::new(&small(kind), vb).unwrap();
        let features = random(100, &[3, 65, 10]);
        let tokens = |generator: &TokenGenerator| {
            generator.generate(&features, FeatureKind::Pixels, &small_questions(), &mut Blind).unwrap()
        };
        let gap = error(&tokens(&folding), &tokens(&plain));
        assert!(gap < 1e-5, "{kind:?}: {gap}");
    }
}

#[test]
fn laid_out_for_inference_it_gives_the_same() {
    // Weights that half precision holds: others stay as they are read.
    let weights: HashMap<String, Tensor> = Oracle::open("video-mean")
        .weights()
        .into_iter()
        .map(|(name, weight)| (name, weight.to_dtype(DType::F16).unwrap()))
        .collect();
    let oracle = Oracle::open("video-mean");
    let (features, kind, questions) = oracle.input(&oracle.cases[0]);
    let vb = || VarBuilder::from_tensors(weights.clone(), DType::F32, &Device::Cpu);
    let generator = TokenGenerator::new(&oracle.config(), vb()).unwrap();
    let laid_out = TokenGenerator::for_inference(&oracle.config(), vb()).unwrap();
    assert!(laid_out.with_dropout(0.1, 1).is_err());
    let frames = features.dim(0).unwrap();
    let many = Tensor::cat(&vec![&features; 64usize.div_ceil(frames)], 0).unwrap();
    let words = |repeats: usize| {
        let cat = |tensor: &Tensor| Tensor::cat(&vec![tensor; repeats], 0).unwrap();
        Questions { input_ids: cat(&questions.input_ids), attention_mask: cat(&questions.attention_mask) }
    };
    let mut padded = words(3);
    let length = padded.attention_mask.dim(1).unwrap() as u32;
    let hidden = Tensor::arange(0, length, &Device::Cpu).unwrap().lt(length - 1).unwrap();
    let hidden = hidden.to_dtype(DType::U32).unwrap().unsqueeze(0).unwrap();
    let others = padded.attention_mask.narrow(0, 1, 2).unwrap();
    padded.attention_mask = Tensor::cat(&[&hidden.to_dtype(others.dtype()).unwrap(), &others], 0).unwrap();
    for (features, questions) in [(&features, &words(1)), (&many, &words(1)), (&many, &padded)] {
        let [expected, actual] = [&generator, &laid_out]
            .map(|generator| generator.generate(features, kind, questions, &mut Blind).unwrap());
        assert!(error(&actual, &expected) < 1e-5, "{:?}", error(&actual, &expected));
        let [expected, actual] =
            [&generator, &laid_out].map(|generator| generator.relevance(features, kind, questions).unwrap());
        assert!(error(&actual, &expected) < 1e-4, "{:?}", error(&actual, &expected));
    }
}

#[test]
fn gradients_match_differences() {
    let mut config = small(QueryKind::QFormer { visual_norm: true });
    config.query.layers = 2;
    let (generator, weights) = trainable(&config);
    let (features, weighting) = (random(100, &[3, 17, 10]), random(101, &[2, 15, 14]));
    let loss = || {
        let tokens =
            generator.generate(&features, FeatureKind::Pixels, &small_questions(), &mut Blind).unwrap();
        (tokens * &weighting).unwrap().sum_all().unwrap()
    };
    let gradients = loss().backward().unwrap();
    let value = |loss: Tensor| f64::from(loss.to_scalar::<f32>().unwrap());
    for name in ["query_tokens", "query_norm.weight", "context.query_proj.weight", "projector.0.weight"] {
        let weight = &weights[name];
        let start = weight.as_tensor().copy().unwrap();
        let direction = random(102, start.dims());
        let along = |step: f64| {
            weight.set(&(&start + (&direction * step).unwrap()).unwrap()).unwrap();
            value(loss())
        };
        let step = 1e-3;
        let measured = (along(step) - along(-step)) / (2. * step);
        weight.set(&start).unwrap();
        let computed = value((gradients.get(weight).unwrap() * &direction).unwrap().sum_all().unwrap());
        let gap = (measured - computed).abs();
        assert!(
            gap <= 0.02 * computed.abs() + 0.05,
            "{name}: {computed} by gradient, {measured} by difference"
        );
    }
}

#[test]
fn half_precision_stays_close() {
    for dtype in [DType::F16, DType::BF16] {
        for name in ["video-grid2", "long-video", "raw-bert"] {
            let oracle = Oracle::open(name);
            let generator = oracle.generator(dtype);
            let case = oracle.visual_cases().next().unwrap();
            let (features, kind, questions) = oracle.input(case);
            let tokens = generator.generate(&features, kind, &questions, &mut Blind).unwrap();
            assert_eq!(tokens.dtype(), dtype);
            let error = error(&tokens, oracle.recorded(case)["tok.features"]);
            println!("{name} {dtype:?}: {error:.1e}");
            assert!(error < 5e-2, "{name} {dtype:?}: {error}");
        }
    }
}

#[test]
fn class_row_rules() {
    let vb = || VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
    let mean = TokenGenerationConfig {
        compression: Compression::Mean,
        ..small(QueryKind::QFormer { visual_norm: true })
    };
    let generator = TokenGenerator::new(&mean, vb()).unwrap();
    let generate = |generator: &TokenGenerator, features: &Tensor, kind| {
        let mut recorder = Recorder::default();
        generator.generate(features, kind, &small_questions(), &mut recorder).map(|_| recorder.0)
    };
    // 4 x 4 patches and a class row: the Q-Former sees 17 rows, the tokens are made of 16.
    let features = random(100, &[2, 17, 10]);
    let seen = generate(&generator, &features, FeatureKind::Pixels).unwrap();
    assert_eq!(seen["qf.ln_vision"].dims(), [4, 17, 10]);
    assert_eq!(seen["tok.vis"].dims(), [4, 16, 10]);
    let patches = features.narrow(1, 1, 16).unwrap();
    assert_eq!(error(&seen["tok.vis"].narrow(0, 0, 2).unwrap(), &patches), 0.);
    // The same without class row, as from a file: the Q-Former sees 16, so that the tokens differ.
    let precomputed = generate(&generator, &patches, FeatureKind::Precomputed).unwrap();
    assert_eq!(precomputed["qf.ln_vision"].dims(), [4, 16, 10]);
    assert_eq!(error(&precomputed["tok.vis"], &seen["tok.vis"]), 0.);
    assert!(error(&precomputed["tok.features"], &seen["tok.features"]) > 1e-4);
    // 5 x 5 patches and a class row: an even number, so the class row stays.
    let odd_side = generate(&generator, &random(100, &[2, 26, 10]), FeatureKind::Pixels).unwrap();
    assert_eq!(odd_side["tok.vis"].dims(), [4, 26, 10]);
    // A class row that nobody cut off.
    let uncut = generate(&generator, &features, FeatureKind::Precomputed).unwrap_err();
    assert!(matches!(uncut, Error::Argument(_)), "{uncut}");
    assert!(uncut.to_string().contains("17 rows"), "{uncut}");
    // With `cls_patch` all rows are used.
    let all = TokenGenerator::new(&TokenGenerationConfig { rows: TokenRows::All, ..mean }, vb()).unwrap();
    assert_eq!(generate(&all, &features, FeatureKind::Pixels).unwrap()["tok.vis"].dims(), [4, 17, 10]);
}

#[test]
fn projectors() {
    for (projector, layers) in [
        (Projector::Linear, vec!["projector"]),
        (Projector::MlpGelu { layers: 1 }, vec!["projector.0"]),
        (Projector::MlpGelu { layers: 3 }, vec!["projector.0", "projector.2", "projector.4"]),
        (Projector::Identity, vec![]),
    ] {
        let config = TokenGenerationConfig {
            projector,
            visual_width: 14,
            ..small(QueryKind::QFormer { visual_norm: true })
        };
        let weights = VarMap::new();
        let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
        let generator = TokenGenerator::new(&config, vb).unwrap();
        let mut names: Vec<String> = weights.data().lock().unwrap().keys().cloned().collect();
        names.retain(|name| name.starts_with("projector"));
        names.sort();
        let wanted: Vec<String> = layers
            .iter()
            .flat_map(|layer| ["bias", "weight"].map(|part| format!("{layer}.{part}")))
            .collect();
        assert_eq!(names, wanted);
        let mut recorder = Recorder::default();
        let features = random(100, &[3, 16, 14]);
        generator.generate(&features, FeatureKind::Pixels, &small_questions(), &mut recorder).unwrap();
        let (pooled, token) = (&recorder.0["tok.content_pooled"], &recorder.0["tok.content_token"]);
        assert_eq!(token.dims(), [6, 4, 14]);
        assert_eq!(projector == Projector::Identity, error(token, pooled) == 0.);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let config = small(QueryKind::QFormer { visual_norm: true });
    let build = |config: &TokenGenerationConfig| {
        TokenGenerator::new(config, VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu))
    };
    let identity = TokenGenerationConfig { projector: Projector::Identity, ..config.clone() };
    let mut heads = config.clone();
    heads.query.heads = 5;
    let mut none = config.clone();
    none.query.queries = 0;
    for wrong in [identity, heads, none] {
        assert!(matches!(build(&wrong), Err(Error::Config { .. })), "{wrong:?}");
    }
    let missing = VarBuilder::from_tensors(HashMap::new(), DType::F32, &Device::Cpu);
    assert!(TokenGenerator::new(&config, missing).unwrap_err().to_string().contains("query_norm.weight"));

    let generator = build(&config).unwrap();
    let refused = |features: &Tensor, questions: &Questions| {
        let error = generator.generate(features, FeatureKind::Pixels, questions, &mut Blind).unwrap_err();
        assert!(matches!(error, Error::Argument(_)), "{error}");
        error.to_string()
    };
    assert!(refused(&random(100, &[2, 17, 9]), &small_questions()).contains("[2, 17, 9]"));
    let words = |count| Tensor::ones((1, count), DType::U32, &Device::Cpu).unwrap();
    let long = Questions { input_ids: words(17), attention_mask: words(17) };
    assert!(refused(&random(100, &[2, 17, 10]), &long).contains("at most 16"));
    let uneven = Questions { input_ids: words(4), attention_mask: words(3) };
    assert!(refused(&random(100, &[2, 17, 10]), &uneven).contains("[1, 3]"));
    assert!(refused(&random(100, &[2, 26, 10]), &small_questions()).contains("26 rows"));
}
