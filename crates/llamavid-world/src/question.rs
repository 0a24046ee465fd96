//! Questions about a video, with their answers.

use rand::Rng;
use rand::seq::SliceRandom;

use crate::options::NeverTrainedPairs;
use crate::phrasing::{Phrasing, QuestionType};
use crate::scene::{Scene, pick};
use crate::video::{MediaKind, Video};
use crate::words::{Cell, Colour, Cue, FactKind, Motion, Pair, Shape, article, number};

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subject {
    /// The whole picture or video.
    Whole,
    /// The object of a pair, which [`QuestionType::Exist`] may ask for in vain.
    Object(Pair),
    /// The objects of a colour.
    Colour(Colour),
    /// The object of a shape.
    Shape(Shape),
    /// A position.
    Cell(Cell),
    /// The object with a motion.
    Motion(Motion),
    /// Two objects: does the first come before the second?
    Pairs(Pair, Pair),
    /// A fact of the subtitles.
    Fact(FactKind),
    /// A cue of the subtitles.
    Cue(Cue),
}

/// A question with its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// What is asked.
    pub kind: QuestionType,
    /// What it is asked about.
    pub subject: Subject,
    /// The question: lower case; ends with "?" or ".".
    pub text: String,
    /// The answer: lower case, without a full stop.
    pub answer: String,
    /// Whether the phrasing is one that training never uses.
    pub unseen_phrasing: bool,
}

/// Every question that can be asked about the video, each in one phrasing. Of the questions with yes or no there are as
/// many of either, where both exist.
///
/// - In one scene, shape and colour are asked about when one object alone has them.
/// - In several scenes, an object's motion, position and background are asked about when it is in one scene only.
/// - Of a video with a needle, only the objects are asked about that are in one scene.
/// - Answers that name the one object of a scene (first, last, after, before, said) need a scene with one object.
/// - Under [`NeverTrainedPairs::Forbid`] the questions name none of the pairs that are never trained.
pub fn questions(video: &Video, media: MediaKind, phrasing: Phrasing, rng: &mut impl Rng) -> Vec<Question> {
    let mut asked = Asked { phrasing, rng, questions: Vec::new() };
    let Some(scene) = video.scenes.first() else {
        return asked.questions;
    };
    match media {
        MediaKind::Image | MediaKind::Clip => {
            asked.looks(video);
            asked.one_scene(scene, media);
        }
        MediaKind::Multi => {
            asked.looks(video);
            asked.many_scenes(video);
        }
        MediaKind::Long => asked.speech(video),
        MediaKind::Needle => asked.needle(video),
    }
    if !matches!(media, MediaKind::Long | MediaKind::Needle) {
        asked.ask(QuestionType::Describe, Subject::Whole, describe(video, media));
    }
    asked.questions
}

/// The answer to "describe the video": scene by scene, joined by " , then ". A picture names every object with its size,
/// a video the first two with their motions; both in the order of [`Scene::objects`].
pub fn describe(video: &Video, media: MediaKind) -> String {
    let scenes: Vec<String> = video
        .scenes
        .iter()
        .map(|scene| {
            let objects: Vec<String> = if media == MediaKind::Image {
                let named = scene.objects.iter();
                named.map(|object| format!("a {} {}", object.size, object.pair().name())).collect()
            } else {
                let named = scene.objects.iter().take(2);
                named.map(|object| format!("{} {}", object.pair().with_article(), object.motion)).collect()
            };
            format!("{} in the {}", objects.join(" and "), scene.background)
        })
        .collect();
    scenes.join(" , then ")
}

/// The questions so far.
struct Asked<'a, R> {
    phrasing: Phrasing,
    rng: &'a mut R,
    questions: Vec<Question>,
}

impl<R: Rng> Asked<'_, R> {
    fn ask(&mut self, kind: QuestionType, subject: Subject, answer: impl Into<String>) {
        let words: Vec<String> = match subject {
            Subject::Whole => vec![],
            Subject::Object(pair) if kind == QuestionType::Exist => {
                // People say "an orange ring"; the published questions say "a orange ring".
                let article = if self.rng.random_bool(0.5) { article(pair.colour.word()) } else { "a" };
                vec![format!("{article} {}", pair.name())]
            }
            Subject::Object(pair) => vec![pair.name()],
            Subject::Colour(colour) => vec![colour.word().to_owned()],
            Subject::Shape(shape) => vec![shape.word().to_owned()],
            Subject::Cell(cell) => vec![cell.word().to_owned()],
            Subject::Motion(motion) => vec![motion.word().to_owned()],
            Subject::Pairs(first, second) => vec![first.name(), second.name()],
            Subject::Fact(fact) => vec![fact.word().to_owned()],
            Subject::Cue(cue) => vec![cue.word().to_owned()],
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (text, unseen_phrasing) = kind.phrase(self.phrasing, &words, self.rng);
        self.questions.push(Question { kind, subject, text, answer: answer.into(), unseen_phrasing });
    }

    /// Colour, shape and existence: asked about every video without subtitles.
    fn looks(&mut self, video: &Video) {
        let pairs = pairs(video);
        for &Pair { colour, shape } in &pairs {
            if pairs.iter().filter(|pair| pair.shape == shape).count() == 1 {
                self.ask(QuestionType::Colour, Subject::Shape(shape), colour.word());
            }
            if pairs.iter().filter(|pair| pair.colour == colour).count() == 1 {
                self.ask(QuestionType::Shape, Subject::Colour(colour), shape.word());
            }
        }
        for &pair in &pairs {
            self.ask(QuestionType::Exist, Subject::Object(pair), "yes");
            let near: Vec<Pair> = video
                .never_trained_pairs
                .questionable()
                .into_iter()
                .filter(|other| !pairs.contains(other))
                .filter(|other| (other.colour == pair.colour) != (other.shape == pair.shape))
                .collect();
            if !near.is_empty() {
                let absent = pick(self.rng, &near);
                self.ask(QuestionType::Exist, Subject::Object(absent), "no");
            }
        }
    }

    /// What is asked about pictures and clips.
    fn one_scene(&mut self, scene: &Scene, media: MediaKind) {
        for object in &scene.objects {
            let pair = object.pair();
            if object.motion == Motion::Still {
                self.ask(QuestionType::Where, Subject::Object(pair), object.position().word());
            }
            if media == MediaKind::Image {
                self.ask(QuestionType::At, Subject::Cell(object.position()), pair.with_article());
            } else {
                self.ask(QuestionType::Motion, Subject::Object(pair), object.motion.word());
            }
            if !matches!(object.motion, Motion::Grows | Motion::Shrinks) {
                self.ask(QuestionType::Size, Subject::Object(pair), object.size.word());
            }
            if object.motion.travels() {
                self.ask(QuestionType::Mover, Subject::Motion(object.motion), pair.with_article());
            }
        }
        self.ask(QuestionType::Count, Subject::Whole, number(scene.objects.len()));
        let count = |colour: Colour| scene.objects.iter().filter(|object| object.colour == colour).count();
        for colour in Colour::ALL.into_iter().filter(|&colour| count(colour) > 0) {
            self.ask(QuestionType::CountColour, Subject::Colour(colour), number(count(colour)));
        }
        let absent: Vec<Colour> = Colour::ALL.into_iter().filter(|&colour| count(colour) == 0).collect();
        let colour = pick(self.rng, &absent);
        self.ask(QuestionType::CountColour, Subject::Colour(colour), number(0));
        self.ask(QuestionType::Background, Subject::Whole, scene.background.word());
    }

    /// What is asked about videos with cuts.
    fn many_scenes(&mut self, video: &Video) {
        let scenes = &video.scenes;
        // Objects that are in one scene only, with that scene.
        let mut once: Vec<(Pair, usize)> = Vec::new();
        let mut back: Vec<(Pair, usize)> = Vec::new();
        for pair in pairs(video) {
            let mut places = (0..scenes.len()).filter(|&index| scenes[index].find(pair).is_some());
            match (places.next(), places.count()) {
                (Some(place), 0) => once.push((pair, place)),
                (_, more) => back.push((pair, more + 1)),
            }
        }
        for &(pair, place) in &once {
            let scene = &scenes[place];
            if let Some(object) = scene.find(pair) {
                self.ask(QuestionType::Motion, Subject::Object(pair), object.motion.word());
                if object.motion == Motion::Still {
                    self.ask(QuestionType::Where, Subject::Object(pair), object.position().word());
                }
            }
            self.ask(QuestionType::BackgroundOf, Subject::Object(pair), scene.background.word());
            if let Some(alone) = scenes.get(place + 1).and_then(alone) {
                self.ask(QuestionType::After, Subject::Object(pair), alone.with_article());
            }
            if let Some(alone) = place.checked_sub(1).and_then(|before| alone(&scenes[before])) {
                self.ask(QuestionType::Before, Subject::Object(pair), alone.with_article());
            }
        }
        for motion in Motion::ALL.into_iter().filter(|motion| motion.travels()) {
            let movers: Vec<Pair> = scenes
                .iter()
                .flat_map(|scene| &scene.objects)
                .filter(|object| object.motion == motion)
                .map(|object| object.pair())
                .collect();
            if let [mover] = movers[..] {
                self.ask(QuestionType::Mover, Subject::Motion(motion), mover.with_article());
            }
        }
        self.order(&once);
        self.ask(QuestionType::Scenes, Subject::Whole, number(scenes.len()));
        for &(pair, times) in &back {
            self.ask(QuestionType::Times, Subject::Object(pair), number(times));
        }
        if !once.is_empty() && (!back.is_empty() || self.rng.random_bool(0.3)) {
            let (pair, _) = pick(self.rng, &once);
            self.ask(QuestionType::Times, Subject::Object(pair), number(1));
        }
        if let Some(alone) = scenes.first().and_then(alone) {
            self.ask(QuestionType::First, Subject::Whole, alone.with_article());
        }
        if let Some(last) = scenes.last() {
            if let Some(alone) = alone(last) {
                self.ask(QuestionType::Last, Subject::Whole, alone.with_article());
            }
            self.ask(QuestionType::BackgroundEnd, Subject::Whole, last.background.word());
        }
    }

    /// Up to two pairs of objects of different scenes: the first asked about in order and the second in reverse, or the
    /// other way round.
    fn order(&mut self, once: &[(Pair, usize)]) {
        let mut orders: Vec<(Pair, Pair)> = Vec::new();
        for &(first, place) in once {
            orders
                .extend(once.iter().filter(|(_, other)| place < *other).map(|&(second, _)| (first, second)));
        }
        orders.shuffle(self.rng);
        let mut in_order = self.rng.random_bool(0.5);
        for (first, second) in orders.into_iter().take(2) {
            if in_order {
                self.ask(QuestionType::Order, Subject::Pairs(first, second), "yes");
            } else {
                self.ask(QuestionType::Order, Subject::Pairs(second, first), "no");
            }
            in_order = !in_order;
        }
    }

    /// What is asked about objects that are in one scene of a long video.
    fn needle(&mut self, video: &Video) {
        for pair in pairs(video) {
            let Some(place) = video.only_scene_of(pair) else { continue };
            let scene = &video.scenes[place];
            let Some(object) = scene.find(pair) else { continue };
            self.ask(QuestionType::Motion, Subject::Object(pair), object.motion.word());
            self.ask(QuestionType::BackgroundOf, Subject::Object(pair), scene.background.word());
            if object.motion == Motion::Still {
                self.ask(QuestionType::Where, Subject::Object(pair), object.position().word());
            }
            if !matches!(object.motion, Motion::Grows | Motion::Shrinks) {
                self.ask(QuestionType::Size, Subject::Object(pair), object.size.word());
            }
        }
    }

    /// What is asked about subtitles.
    fn speech(&mut self, video: &Video) {
        for fact in &video.facts {
            self.ask(QuestionType::Subtitle, Subject::Fact(fact.kind), fact.value);
        }
        for spoken in &video.cues {
            if let Some(alone) = video.scenes.get(spoken.scene).and_then(alone) {
                self.ask(QuestionType::Said, Subject::Cue(spoken.cue), alone.with_article());
            }
        }
    }
}

impl Video {
    /// The scene that shows a pair, if it is one alone.
    pub fn only_scene_of(&self, pair: Pair) -> Option<usize> {
        let mut places = (0..self.scenes.len()).filter(|&index| self.scenes[index].find(pair).is_some());
        places.next().filter(|_| places.next().is_none())
    }

    /// When the object that a question is about is seen, in seconds, if that is once.
    pub fn evidence(&self, subject: Subject) -> Option<(f64, f64)> {
        match subject {
            Subject::Object(pair) => Some(self.span(self.only_scene_of(pair)?)),
            _ => None,
        }
    }
}

impl NeverTrainedPairs {
    /// The pairs that questions may name in vain.
    fn questionable(self) -> Vec<Pair> {
        match self {
            Self::Forbid => Self::Forbid.pairs(),
            Self::Allow | Self::Only => Self::Allow.pairs(),
        }
    }
}

/// The pairs of the video, each once, in order of appearance.
fn pairs(video: &Video) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for pair in video.scenes.iter().flat_map(|scene| &scene.objects).map(|object| object.pair()) {
        if !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    pairs
}

/// The pair of the only object of the scene.
fn alone(scene: &Scene) -> Option<Pair> {
    match scene.objects.as_slice() {
        [object] => Some(object.pair()),
        _ => None,
    }
}
