//! Whisper against what the public implementation computes: `fixtures/speech`, written by
//! `tools/reference/whisper_model.py`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::f64::consts::PI;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device as TensorDevice, Tensor};
use llamavid_runtime::{Cancellation, Device, Dtype, ErrorCode};
use llamavid_speech::{
    Attempt, LogMel, ModelFiles, Padding, Progress, Sampler, Segment, SpeechModel, SpeechTokenizer,
    Thresholds, Transcription, TranscriptionOptions, Whisper, window,
};
use serde_json::Value;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/speech");

/// `signal` of the script.
fn signal(seconds: f64) -> Vec<f32> {
    let mut state = 12345u64;
    (0..(seconds * 16000.0).round() as usize)
        .map(|index| {
            let time = index as f64 / 16000.0;
            state = (state * 1_103_515_245 + 12345) % (1 << 31);
            let noise = state as f64 / 2f64.powi(31) - 0.5;
            let tone = (2.0 * PI * (220.0 + 40.0 * time.floor()) * time).sin() * ((time / 0.7).floor() % 2.0);
            (0.3 * tone + 0.05 * noise * (0.2 + (time / 1.9).floor() % 2.0)) as f32
        })
        .collect()
}

/// `Draws` of the script.
struct Draws(u64);

impl Sampler for Draws {
    fn draw(&mut self) -> f64 {
        self.0 = (self.0 * 1_103_515_245 + 12345) % (1 << 31);
        self.0 as f64 / 2f64.powi(31)
    }
}

fn tensors() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(Path::new(FIXTURES).join("tensors.safetensors"), &TensorDevice::Cpu)
        .unwrap()
}

fn cases() -> Value {
    serde_json::from_slice(&std::fs::read(Path::new(FIXTURES).join("cases.json")).unwrap()).unwrap()
}

fn model() -> (Whisper, SpeechTokenizer) {
    let files = ModelFiles::open(Path::new(FIXTURES)).unwrap();
    files.load(DType::F32, &TensorDevice::Cpu).unwrap()
}

fn largest_difference(one: &Tensor, other: &Tensor) -> f32 {
    let difference = (one - other).unwrap().abs().unwrap().flatten_all().unwrap();
    difference.max(0).unwrap().to_scalar().unwrap()
}

/// The frames of a sound that comes in pieces of odd lengths.
fn frames(samples: &[f32], bins: usize) -> Vec<f32> {
    let mut mel = LogMel::new(bins).unwrap();
    let mut frames = Vec::new();
    for piece in samples.chunks(1237) {
        mel.push(piece, &mut frames).unwrap();
    }
    mel.finish(&mut frames).unwrap();
    frames
}

fn mel_window(seconds: f64, bins: usize, padding: Padding) -> Tensor {
    let frames = frames(&signal(seconds), bins);
    let peak = frames.iter().copied().fold(-10.0, f32::max);
    let length = match padding {
        Padding::Silence => frames.len(),
        Padding::Zero => (seconds * 100.0).floor() as usize * bins,
    };
    window(&frames[..length], bins, peak, padding, &TensorDevice::Cpu).unwrap()
}

#[test]
fn the_spectrogram_is_the_reference_s() {
    for bins in [80, 128] {
        let expected = &tensors()[&format!("mel.{bins}")]; // (B, 160), 5 of them silence
        let mel = mel_window(1.55, bins, Padding::Silence);
        let mel = mel.squeeze(0).unwrap().narrow(0, 0, 160).unwrap().t().unwrap();
        let difference = largest_difference(&mel, expected);
        assert!(difference < 1e-4, "{bins} bins: {difference}");
    }
}

#[test]
fn rows_of_sound_and_logits_are_the_reference_s() {
    let (model, _tokenizer) = model();
    let tensors = tensors();
    let encoded = model.encode(&mel_window(5.0, 80, Padding::Zero)).unwrap();
    let places = Tensor::arange_step(0u32, 1500, 25, &TensorDevice::Cpu).unwrap();
    let some = encoded.squeeze(0).unwrap().index_select(&places, 0).unwrap();
    let difference = largest_difference(&some, &tensors["encoded"]);
    assert!(difference < 1e-4, "rows of sound: {difference}");

    let ids: Vec<u32> = tensors["ids"].to_vec1::<i64>().unwrap().iter().map(|id| *id as u32).collect();
    let expected = tensors["logits"].to_vec2::<f32>().unwrap();
    let empty = model.cache(&encoded).unwrap();
    // All at once, and one after the other from the cache.
    let all = model.logits(&ids, &[0, 1, 2, 3, 4, 5], &mut empty.clone()).unwrap();
    let mut cache = empty;
    for (place, id) in ids.iter().enumerate() {
        let row = model.logits(&[*id], &[0], &mut cache).unwrap();
        for found in [&row[0], &all[place]] {
            let differences = found.iter().zip(&expected[place]).map(|(one, other)| (one - other).abs());
            let difference = differences.fold(0f32, f32::max);
            assert!(difference < 2e-4, "logits of place {place}: {difference}");
        }
    }
}

#[test]
fn a_window_told_what_was_said_before_is_the_reference_s() {
    let (model, tokenizer) = model();
    let expected = &cases()["window"];
    let encoded = model.encode(&mel_window(5.0, 80, Padding::Zero)).unwrap();
    let language = tokenizer.languages().iter().position(|code| expected["language"] == **code);
    let beginning = tokenizer.beginning(language);
    let before = [5, 6, 7].repeat(20);
    let cache = model.cache(&encoded).unwrap();
    let mut attempt = Attempt::new(&model, &tokenizer, cache, &before, &beginning, 0.0);
    let heard = loop {
        if let Some(heard) = attempt.step(&model, &tokenizer, &mut Draws(1)).unwrap() {
            break heard;
        }
    };
    assert_eq!(serde_json::to_value(&heard.tokens).unwrap(), expected["tokens"]);
    assert_eq!(heard.text, expected["text"].as_str().unwrap());
    for (found, name, tolerance) in [
        (heard.avg_logprob, "avg_logprob", 1e-3),
        (heard.no_speech_prob, "no_speech_prob", 1e-5),
        (heard.compression_ratio, "compression_ratio", 0.1),
    ] {
        let expected = expected[name].as_f64().unwrap();
        assert!((found - expected).abs() < tolerance, "{name}: {found}, {expected}");
    }
}

fn speech_model(path: &Path) -> llamavid_runtime::Result<SpeechModel> {
    let device = Device::open("cpu").unwrap();
    SpeechModel::load(path.to_path_buf(), device, Dtype::F32, Cancellation::default()).wait()
}

/// Both hearings of a sound, in pieces.
fn transcribe(model: &SpeechModel, samples: &[f32], options: TranscriptionOptions) -> Vec<Progress> {
    let transcription = Transcription::new(model, options, Box::new(Draws(1))).unwrap();
    for piece in samples.chunks(50_000) {
        transcription.measure(piece.to_vec()).wait().unwrap();
    }
    let mut pieces = samples.chunks(7_001);
    let mut parts = Vec::new();
    let cancellation = Cancellation::default();
    loop {
        let complete = transcription.hear(Vec::new()).wait().unwrap();
        if !complete && let Some(piece) = pieces.next() {
            transcription.hear(piece.to_vec()).wait().unwrap();
            continue;
        }
        match transcription.next(&cancellation).wait().unwrap() {
            Some(part) => parts.push(part),
            None => return parts,
        }
    }
}

#[test]
fn whole_transcriptions_are_the_reference_s() {
    let model = speech_model(Path::new(FIXTURES)).unwrap();
    let cases = cases();
    for name in ["greedy", "fallback", "independent", "silent", "short"] {
        let case = &cases[name];
        let set = &case["options"];
        let mut thresholds = Thresholds::default();
        let number = |key: &str, default: f64| match &set[key] {
            Value::Null if set.get(key).is_some() => f64::INFINITY,
            value => value.as_f64().unwrap_or(default),
        };
        if let Some(temperature) = set["temperature"].as_f64() {
            thresholds.temperatures = vec![temperature];
        }
        thresholds.compression_ratio = number("compression_ratio_threshold", thresholds.compression_ratio);
        thresholds.log_probability = number("logprob_threshold", thresholds.log_probability);
        thresholds.no_speech = number("no_speech_threshold", thresholds.no_speech);
        thresholds.with_previous_text = set["condition_on_previous_text"].as_bool().unwrap_or(true);
        let language = set["language"].as_str().map(str::to_owned);
        let samples = signal(case["seconds"].as_f64().unwrap());
        let parts = transcribe(&model, &samples, TranscriptionOptions { language, thresholds });

        assert!(parts.iter().all(|part| part.language.as_deref() == case["language"].as_str()), "{name}");
        let (done, total) = parts.last().map(|part| (part.done, part.total)).unwrap();
        assert!(done == total && (total - case["seconds"].as_f64().unwrap()).abs() < 0.01, "{name}");
        let segments: Vec<&Segment> = parts.iter().flat_map(|part| &part.segments).collect();
        // The reference keeps pieces that it emptied.
        let expected = case["segments"].as_array().unwrap();
        let expected: Vec<&Value> = expected.iter().filter(|segment| segment["text"] != "").collect();
        let texts: Vec<_> = segments.iter().map(|segment| segment.text.as_str()).collect();
        assert_eq!(
            texts,
            expected.iter().map(|segment| segment["text"].as_str().unwrap()).collect::<Vec<_>>(),
            "{name}"
        );
        for (segment, expected) in segments.iter().zip(expected) {
            assert_eq!(serde_json::to_value(&segment.tokens).unwrap(), expected["tokens"], "{name}");
            for (found, key, tolerance) in [
                (segment.start, "start", 1e-9),
                (segment.end, "end", 1e-9),
                (segment.temperature, "temperature", 0.0),
                (segment.avg_logprob, "avg_logprob", 1e-3),
                (segment.no_speech_prob, "no_speech_prob", 1e-5),
                (segment.compression_ratio, "compression_ratio", 0.1),
            ] {
                let expected = expected[key].as_f64().unwrap();
                assert!((found - expected).abs() <= tolerance, "{name}, {key}: {found}, {expected}");
            }
        }
    }
}

#[test]
fn only_what_is_sure_becomes_a_subtitle() {
    let model = speech_model(Path::new(FIXTURES)).unwrap();
    let unsure = Thresholds { temperatures: vec![1.0], no_speech: f64::INFINITY, ..Thresholds::default() };
    let sure = Thresholds { temperatures: vec![0.0], no_speech: f64::INFINITY, ..Thresholds::default() };
    let samples = signal(75.3);
    for (thresholds, kept) in [(unsure, false), (sure, true)] {
        let parts = transcribe(&model, &samples, TranscriptionOptions { language: None, thresholds });
        assert!(parts.iter().any(|part| !part.segments.is_empty()));
        assert_eq!(parts.iter().any(|part| !part.subtitles.is_empty()), kept);
    }
}

#[test]
fn silence_and_nothing_end() {
    let model = speech_model(Path::new(FIXTURES)).unwrap();
    assert_eq!(transcribe(&model, &[], TranscriptionOptions::default()), []);
    // Less than a frame.
    assert_eq!(transcribe(&model, &[0.1; 150], TranscriptionOptions::default()), []);
    for samples in [vec![0.0; 16_000 * 31], vec![f32::NAN; 16_000], vec![0.5; 300]] {
        let parts = transcribe(&model, &samples, TranscriptionOptions::default());
        assert!(parts.last().is_some_and(|part| part.done == part.total));
    }
}

#[test]
fn cancelled_between_steps() {
    let model = speech_model(Path::new(FIXTURES)).unwrap();
    let transcription =
        Transcription::new(&model, TranscriptionOptions::default(), Box::new(Draws(1))).unwrap();
    transcription.measure(signal(2.0)).wait().unwrap();
    transcription.hear(signal(2.0)).wait().unwrap();
    let cancellation = Cancellation::default();
    cancellation.cancel();
    assert_eq!(transcription.next(&cancellation).wait().unwrap_err().code, ErrorCode::Aborted);
    // The window is still there for another try.
    assert!(transcription.next(&Cancellation::default()).wait().unwrap().is_some());
}

#[test]
fn an_unknown_language_is_refused_by_name() {
    let model = speech_model(Path::new(FIXTURES)).unwrap();
    let options = TranscriptionOptions { language: Some("tlh".into()), ..TranscriptionOptions::default() };
    let error = Transcription::new(&model, options, Box::new(Draws(1))).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert!(error.message.contains("tlh") && error.hint.unwrap().contains("en, zh, de"));
}

/// The model as a folder of the Hugging Face library, its tokenizer in `tokenizer.json`.
fn hugging_face(folder: &Path, change: impl Fn(&str, Tensor) -> Tensor) {
    let names = [
        ("token_embedding", "embed_tokens"),
        ("positional_embedding", "embed_positions.weight"),
        ("blocks", "layers"),
        ("attn_ln", "self_attn_layer_norm"),
        ("cross_attn_ln", "encoder_attn_layer_norm"),
        ("cross_attn", "encoder_attn"),
        ("attn", "self_attn"),
        ("query", "q_proj"),
        ("key", "k_proj"),
        ("value", "v_proj"),
        ("out", "out_proj"),
        ("mlp_ln", "final_layer_norm"),
        ("ln_post", "layer_norm"),
        ("ln", "layer_norm"),
    ];
    let checkpoint = llamavid_weights::Checkpoint::open_file(&Path::new(FIXTURES).join("tiny.pt")).unwrap();
    let mut tensors = HashMap::new();
    for name in checkpoint.names() {
        let renamed = name.replace("mlp.0", "fc1").replace("mlp.2", "fc2");
        let renamed: Vec<&str> = renamed
            .split('.')
            .map(|part| names.iter().find(|(from, _)| *from == part).map_or(part, |(_, to)| *to))
            .collect();
        let tensor = checkpoint.read(name, &TensorDevice::Cpu).unwrap();
        tensors.insert(format!("model.{}", renamed.join(".")), change(name, tensor));
    }
    tensors.insert("proj_out.weight".to_owned(), tensors["model.decoder.embed_tokens.weight"].clone());
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    let vocabulary = 256 + 8 + 3 + 8 + 1501;
    let config = serde_json::json!({
        "model_type": "whisper", "num_mel_bins": 80, "d_model": 16, "max_source_positions": 1500,
        "encoder_attention_heads": 2, "encoder_layers": 2, "encoder_ffn_dim": 64, "vocab_size": vocabulary,
        "max_target_positions": 64, "decoder_attention_heads": 4, "decoder_layers": 2, "decoder_ffn_dim": 64,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), tokenizer_json().to_string()).unwrap();
}

/// The fixture's vocabulary in the characters by which `tokenizer.json` writes bytes.
fn tokenizer_json() -> Value {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let character = |byte: u8| match u32::from(byte) {
        byte if printable(byte) => char::from_u32(byte).unwrap(),
        byte => char::from_u32(256 + (0..byte).filter(|other| !printable(*other)).count() as u32).unwrap(),
    };
    let text = |bytes: &[u8]| bytes.iter().map(|byte| character(*byte)).collect::<String>();
    let pairs: [&[u8]; 8] = [b" t", b"he", b" -", b" '", b"((", b"in", b" a", b"\xe2\x99"];
    let mut vocabulary: serde_json::Map<String, Value> =
        (0..=255u8).map(|byte| (text(&[byte]), byte.into())).collect();
    vocabulary.extend(pairs.iter().zip(256..).map(|(pair, id)| (text(pair), Value::from(id))));
    let merges: Vec<[String; 2]> = pairs.iter().map(|pair| [text(&pair[..1]), text(&pair[1..])]).collect();
    let names = [
        "endoftext",
        "startoftranscript",
        "en",
        "zh",
        "de",
        "translate",
        "transcribe",
        "startoflm",
        "startofprev",
        "nocaptions",
        "notimestamps",
    ];
    let added: Vec<Value> = names
        .iter()
        .zip(264..)
        .map(|(name, id)| {
            serde_json::json!({
                "id": id, "content": format!("<|{name}|>"), "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    let byte_level = serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                   "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
                   "vocab": vocabulary, "merges": merges },
    })
}

#[test]
fn both_kinds_of_files_are_one_model() {
    let folder = tempfile::tempdir().unwrap();
    hugging_face(folder.path(), |_, tensor| tensor);
    let samples = signal(33.0);
    let [one, other] = [Path::new(FIXTURES), folder.path()]
        .map(|path| transcribe(&speech_model(path).unwrap(), &samples, TranscriptionOptions::default()));
    assert!(!one.is_empty());
    assert_eq!(one, other);
}

fn copy_fixture(folder: &Path) -> PathBuf {
    for name in ["tiny.pt", "multilingual.tiktoken"] {
        std::fs::copy(Path::new(FIXTURES).join(name), folder.join(name)).unwrap();
    }
    folder.join("tiny.pt")
}

#[test]
fn what_is_no_such_model_is_refused_with_a_code() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| {
        let folder = root.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    };
    let refused = |path: &Path, code: ErrorCode, words: &str| {
        let error = speech_model(path).unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(words), "{error}");
        assert!(error.hint.is_some(), "{error}");
    };
    refused(&root.path().join("nothing"), ErrorCode::ModelNotFound, "nothing");
    refused(&path("empty"), ErrorCode::ModelFileMissing, "neither config.json nor a .pt file");

    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/random-model");
    refused(Path::new(other), ErrorCode::ModelUnsupported, "speech needs a `whisper`");
    refused(&Path::new(other).join("eva_vit_g.pth"), ErrorCode::ModelInvalid, "no dict `dims`");

    let wordless = path("wordless");
    copy_fixture(&wordless);
    std::fs::remove_file(wordless.join("multilingual.tiktoken")).unwrap();
    refused(&wordless, ErrorCode::ModelFileMissing, "multilingual.tiktoken");

    let foreign = path("foreign");
    let file = copy_fixture(&foreign);
    let vocabulary = std::fs::read_to_string(foreign.join("multilingual.tiktoken")).unwrap();
    for (text, words) in [
        ("", "the byte 0x00 is not in it"),
        ("!!! 0\n", "line 1 is no pair"),
        (&vocabulary.replace("IHQ= 256", "IHQ= 300"), "line 257 is no pair"),
        (
            &format!("{vocabulary}aGhoaA== 264\naGho 265\naGhoaGg= 266\naGhoaGhoaA== 267\n"),
            "do not belong to a model of 1776",
        ),
    ] {
        std::fs::write(foreign.join("multilingual.tiktoken"), text).unwrap();
        refused(&file, ErrorCode::ModelInvalid, words);
    }

    let cut = path("cut");
    let file = copy_fixture(&cut);
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    refused(&cut, ErrorCode::ModelInvalid, "tiny.pt");

    let sick = path("sick");
    hugging_face(&sick, |name, tensor| match name {
        "encoder.ln_post.bias" => (tensor * f64::NAN).unwrap(),
        _ => tensor,
    });
    refused(&sick, ErrorCode::ModelInvalid, "model.encoder.layer_norm.bias");

    let wide = path("wide");
    hugging_face(&wide, |_, tensor| tensor);
    let config = std::fs::read_to_string(wide.join("config.json")).unwrap();
    for (from, to, words) in [
        (r#""d_model":16"#, r#""d_model":18"#, "no decoder can have"),
        (r#""num_mel_bins":80"#, r#""num_mel_bins":0"#, "0 mel bins"),
        (r#""encoder_layers":2"#, r#""encoder_layers":3"#, "model.encoder.layers.2"),
        (r#""encoder_layers":2"#, r#""encoder_layers":1"#, "has no place for"),
        (r#""encoder_layers":2"#, r#""encoder_layers":100000"#, "100000 layers"),
    ] {
        std::fs::write(wide.join("config.json"), config.replace(from, to)).unwrap();
        refused(&wide, ErrorCode::ModelInvalid, words);
    }
}

#[test]
fn models_and_transcriptions_go_to_other_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Arc<SpeechModel>>();
    shared::<Arc<Transcription>>();
}
