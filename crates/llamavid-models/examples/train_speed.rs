//! Time of a training step, forward and backward: of a language model on a batch of texts, and of a visual encoder on
//! a batch of pictures.
//!
//! `cargo run --release --example train_speed -- [language|vision] [width] [layers] [batch] [length or side] [steps]`

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use llamavid_models::language_model::{LanguageModel, LanguageModelConfig};
use llamavid_models::observer::Blind;
use llamavid_models::visual_encoder::{EvaConfig, VisualEncoder, VisualEncoderConfig};

/// As the training programs have it: the system's gives large blocks back and takes them again page by page.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VOCABULARY: usize = 273;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, otherwise: usize| -> usize {
        arguments.get(index).and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    match arguments.first().map(String::as_str) {
        Some("vision") => vision(number(1, 128), number(2, 3), number(3, 128), number(4, 84), number(5, 10)),
        _ => language(number(1, 128), number(2, 4), number(3, 64), number(4, 100), number(5, 10)),
    }
}

fn weights(map: &VarMap) -> VarBuilder<'static> {
    VarBuilder::from_varmap(map, DType::F32, &Device::Cpu)
}

fn language(
    width: usize,
    layers: usize,
    batch: usize,
    length: usize,
    steps: usize,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let config = format!(
        r#"{{"model_type": "llava", "vocab_size": {VOCABULARY}, "hidden_size": {width}, "intermediate_size": {inner},
            "num_hidden_layers": {layers}, "num_attention_heads": {heads}, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu"}}"#,
        inner = 3 * width,
        heads = width / 32,
    );
    let config = LanguageModelConfig::from_json(config.as_bytes())?;
    let map = VarMap::new();
    let model = LanguageModel::new(&config, weights(&map))?;
    for (name, var) in map.data().lock().map_err(|_| "a poisoned lock")?.iter() {
        if !name.contains("norm") {
            var.set(&(var.randn_like(0., 0.05)?))?;
        }
    }
    let ids: Vec<u32> = (0..batch * length).map(|place| (place * 7919 % VOCABULARY) as u32).collect();
    let targets = Tensor::new(ids.as_slice(), &Device::Cpu)?.to_dtype(DType::I64)?;
    report("language", batch * length, "tokens", steps, &map, || {
        let embeds = model.embed(&ids).map_err(candle_core::Error::wrap)?.reshape((batch, length, width))?;
        let hidden = model.forward_uncached(&embeds, None, &mut Blind).map_err(candle_core::Error::wrap)?;
        let logits = model.logits(&hidden, &mut Blind).map_err(candle_core::Error::wrap)?.flatten(0, 1)?;
        llamavid_kernels::cross_entropy(&logits, &targets)
    })
}

fn vision(
    width: usize,
    depth: usize,
    batch: usize,
    side: usize,
    steps: usize,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let config = VisualEncoderConfig::Eva(EvaConfig {
        image_size: side,
        patch_size: 14,
        width,
        depth,
        heads: width / 32,
        mlp_width: 4 * width,
        position_side: side / 14,
    });
    let map = VarMap::new();
    VisualEncoder::new(&config, weights(&map))?;
    for (name, var) in map.data().lock().map_err(|_| "a poisoned lock")?.iter() {
        if !name.contains("norm") {
            var.set(&(var.randn_like(0., 0.05)?))?;
        }
    }
    let pixels = Tensor::randn(0f32, 1., (batch, 3, side, side), &Device::Cpu)?;
    report("vision", batch, "frames", steps, &map, || {
        let encoder = VisualEncoder::new(&config, weights(&map)).map_err(candle_core::Error::wrap)?;
        encoder.forward(&pixels, &mut Blind).map_err(candle_core::Error::wrap)?.sqr()?.mean_all()
    })
}

fn report(
    what: &str,
    items: usize,
    unit: &str,
    steps: usize,
    map: &VarMap,
    loss: impl Fn() -> Result<Tensor>,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (mut forward, mut whole, mut norm) = (f64::MAX, f64::MAX, 0.0);
    for _ in 0..steps {
        let start = Instant::now();
        let loss = loss()?;
        forward = forward.min(start.elapsed().as_secs_f64());
        let gradients = loss.backward()?;
        whole = whole.min(start.elapsed().as_secs_f64());
        norm = 0.0;
        for var in map.all_vars() {
            let gradient = gradients.get(&var).ok_or("a variable without a gradient")?;
            norm += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
    }
    println!(
        "{what}: forward {:.1} ms, forward and backward {:.1} ms, {:.0} {unit}/s, gradient norm {:.6}",
        forward * 1e3,
        whole * 1e3,
        items as f64 / whole,
        norm.sqrt()
    );
    Ok(())
}
