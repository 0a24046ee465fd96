//! The visual encoders against what the reference computes: EVA ViT in `fixtures/oracle`, CLIP ViT in
//! `fixtures/clip` (written by `tools/reference/clip_tower.py`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use llamavid_kernels::{BlockFormat, QuantisedMatrix};
use llamavid_models::observer::{Blind, Observer};
use llamavid_models::preprocess::{Fit, Preprocessing, RgbImage};
use llamavid_models::visual_encoder::{ClipConfig, EvaConfig, VisualEncoder, VisualEncoderConfig};
use llamavid_models::{Error, WeightSource};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
const CASES: [&str; 6] = ["image-224", "image-336", "image-grid4", "video-mean", "video-grid2", "eps-probe"];
/// Largest difference against the largest value, in f32 on a CPU.
const TOLERANCE: f64 = 1e-4;
/// As above, for a batch against its items: a matrix product sums in another order when it has more rows.
const BATCH_TOLERANCE: f64 = 1e-5;

type Tensors = HashMap<String, Tensor>;

/// Keeps what it sees.
#[derive(Default)]
struct Recorder(Vec<(String, Tensor)>);

impl Observer for Recorder {
    fn see(&mut self, name: &str, tensor: &Tensor) {
        self.0.push((name.to_owned(), tensor.clone()));
    }

    fn wants(&self) -> bool {
        true
    }
}

struct Case {
    folder: PathBuf,
    description: serde_json::Value,
    tensors: Tensors,
    config: EvaConfig,
}

impl Case {
    fn open(name: &str) -> Self {
        let folder = Path::new(FIXTURES).join("oracle").join(name);
        let description: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        let size = |key: &str| description["sizes"][key].as_u64().unwrap() as usize;
        let config = EvaConfig {
            image_size: size("image_size"),
            patch_size: 14,
            width: size("vit_dim"),
            depth: size("vit_depth"),
            heads: size("vit_heads"),
            mlp_width: size("vit_mlp_hidden"),
            position_side: size("pos_side"),
        };
        let tensors = safetensors(&folder.join("tensors.safetensors"));
        Self { folder, description, tensors, config }
    }

    fn encoder(&self, dtype: DType) -> VisualEncoder {
        let weights = candle_core::pickle::read_all(self.folder.join("eva_vit_g.pth")).unwrap();
        eva(&self.config, weights.into_iter().collect(), dtype, &Device::Cpu)
    }

    /// The recorded pixels, or where there are none what our preprocessing makes of the pictures.
    fn pixels(&self, id: &str) -> Tensor {
        if let Some(pixels) = self.tensors.get(&format!("{id}/pixel_values")) {
            return pixels.clone();
        }
        let cases = self.description["cases"].as_array().unwrap();
        let case = cases.iter().find(|case| case["id"] == id).unwrap();
        let pictures: Vec<Tensor> = match case["file"].as_str() {
            Some(file) => {
                let picture = image::open(self.folder.join(file)).unwrap().to_rgb8();
                let shape = (picture.height() as usize, picture.width() as usize, 3);
                vec![Tensor::from_vec(picture.into_raw(), shape, &Device::Cpu).unwrap()]
            }
            None => {
                // The case with two questions has the first video.
                let video = if id == "video-multi-prompt" { "video0" } else { id };
                let frames = &self.tensors[&format!("{video}/all_frames")];
                let chosen = case["frame_index"].as_array().unwrap().iter();
                chosen.map(|index| frames.get(index.as_u64().unwrap() as usize).unwrap()).collect()
            }
        };
        let size = self.config.image_size;
        let fit = if case["preprocess"] == "pad" { Fit::Pad } else { Fit::Crop };
        let mut pixels = vec![0f32; pictures.len() * 3 * size * size];
        for (picture, pixels) in pictures.iter().zip(pixels.chunks_exact_mut(3 * size * size)) {
            let (height, width, _) = picture.dims3().unwrap();
            let data: Vec<u8> = picture.flatten_all().unwrap().to_vec1().unwrap();
            let image = RgbImage { data: &data, width, height, stride: 3 * width };
            Preprocessing::clip(size, fit).pixels(&image, pixels).unwrap();
        }
        Tensor::from_vec(pixels, (pictures.len(), 3, size, size), &Device::Cpu).unwrap()
    }
}

fn safetensors(file: &Path) -> Tensors {
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}

fn eva(config: &EvaConfig, weights: Tensors, dtype: DType, device: &Device) -> VisualEncoder {
    let vb = VarBuilder::from_tensors(weights, dtype, device);
    VisualEncoder::new(&VisualEncoderConfig::Eva(config.clone()), vb).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn difference(actual: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(actual.dims(), expected.dims());
    let (actual, expected) = (values(actual), values(expected));
    assert!(actual.iter().all(|value| value.is_finite()));
    let difference = actual.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    f64::from(difference / expected.iter().map(|value| value.abs()).fold(0f32, f32::max))
}

#[track_caller]
fn assert_close(actual: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    let difference = difference(actual, expected);
    assert!(difference <= tolerance, "{what}: {difference:.2e}");
}

#[test]
fn every_recorded_tensor_matches() {
    for name in CASES {
        let case = Case::open(name);
        let encoder = case.encoder(DType::F32);
        let mut compared = 0;
        let outputs = case.tensors.keys().filter_map(|key| key.strip_suffix("/vit.out"));
        for id in outputs {
            let pixels = case.pixels(id);
            let mut recorder = Recorder::default();
            let out = encoder.forward(&pixels, &mut recorder).unwrap();
            assert_close(&out, &case.tensors[&format!("{id}/vit.out")], TOLERANCE, name);
            for (seen, actual) in &recorder.0 {
                if let Some(expected) = case.tensors.get(&format!("{id}/{seen}")) {
                    assert_close(actual, expected, TOLERANCE, &format!("{name}/{id}/{seen}"));
                    compared += 1;
                }
            }
            // What was recorded was seen.
            let prefix = format!("{id}/vit.");
            let recorded = case.tensors.keys().filter(|key| key.starts_with(&prefix)).count();
            let seen =
                recorder.0.iter().filter(|(name, _)| case.tensors.contains_key(&format!("{id}/{name}")));
            assert_eq!(seen.count(), recorded, "{name}/{id}");
        }
        assert!(compared >= case.config.depth + 4, "{name}: only {compared} tensors");
    }
}

/// The checkpoint of stage 2 holds the tower as well, under other names, without the blocks nobody uses.
#[test]
fn weights_of_a_checkpoint_match() {
    let case = Case::open("video-mean");
    let weights = safetensors(&case.folder.join("weights.safetensors"))
        .into_iter()
        .filter_map(|(name, tensor)| {
            Some((name.strip_prefix("model.vision_tower.vision_tower.")?.to_owned(), tensor))
        })
        .collect();
    let encoder = eva(&case.config, weights, DType::F32, &Device::Cpu);
    let out = encoder.forward(&case.pixels("video0"), &mut Blind).unwrap();
    assert_close(&out, &case.tensors["video0/vit.out"], TOLERANCE, "video0");
}

/// An encoder for inference computes the same, and clones share what one call leaves to the next.
#[test]
fn an_encoder_for_inference_gives_the_same() {
    for name in CASES {
        let case = Case::open(name);
        let weights = candle_core::pickle::read_all(case.folder.join("eva_vit_g.pth")).unwrap();
        let vb = VarBuilder::from_tensors(weights.into_iter().collect(), DType::F32, &Device::Cpu);
        let encoder =
            VisualEncoder::for_inference(&VisualEncoderConfig::Eva(case.config.clone()), vb).unwrap();
        let outputs = case.tensors.keys().filter_map(|key| key.strip_suffix("/vit.out"));
        for id in outputs {
            let mut recorder = Recorder::default();
            let out = encoder.forward(&case.pixels(id), &mut recorder).unwrap();
            assert_close(&out, &case.tensors[&format!("{id}/vit.out")], TOLERANCE, name);
            let blocks = recorder.0.iter().filter(|(seen, _)| seen.starts_with("vit.block"));
            assert_eq!(blocks.count(), case.config.depth);
            assert_eq!(values(&encoder.clone().forward(&case.pixels(id), &mut Blind).unwrap()), values(&out));
        }
    }
}

/// Rows of a published size with channels that are far larger than the others, as large encoders have them: the norms let some
/// through more than others, and what the blocks add to those is large.
#[test]
fn eight_bits_point_where_thirty_two_do() {
    let config = EvaConfig {
        image_size: 224,
        patch_size: 14,
        width: 352,
        depth: 6,
        heads: 4,
        mlp_width: 1536,
        position_side: 16,
    };
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize], mean: f64, size: f64| {
        let tensor = Tensor::randn(0f64, 1.0, shape, &Device::Cpu).unwrap();
        let tensor = ((tensor * size).unwrap() + mean).unwrap().to_dtype(DType::F32).unwrap();
        let outliers = |scale: f64| {
            let place = |channel: usize| if channel % 97 == 5 { scale as f32 } else { 1.0 };
            let scales: Vec<f32> = (0..shape[shape.len() - 1]).map(place).collect();
            tensor.broadcast_mul(&Tensor::new(scales, &Device::Cpu).unwrap()).unwrap()
        };
        let tensor = match name.as_str() {
            "pos_embed" => outliers(20.0),
            name if name.contains("norm") && name.ends_with("weight") => outliers(4.0),
            name if name.ends_with("proj.bias") || name.ends_with("fc2.bias") => outliers(20.0),
            _ => tensor,
        };
        tensors.insert(name, tensor);
    };
    let (width, inner) = (config.width, config.mlp_width);
    let size = |columns: usize| (1.0 / columns as f64).sqrt();
    add("cls_token".into(), &[1, 1, width], 0.0, 1.0);
    add("pos_embed".into(), &[1, 257, width], 0.0, 0.5);
    add("patch_embed.proj.weight".into(), &[width, 3, 14, 14], 0.0, size(588));
    add("patch_embed.proj.bias".into(), &[width], 0.0, 0.1);
    for block in 0..config.depth {
        let mut add = |name: &str, shape: &[usize], mean: f64, size: f64| {
            add(format!("blocks.{block}.{name}"), shape, mean, size);
        };
        for norm in ["norm1", "norm2"] {
            add(&format!("{norm}.weight"), &[width], 1.0, 0.2);
            add(&format!("{norm}.bias"), &[width], 0.0, 0.2);
        }
        // So that scores are some units apart and not tens: attention that picks one row jumps from one to another.
        add("attn.qkv.weight", &[3 * width, width], 0.0, 0.5 * size(width));
        add("attn.q_bias", &[width], 0.0, 0.1);
        add("attn.v_bias", &[width], 0.0, 0.1);
        add("attn.proj.weight", &[width, width], 0.0, size(width));
        add("attn.proj.bias", &[width], 0.0, 0.1);
        add("mlp.fc1.weight", &[inner, width], 0.0, size(width));
        add("mlp.fc1.bias", &[inner], 0.0, 0.1);
        add("mlp.fc2.weight", &[width, inner], 0.0, size(inner));
        add("mlp.fc2.bias", &[width], 0.0, 0.1);
    }
    let matrices = tensors.clone();
    let vb = || VarBuilder::from_tensors(tensors.clone(), DType::F32, &Device::Cpu);
    let source = WeightSource::new(vb(), move |name, _shape| {
        QuantisedMatrix::quantise(&matrices[name], BlockFormat::Q8_0).map(Some)
    });
    let config = VisualEncoderConfig::Eva(config);
    let exact = VisualEncoder::new(&config, vb()).unwrap();
    let rounded = VisualEncoder::for_inference(&config, source).unwrap();
    let pixels = Tensor::randn(0f32, 1.0, (2, 3, 224, 224), &Device::Cpu).unwrap();
    let encode =
        |encoder: &VisualEncoder, pixels: &Tensor| values(&encoder.forward(pixels, &mut Blind).unwrap());
    let alone = encode(&rounded, &pixels.narrow(0, 1, 1).unwrap());
    let [exact, rounded] = [exact, rounded].map(|encoder| encode(&encoder, &pixels));
    assert_eq!(alone, rounded[alone.len()..], "a frame beside another one");
    let product =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let others = |row: &[f32]| -> Vec<f32> {
        row.iter().enumerate().filter(|(channel, _)| channel % 97 != 5).map(|(_, value)| *value).collect()
    };
    let cosine = |a: &[f32], b: &[f32]| product(a, b) / (product(a, a) * product(b, b)).sqrt();
    let (mut least, mut least_of_others) = (1f64, 1f64);
    for (exact, rounded) in exact.chunks_exact(width).zip(rounded.chunks_exact(width)) {
        least = least.min(cosine(exact, rounded));
        least_of_others = least_of_others.min(cosine(&others(exact), &others(rounded)));
    }
    assert!(
        least >= 0.999 && least_of_others >= 0.999,
        "{least}, {least_of_others} without the large channels"
    );
}

#[test]
fn a_batch_is_near_its_items() {
    let case = Case::open("video-mean");
    let encoder = case.encoder(DType::F32);
    let pixels = case.pixels("video0");
    let together = encoder.forward(&pixels, &mut Blind).unwrap();
    for index in 0..pixels.dim(0).unwrap() {
        let alone = encoder.forward(&pixels.narrow(0, index, 1).unwrap(), &mut Blind).unwrap();
        assert_close(
            &alone,
            &together.narrow(0, index, 1).unwrap(),
            BATCH_TOLERANCE,
            &format!("frame {index}"),
        );
    }
}

/// A store that goes on behind an interruption encodes frames in other batches.
#[test]
fn a_frame_gives_the_same_in_any_batch() {
    let case = Case::open("video-mean");
    let weights = candle_core::pickle::read_all(case.folder.join("eva_vit_g.pth")).unwrap();
    let vb = VarBuilder::from_tensors(weights.into_iter().collect(), DType::F32, &Device::Cpu);
    let encoder = VisualEncoder::for_inference(&VisualEncoderConfig::Eva(case.config.clone()), vb).unwrap();
    let pixels = case.pixels("video0");
    let frames = pixels.dim(0).unwrap();
    let encode = |first: usize, count: usize| {
        values(&encoder.forward(&pixels.narrow(0, first, count).unwrap(), &mut Blind).unwrap())
    };
    let together = encode(0, frames);
    let length = together.len() / frames;
    for count in 1..frames {
        for first in 0..=frames - count {
            let expected = &together[first * length..(first + count) * length];
            assert_eq!(encode(first, count), expected, "{count} frames from {first} on");
        }
    }
}

#[test]
fn half_precision_stays_near() {
    for (dtype, tolerance) in [(DType::F16, 5e-3), (DType::BF16, 4e-2)] {
        for name in ["video-mean", "image-grid4"] {
            let case = Case::open(name);
            let id = if name == "video-mean" { "video0" } else { "single" };
            let out = case.encoder(dtype).forward(&case.pixels(id), &mut Blind).unwrap();
            assert_eq!(out.dtype(), dtype);
            assert_close(
                &out,
                &case.tensors[&format!("{id}/vit.out")],
                tolerance,
                &format!("{name} {dtype:?}"),
            );
        }
    }
}

/// Gradients of the sum of squares against differences along a direction.
fn gradient_reaches_pixels(encoder: &VisualEncoder, pixels: &Tensor) {
    let loss =
        |pixels: &Tensor| encoder.forward(pixels, &mut Blind).unwrap().sqr().unwrap().mean_all().unwrap();
    let var = Var::from_tensor(pixels).unwrap();
    let tracked = encoder.forward(&var, &mut Blind).unwrap();
    assert_close(
        &tracked,
        &encoder.forward(pixels, &mut Blind).unwrap(),
        1e-5,
        "with and without a gradient",
    );

    let gradients = loss(&var).backward().unwrap();
    let gradient = gradients.get(&var).expect("the pixels have a gradient");
    let direction = gradient.affine(1.0 / f64::from(norm(gradient)), 0.0).unwrap();
    let step = 0.05;
    let at = |step: f64| {
        let moved = (pixels + direction.affine(step, 0.0).unwrap()).unwrap();
        f64::from(loss(&moved).to_scalar::<f32>().unwrap())
    };
    let slope = (at(step) - at(-step)) / (2.0 * step);
    let expected = f64::from(norm(gradient));
    assert!((slope - expected).abs() < 0.03 * expected, "slope {slope}, gradient {expected}");
}

fn norm(tensor: &Tensor) -> f32 {
    values(tensor).iter().map(|value| value * value).sum::<f32>().sqrt()
}

#[test]
fn gradient_reaches_the_pixels_of_eva() {
    let case = Case::open("video-mean");
    let pixels = case.pixels("video0").narrow(0, 0, 2).unwrap();
    gradient_reaches_pixels(&case.encoder(DType::F32), &pixels);
}

#[test]
fn gradient_reaches_the_pixels_of_clip() {
    gradient_reaches_pixels(&clip(&clip_config()), &clip_tensors()["pixel_values"]);
}

#[test]
fn gradient_reaches_the_weights() {
    let case = Case::open("video-mean");
    let weights: HashMap<String, Var> = candle_core::pickle::read_all(case.folder.join("eva_vit_g.pth"))
        .unwrap()
        .into_iter()
        .map(|(name, tensor)| (name, Var::from_tensor(&tensor.to_dtype(DType::F32).unwrap()).unwrap()))
        .collect();
    let tensors = weights.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
    let encoder = eva(&case.config, tensors, DType::F32, &Device::Cpu);
    let out = encoder.forward(&case.pixels("video0"), &mut Blind).unwrap();
    let gradients = out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let unused = |name: &str| {
        ["norm.", "head.", &format!("blocks.{}.", case.config.depth)]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    for (name, var) in &weights {
        assert_eq!(gradients.get(var).is_none(), unused(name), "{name}");
    }
}

fn clip_config() -> ClipConfig {
    ClipConfig {
        image_size: 56,
        patch_size: 14,
        width: 24,
        depth: 3,
        heads: 3,
        mlp_width: 40,
        select_layer: -2,
        class_token: true,
        position_side: 4,
    }
}

fn clip_tensors() -> Tensors {
    safetensors(&Path::new(FIXTURES).join("clip/tensors.safetensors"))
}

fn clip(config: &ClipConfig) -> VisualEncoder {
    try_clip(config).unwrap()
}

fn try_clip(config: &ClipConfig) -> Result<VisualEncoder, Error> {
    VisualEncoder::new(&VisualEncoderConfig::Clip(config.clone()), clip_weights())
}

fn clip_weights() -> VarBuilder<'static> {
    let weights = safetensors(&Path::new(FIXTURES).join("clip/weights.safetensors"));
    VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu).pp("vision_model")
}

#[test]
fn clip_for_inference_gives_the_same() {
    let pixels = &clip_tensors()["pixel_values"];
    for select_layer in [-1, -2, 0] {
        let config = ClipConfig { select_layer, ..clip_config() };
        let encoder =
            VisualEncoder::for_inference(&VisualEncoderConfig::Clip(config.clone()), clip_weights()).unwrap();
        let [mut expected, mut actual] = [Recorder::default(), Recorder::default()];
        clip(&config).forward(pixels, &mut expected).unwrap();
        encoder.forward(pixels, &mut actual).unwrap();
        assert_eq!(actual.0.len(), expected.0.len());
        for ((seen, actual), (name, expected)) in actual.0.iter().zip(&expected.0) {
            assert_eq!(seen, name);
            assert_close(actual, expected, BATCH_TOLERANCE, name);
        }
    }
}

#[test]
fn clip_matches_transformers() {
    let tensors = clip_tensors();
    for (select_layer, output) in [(-1, 3), (-2, 2), (-3, 1), (-4, 0), (0, 0), (1, 1), (2, 2), (3, 3)] {
        let encoder = clip(&ClipConfig { select_layer, ..clip_config() });
        let mut recorder = Recorder::default();
        let out = encoder.forward(&tensors["pixel_values"], &mut recorder).unwrap();
        assert_close(
            &out,
            &tensors[&format!("hidden_states.{output}")],
            TOLERANCE,
            &format!("layer {select_layer}"),
        );
        let seen: Vec<&str> = recorder.0.iter().map(|(name, _)| name.as_str()).collect();
        let blocks: Vec<String> = (0..output).map(|index| format!("vit.block{index}")).collect();
        let expected: Vec<&str> = ["vit.patch_embed", "vit.embeddings"]
            .into_iter()
            .chain(blocks.iter().map(String::as_str))
            .chain(["vit.out"])
            .collect();
        assert_eq!(seen, expected);
        assert_close(&recorder.0[0].1, &tensors["patch_embed"], TOLERANCE, "patch_embed");
        assert_close(&recorder.0[1].1, &tensors["embeddings"], TOLERANCE, "embeddings");
        for (index, (_, block)) in recorder.0[2..2 + output].iter().enumerate() {
            let name = format!("hidden_states.{}", index + 1);
            assert_close(block, &tensors[&name], TOLERANCE, &name);
        }
    }
}

#[test]
fn clip_without_class_row_has_the_patches() {
    let tensors = clip_tensors();
    let encoder = clip(&ClipConfig { class_token: false, ..clip_config() });
    let out = encoder.forward(&tensors["pixel_values"], &mut Blind).unwrap();
    let expected = tensors["hidden_states.2"].narrow(1, 1, 16).unwrap();
    assert_close(&out, &expected, TOLERANCE, "patches");
    assert!(out.is_contiguous());

    let alone = encoder.forward(&tensors["pixel_values"].narrow(0, 1, 1).unwrap(), &mut Blind).unwrap();
    assert_close(&alone, &out.narrow(0, 1, 1).unwrap(), BATCH_TOLERANCE, "second frame alone");
}

#[test]
fn wrong_sizes_are_named() {
    let case = Case::open("video-mean");
    let build = |config: EvaConfig| {
        let weights = candle_core::pickle::read_all(case.folder.join("eva_vit_g.pth")).unwrap();
        let vb = VarBuilder::from_tensors(weights.into_iter().collect(), DType::F32, &Device::Cpu);
        VisualEncoder::new(&VisualEncoderConfig::Eva(config), vb)
    };
    let problem = |config| build(config).unwrap_err().to_string();
    assert!(problem(EvaConfig { image_size: 85, ..case.config.clone() }).contains("`image_size`: 85"));
    assert!(problem(EvaConfig { heads: 3, ..case.config.clone() }).contains("`heads`"));
    assert!(problem(EvaConfig { patch_size: 0, ..case.config.clone() }).contains("`patch_size`"));
    assert!(problem(EvaConfig { depth: 4, ..case.config.clone() }).contains("blocks.3."));
    assert!(problem(EvaConfig { position_side: 7, ..case.config.clone() }).contains("pos_embed"));
    let problem = |config| try_clip(&config).unwrap_err().to_string();
    assert!(problem(ClipConfig { select_layer: 4, ..clip_config() }).contains("`select_layer`: 4"));
    assert!(problem(ClipConfig { select_layer: -5, ..clip_config() }).contains("`select_layer`: -5"));
    assert!(problem(ClipConfig { image_size: 70, ..clip_config() }).contains("`position_side`: 4"));

    let encoder = build(case.config.clone()).unwrap();
    for shape in [&[1, 3, 84, 70][..], &[3, 84, 84], &[0, 3, 84, 84], &[1, 1, 84, 84]] {
        let pixels = Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let error = encoder.forward(&pixels, &mut Blind).unwrap_err();
        assert!(
            matches!(&error, Error::Argument(message) if message.contains("(frames, 3, 84, 84)")),
            "{error}"
        );
    }
}

#[test]
fn sizes_can_be_asked_for() {
    let case = Case::open("image-336");
    let encoder = case.encoder(DType::F32);
    let config = encoder.config();
    assert_eq!((config.image_size(), config.width(), config.patches()), (336, 32, 576));
}
