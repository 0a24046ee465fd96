//! How each type of question is put into words, and the words of the world.

use std::collections::BTreeSet;

use rand::Rng;

use crate::scene::pick;
use crate::video::{fill, sentences};
use crate::words::{Background, Cell, Colour, Cue, FactKind, Motion, Shape, Size, number, words};

/// Which phrasings questions use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Phrasing {
    /// Those that training uses.
    #[default]
    Trained,
    /// Those that training never uses: for measuring generalisation.
    Unseen,
    /// Each question one of the trained or, a third of the time, of the unseen: what the published sample has.
    Mixed,
}

words! {
    /// What is asked.
    QuestionType, 23:
    /// The colour of the only object of a shape.
    Colour = "colour",
    /// The shape of the only object of a colour.
    Shape = "shape",
    /// The position of a still object.
    Where = "where",
    /// The object at a position.
    At = "at",
    /// The size of an object that does not change it.
    Size = "size",
    /// The number of objects.
    Count = "count",
    /// The number of objects of a colour.
    CountColour = "countc",
    /// Whether an object is there.
    Exist = "exist",
    /// The background of the only scene.
    Background = "bg",
    /// The background of an object.
    BackgroundOf = "bgof",
    /// The background of the last scene.
    BackgroundEnd = "bgend",
    /// How an object moves.
    Motion = "motion",
    /// The object that moves in a direction.
    Mover = "mover",
    /// The only object of the first scene.
    First = "first",
    /// The only object of the last scene.
    Last = "last",
    /// The only object of the next scene.
    After = "after",
    /// The only object of the scene before.
    Before = "before",
    /// Whether one object comes before another.
    Order = "order",
    /// The number of scenes.
    Scenes = "scenes",
    /// The number of scenes in which an object is.
    Times = "times",
    /// Everything, scene by scene.
    Describe = "describe",
    /// The value of a fact that a subtitle states.
    Subtitle = "sub",
    /// The object on the screen while a cue is said.
    Said = "said",
}

impl QuestionType {
    /// The name of the type in files: "colour", "countc", "bgof", ….
    pub fn name(self) -> &'static str {
        self.word()
    }

    /// The templates that training uses or never uses: "{}" stands for the words of the subject.
    fn templates(self, is_unseen: bool) -> &'static [&'static str] {
        let (trained, unseen): (&[&str], &[&str]) = match self {
            Self::Colour => (
                &[
                    "what color is the {}?",
                    "which color does the {} have?",
                    "what is the color of the {}?",
                    "name the color of the {}.",
                    "the {} has which color?",
                    "what color do you see on the {}?",
                    "which color is the {}?",
                    "tell me which color the {} has.",
                ],
                &["tell me the color of the {}.", "the color of the {} is what?"],
            ),
            Self::Shape => (
                &[
                    "which shape is {}?",
                    "what shape is the {} object?",
                    "name the shape of the {} object.",
                    "what is the shape of the {} object?",
                    "the {} object is what shape?",
                    "which shape is the {} object?",
                    "tell me which shape is {}.",
                ],
                &["tell me the shape of the {} object.", "what shape does the {} object have?"],
            ),
            Self::Where => (
                &[
                    "where is the {}?",
                    "where do you see the {}?",
                    "what is the position of the {}?",
                    "name the position of the {}.",
                    "in which part of the picture is the {}?",
                    "in which position is the {}?",
                    "tell me where the {} is.",
                ],
                &["which position does the {} have?", "tell me the position of the {}."],
            ),
            Self::At => (
                &[
                    "what is in the {}?",
                    "which object is in the {}?",
                    "what do you see in the {}?",
                    "name the object in the {}.",
                    "what object do you see in the {}?",
                    "tell me which object is in the {}.",
                ],
                &["tell me what is in the {}.", "what is the object in the {}?"],
            ),
            Self::Size => (
                &[
                    "is the {} small or large?",
                    "what size is the {}?",
                    "what is the size of the {}?",
                    "name the size of the {}.",
                    "which size does the {} have?",
                    "tell me if the {} is small or large.",
                ],
                &["tell me the size of the {}.", "is the {} large or small?"],
            ),
            Self::Count => (
                &[
                    "how many objects are there?",
                    "how many objects do you see?",
                    "what is the number of objects?",
                    "count the objects.",
                    "name the number of objects.",
                    "tell me how many objects are there.",
                ],
                &["tell me the number of objects.", "how many objects are in the picture?"],
            ),
            Self::CountColour => (
                &[
                    "how many {} objects are there?",
                    "how many {} objects do you see?",
                    "what is the number of {} objects?",
                    "count the {} objects.",
                    "name the number of {} objects.",
                    "tell me how many {} objects there are.",
                ],
                &["tell me the number of {} objects.", "how many {} objects are in the picture?"],
            ),
            Self::Exist => (
                &[
                    "is there {}?",
                    "do you see {}?",
                    "can you see {}?",
                    "does {} appear?",
                    "is {} in the video?",
                    "is {} in the picture?",
                    "tell me if you see {}.",
                ],
                &["tell me if there is {}.", "does the video have {}?"],
            ),
            Self::Background => (
                &[
                    "where does it take place?",
                    "what is the background?",
                    "what is the place?",
                    "name the background.",
                    "is it day, night, desert or forest?",
                    "in which place is it?",
                    "tell me where it takes place.",
                ],
                &["which place is it?", "tell me the background."],
            ),
            Self::BackgroundOf => (
                &[
                    "in which place is the {}?",
                    "what is the background of the {}?",
                    "what is the background when the {} appears?",
                    "name the background of the {}.",
                    "in which place do you see the {}?",
                    "tell me the place of the {}.",
                ],
                &["tell me the background of the {}.", "which place is it when the {} appears?"],
            ),
            Self::BackgroundEnd => (
                &[
                    "what is the background at the end?",
                    "where does it take place at the end?",
                    "name the background at the end.",
                    "what is the last background?",
                    "in which place is it at the end?",
                    "tell me the last background.",
                ],
                &["tell me the background at the end.", "which place is it at the end?"],
            ),
            Self::Motion => (
                &[
                    "what does the {} do?",
                    "how does the {} move?",
                    "which way does the {} move?",
                    "what happens to the {}?",
                    "describe the motion of the {}.",
                    "name the motion of the {}.",
                    "tell me what the {} does.",
                    "tell me which way the {} moves.",
                    "what motion does the {} have?",
                    "what is the way in which the {} moves?",
                ],
                &["what is the motion of the {}?", "tell me how the {} moves."],
            ),
            Self::Mover => (
                &[
                    "which object {}?",
                    "what {}?",
                    "name the object that {}.",
                    "what is the object that {}?",
                    "which is the object that {}?",
                    "tell me the object that {}.",
                ],
                &["tell me which object {}.", "do you see which object {}?"],
            ),
            Self::First => (
                &[
                    "what appears first?",
                    "what do you see first?",
                    "which object appears first?",
                    "name the first object.",
                    "what is there at the beginning?",
                    "which object do you see first?",
                    "what do you see at the beginning?",
                    "tell me the first object.",
                ],
                &["what is the first object?", "tell me what appears first."],
            ),
            Self::Last => (
                &[
                    "what appears last?",
                    "what do you see last?",
                    "which object appears last?",
                    "name the last object.",
                    "what is there at the end?",
                    "which object do you see last?",
                    "what do you see at the end?",
                    "tell me the last object.",
                ],
                &["what is the last object?", "tell me what appears last."],
            ),
            Self::After => (
                &[
                    "what comes after the {}?",
                    "what appears after the {}?",
                    "what do you see after the {}?",
                    "which object comes after the {}?",
                    "name the object after the {}.",
                    "which object appears after the {}?",
                    "tell me the object after the {}.",
                ],
                &["tell me what comes after the {}.", "what is the object after the {}?"],
            ),
            Self::Before => (
                &[
                    "what comes before the {}?",
                    "what appears before the {}?",
                    "what do you see before the {}?",
                    "which object comes before the {}?",
                    "name the object before the {}.",
                    "which object appears before the {}?",
                    "tell me the object before the {}.",
                ],
                &["tell me what comes before the {}.", "what is the object before the {}?"],
            ),
            Self::Order => (
                &[
                    "does the {} appear before the {}?",
                    "does the {} come before the {}?",
                    "is the {} before the {}?",
                    "do you see the {} before the {}?",
                    "can you see the {} before the {}?",
                    "is it true that the {} comes before the {}?",
                    "tell me if the {} is before the {}.",
                ],
                &["is it true that the {} appears before the {}?", "tell me if the {} comes before the {}."],
            ),
            Self::Scenes => (
                &[
                    "how many scenes are there?",
                    "how many scenes do you see?",
                    "what is the number of scenes?",
                    "count the scenes.",
                    "name the number of scenes.",
                    "tell me how many scenes there are.",
                ],
                &["tell me the number of scenes.", "how many scenes are in the video?"],
            ),
            Self::Times => (
                &[
                    "how many times does the {} appear?",
                    "how often does the {} appear?",
                    "in how many scenes is the {}?",
                    "how many times do you see the {}?",
                    "how often is the {} in the video?",
                    "count how often the {} appears.",
                    "tell me how often you see the {}.",
                ],
                &["in how many scenes do you see the {}?", "tell me how many times the {} appears."],
            ),
            Self::Describe => (
                &[
                    "describe the video.",
                    "describe what you see.",
                    "what happens in the video?",
                    "what is in the video?",
                    "give a description of the video.",
                    "what happens?",
                    "what do you see?",
                    "describe the picture.",
                    "tell me what you see.",
                ],
                &["tell me what happens in the video.", "what do you see in the video?"],
            ),
            Self::Subtitle => (
                &[
                    "what is the {}?",
                    "name the {} from the subtitles.",
                    "what {} does the speaker name?",
                    "name the {}.",
                    "which {} does the speaker say?",
                    "what is the {} from the subtitles?",
                    "tell me which {} the speaker says.",
                ],
                &["tell me the {}.", "tell me the {} from the subtitles."],
            ),
            Self::Said => (
                &[
                    "what do you see when the speaker says {}?",
                    "which object appears when the speaker says {}?",
                    "what appears when the speaker says {}?",
                    "which object do you see when the speaker says {}?",
                    "name the object when the speaker says {}.",
                    "what is there when the speaker says {}?",
                    "tell me the object when the speaker says {}.",
                ],
                &[
                    "tell me what you see when the speaker says {}.",
                    "what is in the video when the speaker says {}?",
                ],
            ),
        };
        if is_unseen { unseen } else { trained }
    }

    /// Puts the question about `subject` into words. Says too whether training never uses these words.
    pub(crate) fn phrase(self, phrasing: Phrasing, subject: &[&str], rng: &mut impl Rng) -> (String, bool) {
        let is_unseen = match phrasing {
            Phrasing::Trained => false,
            Phrasing::Unseen => true,
            Phrasing::Mixed => rng.random_bool(1.0 / 3.0),
        };
        let question = fill(pick(rng, self.templates(is_unseen)), subject);
        (if is_unseen { question } else { introduced(question, rng) }, is_unseen)
    }
}

/// Puts "please", "in this video ," or "look at the video ." in front of some questions.
fn introduced(question: String, rng: &mut impl Rng) -> String {
    if !question.ends_with('?') && rng.random_bool(0.25) {
        return format!("{PLEASE} {question}");
    }
    match rng.random_range(0..8) {
        0 => format!("{IN_THIS_VIDEO} {question}"),
        1 => format!("{LOOK_AT_THE_VIDEO} {question}"),
        _ => question,
    }
}

const PLEASE: &str = "please";
const IN_THIS_VIDEO: &str = "in this video ,";
const LOOK_AT_THE_VIDEO: &str = "look at the video .";

/// Every word and punctuation mark that questions (trained or not), answers and subtitles use, sorted, each once.
/// Punctuation marks are entries of their own.
pub fn vocabulary() -> Vec<String> {
    let mut words = BTreeSet::new();
    let mut add = |text: &str| {
        for word in text.replace("{}", " ").split_whitespace() {
            let bare = word.trim_end_matches(['.', ',', '?', '!']);
            if !bare.is_empty() {
                words.insert(bare.to_owned());
            }
            words.extend(word[bare.len()..].chars().map(String::from));
        }
    };
    for kind in QuestionType::ALL {
        for is_unseen in [false, true] {
            kind.templates(is_unseen).iter().for_each(|template| add(template));
        }
    }
    sentences().for_each(&mut add);
    [PLEASE, IN_THIS_VIDEO, LOOK_AT_THE_VIDEO].into_iter().for_each(&mut add);
    ["yes", "no", "a", "an", "and", "in the", ", then"].into_iter().for_each(&mut add);
    (0..=8).map(number).for_each(&mut add);
    Background::ALL.into_iter().map(Background::word).for_each(&mut add);
    Colour::ALL.into_iter().map(Colour::word).for_each(&mut add);
    Shape::ALL.into_iter().map(Shape::word).for_each(&mut add);
    Size::ALL.into_iter().map(Size::word).for_each(&mut add);
    Motion::ALL.into_iter().map(Motion::word).for_each(&mut add);
    Cell::ALL.into_iter().map(Cell::word).for_each(&mut add);
    Cue::ALL.into_iter().map(Cue::word).for_each(&mut add);
    for fact in FactKind::ALL {
        add(fact.word());
        fact.values().into_iter().for_each(&mut add);
    }
    words.into_iter().collect()
}
