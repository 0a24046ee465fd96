//! What a run would do, told before weights are read: parameters, memory, steps, tokens.

use llamavid_models::config::ModelConfig;
use llamavid_models::language_model::{LanguageModel, LoraConfig};
use llamavid_models::token_generation::{Compression, TokenGenerator};
use llamavid_models::tokenizer::LlamaTokenizer;
use llamavid_models::visual_encoder::VisualEncoder;
use llamavid_train::StageModel;
use llamavid_train::data::{Media, RecordFile, SampleOptions, TrainingTemplate, sample};
use llamavid_weights::Part;
use serde::Serialize;

use super::config::{ComputeDtype, OptimizerKind, Recipe, TrainingConfig};
use super::is_hidden;
use super::start::Start;
use super::step_plan::StepPlan;
use crate::weight_shapes::{WeightShape, weight_shapes};
use crate::{Error, ErrorCode, Reply, Result, run_aside};

/// Records whose length is looked at.
const LOOKED_AT: usize = 256;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Plan {
    records: usize,
    records_per_step: usize,
    batches_per_step: usize,
    steps: u64,
    warmup_steps: u64,
    parts: Vec<PlannedPart>,
    parameters: u64,
    trained: u64,
    memory: Memory,
    tokens: u64,
    multiply_adds: f64,
}

#[derive(Debug, Serialize)]
struct PlannedPart {
    name: &'static str,
    parameters: u64,
    trained: u64,
}

/// Bytes.
#[derive(Debug, Serialize)]
struct Memory {
    weights: u64,
    gradients: u64,
    optimizer: u64,
    activations: u64,
    total: u64,
}

/// What a run would do, as JSON. `config` is that of [`super::TrainingRun::open`].
pub fn plan_training(config: String) -> Reply<String> {
    run_aside("llamavid plan", move || {
        let plan = plan(&TrainingConfig::parse(&config)?)?;
        serde_json::to_string(&plan).map_err(|error| Error::new(ErrorCode::Internal, error.to_string()))
    })
}

fn plan(config: &TrainingConfig) -> Result<Plan> {
    let recipe = &config.recipe;
    let start = Start::find(recipe, &config.inputs)?;
    let (model, tokenizer) = StageModel::configure(&start.files, &start.settings)?;
    let list = RecordFile::open(&config.inputs.data)?;
    let steps = StepPlan::new(recipe, list.len())?;
    let lora = start.settings.lora.as_ref().map(|lora| &lora.config);
    let shapes = shapes(&model, lora)?;
    let trains = start.settings.stage.plan(recipe.model.image_start_end);
    let trains = if lora.is_some() { trains.with_lora() } else { trains };

    let mut parts: Vec<PlannedPart> = Part::ALL
        .into_iter()
        .map(Part::title)
        .chain(lora.map(|_| ADAPTERS))
        .map(|name| PlannedPart { name, parameters: 0, trained: 0 })
        .collect();
    for WeightShape { name, shape, .. } in &shapes {
        let title = Part::split(name).map_or(ADAPTERS, |(part, _)| part.title());
        let count = shape.elem_count() as u64;
        if let Some(part) = parts.iter_mut().find(|part| part.name == title) {
            part.parameters += count;
            part.trained += if trains.trains(name) { count } else { 0 };
        }
    }
    let parameters: u64 = parts.iter().map(|part| part.parameters).sum();
    let trained: u64 = parts.iter().map(|part| part.trained).sum();
    let by_muon = |weight: &&WeightShape| {
        recipe.optimizer.kind == OptimizerKind::Muon && weight.shape.rank() == 2 && is_hidden(&weight.name)
    };
    let muon: u64 = shapes
        .iter()
        .filter(|weight| trains.trains(&weight.name))
        .filter(by_muon)
        .map(|weight| weight.shape.elem_count() as u64)
        .sum();

    let length = mean_length(recipe, &list, &tokenizer, &model)?;
    let records = list.len() as f64 * recipe.epochs.min(steps.epoch(steps.steps()));
    let tokens = length * records;
    let compute = match recipe.compute.dtype {
        ComputeDtype::F32 => 4,
        ComputeDtype::Bf16 => 2,
    };
    // Masters are f32; what computes in half precision has a copy of them.
    let copies = if compute == 4 { 0 } else { trained * compute };
    let weights = (parameters - trained) * compute + trained * 4 + copies;
    let (gradients, optimizer) = (trained * 4, (trained - muon) * 8 + muon * 4);
    let activations = activations(recipe, &model, length * recipe.batch.per_device as f64, compute as f64);
    let total = weights + gradients + optimizer + activations;
    Ok(Plan {
        records: list.len(),
        records_per_step: recipe.batch.records_per_step(),
        batches_per_step: recipe.batch.per_step(),
        steps: steps.steps(),
        warmup_steps: steps.warmup_steps(recipe.optimizer.warmup_ratio),
        memory: Memory { weights, gradients, optimizer, activations, total },
        tokens: tokens as u64,
        // Forward once; backward twice where weights train, once where gradients only pass through.
        multiply_adds: tokens
            * parts.iter().find(|part| part.name == Part::LanguageModel.title()).map_or(0.0, |part| {
                (2 * part.parameters + part.trained) as f64
                    + if recipe.compute.activation_checkpointing { part.parameters as f64 } else { 0.0 }
            }),
        parts,
        parameters,
        trained,
    })
}

const ADAPTERS: &str = "adapters";

/// All weights, by our names.
fn shapes(model: &ModelConfig, lora: Option<&LoraConfig>) -> Result<Vec<WeightShape>> {
    weight_shapes(|vb| {
        VisualEncoder::new(&model.visual, vb.pp(Part::VisualEncoder.name()))?;
        TokenGenerator::new(&model.tokens, vb.pp(Part::TokenGenerator.name()))?;
        let language = LanguageModel::new(&model.language, vb.pp(Part::LanguageModel.name()))?;
        match lora {
            Some(lora) => language.with_lora(lora, vb.pp("lora")),
            None => Ok(language),
        }
    })
}

/// Positions of a record, visual tokens included, as the mean of some records all over the list.
fn mean_length(
    recipe: &Recipe,
    list: &RecordFile,
    tokenizer: &LlamaTokenizer,
    model: &ModelConfig,
) -> Result<f64> {
    let template = TrainingTemplate::by_name(&recipe.data.template)?;
    let options =
        SampleOptions { max_length: recipe.data.max_length, image_start_end: recipe.model.image_start_end };
    let a_frame = 1 + match model.tokens.compression {
        Compression::None => model.visual.patches(),
        Compression::Mean => 1,
        Compression::Grid(side) => side * side,
    };
    let (mut sum, mut count) = (0, 0);
    let stride = list.len().div_ceil(LOOKED_AT);
    for index in (0..list.len()).step_by(stride) {
        let Ok(record) = list.record(index) else { continue };
        let text = match &record.media {
            // Its text is in the feature file; the words of the conversation are the least that it has.
            Media::Features(_) => {
                record.turns.iter().map(|turn| tokenizer.encode(&turn.value, false).len()).sum()
            }
            _ => match sample(&record, &template, tokenizer, &options, &mut || false) {
                Ok(sample) => sample.ids.len() + sample.placeholders() * (a_frame - 1),
                Err(_) => continue,
            },
        };
        sum += text;
        count += 1;
    }
    Ok(if count == 0 { 0.0 } else { sum as f64 / f64::from(count) })
}

/// Bytes of what the language model keeps for the backward pass of `positions`: per layer the inputs of its products
/// and norms, and the attention's weights; with recomputation one layer's, and the rows between layers.
fn activations(recipe: &Recipe, model: &ModelConfig, positions: f64, bytes: f64) -> u64 {
    let language = &model.language;
    let (width, inner) = (language.hidden_size as f64, language.intermediate_size as f64);
    let row = positions / recipe.batch.per_device as f64;
    let a_layer = positions * (10.0 * width + 4.0 * inner + 3.0 * language.heads as f64 * row);
    let between = positions * width;
    let layers = language.layers as f64;
    let kept = match recipe.compute.activation_checkpointing {
        true => layers * between + a_layer,
        false => layers * a_layer,
    };
    (kept * bytes) as u64
}
