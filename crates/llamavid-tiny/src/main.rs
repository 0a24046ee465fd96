//! Trains the embedded model from scratch on the toy world: `llamavid-tiny <folder> [part]`.
//!
//! First the parts that the published model starts from, each alone, then the paper's three stages. Every course can be
//! interrupted and goes on where it was.

mod course;
mod exercise;
mod export;
mod language;
mod pictures;
mod query;
mod recipe;
mod rows;
mod scenes;
mod sizes;
mod stages;
mod story;
mod symbols;
mod tokenizers;
mod vision;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use candle_core::Device;
use llamavid_models::tokenizer::{LlamaTokenizer, WordPieceTokenizer};
use llamavid_train::{FreezePlan, Parameters, Stage};
use llamavid_world::{
    MediaKind, NeverTrainedPairs, Phrasing, Video, WorldOptions, questions, seeded, vocabulary,
};

use crate::course::{Blocks, Course};
use crate::exercise::Mix;
use crate::recipe::Recipe;
use crate::scenes::Studio;

/// Steps allocate and free the same large tensors; the system's allocator gives them back to the kernel each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Scenes that are filmed for the stages.
const SCENES: usize = 4800;

/// Any error: this program only reports them.
type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(folder) = arguments.first() else {
        eprintln!(
            "usage: llamavid-tiny <folder> [vision | text | language | query | stage1 | stage2 | stage3 | export]"
        );
        return ExitCode::from(2);
    };
    match train(&PathBuf::from(folder), arguments.get(1).map_or("export", String::as_str)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn train(folder: &Path, part: &str) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    tokenizers::write(folder, &vocabulary(), &starters())?;
    let tokenizer = tokenizer(folder)?;
    match part {
        "vision" => vision(folder).map(drop),
        "text" => text(folder, &tokenizer).map(drop),
        "language" => language(folder, &tokenizer).map(drop),
        "query" | "stage1" | "stage2" | "stage3" => stages(folder, part, &tokenizer),
        "export" => {
            let done = folder.join("stage3/done.safetensors");
            if !done.is_file() {
                stages(folder, "stage3", &tokenizer)?;
            }
            let trained = Parameters::load(&done, FreezePlan::nothing(), 0, &Device::Cpu)?;
            export::write(folder, &trained, &vision(folder)?, &tokenizer, &query_tokenizer(folder)?)
        }
        other => Err(format!("there is no part `{other}`").into()),
    }
}

/// The Q-Former's course and the paper's stages, up to the one of this name.
fn stages(folder: &Path, last: &str, tokenizer: &LlamaTokenizer) -> Result<()> {
    let query_tokenizer = query_tokenizer(folder)?;
    let world = World::new(folder, tokenizer, &query_tokenizer)?;
    let mut parameters = world.query()?;
    for stage in ["stage1", "stage2", "stage3"] {
        if last == "query" {
            break;
        }
        parameters = world.stage(stage, parameters)?;
        if stage == last {
            break;
        }
    }
    Ok(())
}

/// The words that questions begin with.
fn starters() -> Vec<String> {
    let mut words = BTreeSet::new();
    for seed in 0..400 {
        let mut rng = seeded(seed);
        let kind = MediaKind::ALL[seed as usize % 4];
        let video =
            Video::random(&mut rng, kind, &WorldOptions { long_scenes: 8..=16, ..WorldOptions::default() });
        for phrasing in [Phrasing::Trained, Phrasing::Unseen] {
            let asked = questions(&video, kind, phrasing, &mut rng);
            words.extend(
                asked.iter().filter_map(|question| Some(question.text.split(' ').next()?.to_owned())),
            );
        }
    }
    words.into_iter().collect()
}

fn tokenizer(folder: &Path) -> Result<LlamaTokenizer> {
    let read = |name: &str| std::fs::read(folder.join(name));
    Ok(LlamaTokenizer::from_bytes(
        &read("tokenizer.model")?,
        Some(&read("tokenizer_config.json")?),
        None,
        Some(&read("special_tokens_map.json")?),
    )?)
}

fn query_tokenizer(folder: &Path) -> Result<WordPieceTokenizer> {
    Ok(WordPieceTokenizer::from_vocab(&std::fs::read(folder.join("bert/vocab.txt"))?, true)?)
}

/// What the parts behind the visual encoder learn from.
struct World<'a> {
    folder: &'a Path,
    tokenizer: &'a LlamaTokenizer,
    query_tokenizer: &'a WordPieceTokenizer,
    seen: Studio,
    unseen: Studio,
}

impl<'a> World<'a> {
    fn new(
        folder: &'a Path,
        tokenizer: &'a LlamaTokenizer,
        query_tokenizer: &'a WordPieceTokenizer,
    ) -> Result<Self> {
        let vision = vision(folder)?.with_plan(FreezePlan::nothing())?;
        let encoder = vision::encoder(&vision.var_builder())?;
        let options = WorldOptions { long_scenes: 2..=2, ..WorldOptions::default() };
        Ok(Self {
            folder,
            tokenizer,
            query_tokenizer,
            seen: Studio::new(&encoder, SCENES, 11, options.clone())?,
            unseen: Studio::new(&encoder, SCENES / 16, 12, options)?,
        })
    }

    fn query(&self) -> Result<Parameters> {
        let course = Course {
            name: "query",
            steps: 2000,
            warmup: 60,
            // The projectors read rows without a norm, so that a small change of theirs is a large one of what they give.
            matrices: 0.006,
            others: 1.5e-3,
            decay: 0.,
            plan: FreezePlan::only(["token_generator"]),
            seed: 3,
        };
        let mut lesson = query::QueryLesson {
            studio: &self.seen,
            tokenizer: self.query_tokenizer,
            symbols: symbols::table()?,
            mix: Mix {
                shares: [0.3, 0.3, 0.35, 0.05],
                relations: 1.,
                places: 1.,
                turns: 1,
                long: (2, 6),
                text_alone: 0.,
            },
            frames: 192,
        };
        let start = || Ok(Parameters::new(FreezePlan::everything(), 3, &Device::Cpu));
        course.run(self.folder, start, &mut lesson)
    }

    /// One of the paper's stages, on the weights of the one before.
    fn stage(&self, name: &str, before: Parameters) -> Result<Parameters> {
        const LONG: Mix = Mix {
            shares: [0.05, 0.15, 0.3, 0.5],
            relations: 2.5,
            places: 2.5,
            turns: 3,
            long: (20, 110),
            text_alone: 0.5,
        };
        let short: fn(f64) -> Mix =
            |_| Mix { shares: [0.25, 0.35, 0.4, 0.], relations: 1., places: 1., turns: 1, ..LONG };
        let tuned: fn(f64) -> Mix = |share| Mix {
            shares: if share < 0.15 { [0.25, 0.45, 0.3, 0.] } else { [0.12, 0.26, 0.5, 0.12] },
            long: (8, 40),
            text_alone: 0.75,
            ..LONG
        };
        let (name, stage, steps, mix): (_, _, _, fn(f64) -> Mix) = match name {
            "stage1" => ("stage1", Stage::Alignment, 60, short),
            "stage2" => ("stage2", Stage::Instruction, 1200, tuned),
            _ => ("stage3", Stage::LongVideo, 200, |_| LONG),
        };
        let recipe = Recipe::of_stage(stage)?;
        let course = Course {
            name,
            steps,
            warmup: (steps as f64 * recipe.optimizer.warmup_ratio).ceil() as u64,
            matrices: recipe.optimizer.muon_learning_rate,
            others: recipe.optimizer.learning_rate,
            decay: recipe.optimizer.weight_decay,
            plan: stage.plan(false),
            seed: recipe.seed,
        };
        let mut lesson = stages::StageLesson {
            studio: &self.seen,
            query: self.query_tokenizer,
            tokenizer: self.tokenizer,
            mix,
            exercises: recipe.batch.per_device,
            shown: Blocks::new(),
        };
        if course.is_done(self.folder) {
            return course.run(self.folder, || Ok(before), &mut lesson);
        }
        let start = || {
            // Only the first stage's weights lack the language model.
            for (name, tensor) in language(self.folder, self.tokenizer)?.tensors() {
                if before.get(&name).is_none() && name.starts_with("language_model.") {
                    before.set(&name, &tensor)?;
                }
            }
            Ok(before)
        };
        let after = course.run(self.folder, start, &mut lesson)?;
        let measured = Mix { long: (60, 100), text_alone: 0., ..mix(1.) };
        let right = stages::measure(&self.unseen, self.query_tokenizer, self.tokenizer, &after, measured, 6)?;
        eprintln!("{name}, unseen scenes: {right:?}");
        Ok(after)
    }
}

fn vision(folder: &Path) -> Result<Parameters> {
    let course = Course {
        name: "vision",
        steps: 1600,
        warmup: 60,
        matrices: 0.02,
        others: 2e-3,
        decay: 0.,
        plan: FreezePlan::everything(),
        seed: 1,
    };
    let start = || Ok(Parameters::new(FreezePlan::everything(), 1, &Device::Cpu));
    let mut lesson = vision::VisionLesson { frames: 128 };
    if course.is_done(folder) {
        return course.run(folder, start, &mut lesson);
    }
    let parameters = course.run(folder, start, &mut lesson)?;
    for (what, pairs) in
        [("trained pairs", NeverTrainedPairs::Forbid), ("never trained pairs", NeverTrainedPairs::Only)]
    {
        let options = WorldOptions { never_trained_pairs: pairs, ..WorldOptions::default() };
        eprintln!("vision, {what}: {:?}", vision::measure(&parameters, &options, 1024)?);
    }
    Ok(parameters)
}

/// The language model learns to find what a text says before it sees any video: among questions about videos, which
/// are easier, it does not.
fn text(folder: &Path, tokenizer: &LlamaTokenizer) -> Result<Parameters> {
    let course = Course {
        name: "text",
        steps: 400,
        warmup: 40,
        matrices: 0.01,
        others: 1.5e-3,
        decay: 0.1,
        plan: FreezePlan::everything(),
        seed: 4,
    };
    let mut lesson = language::LanguageLesson {
        tokenizer: tokenizer.clone(),
        symbols: symbols::table()?,
        mix: |share| {
            let long = if share < 0.5 { (3, 10) } else { (3, 60) };
            Mix { shares: [0., 0., 0., 1.], relations: 1., places: 1., turns: 1, long, text_alone: 1. }
        },
        exercises: 48,
        readings: Blocks::new(),
    };
    let start = || Ok(Parameters::new(FreezePlan::everything(), 2, &Device::Cpu));
    course.run(folder, start, &mut lesson)
}

fn language(folder: &Path, tokenizer: &LlamaTokenizer) -> Result<Parameters> {
    let course = Course {
        name: "language",
        steps: 2600,
        warmup: 40,
        matrices: 0.01,
        others: 1.5e-3,
        decay: 0.1,
        plan: FreezePlan::everything(),
        seed: 2,
    };
    let mix = |share: f64| {
        let (shares, long) = match share {
            ..0.3 => ([0.18, 0.26, 0.41, 0.15], (3, 10)),
            ..0.65 => ([0.1, 0.22, 0.46, 0.22], (3, 20)),
            _ => ([0.1, 0.22, 0.46, 0.22], (3, 60)),
        };
        Mix { shares, relations: 1.5, places: 1., turns: 3, long, text_alone: 0.4 }
    };
    let mut lesson = language::LanguageLesson {
        tokenizer: tokenizer.clone(),
        symbols: symbols::table()?,
        mix,
        exercises: 48,
        readings: Blocks::new(),
    };
    course.run(folder, || text(folder, tokenizer), &mut lesson)
}
