//! The most frequent answer to each type of question in what the embedded model is trained on, as JSON: what a program
//! that knows the type and nothing else would answer. `tools/tiny/frequent-answers.json` is its output.

use std::collections::BTreeMap;

use llamavid_world::{MediaKind, Phrasing, Video, WorldOptions, questions, seeded};

const VIDEOS_OF_A_KIND: usize = 4000;

fn main() {
    let mut rng = seeded(1);
    let options = WorldOptions::default();
    let mut counts: BTreeMap<&str, BTreeMap<String, usize>> = BTreeMap::new();
    for kind in [MediaKind::Image, MediaKind::Clip, MediaKind::Multi, MediaKind::Long] {
        for _ in 0..VIDEOS_OF_A_KIND {
            let video = Video::random(&mut rng, kind, &options);
            for question in questions(&video, kind, Phrasing::Trained, &mut rng) {
                *counts.entry(question.kind.name()).or_default().entry(question.answer).or_default() += 1;
            }
        }
    }
    let lines: Vec<String> = counts
        .iter()
        .filter_map(|(kind, answers)| {
            // Of equally frequent ones the first in the alphabet.
            let (answer, _) = answers.iter().rev().max_by_key(|(_, count)| **count)?;
            Some(format!("  {kind:?}: {answer:?}"))
        })
        .collect();
    println!("{{\n{}\n}}", lines.join(",\n"));
}
