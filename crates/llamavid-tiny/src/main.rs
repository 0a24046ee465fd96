//! Trains the embedded model from scratch on the toy world: `llamavid-tiny <folder> [part]`.
//!
//! First the parts that the published model starts from, each alone, then the paper's three stages. Every course can be
//! interrupted and goes on where it was.

mod course;
mod exercise;
mod language;
mod pictures;
mod rows;
mod sizes;
mod symbols;
mod tokenizers;
mod vision;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use candle_core::Device;
use llamavid_models::tokenizer::LlamaTokenizer;
use llamavid_train::{FreezePlan, Parameters};
use llamavid_world::{
    MediaKind, NeverTrainedPairs, Phrasing, Video, WorldOptions, questions, seeded, vocabulary,
};

use crate::course::Course;
use crate::exercise::Mix;

/// Steps allocate and free the same large tensors; the system's allocator gives them back to the kernel each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Any error: this program only reports them.
type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(folder) = arguments.first() else {
        eprintln!("usage: llamavid-tiny <folder> [vision | language | query | all]");
        return ExitCode::from(2);
    };
    match train(&PathBuf::from(folder), arguments.get(1).map_or("all", String::as_str)) {
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
    let all = part == "all";
    if all || part == "vision" {
        vision(folder)?;
    }
    if all || part == "language" {
        language(folder, &tokenizer)?;
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

fn vision(folder: &Path) -> Result<Parameters> {
    let course = Course {
        name: "vision",
        steps: 1500,
        warmup: 60,
        matrices: 0.02,
        others: 2e-3,
        plan: FreezePlan::everything(),
        slower: &[],
        seed: 1,
    };
    let start = || Ok(Parameters::new(FreezePlan::everything(), 1, &Device::Cpu));
    let parameters = course.run(folder, start, &mut vision::VisionLesson { frames: 128 })?;
    for (what, pairs) in
        [("trained pairs", NeverTrainedPairs::Forbid), ("never trained pairs", NeverTrainedPairs::Only)]
    {
        let options = WorldOptions { never_trained_pairs: pairs, ..WorldOptions::default() };
        eprintln!("vision, {what}: {:?}", vision::measure(&parameters, &options, 1024)?);
    }
    Ok(parameters)
}

fn language(folder: &Path, tokenizer: &LlamaTokenizer) -> Result<Parameters> {
    let course = Course {
        name: "language",
        steps: 2000,
        warmup: 60,
        matrices: 0.02,
        others: 2e-3,
        plan: FreezePlan::everything(),
        slower: &[],
        seed: 2,
    };
    let mix = |share: f64| {
        if share < 0.2 { Mix { shares: [0.3, 0.5, 0.2, 0.] } } else { Mix { shares: [0.1, 0.3, 0.48, 0.12] } }
    };
    let mut lesson = language::LanguageLesson {
        tokenizer: tokenizer.clone(),
        mix,
        steps: course.steps,
        tokens: 6400,
        waiting: Vec::new(),
    };
    let start = || Ok(Parameters::new(FreezePlan::everything(), 2, &Device::Cpu));
    course.run(folder, start, &mut lesson)
}
