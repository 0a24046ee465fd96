//! Times training steps, forward and backward and AdamW, of a language model or a visual encoder of some size.
//!
//! `pnpm bench:train` runs it beside PyTorch. A line of JSON comes out: the quickest step in seconds, forward alone, and
//! the memory that steps took at their peak beyond what was there before, in bytes.
//!
//! `cargo run --release --example training_step -- '{"kind":"language","width":128,"layers":4,"inner":384,"heads":4,
//! "vocabulary":273,"batch":64,"length":100,"steps":10}'`; for `"vision"` the length is the side in pixels.

use std::error::Error;
use std::time::Instant;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use llamavid_models::language_model::{LanguageModel, LanguageModelConfig};
use llamavid_models::observer::Blind;
use llamavid_models::token_generation::{
    Compression, FeatureKind, Projector, QueryKind, QueryModelConfig, Questions, TokenGenerationConfig,
    TokenGenerator, TokenRows,
};
use llamavid_models::visual_encoder::{EvaConfig, VisualEncoder, VisualEncoderConfig};
use llamavid_train::{Optimizer, ParameterGroup, Update};
use serde_json::{Value, json};

/// As the training programs have it: the system's gives large blocks back and takes them again page by page.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PATCH: usize = 14;

type Loss<'a> = Box<dyn Fn() -> Result<Tensor, Box<dyn Error>> + 'a>;

fn main() -> Result<(), Box<dyn Error>> {
    let task: Value = serde_json::from_str(&std::env::args().nth(1).ok_or("no task")?)?;
    let weights = VarMap::new();
    match task["kind"].as_str() {
        Some("language") => language(&task, &weights),
        Some("vision") => vision(&task, &weights),
        Some("tokens") => tokens(&task, &weights),
        _ => Err("the kind is `language`, `vision` or `tokens`".into()),
    }
}

fn number(task: &Value, name: &str) -> Result<usize, Box<dyn Error>> {
    Ok(task[name].as_u64().ok_or_else(|| format!("no number `{name}`"))? as usize)
}

fn builder(weights: &VarMap) -> VarBuilder<'static> {
    VarBuilder::from_varmap(weights, DType::F32, &Device::Cpu)
}

fn language(task: &Value, weights: &VarMap) -> Result<(), Box<dyn Error>> {
    let [vocabulary, width, batch, length] =
        ["vocabulary", "width", "batch", "length"].map(|name| number(task, name));
    let (vocabulary, width, batch, length) = (vocabulary?, width?, batch?, length?);
    let config = json!({
        "model_type": "llava", "vocab_size": vocabulary, "hidden_size": width,
        "intermediate_size": number(task, "inner")?, "num_hidden_layers": number(task, "layers")?,
        "num_attention_heads": number(task, "heads")?, "rms_norm_eps": 1e-6, "max_position_embeddings": length,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    });
    let config = LanguageModelConfig::from_json(config.to_string().as_bytes())?;
    let model = LanguageModel::new(&config, builder(weights))?;
    let ids: Vec<u32> = (0..batch * length).map(|place| (place * 7919 % vocabulary) as u32).collect();
    let targets = Tensor::new(ids.as_slice(), &Device::Cpu)?.to_dtype(DType::I64)?;
    measure(
        task,
        weights,
        Box::new(|| {
            let embeds = model.embed(&ids)?.reshape((batch, length, width))?;
            let hidden = model.forward_uncached(&embeds, None, &mut Blind)?;
            let logits = model.logits(&hidden, &mut Blind)?.flatten(0, 1)?;
            Ok(llamavid_kernels::cross_entropy(&logits, &targets)?)
        }),
    )
}

fn vision(task: &Value, weights: &VarMap) -> Result<(), Box<dyn Error>> {
    let (side, batch) = (number(task, "length")?, number(task, "batch")?);
    let config = VisualEncoderConfig::Eva(EvaConfig {
        image_size: side,
        patch_size: PATCH,
        width: number(task, "width")?,
        depth: number(task, "layers")?,
        heads: number(task, "heads")?,
        mlp_width: number(task, "inner")?,
        position_side: side / PATCH,
    });
    let encoder = VisualEncoder::new(&config, builder(weights))?;
    let pixels = Tensor::randn(0f32, 1., (batch, 3, side, side), &Device::Cpu)?;
    measure(task, weights, Box::new(|| Ok(encoder.forward(&pixels, &mut Blind)?.sqr()?.mean_all()?)))
}

/// The token generator, each frame with a question of its own.
fn tokens(task: &Value, weights: &VarMap) -> Result<(), Box<dyn Error>> {
    let [width, frames, words] = ["width", "batch", "length"].map(|name| number(task, name));
    let (width, frames, words, vocabulary) = (width?, frames?, words?, number(task, "vocabulary")?);
    let config = TokenGenerationConfig {
        query: QueryModelConfig {
            kind: QueryKind::QFormer { visual_norm: true },
            width,
            layers: number(task, "layers")?,
            heads: number(task, "heads")?,
            mlp_width: number(task, "inner")?,
            queries: 4,
            vocab_size: vocabulary,
            max_positions: words,
            type_vocab_size: 2,
            projected_width: None,
        },
        visual_width: width,
        language_width: width,
        projector: Projector::MlpGelu { layers: 2 },
        compression: Compression::Mean,
        rows: TokenRows::Patches,
    };
    let generator = TokenGenerator::new(&config, builder(weights))?;
    let features = Tensor::randn(0f32, 1., (frames, 37, width), &Device::Cpu)?;
    let ids: Vec<u32> = (0..frames * words).map(|place| (place * 7919 % vocabulary) as u32).collect();
    let mask: Vec<u32> = (0..frames * words).map(|place| u32::from(place % words < words * 3 / 4)).collect();
    let questions = Questions {
        input_ids: Tensor::from_vec(ids, (frames, words), &Device::Cpu)?,
        attention_mask: Tensor::from_vec(mask, (frames, words), &Device::Cpu)?,
    };
    measure(
        task,
        weights,
        Box::new(|| {
            let made = generator.generate_paired(&features, FeatureKind::Pixels, &questions, &mut Blind)?;
            Ok(made.sqr()?.mean_all()?)
        }),
    )
}

fn measure(task: &Value, weights: &VarMap, loss: Loss) -> Result<(), Box<dyn Error>> {
    let variables: Vec<(String, Var)> = {
        let data = weights.data().lock().map_err(|_| "a poisoned lock")?;
        data.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
    };
    for (name, var) in &variables {
        match name.contains("norm") {
            true if name.ends_with("weight") => var.set(&var.ones_like()?)?,
            true => var.set(&var.zeros_like()?)?,
            false => var.set(&var.randn_like(0., 0.02)?)?,
        }
    }
    let parameters: usize = variables.iter().map(|(_, var)| var.elem_count()).sum();
    let mut optimizer = Optimizer::new(vec![ParameterGroup {
        variables,
        update: Update::adamw(),
        learning_rate: 1e-4,
        weight_decay: 0.01,
    }])?;
    let before = memory("VmRSS")?;
    let (mut forward, mut whole, mut last) = (f64::MAX, f64::MAX, 0.0);
    for _ in 0..number(task, "steps")? {
        let start = Instant::now();
        let loss = loss()?;
        forward = forward.min(start.elapsed().as_secs_f64());
        optimizer.step(&loss.backward()?, 1.0)?;
        whole = whole.min(start.elapsed().as_secs_f64());
        last = loss.to_scalar::<f32>()?;
    }
    let peak = memory("VmHWM")?.saturating_sub(before);
    println!(
        "{}",
        json!({ "forward": forward, "step": whole, "memory": peak, "parameters": parameters, "loss": last })
    );
    Ok(())
}

/// A number of this process in bytes; 0 where the system does not tell.
fn memory(name: &str) -> Result<u64, Box<dyn Error>> {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return Ok(0) };
    let line = status.lines().find(|line| line.starts_with(name)).ok_or("no such number")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).ok_or("no number")?.parse()?;
    Ok(kilobytes * 1024)
}
