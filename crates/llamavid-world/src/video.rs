//! Videos: scenes one after another, for long ones with subtitles.

use std::fmt::Write as _;

use rand::Rng;
use rand::seq::SliceRandom;

use crate::options::{NeverTrainedPairs, WorldOptions};
use crate::scene::{Draft, Scene, pick, random_pairs};
use crate::words::{Cue, FactKind, Pair};

/// What a video is; it decides which questions are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MediaKind {
    /// A picture: one frame of one scene in which nothing moves.
    Image,
    /// One scene.
    Clip,
    /// One to six scenes with cuts.
    Multi,
    /// Many scenes with subtitles.
    Long,
    /// Many scenes, one of which shows an object that no other does.
    Needle,
}

impl MediaKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Image, Self::Clip, Self::Multi, Self::Long, Self::Needle];

    /// "image", "clip", "multi", "long" or "needle".
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Clip => "clip",
            Self::Multi => "multi",
            Self::Long => "long",
            Self::Needle => "needle",
        }
    }
}

/// A line that the speaker says.
#[derive(Debug, Clone, PartialEq)]
pub struct Subtitle {
    /// When it starts, in seconds.
    pub start: f64,
    /// When it ends, in seconds.
    pub end: f64,
    /// What is said; words and punctuation are separated by spaces.
    pub text: String,
}

/// Something that a subtitle states, once in a video.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fact {
    /// What it is about.
    pub kind: FactKind,
    /// One of [`FactKind::values`].
    pub value: &'static str,
    /// The place of its subtitle in [`Video::subtitles`].
    pub subtitle: usize,
}

/// A cue, said once in a video while one object is alone on the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpokenCue {
    /// The word.
    pub cue: Cue,
    /// The scene during which it is said.
    pub scene: usize,
    /// The place of its subtitle in [`Video::subtitles`].
    pub subtitle: usize,
}

/// Scenes one after another.
#[derive(Debug, Clone, PartialEq)]
pub struct Video {
    /// At least one scene; neighbours have different backgrounds.
    pub scenes: Vec<Scene>,
    /// In order of time; none but in long videos.
    pub subtitles: Vec<Subtitle>,
    /// The facts that subtitles state, in order of time.
    pub facts: Vec<Fact>,
    /// The cues that subtitles say, in order of time.
    pub cues: Vec<SpokenCue>,
    /// The pairs that may be shown and asked about.
    pub never_trained_pairs: NeverTrainedPairs,
}

const FILLERS: [&str; 10] = [
    "the wind is calm .",
    "let us wait .",
    "we go on .",
    "it is a long way .",
    "they walk and talk .",
    "the music plays .",
    "nothing new here .",
    "so it goes .",
    "they talk and we wait .",
    "the way is long and calm .",
];
const FACTS: [&str; 4] =
    ["the {} is {} .", "remember , the {} is {} .", "i say the {} is {} .", "and now , the {} is {} ."];
const CUES: [&str; 3] = ["{} !", "and now , {} !", "the speaker says {} ."];

impl Video {
    /// A video of `kind`.
    pub fn random(rng: &mut impl Rng, kind: MediaKind, options: &WorldOptions) -> Self {
        match kind {
            MediaKind::Image => Self::random_image(rng, options),
            MediaKind::Clip => Self::random_clip(rng, options),
            MediaKind::Multi => Self::random_multi(rng, options),
            MediaKind::Long => Self::random_long(rng, options),
            MediaKind::Needle => Self::random_needle(rng, options),
        }
    }

    /// A picture: one scene of 0 seconds in which nothing moves.
    pub fn random_image(rng: &mut impl Rng, options: &WorldOptions) -> Self {
        let count = pick(rng, &[1, 2, 3]);
        let pairs = random_pairs(rng, options.never_trained_pairs, count, &[]);
        let mut scene = Scene::draw(rng, options, &Draft { not_background: None, pairs, moves: false });
        scene.seconds = 0.0;
        Self::silent(vec![scene], options)
    }

    /// One scene of 2 to 6 seconds.
    pub fn random_clip(rng: &mut impl Rng, options: &WorldOptions) -> Self {
        let scene = Scene::random(rng, options);
        Self::silent(vec![scene], options)
    }

    /// One to six scenes. Most have one object, so that there is an order to ask about; in every third video an object
    /// comes back up to three times. An object that does not come back is in one scene only.
    pub fn random_multi(rng: &mut impl Rng, options: &WorldOptions) -> Self {
        let count =
            weighted(rng, options.multi_scenes.clone(), &[(1, 2), (2, 6), (3, 7), (4, 5), (5, 3), (6, 3)]);
        let mut returning = vec![None; count];
        let mut used = Vec::new();
        if count > 1 && rng.random_bool(0.4) {
            let star = random_pairs(rng, options.never_trained_pairs, 1, &[])[0];
            used.push(star);
            let times = rng.random_range(2..=count.min(4));
            returning[..times].fill(Some(star));
            returning.shuffle(rng);
        }
        let mut scenes: Vec<Scene> = Vec::with_capacity(count);
        for star in returning {
            let objects = pick(rng, &[1, 1, 1, 1, 1, 1, 2, 2, 2, 3]);
            let scene = next_scene(rng, options, scenes.last(), star, objects, &used);
            used.extend(scene.objects.iter().map(crate::Object::pair));
            scenes.push(scene);
        }
        Self::silent(scenes, options)
    }

    /// [`WorldOptions::long_scenes`] scenes with subtitles. A subtitle starts at half a second and lasts 1.2 s within
    /// one scene; it states a fact, says a cue (on a scene with one object) or fills the silence. Every fact and every
    /// cue occurs at most once.
    pub fn random_long(rng: &mut impl Rng, options: &WorldOptions) -> Self {
        let count = rng.random_range(options.long_scenes.clone()).max(1);
        let mut scenes: Vec<Scene> = Vec::with_capacity(count);
        for _ in 0..count {
            let objects = pick(rng, &[1, 1, 1, 2, 2, 3]);
            let scene = next_scene(rng, options, scenes.last(), None, objects, &[]);
            scenes.push(scene);
        }
        let mut video = Self::silent(scenes, options);
        video.speak(rng);
        video
    }

    /// Scenes for [`WorldOptions::needle_seconds`] and a few seconds more. One of them shows an object, alone or with others,
    /// whose pair of colour and shape no other scene shows; the colour and the shape by themselves are common.
    pub fn random_needle(rng: &mut impl Rng, options: &WorldOptions) -> Self {
        let needle = random_pairs(rng, options.never_trained_pairs, 1, &[])[0];
        let place = f64::from(rng.random_range(0..options.needle_seconds.max(1)));
        let (mut scenes, mut seconds, mut star) = (Vec::<Scene>::new(), 0.0, Some(needle));
        while seconds < f64::from(options.needle_seconds) || star.is_some() {
            let objects = pick(rng, &[1, 1, 1, 2, 2, 3]);
            let shown = if seconds >= place { star.take() } else { None };
            let scene = next_scene(rng, options, scenes.last(), shown, objects, &[needle]);
            seconds += scene.seconds;
            scenes.push(scene);
        }
        Self::silent(scenes, options)
    }

    /// A video of these scenes, of which there must be one or more, without subtitles.
    pub fn silent(scenes: Vec<Scene>, options: &WorldOptions) -> Self {
        Self {
            scenes,
            subtitles: Vec::new(),
            facts: Vec::new(),
            cues: Vec::new(),
            never_trained_pairs: options.never_trained_pairs,
        }
    }

    /// Draws the subtitles of a long video: facts, cues and fillers.
    pub fn speak(&mut self, rng: &mut impl Rng) {
        let wanted = rng.random_range(3..=6usize);
        let mut facts = FactKind::ALL;
        facts.shuffle(rng);
        let mut cues = Cue::ALL;
        cues.shuffle(rng);
        let mut order: Vec<usize> = (0..self.scenes.len()).collect();
        order.shuffle(rng);
        let mut spoken: Vec<(usize, Speech)> = Vec::new();
        let (mut facts, mut cues) = (facts.into_iter().take(wanted), cues.into_iter().take(wanted));
        for scene in order {
            let alone = self.scenes[scene].objects.len() == 1;
            let speech = if let Some(cue) = alone.then(|| cues.next()).flatten() {
                Speech::Cue(cue)
            } else if let Some(kind) = facts.next() {
                Speech::Fact(kind, pick(rng, &kind.values()))
            } else if rng.random_bool(0.3) {
                Speech::Filler
            } else {
                continue;
            };
            spoken.push((scene, speech));
        }
        spoken.sort_by_key(|(scene, _)| *scene);
        let mut starts = Vec::with_capacity(self.scenes.len());
        let mut end = 0.0;
        for scene in &self.scenes {
            starts.push(end);
            end += scene.seconds;
        }
        for (scene, speech) in spoken {
            let subtitle = self.subtitles.len();
            let text = match speech {
                Speech::Fact(kind, value) => {
                    self.facts.push(Fact { kind, value, subtitle });
                    fill(pick(rng, &FACTS), &[kind.word(), value])
                }
                Speech::Cue(cue) => {
                    self.cues.push(SpokenCue { cue, scene, subtitle });
                    fill(pick(rng, &CUES), &[cue.word()])
                }
                Speech::Filler => pick(rng, &FILLERS).to_owned(),
            };
            // Whole seconds at which 1.7 s of the scene are left.
            let latest = (self.scenes[scene].seconds - 2.0).max(0.0) as u32;
            let start = starts[scene] + f64::from(rng.random_range(0..=latest)) + 0.5;
            self.subtitles.push(Subtitle { start, end: start + 1.2, text });
        }
    }

    /// The first and the last moment of a scene, in seconds.
    pub fn span(&self, scene: usize) -> (f64, f64) {
        let start: f64 = self.scenes.iter().take(scene).map(|scene| scene.seconds).sum();
        (start, start + self.scenes.get(scene).map_or(0.0, |scene| scene.seconds))
    }

    /// The length in seconds; 0 for a picture.
    pub fn seconds(&self) -> f64 {
        self.scenes.iter().map(|scene| scene.seconds).sum()
    }

    /// The scene on the screen at `seconds` and how much of it has passed, 0 to 1. Past the end, the end of the last
    /// scene.
    pub fn frame(&self, seconds: f64) -> (usize, f64) {
        let mut start = 0.0;
        for (index, scene) in self.scenes.iter().enumerate() {
            if seconds < start + scene.seconds {
                return (index, ((seconds - start) / scene.seconds).clamp(0.0, 1.0));
            }
            start += scene.seconds;
        }
        let last = self.scenes.len().saturating_sub(1);
        (last, if self.seconds() > 0.0 { 1.0 } else { 0.0 })
    }

    /// The number of frames that are seen at one a second: those at 0 s, 1 s, …; 1 for a picture.
    pub fn frames_at_one_a_second(&self) -> usize {
        (self.seconds().ceil() as usize).max(1)
    }

    /// The subtitles as a SubRip file; empty without subtitles.
    pub fn srt(&self) -> String {
        let mut text = String::new();
        for (index, subtitle) in self.subtitles.iter().enumerate() {
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{}\n{} --> {}\n{}\n",
                index + 1,
                timestamp(subtitle.start),
                timestamp(subtitle.end),
                subtitle.text
            );
        }
        text
    }
}

enum Speech {
    Fact(FactKind, &'static str),
    Cue(Cue),
    Filler,
}

/// The scene after `before`: `objects` objects that are not in `used`, one of them `star` if there is one.
fn next_scene(
    rng: &mut impl Rng,
    options: &WorldOptions,
    before: Option<&Scene>,
    star: Option<Pair>,
    objects: usize,
    used: &[Pair],
) -> Scene {
    let mut pairs: Vec<Pair> = star.into_iter().collect();
    if let Some(missing) = objects.checked_sub(pairs.len()) {
        let mut excluded = used.to_vec();
        excluded.extend(&pairs);
        let more = random_pairs(rng, options.never_trained_pairs, missing, &excluded);
        pairs.extend(more.into_iter().filter(|pair| Some(*pair) != star));
    }
    pairs.shuffle(rng);
    let draft = Draft { not_background: before.map(|scene| scene.background), pairs, moves: true };
    Scene::draw(rng, options, &draft)
}

/// A value of the range, drawn with the weights of the table; the range's own end if the table has none of it.
fn weighted(rng: &mut impl Rng, range: std::ops::RangeInclusive<usize>, table: &[(usize, u32)]) -> usize {
    let total: u32 = table.iter().filter(|(value, _)| range.contains(value)).map(|(_, weight)| weight).sum();
    if total == 0 {
        return (*range.end()).clamp(1, 6);
    }
    let mut left = rng.random_range(0..total);
    for (value, weight) in table.iter().filter(|(value, _)| range.contains(value)) {
        if left < *weight {
            return *value;
        }
        left -= weight;
    }
    (*range.end()).clamp(1, 6)
}

/// Puts the words in the places of "{}".
pub(crate) fn fill(template: &str, words: &[&str]) -> String {
    let mut words = words.iter();
    let mut parts = template.split("{}");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(words.next().copied().unwrap_or_default());
        text.push_str(part);
    }
    text
}

/// Every sentence of the subtitles with its places left open.
pub(crate) fn sentences() -> impl Iterator<Item = &'static str> {
    FILLERS.into_iter().chain(FACTS).chain(CUES)
}

/// "00:01:02,500".
fn timestamp(seconds: f64) -> String {
    let milliseconds = (seconds * 1000.0).round() as u64;
    let (seconds, milliseconds) = (milliseconds / 1000, milliseconds % 1000);
    format!("{:02}:{:02}:{:02},{milliseconds:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
