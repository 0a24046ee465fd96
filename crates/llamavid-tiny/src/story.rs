//! What has happened up to each frame of a video, as far as a question's subject goes: what the language model has to
//! know on its way to an answer.
//!
//! Answers alone teach it slowly what hangs on several frames: few of a step's questions ask for it, and what leads
//! there is never told. So linear heads, thrown away later, ask each frame's content token in the middle of the network.

use candle_core::{D, Device, Tensor};
use candle_nn::{Init, VarBuilder};
use llamavid_kernels::{IGNORED, cross_entropy};
use llamavid_world::{Colour, Motion, Object, Pair, Scene, Shape, Subject, Video};

use crate::Result;
use crate::exercise::Moment;
use crate::sizes::LANGUAGE_WIDTH;
use crate::symbols::attended;

/// The layer behind which the heads read: what is known there can still be looked up from the answer.
pub const LAYER: &str = "llm.layer2";

/// What is asked of a frame, with the number of possible answers.
const HEADS: [(&str, usize); 8] = [
    ("scene", 6),
    ("new", 2),
    ("colour before", Colour::ALL.len() + 1),
    ("shape before", Shape::ALL.len() + 1),
    ("found", 4),
    ("times", 5),
    ("motion", Motion::ALL.len()),
    ("order", 3),
];

/// The answers for one frame, in the order of the heads; [`IGNORED`] where there is none.
pub type Told = [i64; HEADS.len()];

/// The answers for each of the moments.
pub fn told(video: &Video, subject: &Subject, moments: &[Moment]) -> Vec<Told> {
    let alone = |scene: &Scene| match scene.objects.as_slice() {
        [object] => Some(object.pair()),
        _ => None,
    };
    let holds = |scene: usize, pair: Pair| video.scenes[scene].find(pair).is_some();
    let mut frames_of_scene = 0;
    let mut last_scene = usize::MAX;
    moments
        .iter()
        .map(|&(scene, progress)| {
            frames_of_scene = if scene == last_scene { frames_of_scene + 1 } else { 1 };
            let is_new = frames_of_scene == 1 && scene > 0;
            last_scene = scene;
            let before = scene.checked_sub(1);
            let (colour, shape) = match before.map(|before| alone(&video.scenes[before])) {
                None => (Colour::ALL.len() as i64, Shape::ALL.len() as i64),
                Some(None) => (IGNORED, IGNORED),
                Some(Some(pair)) => (pair.colour.index() as i64, pair.shape.index() as i64),
            };
            let (mut found, mut times, mut order) = (IGNORED, IGNORED, IGNORED);
            if let Subject::Object(pair) = *subject {
                found = match (0..=scene).rfind(|index| holds(*index, pair)).map(|index| scene - index) {
                    None => 0,
                    Some(0) => 1,
                    Some(1) => 2,
                    Some(_) => 3,
                };
                times = (0..=scene).filter(|index| holds(*index, pair)).count().min(4) as i64;
            }
            if let Subject::Pairs(first, second) = *subject {
                let start = |pair: Pair| (0..=scene).find(|index| holds(*index, pair)).unwrap_or(usize::MAX);
                order = match (start(first), start(second)) {
                    (usize::MAX, usize::MAX) => 0,
                    (first, second) if first < second => 1,
                    _ => 2,
                };
            }
            let motion = match subject {
                // One frame does not show which way.
                _ if frames_of_scene < 2 => IGNORED,
                _ => told_motion(&attended(&video.scenes[scene], subject, progress)),
            };
            let number = if scene < 6 { scene as i64 } else { IGNORED };
            [number, i64::from(is_new), colour, shape, found, times, motion, order]
        })
        .collect()
}

/// The motion of what is attended to: of the one that moves, or of all that stay.
fn told_motion(objects: &[&Object]) -> i64 {
    let moving = objects.iter().find(|object| object.motion != Motion::Still);
    match moving.or(objects.first()) {
        Some(object) => object.motion.index() as i64,
        None => IGNORED,
    }
}

/// The mean loss of the heads on `hidden` (frames, D), as the network's middle has it.
pub fn loss(vb: &VarBuilder, hidden: &Tensor, told: &[Told]) -> Result<Tensor> {
    let scale = (hidden.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
    let hidden = hidden.broadcast_div(&scale)?;
    let mut sum = Tensor::zeros((), hidden.dtype(), &Device::Cpu)?;
    for (index, (name, count)) in HEADS.into_iter().enumerate() {
        let init = Init::Randn { mean: 0., stdev: 0.02 };
        let weight = vb.pp("heads").get_with_hints((count, LANGUAGE_WIDTH), name, init)?;
        let labels: Vec<i64> = told.iter().map(|told| told[index]).collect();
        let logits = llamavid_kernels::linear(&hidden, &weight, None)?;
        sum = (sum + cross_entropy(&logits, &Tensor::new(labels, &Device::Cpu)?)?)?;
    }
    Ok((sum / HEADS.len() as f64)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use llamavid_world::{MediaKind, WorldOptions, seeded};

    use super::*;
    use crate::exercise::moments;

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

    #[test]
    fn a_frame_knows_what_came_before_it_and_not_what_comes() {
        let video = video();
        let [first, second] = [&video.scenes[0], &video.scenes[1]];
        let frames = moments(&video, |_| 0.);
        let told = told(&video, &Subject::Object(first.objects[0].pair()), &frames);
        let cut = first.seconds as usize;
        let of =
            |name: &str, frame: usize| told[frame][HEADS.iter().position(|(head, _)| *head == name).unwrap()];
        assert_eq!((of("scene", 0), of("scene", cut)), (0, 1));
        assert_eq!((of("new", 0), of("new", cut), of("new", cut + 1)), (0, 1, 0));
        assert_eq!((of("found", 0), of("found", cut)), (1, 2));
        assert_eq!((of("times", 0), of("times", cut)), (1, 1));
        let (colour, shape) = (first.objects[0].colour.index(), first.objects[0].shape.index());
        assert_eq!(
            (of("colour before", 0), of("colour before", cut)),
            (Colour::ALL.len() as i64, colour as i64)
        );
        assert_eq!((of("shape before", 0), of("shape before", cut)), (Shape::ALL.len() as i64, shape as i64));
        assert_eq!((of("motion", 0), of("motion", 1)), (IGNORED, first.objects[0].motion.index() as i64));
        assert_eq!((of("motion", cut + 1), of("order", 0)), (IGNORED, IGNORED));
        assert!(second.objects[0].pair() != first.objects[0].pair());
    }

    #[test]
    fn of_two_objects_it_knows_which_came_first() {
        let video = video();
        let pairs = [0, 1].map(|scene| video.scenes[scene].objects[0].pair());
        let frames = moments(&video, |_| 0.);
        let order = HEADS.len() - 1;
        let orders = |subject| -> Vec<i64> {
            told(&video, &subject, &frames).iter().map(|told| told[order]).collect()
        };
        assert!(orders(Subject::Pairs(pairs[0], pairs[1])).iter().all(|order| *order == 1));
        assert!(orders(Subject::Pairs(pairs[1], pairs[0])).iter().all(|order| *order == 2));
    }
}
