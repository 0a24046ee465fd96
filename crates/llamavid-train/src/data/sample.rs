//! From a record to a sample: the text, its ids, what is learned of it, and what the query model is asked.
//!
//! Reference: `preprocess_multimodal`, `preprocess_multimodal_movie`, `preprocess_*` of `train.py`.

use llamavid_models::prompt::conversation::{MediaPlacement, SeparatorStyle, Template, Turn};
use llamavid_models::prompt::placeholders::{
    IMAGE_END, IMAGE_START, IMAGE_TAG, IMAGE_TOKEN, tokenize_with_images,
};
use llamavid_models::prompt::splice::SpliceKind;
use llamavid_models::tokenizer::{LlamaTokenizer, strip};

use super::error::{Error, Fault, FaultCode, Result};
use super::labels::{self, IGNORED};
use super::record::{Media, Message, Record, Speaker};
use super::training_template::{Guidance, TrainingTemplate};

/// One record, tokenised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The record's id.
    pub id: String,
    /// Ids, with [`IMAGE_TOKEN`] for each place of visual tokens.
    pub ids: Vec<i64>,
    /// What is to be learned at each id; [`IGNORED`] where nothing is.
    pub labels: Vec<i64>,
    /// The questions for the query model, one for each place of visual tokens and perhaps more: questions of a record
    /// without a picture, and those whose place was cut off, are not used. Empty for templates without guidance.
    pub prompts: Vec<String>,
    /// What a placeholder stands for.
    pub splice: SpliceKind,
}

impl Sample {
    /// Places for visual tokens.
    pub fn placeholders(&self) -> usize {
        self.ids.iter().filter(|id| **id == IMAGE_TOKEN).count()
    }

    /// Ids that are learned, before the shift by one.
    pub fn learned(&self) -> usize {
        self.labels.iter().filter(|label| **label != IGNORED).count()
    }
}

/// How samples are made, besides their template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleOptions {
    /// Most ids of a sample, placeholders counted once each.
    pub max_length: usize,
    /// Whether `<im_start>` and `<im_end>` stand around a tag (`mm_use_im_start_end`).
    pub image_start_end: bool,
}

/// A long video as its feature file describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Movie<'a> {
    /// One `<image>` a frame, subtitles between them.
    pub inputs: &'a str,
    /// Frames of the features.
    pub frames: usize,
    /// Visual tokens of a frame, the context token included (`--video_token`).
    pub tokens_per_frame: usize,
}

/// The sample of a record: text, a picture, or a short video.
///
/// `coin` decides where a later question of a chat gets its tag: false in front, true behind.
///
/// # Errors
/// A conversation that is empty or does not take turns, tags that do not match, or features, which
/// [`movie_sample`] takes.
pub fn sample(
    record: &Record,
    template: &TrainingTemplate,
    tokenizer: &LlamaTokenizer,
    options: &SampleOptions,
    coin: &mut dyn FnMut() -> bool,
) -> Result<Sample> {
    prepare(record, None, template, tokenizer, options, coin).map(|prepared| prepared.sample)
}

/// The sample of a record about a long video. Only the question with the tag guides; later questions of the
/// conversation get no tag, because each would stand for the whole video once more.
///
/// # Errors
/// As [`sample`], and tags in `inputs` that are not one a frame, other than one tag in the conversation, a template
/// without a place for movies, or a maximum length that cuts frames off.
pub fn movie_sample(
    record: &Record,
    movie: &Movie<'_>,
    template: &TrainingTemplate,
    tokenizer: &LlamaTokenizer,
    options: &SampleOptions,
) -> Result<Sample> {
    prepare(record, Some(movie), template, tokenizer, options, &mut || false).map(|prepared| prepared.sample)
}

/// A sample and what was done to it.
pub(super) struct Prepared {
    pub(super) sample: Sample,
    /// Ids before the cut.
    pub(super) uncut: usize,
    /// Ids that the rounds account for and ids that there are, where these differ and all labels are masked.
    pub(super) mismatch: Option<(usize, usize)>,
}

/// Makes the sample of a record. `coin` is for chats, see [`sample`].
pub(super) fn prepare(
    record: &Record,
    movie: Option<&Movie<'_>>,
    template: &TrainingTemplate,
    tokenizer: &LlamaTokenizer,
    options: &SampleOptions,
    coin: &mut dyn FnMut() -> bool,
) -> Result<Prepared> {
    let maker = Maker { record, training: template, template: &template.template, tokenizer, options };
    let made = match (&record.media, movie) {
        (Media::Features(path), None) => Err(Fault::new(
            FaultCode::UnreadableFeatures,
            "video",
            format!("the features of `{path}` are needed for the sample"),
        )),
        (Media::Features(_), Some(movie)) => maker.movie(movie),
        (_, Some(_)) => {
            Err(Fault::new(FaultCode::UnreadableFeatures, "video", "the record is not about features"))
        }
        (Media::None, None) => maker.conversation(record.turns.clone(), Pieces::Text, coin),
        (Media::Image(_) | Media::Video(_), None) => {
            let messages = with_tags_in_front(&record.turns, maker.template, options.image_start_end);
            maker.conversation(messages, Pieces::AroundImages, coin)
        }
    };
    made.map_err(|fault| Error::Sample { id: record.id.clone(), fault })
}

/// How a text becomes ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pieces {
    /// As any text; a tag in it is text too.
    Text,
    /// Piece by piece between tags.
    AroundImages,
}

impl Pieces {
    fn ids(self, tokenizer: &LlamaTokenizer, text: &str) -> Vec<i64> {
        match self {
            Self::Text => tokenizer.encode(text, true).into_iter().map(i64::from).collect(),
            Self::AroundImages => tokenize_with_images(tokenizer, text),
        }
    }

    /// The byte of `text` at which each of these ids begins, where the tokenizer can say it.
    fn starts(self, tokenizer: &LlamaTokenizer, text: &str) -> Option<Vec<usize>> {
        let mut starts: Vec<usize> = tokenizer.bos_id().map(|_bos| 0).into_iter().collect();
        let mut piece_start = 0;
        loop {
            let rest = &text[piece_start..];
            let tag = rest.find(IMAGE_TAG).filter(|_| self == Self::AroundImages);
            let piece = &rest[..tag.unwrap_or(rest.len())];
            starts.extend(tokenizer.starts(piece)?.into_iter().map(|start| piece_start + start));
            let Some(tag) = tag else { return Some(starts) };
            starts.push(piece_start + tag);
            piece_start += tag + IMAGE_TAG.len();
        }
    }
}

/// Moves the tag of each message to a line in front of it.
fn with_tags_in_front(turns: &[Message], template: &Template, start_end: bool) -> Vec<Message> {
    let tag = match template.media {
        MediaPlacement::OwnLine => IMAGE_TAG.to_owned(),
        MediaPlacement::OwnTurn => format!("<Image>{IMAGE_TAG}</Image>"),
    };
    let tag =
        if start_end { tag.replace(IMAGE_TAG, &format!("{IMAGE_START}{IMAGE_TAG}{IMAGE_END}")) } else { tag };
    let moved = turns.iter().map(|message| {
        if !message.value.contains(IMAGE_TAG) {
            return message.clone();
        }
        let bare = message.value.replace(IMAGE_TAG, "");
        let value = match strip(&bare) {
            "" => tag.clone(),
            text => format!("{tag}\n{text}"),
        };
        Message { from: message.from, value }
    });
    moved.collect()
}

/// What samples of a record are made with.
#[derive(Clone, Copy)]
struct Maker<'a> {
    record: &'a Record,
    training: &'a TrainingTemplate,
    /// That of the conversation.
    template: &'a Template,
    tokenizer: &'a LlamaTokenizer,
    options: &'a SampleOptions,
}

impl Maker<'_> {
    /// About a long video.
    fn movie(&self, movie: &Movie<'_>) -> Result<Prepared, Fault> {
        let Self { record, training, template, options, .. } = *self;
        if training.guidance != Guidance::Questions || template.style != SeparatorStyle::Two {
            let problem =
                format!("template `{}` has no place for a movie, use a chat with guidance", template.name);
            return Err(Fault::new(FaultCode::Template, "video", problem));
        }
        let tags = movie.inputs.matches(IMAGE_TAG).count();
        if tags != movie.frames {
            let problem = format!("`inputs` has {tags} tags `{IMAGE_TAG}` for {} frames", movie.frames);
            return Err(Fault::new(FaultCode::UnreadableFeatures, "video", problem));
        }
        let mut tagged = record
            .turns
            .iter()
            .enumerate()
            .flat_map(|(index, turn)| turn.value.matches(IMAGE_TAG).map(move |_| (index, turn)));
        let (Some((index, question)), None) = (tagged.next(), tagged.next()) else {
            let count: usize = record.turns.iter().map(|turn| turn.value.matches(IMAGE_TAG).count()).sum();
            let problem =
                format!("a conversation about a movie has one tag `{IMAGE_TAG}`, this one has {count}");
            return Err(Fault::new(FaultCode::TagMismatch, "conversations", problem));
        };
        if question.from != Speaker::Human {
            let field = format!("conversations[{index}].value");
            return Err(Fault::new(FaultCode::TagMismatch, field, "the tag stands in an answer"));
        }
        let guide = question.value.replace(IMAGE_TAG, "");
        let guide = strip(&guide).to_owned();
        // The reference takes the dots out of subtitles, here and nowhere else.
        let inputs =
            movie.inputs.replace("...", "").replace(IMAGE_TAG, &IMAGE_TAG.repeat(movie.tokens_per_frame));
        let inputs =
            if options.image_start_end { format!("{IMAGE_START}{inputs}{IMAGE_END}") } else { inputs };
        let messages = record
            .turns
            .iter()
            .map(|message| Message { from: message.from, value: message.value.replace(IMAGE_TAG, &inputs) });
        let messages = alternating(messages.collect())?;
        let mut prepared = self.chat(&messages, Pieces::AroundImages)?;
        prepared.sample.prompts = vec![guide];
        prepared.sample.splice = SpliceKind::PerToken;
        let (places, wanted) = (prepared.sample.placeholders(), movie.frames * movie.tokens_per_frame);
        if places != wanted {
            let problem = format!(
                "the sample has {} ids, and of its {wanted} visual tokens only {places} fit into {}",
                prepared.uncut, options.max_length
            );
            return Err(Fault::new(FaultCode::Cut, "video", problem));
        }
        Ok(prepared)
    }

    /// About anything else.
    fn conversation(
        &self,
        messages: Vec<Message>,
        pieces: Pieces,
        coin: &mut dyn FnMut() -> bool,
    ) -> Result<Prepared, Fault> {
        let guided = self.training.guidance == Guidance::Questions;
        let mut prompts = Vec::new();
        let mut prepared = match self.template.style {
            SeparatorStyle::Plain => {
                let (question, answer) = pair(&messages, pieces)?;
                prompts.push(guide(question));
                self.plain(answer)
            }
            SeparatorStyle::Single => self.signals(&messages, pieces),
            _ => {
                let mut messages = alternating(messages)?;
                if guided {
                    let questions = messages.iter().filter(|message| message.from == Speaker::Human);
                    prompts.extend(questions.map(|message| guide(&message.value)));
                    tag_later_questions(&mut messages, coin);
                }
                self.chat(&messages, pieces)?
            }
        };
        let places = prepared.sample.placeholders();
        if guided {
            if places > prompts.len() {
                let problem = format!(
                    "{places} tags `{IMAGE_TAG}` and {} questions: an answer must not have one",
                    prompts.len()
                );
                return Err(Fault::new(FaultCode::TagMismatch, "conversations", problem));
            }
            prepared.sample.prompts = prompts;
        }
        Ok(prepared)
    }

    /// The tag, the answer and a newline; all but the tag is learned.
    fn plain(&self, answer: &str) -> Prepared {
        let text = format!("{IMAGE_TAG}{answer}{}", self.template.separator);
        let ids = tokenize_with_images(self.tokenizer, &text);
        let question = tokenize_with_images(self.tokenizer, IMAGE_TAG).len();
        let labels = labels::behind(&ids, question);
        self.cut(ids, labels, None)
    }

    /// Rounds of question and answer.
    fn chat(&self, messages: &[Message], pieces: Pieces) -> Result<Prepared, Fault> {
        let Self { template, tokenizer, options, .. } = *self;
        let text = rendered(template, messages)?;
        let mut ids = pieces.ids(tokenizer, &text);
        let uncut = ids.len();
        if pieces == Pieces::Text {
            // Text alone is cut before its labels are made, which matters to the mismatch test.
            ids.truncate(options.max_length);
        }
        let rounds = labels::Rounds {
            separator: template.second_separator.as_deref().unwrap_or_default(),
            answer_mark: &match template.style {
                SeparatorStyle::Llama2 => "[/INST] ".to_owned(),
                _ => format!("{}{}: ", template.separator, template.roles[1]),
            },
            pad_id: i64::from(tokenizer.pad_id()),
            max_length: options.max_length,
        };
        let (labels, mismatch) = match pieces.starts(tokenizer, &text) {
            Some(starts) => (rounds.labels_at(&text, &ids, &starts), None),
            None => rounds.labels(&text, &ids, |text| pieces.ids(tokenizer, text).len()),
        };
        let mut prepared = self.cut(ids, labels, mismatch);
        prepared.uncut = uncut;
        Ok(prepared)
    }

    /// Messages between signs (`### Human: …`), each tokenised by itself to find where it starts.
    fn signals(&self, messages: &[Message], pieces: Pieces) -> Prepared {
        let Self { template, tokenizer, options, .. } = *self;
        let sign = format!("{} ", template.separator);
        let header = format!("{}\n\n", template.system);
        let parts: Vec<(Speaker, String)> = messages
            .iter()
            .map(|message| {
                let role = match message.from {
                    Speaker::Human => &template.roles[0],
                    Speaker::Gpt => &template.roles[1],
                };
                (message.from, format!("{sign}{role}: {}\n", message.value))
            })
            .collect();
        let text: String = [header.as_str()]
            .into_iter()
            .chain(parts.iter().map(|(_, part)| part.as_str()))
            .chain([sign.as_str()])
            .collect();
        let pad = i64::from(tokenizer.pad_id());
        let length = |text: &str| {
            let ids = pieces.ids(tokenizer, text);
            match pieces {
                Pieces::Text => ids.iter().take(options.max_length).filter(|id| **id != pad).count(),
                Pieces::AroundImages => ids.len(),
            }
        };
        let mut ids = pieces.ids(tokenizer, &text);
        let uncut = ids.len();
        if pieces == Pieces::Text {
            ids.truncate(options.max_length);
        }
        let spans = parts.iter().map(|(speaker, part)| (*speaker == Speaker::Human, length(part)));
        let labels = labels::between_signs(&ids, length(&header), spans);
        let mut prepared = self.cut(ids, labels, None);
        prepared.uncut = uncut;
        prepared
    }

    /// The sample of ids and labels, cut to the most that there may be.
    fn cut(&self, mut ids: Vec<i64>, mut labels: Vec<i64>, mismatch: Option<(usize, usize)>) -> Prepared {
        let uncut = ids.len();
        ids.truncate(self.options.max_length);
        labels.truncate(self.options.max_length);
        let sample = Sample {
            id: self.record.id.clone(),
            ids,
            labels,
            prompts: Vec::new(),
            splice: SpliceKind::PerPlaceholder,
        };
        Prepared { sample, uncut, mismatch }
    }
}

/// A question as the query model gets it in training: without its tag and without newlines, so that words on two
/// lines stick together. `<im_start>` and `<im_end>` stay. Both are habits of the reference that weights depend on.
fn guide(question: &str) -> String {
    question.replace(IMAGE_TAG, "").replace('\n', "")
}

/// The messages from the first question on, which must take turns.
fn alternating(mut messages: Vec<Message>) -> Result<Vec<Message>, Fault> {
    let mut skipped = 0;
    if messages.first().is_some_and(|message| message.from == Speaker::Gpt) {
        messages.remove(0);
        skipped = 1;
    }
    if messages.is_empty() {
        return Err(empty(skipped));
    }
    for (index, message) in messages.iter().enumerate() {
        let expected = if index % 2 == 0 { Speaker::Human } else { Speaker::Gpt };
        if message.from != expected {
            return Err(Fault::new(
                FaultCode::WrongOrder,
                format!("conversations[{}].from", index + skipped),
                format!("expected `{}`, found `{}`", expected.name(), message.from.name()),
            ));
        }
    }
    Ok(messages)
}

fn empty(skipped: usize) -> Fault {
    let problem = match skipped {
        0 => "there are no messages",
        _ => "there is nothing but a greeting",
    };
    Fault::new(FaultCode::EmptyConversation, "conversations", problem)
}

/// A question behind one with a tag, and without a tag of its own, gets one. These tags never stand between
/// `<im_start>` and `<im_end>`.
fn tag_later_questions(messages: &mut [Message], coin: &mut dyn FnMut() -> bool) {
    let mut seen = false;
    for message in messages {
        let tagged = message.value.contains(IMAGE_TAG);
        if seen && !tagged && message.from == Speaker::Human {
            message.value = tagged_by_coin(&message.value, coin());
        }
        seen |= tagged;
    }
}

/// A question with a tag on a line in front, or behind.
pub(super) fn tagged_by_coin(question: &str, behind: bool) -> String {
    if behind { format!("{question}\n{IMAGE_TAG}") } else { format!("{IMAGE_TAG}\n{question}") }
}

/// The question, which must have a tag, and the answer of a plain pair.
fn pair(messages: &[Message], pieces: Pieces) -> Result<(&str, &str), Fault> {
    if messages.is_empty() {
        return Err(empty(0));
    }
    let [question, answer] = messages else {
        let problem = format!("a plain pair has two messages, this one has {}", messages.len());
        return Err(Fault::new(FaultCode::WrongOrder, "conversations", problem));
    };
    for (index, (message, expected)) in
        [(question, Speaker::Human), (answer, Speaker::Gpt)].iter().enumerate()
    {
        if message.from != *expected {
            let problem = format!("expected `{}`, found `{}`", expected.name(), message.from.name());
            return Err(Fault::new(FaultCode::WrongOrder, format!("conversations[{index}].from"), problem));
        }
    }
    if pieces == Pieces::Text {
        let problem = "a plain pair needs a picture or a video, the record has none";
        return Err(Fault::new(FaultCode::Template, "", problem));
    }
    if !question.value.contains(IMAGE_TAG) {
        let problem = format!("a plain pair needs a tag `{IMAGE_TAG}` in its question");
        return Err(Fault::new(FaultCode::TagMismatch, "conversations[0].value", problem));
    }
    Ok((&question.value, &answer.value))
}

fn rendered(template: &Template, messages: &[Message]) -> Result<String, Fault> {
    let turns: Vec<Turn> = messages
        .chunks(2)
        .map(|turn| {
            let said = |index: usize| turn.get(index).map(|message: &Message| message.value.clone());
            (said(0).unwrap_or_default(), said(1))
        })
        .collect();
    let mut text = template
        .render(&turns)
        .map_err(|error| Fault::new(FaultCode::Template, "conversations", error.to_string()))?;
    if messages.len() % 2 == 1 && template.style == SeparatorStyle::Two {
        // Rendering leaves a last question open for an answer; in training there is none to come.
        let open = format!("{}:", template.roles[1]);
        if text.ends_with(&open) {
            text.truncate(text.len() - open.len());
        }
    }
    Ok(text)
}
