//! What the language model has to know on its way to an answer: what has happened up to each frame, as far as a
//! question's subject goes, what a subtitle's word belongs to, and what is asked.
//!
//! Answers alone teach it slowly what hangs on several frames: few of a step's questions ask for it, and what leads
//! there is never told. So linear heads, thrown away later, ask it in the middle of the network.

use candle_core::{D, Device, Tensor};
use candle_nn::{Init, VarBuilder};
use llamavid_kernels::{cross_entropy, embedding, linear};
use llamavid_models::prompt::placeholders::IMAGE_TOKEN;
use llamavid_models::tokenizer::LlamaTokenizer;
use llamavid_world::{Colour, Cue, FactKind, Motion, Object, Pair, Scene, Shape, Subject, Video};

use crate::Result;
use crate::exercise::{Exercise, Moment};
use crate::sizes::{LANGUAGE_WIDTH, TOKENS_PER_FRAME};
use crate::symbols::attended;

/// The layer behind which the heads read: what is known there can still be looked up from the answer.
pub const LAYER: &str = "llm.layer2";

/// What is asked, by its place in [`HEADS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    Scene,
    New,
    ColourBefore,
    ShapeBefore,
    Found,
    Times,
    Motion,
    FirstColour,
    FirstShape,
    FactOfValue,
    ColourAtCue,
    ShapeAtCue,
    Asked,
    NamedColour,
    NamedShape,
}

/// Names of the heads and the number of their answers.
const HEADS: [(&str, usize); 15] = [
    // Of a frame.
    ("scene", 6),
    ("new", 2),
    ("colour before", Colour::ALL.len() + 1),
    ("shape before", Shape::ALL.len() + 1),
    ("found", 4),
    ("times", 5),
    ("motion", Motion::ALL.len()),
    ("first colour", Colour::ALL.len() + 1),
    ("first shape", Shape::ALL.len() + 1),
    // Of a word in a subtitle.
    ("fact of value", FactKind::ALL.len()),
    ("colour at cue", Colour::ALL.len()),
    ("shape at cue", Shape::ALL.len()),
    // Of the place where an answer begins.
    ("asked", FactKind::ALL.len() + Cue::ALL.len()),
    ("named colour", Colour::ALL.len()),
    ("named shape", Shape::ALL.len()),
];

/// An answer of a head at a place of a conversation.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    /// Index among the conversation's ids.
    position: usize,
    head: Head,
    answer: usize,
}

impl Told {
    /// The same, `rows` further on.
    pub fn behind(self, rows: usize) -> Self {
        Self { position: self.position + rows, ..self }
    }
}

/// What is told in a conversation about `video`.
pub fn told(video: &Video, exercise: &Exercise, tokenizer: &LlamaTokenizer) -> Vec<Told> {
    let mut told = Vec::new();
    let images = exercise.ids.iter().enumerate().filter(|(_, id)| **id == IMAGE_TOKEN);
    // The frame's content token: it has seen the context token.
    let frames = images.map(|(position, _)| position).skip(TOKENS_PER_FRAME - 1).step_by(TOKENS_PER_FRAME);
    let mut frames_of_scene = 0;
    let mut last_scene = usize::MAX;
    for (position, &(scene, progress)) in frames.zip(&exercise.moments) {
        frames_of_scene = if scene == last_scene { frames_of_scene + 1 } else { 1 };
        last_scene = scene;
        let answers = of_frame(video, &exercise.subject(), (scene, progress), frames_of_scene);
        told.extend(answers.into_iter().map(|(head, answer)| Told { position, head, answer }));
    }
    told.extend(of_subtitles(video, exercise, tokenizer));
    let begins = (1..exercise.labels.len())
        .filter(|position| exercise.labels[*position] >= 0 && exercise.labels[position - 1] < 0);
    for (begin, asked) in begins.zip(&exercise.asked) {
        let mut tell = |head, answer| told.push(Told { position: begin - 1, head, answer });
        match asked.subject {
            Subject::Fact(fact) => tell(Head::Asked, fact.index()),
            Subject::Cue(cue) => tell(Head::Asked, FactKind::ALL.len() + cue.index()),
            Subject::Pairs(first, _) => {
                tell(Head::NamedColour, first.colour.index());
                tell(Head::NamedShape, first.shape.index());
            }
            _ => {}
        }
    }
    told
}

/// What there is to know of a frame and of those before it.
fn of_frame(
    video: &Video,
    subject: &Subject,
    (scene, progress): Moment,
    frames_of_scene: usize,
) -> Vec<(Head, usize)> {
    let holds = |scene: usize, pair: Pair| video.scenes[scene].find(pair).is_some();
    let mut told = vec![(Head::New, usize::from(frames_of_scene == 1 && scene > 0))];
    if scene < 6 {
        told.push((Head::Scene, scene));
    }
    match scene.checked_sub(1).map(|before| alone(&video.scenes[before])) {
        None => told.extend([(Head::ColourBefore, Colour::ALL.len()), (Head::ShapeBefore, Shape::ALL.len())]),
        Some(None) => {}
        Some(Some(pair)) => {
            told.extend([(Head::ColourBefore, pair.colour.index()), (Head::ShapeBefore, pair.shape.index())]);
        }
    }
    if let Subject::Object(pair) = *subject {
        let since = (0..=scene).rfind(|index| holds(*index, pair)).map(|index| scene - index);
        let times = (0..=scene).filter(|index| holds(*index, pair)).count();
        told.extend([(Head::Found, since.map_or(0, |since| since.min(2) + 1)), (Head::Times, times.min(4))]);
    }
    if let Subject::Pairs(first, second) = *subject {
        let seen = (0..=scene).find_map(|index| [first, second].into_iter().find(|pair| holds(index, *pair)));
        told.extend([
            (Head::FirstColour, seen.map_or(Colour::ALL.len(), |pair| pair.colour.index())),
            (Head::FirstShape, seen.map_or(Shape::ALL.len(), |pair| pair.shape.index())),
        ]);
    }
    // One frame does not show which way.
    if frames_of_scene > 1 {
        let motion = motion(&attended(&video.scenes[scene], subject, progress));
        told.extend(motion.map(|motion| (Head::Motion, motion.index())));
    }
    told
}

/// What the words of subtitles belong to: a value to its fact, a cue to the object on the screen.
fn of_subtitles(video: &Video, exercise: &Exercise, tokenizer: &LlamaTokenizer) -> Vec<Told> {
    let id = |word: &str| tokenizer.encode(word, false).first().map(|id| i64::from(*id));
    // The question, which may have the same words, stands on a line of its own behind the video.
    let video_end = exercise.ids.iter().rposition(|id| *id == IMAGE_TOKEN).unwrap_or(0);
    let line = tokenizer.encode("\n", false).last().map(|id| i64::from(*id));
    let line = exercise.ids.iter().skip(video_end).position(|id| Some(*id) == line);
    let end = video_end + line.unwrap_or(0);
    let place = |word: &str, behind: Option<&str>| {
        (1..end).find(|place| {
            let before = behind.is_none_or(|behind| Some(exercise.ids[place - 1]) == id(behind));
            Some(exercise.ids[*place]) == id(word) && before
        })
    };
    let mut told = Vec::new();
    for fact in &video.facts {
        // "the code is seven": the value stands two words behind its kind.
        if let Some(position) = place("is", Some(fact.kind.word())) {
            told.push(Told { position: position + 1, head: Head::FactOfValue, answer: fact.kind.index() });
        }
    }
    for spoken in &video.cues {
        let pair = video.scenes.get(spoken.scene).and_then(alone);
        if let (Some(position), Some(pair)) = (place(spoken.cue.word(), None), pair) {
            told.push(Told { position, head: Head::ColourAtCue, answer: pair.colour.index() });
            told.push(Told { position, head: Head::ShapeAtCue, answer: pair.shape.index() });
        }
    }
    told
}

/// The pair of a scene's only object.
fn alone(scene: &Scene) -> Option<Pair> {
    match scene.objects.as_slice() {
        [object] => Some(object.pair()),
        _ => None,
    }
}

/// The motion of what is attended to: of the one that moves, or of all that stay.
fn motion(objects: &[&Object]) -> Option<Motion> {
    let moving = objects.iter().find(|object| object.motion != Motion::Still);
    moving.or(objects.first()).map(|object| object.motion)
}

/// The mean loss of the heads on `hidden` (rows, D), as the network's middle has it; positions in `told` count its rows.
pub fn loss(vb: &VarBuilder, hidden: &Tensor, told: &[Told]) -> Result<Tensor> {
    let scale = (hidden.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
    let hidden = hidden.broadcast_div(&scale)?;
    let mut sum = Tensor::zeros((), hidden.dtype(), &Device::Cpu)?;
    for (head, (name, count)) in HEADS.into_iter().enumerate() {
        let init = Init::Randn { mean: 0., stdev: 0.02 };
        let weight = vb.pp("heads").get_with_hints((count, LANGUAGE_WIDTH), name, init)?;
        let of_head = || told.iter().filter(|told| told.head as usize == head);
        let rows: Vec<u32> = of_head().map(|told| told.position as u32).collect();
        let answers: Vec<i64> = of_head().map(|told| told.answer as i64).collect();
        // A head that nothing is asked of keeps its place among the weights that train.
        let rows = if rows.is_empty() { vec![0] } else { rows };
        let answers = if answers.is_empty() { vec![llamavid_kernels::IGNORED] } else { answers };
        let logits = linear(&embedding(&hidden, &Tensor::new(rows, &Device::Cpu)?)?, &weight, None)?;
        sum = (sum + cross_entropy(&logits, &Tensor::new(answers, &Device::Cpu)?)?)?;
    }
    Ok((sum / HEADS.len() as f64)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use llamavid_world::{MediaKind, QuestionType, WorldOptions, seeded};

    use super::*;
    use crate::exercise::{Mix, conversation, exercise, moments};

    /// A video of two scenes with one object each, of which the first moves.
    fn video() -> Video {
        let options = WorldOptions { multi_scenes: 2..=2, ..WorldOptions::default() };
        (0..)
            .map(|seed| Video::random(&mut seeded(seed), MediaKind::Multi, &options))
            .find(|video| {
                let [first, second] = video.scenes.as_slice() else { return false };
                let alone = first.objects.len() == 1 && second.objects.len() == 1;
                alone
                    && first.objects[0].motion.travels()
                    && first.objects[0].pair() != second.objects[0].pair()
            })
            .unwrap()
    }

    fn answer(told: &[(Head, usize)], head: Head) -> Option<usize> {
        told.iter().find(|(other, _)| *other == head).map(|(_, answer)| *answer)
    }

    #[test]
    fn a_frame_knows_what_came_before_it_and_not_what_comes() {
        let video = video();
        let object = &video.scenes[0].objects[0];
        let subject = Subject::Object(object.pair());
        let first = of_frame(&video, &subject, (0, 0.), 1);
        let moved = of_frame(&video, &subject, (0, 0.5), 2);
        let behind = of_frame(&video, &subject, (1, 0.), 1);
        let all = |head| [&first, &moved, &behind].map(|told| answer(told, head));
        assert_eq!(all(Head::Scene), [Some(0), Some(0), Some(1)]);
        assert_eq!(all(Head::New), [Some(0), Some(0), Some(1)]);
        assert_eq!(all(Head::Found), [Some(1), Some(1), Some(2)]);
        assert_eq!(all(Head::Times), [Some(1); 3]);
        assert_eq!(all(Head::Motion), [None, Some(object.motion.index()), None]);
        assert_eq!(all(Head::ColourBefore), [8, 8, object.colour.index()].map(Some));
        assert_eq!(all(Head::ShapeBefore), [6, 6, object.shape.index()].map(Some));
        assert_eq!(all(Head::FirstColour), [None; 3]);
    }

    #[test]
    fn of_two_objects_it_knows_which_came_first() {
        let video = video();
        let [first, second] = [0, 1].map(|scene| video.scenes[scene].objects[0].pair());
        for subject in [Subject::Pairs(first, second), Subject::Pairs(second, first)] {
            let told = of_frame(&video, &subject, (1, 0.), 1);
            assert_eq!(answer(&told, Head::FirstColour), Some(first.colour.index()));
            assert_eq!(answer(&told, Head::FirstShape), Some(first.shape.index()));
        }
    }

    #[test]
    fn words_of_subtitles_and_the_place_of_the_answer_are_found() {
        let folder = tempfile::tempdir().unwrap();
        crate::tokenizers::write(folder.path(), &llamavid_world::vocabulary(), &crate::starters()).unwrap();
        let tokenizer = crate::tokenizer(folder.path()).unwrap();
        let options = WorldOptions { long_scenes: 12..=12, ..WorldOptions::default() };
        let mut asked_facts = 0;
        for seed in 0..20 {
            let rng = &mut seeded(seed);
            let video = Video::random(rng, MediaKind::Long, &options);
            let mix = Mix {
                shares: [0., 0., 0., 1.],
                relations: 1.,
                places: 1.,
                turns: 1,
                long: (12, 12),
                text_alone: 0.,
            };
            let (questions, moments) =
                conversation(&video, MediaKind::Long, moments(&video, |_| 0.), mix, rng);
            let exercise =
                exercise(&video, MediaKind::Long, &questions, moments, &tokenizer, 0.5, rng).unwrap();
            let told = told(&video, &exercise, &tokenizer);
            let of = |head| told.iter().filter(move |told| told.head == head);
            assert_eq!(of(Head::New).count(), exercise.moments.len());
            assert_eq!(of(Head::FactOfValue).count(), video.facts.len());
            for (told, fact) in of(Head::FactOfValue).zip(&video.facts) {
                let value = tokenizer.decode(&[exercise.ids[told.position] as u32], true);
                assert_eq!((value.trim(), told.answer), (fact.value, fact.kind.index()));
            }
            assert_eq!(of(Head::ColourAtCue).count(), video.cues.len());
            assert_eq!(of(Head::Asked).count(), questions.len());
            for (told, question) in of(Head::Asked).zip(&questions) {
                assert_eq!(tokenizer.decode(&[exercise.ids[told.position] as u32], true).trim(), ":");
                assert_eq!(told.answer < FactKind::ALL.len(), question.kind == QuestionType::Subtitle);
                asked_facts += usize::from(question.kind == QuestionType::Subtitle);
            }
        }
        assert!(asked_facts > 0);
    }
}
