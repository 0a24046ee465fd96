use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use llamavid_models::language_model::LanguageModel;
use llamavid_models::observer::Blind;
use llamavid_train::data::{Media, Message, Record, SampleOptions, Speaker, TrainingTemplate, sample};
use llamavid_train::{
    Accumulation, Activations, Error, Example, LoraSettings, RateFactor, Schedule, Stage, StageFiles,
    StageModel, StepReport, Trainer, TrainerOptions, Visual, adamw_groups, gradients, loss_and_gradients,
};
use serde_json::json;

use crate::model::{at, at_with, examples, files, oracle, settings, trainer};

fn options() -> TrainerOptions {
    TrainerOptions::new(Schedule::Cosine { warmup: 2, total: 20 })
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let tensor = tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap();
    tensor.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

fn weights(trainer: &Trainer) -> BTreeMap<String, Vec<u32>> {
    trainer.parameters().tensors().iter().map(|(name, tensor)| (name.clone(), bits(tensor))).collect()
}

/// Largest difference of two gradients over the largest number of the second.
fn apart(left: &Tensor, right: &Tensor) -> f32 {
    let largest = |tensor: Tensor| {
        tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap()
    };
    largest((left - right).unwrap()) / largest(right.clone()).max(1e-6)
}

#[test]
fn what_trains_gets_a_gradient_and_moves_and_nothing_else_does() {
    for stage in Stage::ALL {
        let model = at(stage, DType::F32);
        let trainable = model.parameters.trainable();
        let store = model.model.loss(&examples(1)).unwrap().sum.backward().unwrap();
        for (name, var) in &trainable {
            assert!(model.parameters.plan().trains(name));
            assert!(store.get(var.as_tensor()).is_some(), "{stage:?}: no gradient for {name}");
        }
        let frozen =
            model.parameters.names().into_iter().filter(|name| !model.parameters.plan().trains(name));
        for name in frozen {
            let weight = model.parameters.var_builder().get_unchecked(&name).unwrap();
            assert!(!weight.is_variable() && !weight.track_op(), "{stage:?}: {name} would get a gradient");
        }

        let mut trainer = trainer(model, 1e-2, TrainerOptions::new(Schedule::Constant { warmup: 0 }));
        let before = weights(&trainer);
        trainer.step(&[examples(1)]).unwrap();
        for (name, value) in weights(&trainer) {
            // Nothing reads the words of the Q-Former's last layer: their gradient is there and zero.
            let trains = trainer.parameters().plan().trains(&name);
            let still = name.contains("layer.3.intermediate.dense") || name.contains("layer.3.output.");
            assert_eq!(
                value != before[&name],
                trains && !(still && value == before[&name]),
                "{stage:?}: {name}"
            );
        }
    }
}

#[test]
fn micro_batches_equal_one_batch() {
    let all = examples(2);
    let cut: Vec<Vec<Example>> = vec![all[..1].to_vec(), all[1..4].to_vec(), all[4..].to_vec()];
    let run = |batches: &[Vec<Example>], accumulation| {
        let options = TrainerOptions { accumulation, query_dropout: 0., ..options() };
        trainer(at(Stage::Instruction, DType::F32), 1e-3, options).step(batches).unwrap()
    };
    let near = |left: f64, right: f64| (left - right).abs() < 1e-5 * right.abs();
    let whole = run(std::slice::from_ref(&all), Accumulation::EveryLabel);
    let parts = run(&cut, Accumulation::EveryLabel);
    assert!(near(parts.loss, whole.loss) && near(parts.gradient_norm, whole.gradient_norm));
    assert_eq!((parts.labels, parts.tokens, parts.samples), (whole.labels, whole.tokens, whole.samples));

    // The reference's way: the mean of the batches' means, whatever their number of labels.
    let means = cut.iter().map(|batch| run(std::slice::from_ref(batch), Accumulation::EveryBatch).loss);
    let mean = means.sum::<f64>() / cut.len() as f64;
    let parts = run(&cut, Accumulation::EveryBatch);
    assert!(near(parts.loss, mean) && !near(parts.loss, whole.loss));
}

#[test]
fn gradients_of_micro_batches_add_up_to_those_of_one_batch() {
    let model = at(Stage::Instruction, DType::F32);
    let (all, trainable) = (examples(3), model.parameters.trainable());
    let of = |batches: &[&[Example]], activations| {
        let mut sum = GradStore::default();
        for batch in batches {
            loss_and_gradients(&model.model, batch, &trainable, activations, |_| 1., &mut sum).unwrap();
        }
        sum
    };
    let whole = of(&[&all], Activations::Kept);
    for other in [
        of(&[&all[..2], &all[2..]], Activations::Kept),
        of(&[&all], Activations::Recomputed),
        of(&[&all[..4], &all[4..]], Activations::Recomputed),
    ] {
        for (name, var) in &trainable {
            let (other, whole) = (other.get(var.as_tensor()).unwrap(), whole.get(var.as_tensor()).unwrap());
            // The biases of keys have no gradient but rounding.
            if gradients::norm(whole).unwrap() > 1e-5 {
                assert!(apart(other, whole) < 1e-4, "{name}: {}", apart(other, whole));
            }
        }
    }
}

#[test]
fn a_resumed_run_is_the_same_run() {
    for (dtype, activations) in [(DType::F32, Activations::Kept), (DType::BF16, Activations::Recomputed)] {
        let start = || {
            let options = TrainerOptions { activations, clip_norm: Some(1.), ..options() };
            trainer(at(Stage::Instruction, dtype), 1e-3, options)
        };
        let run = |trainer: &mut Trainer, steps: std::ops::Range<u64>| -> Vec<StepReport> {
            steps.map(|step| trainer.step(&[examples(step), examples(step + 100)]).unwrap()).collect()
        };
        let mut straight = start();
        let expected = run(&mut straight, 0..6);

        let folder = tempfile::tempdir().unwrap();
        let mut first = start();
        let mut reports = run(&mut first, 0..3);
        first.write_state(folder.path(), &json!({ "epoch": 3 })).unwrap();
        drop(first);
        let mut second = start();
        assert_eq!(second.read_state(folder.path()).unwrap(), json!({ "epoch": 3 }));
        assert_eq!(second.steps(), 3);
        reports.extend(run(&mut second, 3..6));
        assert_eq!(reports, expected);
        assert_eq!(weights(&second), weights(&straight));
        assert!(expected[5].loss < expected[0].loss * 1.5);
    }
}

#[test]
fn state_of_another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    trainer(at(Stage::Alignment, DType::F32), 1e-3, options())
        .write_state(folder.path(), &json!(null))
        .unwrap();
    let mut other = trainer(at(Stage::Instruction, DType::F32), 1e-3, options());
    let before = weights(&other);
    let error = other.read_state(folder.path()).unwrap_err();
    assert!(
        matches!(&error, Error::State { problem, .. } if problem.contains("other weights train")),
        "{error}"
    );
    assert_eq!(weights(&other), before);
}

#[test]
fn a_number_that_is_none_stops_before_anything_changes() {
    let mut trainer = trainer(at(Stage::Instruction, DType::F32), 1e-3, options());
    trainer.step(&[examples(1)]).unwrap();
    let before = weights(&trainer);
    let mut poisoned = examples(2);
    if let Visual::Pixels(pixels) = &mut poisoned[1].visual {
        *pixels = (pixels.clone() * f64::NAN).unwrap();
    }
    let error = trainer.step(&[examples(3), poisoned]).unwrap_err();
    match error {
        Error::NotFinite { step, ids, quantity, .. } => {
            assert_eq!((step, quantity), (1, "loss"));
            assert!(ids.contains(&"sample-2-1".to_owned()) && !ids.contains(&"sample-3-0".to_owned()));
        }
        other => panic!("{other}"),
    }
    assert_eq!(weights(&trainer), before);
    assert_eq!(trainer.steps(), 1);
    // The run can go on with other samples.
    trainer.step(&[examples(3)]).unwrap();
}

#[test]
fn a_cancelled_step_changes_nothing() {
    let mut trainer = trainer(at(Stage::Alignment, DType::F32), 1e-3, options());
    let before = weights(&trainer);
    trainer.cancellation().store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(matches!(trainer.step(&[examples(1)]), Err(Error::Cancelled { step: 0 })));
    assert_eq!(weights(&trainer), before);
}

#[test]
fn text_alone_lets_the_rest_fade_as_in_the_reference() {
    let mut trainer = trainer(
        at(Stage::Instruction, DType::F32),
        1e-2,
        TrainerOptions::new(Schedule::Constant { warmup: 0 }),
    );
    trainer.step(&[examples(1)]).unwrap();
    let name = "token_generator.projector.0.weight";
    let before = bits(&trainer.parameters().get(name).unwrap());
    let report = trainer.step(&[examples(1)[4..].to_vec()]).unwrap();
    assert_eq!((report.frames, report.labels, report.samples), (0, 3, 1));
    // AdamW moves on by the mean of the step before.
    assert_ne!(bits(&trainer.parameters().get(name).unwrap()), before);
}

#[test]
fn losses_fall_in_bf16_with_f32_masters() {
    let options = TrainerOptions::new(Schedule::Constant { warmup: 0 });
    let mut trainer = trainer(at(Stage::Instruction, DType::BF16), 1e-3, options);
    let losses: Vec<f64> = (0..8).map(|_| trainer.step(&[examples(1)]).unwrap().loss).collect();
    assert!(losses[7] < 0.8 * losses[0], "{losses:?}");
    assert!(trainer.parameters().trainable().iter().all(|(_, var)| var.dtype() == DType::F32));
}

#[test]
fn a_language_model_with_byte_pairs_learns_its_answers() {
    for kind in ["llama3", "qwen2"] {
        let base = tempfile::tempdir().unwrap();
        let copy = |from: PathBuf, wanted: fn(&str) -> bool| {
            for entry in fs::read_dir(from).unwrap().flatten() {
                if wanted(entry.file_name().to_str().unwrap()) {
                    fs::copy(entry.path(), base.path().join(entry.file_name())).unwrap();
                }
            }
        };
        copy(oracle("video-mean/llm"), |name| !name.contains("token"));
        copy(oracle("../byte-pairs").join(kind), |name| name.contains("token"));
        let stage = Stage::Instruction;
        let files = StageFiles { base: base.path().to_path_buf(), ..files(stage) };
        let model = StageModel::assemble(&files, &settings(stage), DType::F32, 1, &Device::Cpu).unwrap();

        let said = [(Speaker::Human, "<image>\nWhat is it?"), (Speaker::Gpt, "A dog.")];
        let turns = said.map(|(from, value)| Message { from, value: value.into() }).to_vec();
        let record = Record { id: "dog".into(), media: Media::Image("dog.png".into()), turns };
        let template = TrainingTemplate::by_name("imgsp_v1").unwrap();
        let options = SampleOptions { max_length: 512, image_start_end: false };
        let made = sample(&record, &template, &model.tokenizer, &options, &mut || false).unwrap();
        let learned = made.learned();
        let example = Example { sample: made, visual: examples(1).swap_remove(0).visual };

        let mut trainer = trainer(model, 1e-3, TrainerOptions::new(Schedule::Constant { warmup: 0 }));
        let steps: Vec<StepReport> =
            (0..12).map(|_| trainer.step(&[vec![example.clone()]]).unwrap()).collect();
        assert!(learned > 3 && steps.iter().all(|step| step.labels == learned), "{kind}: {learned}");
        assert!(steps[11].loss < 0.8 * steps[0].loss, "{kind}: {steps:?}");
    }
}

#[test]
fn dropout_is_another_in_each_step_and_the_same_in_each_run() {
    let run = |query_dropout, seed| {
        let options = TrainerOptions { query_dropout, seed, ..options() };
        // A rate so low that only dropout changes the loss.
        let mut trainer = trainer(at(Stage::Instruction, DType::F32), 1e-30, options);
        [0, 1].map(|_| trainer.step(&[examples(1)]).unwrap().loss)
    };
    let (none, some) = (run(0., 1), run(0.1, 1));
    assert_eq!(none[0], none[1]);
    assert!(some[0] != some[1] && some[0] != none[0]);
    assert_eq!(some, run(0.1, 1));
    assert_ne!(some, run(0.1, 2));
}

fn lora() -> LoraSettings {
    LoraSettings::everywhere(4, 8., 0.)
}

#[test]
fn adapters_change_nothing_at_first_and_train_in_place_of_the_language_model() {
    for stage in Stage::ALL {
        let plain = at(stage, DType::F32).model.loss(&examples(1)).unwrap().sum;
        let adapted = at_with(stage, DType::F32, Some(lora()));
        let loss = adapted.model.loss(&examples(1)).unwrap().sum;
        assert_eq!(loss.to_scalar::<f32>().unwrap(), plain.to_scalar::<f32>().unwrap());

        let mut trainer = trainer(adapted, 1e-2, TrainerOptions::new(Schedule::Constant { warmup: 0 }));
        let before = weights(&trainer);
        let first = trainer.step(&[examples(1)]).unwrap().loss;
        let last = (0..10).map(|_| trainer.step(&[examples(1)]).unwrap().loss).last().unwrap();
        assert!(last < first, "{stage:?}: {first} {last}");
        let after = weights(&trainer);
        let moved: Vec<_> = after.iter().filter(|(name, value)| **value != before[*name]).collect();
        assert!(moved.iter().any(|(name, _)| name.starts_with("lora.layers.1.mlp.down_proj.")));
        assert!(!moved.iter().any(|(name, _)| name.starts_with("language_model.")));
    }
}

#[test]
fn merged_adapters_equal_adapters() {
    let mut trainer = trainer(
        at_with(Stage::Instruction, DType::F32, Some(lora())),
        1e-2,
        TrainerOptions::new(Schedule::Constant { warmup: 0 }),
    );
    (0..5).for_each(|step| assert!(trainer.step(&[examples(step)]).is_ok()));
    let language_model = trainer.model().language_model();
    let merged = language_model.with_merged_lora().unwrap();
    let embeds = language_model.embed(&[5, 6, 7, 8, 9]).unwrap().unsqueeze(0).unwrap();
    let hidden = |model: &LanguageModel| model.forward_uncached(&embeds, None, &mut Blind).unwrap();
    assert!(apart(&hidden(&merged), &hidden(language_model)) < 1e-5);
}

#[test]
fn adapters_train_with_dropout_recomputed_or_not() {
    let settings = LoraSettings { dropout: 0.3, ..lora() };
    let run = |activations| {
        let options = TrainerOptions {
            activations,
            lora_dropout: settings.dropout,
            clip_norm: Some(0.5),
            ..TrainerOptions::new(Schedule::Constant { warmup: 0 })
        };
        let mut trainer =
            trainer(at_with(Stage::Instruction, DType::F32, Some(settings.clone())), 1e-3, options);
        (0..3).map(|step| trainer.step(&[examples(step)]).unwrap()).collect::<Vec<_>>()
    };
    for (kept, recomputed) in run(Activations::Kept).iter().zip(run(Activations::Recomputed)) {
        assert!((kept.loss - recomputed.loss).abs() < 1e-4 * kept.loss, "{kept:?} {recomputed:?}");
        assert!((kept.gradient_norm - recomputed.gradient_norm).abs() < 1e-3 * kept.gradient_norm);
    }
}

#[test]
fn groups_are_those_of_the_reference() {
    let model = at(Stage::Instruction, DType::F32);
    let factors = [RateFactor { name: "mm_projector".into(), factor: 2. }];
    let groups = adamw_groups(&model.parameters, 0.1, 0.05, &factors);
    let all: usize = groups.iter().map(|group| group.variables.len()).sum();
    assert_eq!(all, model.parameters.trainable().len());
    let of = |name: &str| {
        let mut fitting =
            groups.iter().filter(|group| group.variables.iter().any(|(other, _)| other == name));
        let (group, more) = (fitting.next().unwrap(), fitting.next());
        assert!(more.is_none(), "{name} is in two groups");
        (group.learning_rate, group.weight_decay)
    };
    assert_eq!(of("token_generator.projector.0.weight"), (0.2, 0.05));
    assert_eq!(of("token_generator.projector.0.bias"), (0.2, 0.));
    // The decoder's norms are of a class that the reference does not spare.
    assert_eq!(of("language_model.norm.weight"), (0.1, 0.05));
    assert_eq!(of("token_generator.query_norm.weight"), (0.1, 0.));
    assert_eq!(of("token_generator.query_model.bert.embeddings.LayerNorm.weight"), (0.1, 0.));
}
