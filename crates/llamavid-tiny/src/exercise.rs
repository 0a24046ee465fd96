//! Questions about videos as rows for the language model: ids with placeholders, labels, and what each frame shows.

use llamavid_models::prompt::conversation::{ImageTag, Template, question_with_media};
use llamavid_models::prompt::movie::{movie_inputs, movie_question};
use llamavid_models::prompt::placeholders::{IMAGE_TOKEN, tokenize_with_images};
use llamavid_models::prompt::splice::SpliceKind;
use llamavid_models::prompt::subtitles::Subtitle;
use llamavid_models::tokenizer::LlamaTokenizer;
use llamavid_world::{MediaKind, Phrasing, Question, QuestionType, Subject, Video, questions};
use rand::Rng;
use rand::seq::SliceRandom;

use crate::Result;
use crate::sizes::TOKENS_PER_FRAME;
use crate::tokenizers::capitalised;

/// A frame of a video: which scene, and how far through it, from 0 to 1.
pub type Moment = (usize, f64);

/// Questions about one video, ready for the language model.
pub struct Exercise {
    /// Ids with a placeholder for each visual token.
    pub ids: Vec<i64>,
    /// The answers' ids and the ends of sequence where they stand in `ids`, -100 elsewhere.
    pub labels: Vec<i64>,
    /// What is asked, in order.
    pub asked: Vec<Asked>,
    /// The first question's text, as the query model reads it.
    pub text: String,
    /// The frames, in order.
    pub moments: Vec<Moment>,
}

impl Exercise {
    /// What the first question is about: what the frames' tokens are made for.
    pub fn subject(&self) -> Subject {
        self.asked.first().map_or(Subject::Whole, |asked| asked.subject)
    }
}

/// A question of a conversation.
pub struct Asked {
    /// What is asked.
    pub kind: QuestionType,
    /// What it is about.
    pub subject: Subject,
    /// Labels of its answer.
    pub labels: usize,
}

/// How much of each kind of video a course shows.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Shares of pictures, single scenes, videos with cuts and videos with subtitles.
    pub shares: [f64; 4],
    /// How much more often what hangs on several frames is asked about.
    pub relations: f64,
    /// How much more often it is asked where something is and how large.
    pub places: f64,
    /// Most questions of a conversation about a video without subtitles.
    pub turns: usize,
    /// Scenes of a video with subtitles, from and to.
    pub long: (usize, usize),
    /// Share of the videos with subtitles of which there is nothing else: text without pictures, as the published stages
    /// have too.
    pub text_alone: f64,
}

/// Most questions about a video with subtitles.
const QUESTIONS_OF_LONG: usize = 8;

impl Mix {
    /// One kind of video.
    pub fn pick(&self, rng: &mut impl Rng) -> MediaKind {
        let kinds = [MediaKind::Image, MediaKind::Clip, MediaKind::Multi, MediaKind::Long];
        pick(&self.shares, rng).map_or(MediaKind::Multi, |index| kinds[index])
    }
}

/// An index, drawn with these weights; none of no weights.
fn pick(weights: &[f64], rng: &mut impl Rng) -> Option<usize> {
    let mut at = rng.random_range(0.0..weights.iter().sum::<f64>().max(1e-9));
    for (index, weight) in weights.iter().enumerate() {
        if at < *weight {
            return Some(index);
        }
        at -= weight;
    }
    weights.len().checked_sub(1)
}

/// The moments that a sampler of one frame a second picks. `phases` says how long after each scene's start, in seconds
/// below 1, its first frame is.
pub fn moments(video: &Video, phases: impl Fn(usize) -> f64) -> Vec<Moment> {
    let mut moments = Vec::new();
    for (index, scene) in video.scenes.iter().enumerate() {
        let phase = phases(index);
        if scene.seconds <= 0. {
            moments.push((index, 0.));
        }
        let mut at = phase;
        while at < scene.seconds {
            moments.push((index, at / scene.seconds));
            at += 1.;
        }
    }
    moments
}

/// Questions about the video that training may ask, and the frames that are shown, of those in `moments`. Empty where
/// nothing can be asked.
pub fn conversation(
    video: &Video,
    kind: MediaKind,
    moments: Vec<Moment>,
    mix: Mix,
    rng: &mut impl Rng,
) -> (Vec<Question>, Vec<Moment>) {
    if kind != MediaKind::Long {
        return (choose(video, kind, mix, rng), moments);
    }
    let mut asked = questions(video, kind, Phrasing::Trained, rng);
    asked.shuffle(rng);
    let text_alone = rng.random_bool(mix.text_alone);
    asked.retain(|question| !text_alone || question.kind == QuestionType::Subtitle);
    // Many in one conversation: the frames' tokens do not depend on which of them is asked.
    asked.truncate(QUESTIONS_OF_LONG);
    (asked, if text_alone { Vec::new() } else { moments })
}

/// Questions about a video without subtitles: first the type of one is chosen, then one of that type, then others about
/// the same thing, to which the frames' tokens have the answers too.
pub fn choose(video: &Video, kind: MediaKind, mix: Mix, rng: &mut impl Rng) -> Vec<Question> {
    let mut all = questions(video, kind, Phrasing::Trained, rng);
    let weight = |kind: QuestionType| match kind {
        QuestionType::Describe | QuestionType::Times => 1.6 * mix.relations,
        QuestionType::Motion | QuestionType::Mover => 1.6,
        // Which of two came first has to be compared with which was named first: seldom possible, and slow to learn.
        QuestionType::Order => 3.5 * mix.relations,
        QuestionType::Exist => 1.4,
        QuestionType::Where => 1.4 * mix.places,
        QuestionType::Size => mix.places,
        QuestionType::CountColour => 2.,
        // Only pictures are asked this.
        QuestionType::At => 4.,
        QuestionType::After
        | QuestionType::Before
        | QuestionType::First
        | QuestionType::Last
        | QuestionType::BackgroundEnd
        | QuestionType::Scenes => mix.relations,
        _ => 1.,
    };
    let mut types: Vec<QuestionType> = all.iter().map(|question| question.kind).collect();
    types.sort_unstable();
    types.dedup();
    let weights: Vec<f64> = types.iter().map(|kind| weight(*kind)).collect();
    let Some(chosen) = pick(&weights, rng).map(|index| types[index]) else { return Vec::new() };
    let of_type: Vec<usize> = (0..all.len()).filter(|index| all[*index].kind == chosen).collect();
    let first = all.swap_remove(of_type[rng.random_range(0..of_type.len())]);
    let mut asked = vec![first];
    if mix.turns > 1 && rng.random_bool(0.7) {
        all.shuffle(rng);
        for question in all {
            let new = asked.iter().all(|other| other.kind != question.kind);
            if asked.len() < mix.turns && new && question.subject == asked[0].subject {
                asked.push(question);
            }
        }
        // No answer may be read from the one before: any other says that the object is there, and a description all.
        asked.sort_by_key(|question| match question.kind {
            QuestionType::Exist => 0,
            QuestionType::Describe => 2,
            _ => 1,
        });
    }
    asked
}

/// As people type: now and then with a capital, without the mark at the end.
fn typed(text: &str, rng: &mut impl Rng) -> String {
    let text = if rng.random_bool(0.25) { capitalised(text) } else { text.to_owned() };
    if rng.random_bool(0.08) { text.trim_end_matches(['?', '.']).trim_end().to_owned() } else { text }
}

/// Puts questions about a video, or about its subtitles alone where there are no moments, into a conversation. `system` is how often the conversation begins with the system's
/// sentences, which are most of a short one.
pub fn exercise(
    video: &Video,
    kind: MediaKind,
    questions: &[Question],
    moments: Vec<Moment>,
    tokenizer: &LlamaTokenizer,
    system: f64,
    rng: &mut impl Rng,
) -> Result<Exercise> {
    let texts: Vec<String> = questions.iter().map(|question| typed(&question.text, rng)).collect();
    let mut template =
        Template::by_name(if rng.random_bool(0.8) { "vicuna_v1" } else { "llava_v1" })?.clone();
    if !rng.random_bool(system) {
        template.system = "".into();
    }
    let first = texts.first().map_or("", String::as_str);
    let (user, splice) = if kind == MediaKind::Long {
        let times: Vec<f64> = (0..moments.len()).map(|second| second as f64).collect();
        let subtitles: Vec<Subtitle> = video
            .subtitles
            .iter()
            .map(|said| Subtitle { start_time: said.start, end_time: said.end, text: said.text.clone() })
            .collect();
        let inputs = if times.is_empty() {
            subtitles.iter().map(|subtitle| subtitle.text.as_str()).collect::<Vec<_>>().join(" ")
        } else {
            movie_inputs(&subtitles, &times)?
        };
        // The published training shows a movie without the words around it; its inference puts them there.
        let user = if rng.random_bool(0.7) {
            movie_question(&inputs, first, TOKENS_PER_FRAME, ImageTag::Bare)
        } else {
            format!("{}\n{first}", inputs.replace("<image>", &"<image>".repeat(TOKENS_PER_FRAME)))
        };
        (user, SpliceKind::PerToken)
    } else {
        (question_with_media(first, ImageTag::Bare), SpliceKind::PerPlaceholder)
    };
    let places = moments.len() * TOKENS_PER_FRAME;
    let (mut ids, mut labels, mut asked) = (Vec::new(), Vec::new(), Vec::new());
    let mut turns: Vec<(String, Option<String>)> = Vec::with_capacity(questions.len());
    for (index, question) in questions.iter().enumerate() {
        turns.push((if index == 0 { user.clone() } else { texts[index].clone() }, None));
        let prompt = tokenize_with_images(tokenizer, &template.render(&turns)?);
        // The turns before are its beginning, placeholders not yet repeated.
        let before = turns.len() - 1;
        let known = if before == 0 { 0 } else { answered(tokenizer, &template, &turns[..before])? };
        for id in &prompt[known..] {
            let copies = if *id == IMAGE_TOKEN && splice == SpliceKind::PerPlaceholder { places } else { 1 };
            ids.extend(std::iter::repeat_n(*id, copies));
        }
        labels.resize(ids.len(), -100);
        let answer = tokenizer.encode(&question.answer, false).into_iter().chain([tokenizer.eos_id()]);
        let answer: Vec<i64> = answer.map(i64::from).collect();
        asked.push(Asked { kind: question.kind, subject: question.subject, labels: answer.len() });
        ids.extend(&answer);
        labels.extend(&answer);
        if let Some(turn) = turns.last_mut() {
            turn.1 = Some(question.answer.clone());
        }
    }
    let text = texts.into_iter().next().unwrap_or_default();
    Ok(Exercise { ids, labels, asked, text, moments })
}

/// Ids of turns with their answers.
fn answered(
    tokenizer: &LlamaTokenizer,
    template: &Template,
    turns: &[(String, Option<String>)],
) -> Result<usize> {
    Ok(tokenize_with_images(tokenizer, &template.render(turns)?).len())
}
