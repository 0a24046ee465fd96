//! A record as it stands in the file, of whatever types its fields are: only the fields that count, only as deep as
//! they go, and nothing that costs more memory than its text.

use std::borrow::Cow;
use std::fmt;

use llamavid_models::tokenizer::is_white_space;
use llamavid_weights::shown;
use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::error::{Fault, FaultCode};
use super::record::{Media, Message, Record, Speaker};

/// Most messages of a record. Published chats have a few hundred at most.
pub(super) const MAX_TURNS: usize = 1_000_000;

/// A value of the file.
#[derive(Debug)]
enum Node<'a> {
    Text(Cow<'a, str>),
    /// A whole number, as it is written.
    Whole(String),
    Null,
    /// Anything that is not read here, by what it is.
    Other(&'static str),
    List(Vec<Node<'a>>),
    /// A list of more messages than are read.
    TooMany,
    /// The known fields, in the file's order: of two with one name the last counts, as in Python.
    Object(Vec<(&'static str, Node<'a>)>),
}

impl<'a> Node<'a> {
    fn field(&self, name: &str) -> Option<&Node<'a>> {
        match self {
            Self::Object(fields) => fields.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| value),
            _ => None,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Whole(_) => "a number",
            Self::Null => "null",
            Self::Other(kind) => kind,
            Self::List(_) | Self::TooMany => "a list",
            Self::Object(_) => "an object",
        }
    }
}

/// What is read at a place of the file.
#[derive(Debug, Clone, Copy)]
enum Place {
    Element,
    Scalar,
    Turns,
    Turn,
}

impl Place {
    fn fields(self) -> &'static [(&'static str, Place)] {
        match self {
            Self::Element => &[
                ("id", Self::Scalar),
                ("image", Self::Scalar),
                ("video", Self::Scalar),
                ("conversations", Self::Turns),
            ],
            Self::Turn => &[("from", Self::Scalar), ("value", Self::Scalar)],
            Self::Scalar | Self::Turns => &[],
        }
    }
}

impl<'de> DeserializeSeed<'de> for Place {
    type Value = Node<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Node::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Node::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Node::Whole(number.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Node::Whole(number.to_string()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Node::Other("a number"))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Node::Other("true or false"))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Node::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        if !matches!(self, Self::Turns) {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Node::Other("a list"));
        }
        let mut turns = Vec::new();
        while let Some(turn) = list.next_element_seed(Self::Turn)? {
            if turns.len() == MAX_TURNS {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(Node::TooMany);
            }
            turns.push(turn);
        }
        Ok(Node::List(turns))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let known = self.fields();
        let mut fields = Vec::with_capacity(known.len());
        while let Some(Key(key)) = map.next_key()? {
            match known.iter().find(|(name, _)| *name == key) {
                Some((name, place)) => {
                    let value = map.next_value_seed(*place)?;
                    match fields.iter_mut().find(|(known, _)| known == name) {
                        Some(field) => field.1 = value,
                        None => fields.push((*name, value)),
                    }
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if known.is_empty() { Ok(Node::Other("an object")) } else { Ok(Node::Object(fields)) }
    }
}

/// A field's name, without a copy where it has no escapes.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// A record, read but not yet understood.
#[derive(Debug)]
pub(super) struct RawRecord<'a>(Node<'a>);

/// JSON that is not JSON, or JSON whose text cannot be read.
pub(super) enum Unreadable {
    /// The file is damaged here: bytes from the record's start, and what is wrong.
    NotJson(usize, String),
    /// Well-formed, and not text that can be tokenised: half a surrogate pair, bytes that are not UTF-8.
    NotText(String),
}

impl<'a> RawRecord<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let read = Place::Element.deserialize(&mut deserializer);
        match read.and_then(|node| deserializer.end().map(|()| node)) {
            Ok(node) => Ok(Self(node)),
            Err(error) => {
                let problem = without_place(&error);
                match serde_json::from_slice::<IgnoredAny>(bytes) {
                    Ok(_) => Err(Unreadable::NotText(problem)),
                    Err(error) => Err(Unreadable::NotJson(offset_of(bytes, &error), without_place(&error))),
                }
            }
        }
    }

    /// Words of all messages, as Python's `split()` counts them.
    pub(super) fn words(&self) -> usize {
        let Some(Node::List(turns)) = self.0.field("conversations") else { return 0 };
        let words = |turn: &Node<'_>| match turn.field("value") {
            Some(Node::Text(text)) => words(text),
            _ => 0,
        };
        turns.iter().map(words).sum()
    }

    /// Whether there is a picture or a video, of whatever type.
    pub(super) fn has_media(&self) -> bool {
        ["image", "video"].iter().any(|key| !matches!(self.0.field(key), None | Some(Node::Null)))
    }

    /// The id, if it is text or a whole number.
    pub(super) fn id(&self) -> Option<String> {
        match self.0.field("id") {
            Some(Node::Text(text)) => Some(text.to_string()),
            Some(Node::Whole(number)) => Some(number.clone()),
            _ => None,
        }
    }

    /// The record, if all its fields are what they should be.
    pub(super) fn understand(&self, index: usize) -> Result<Record, Fault> {
        if !matches!(self.0, Node::Object(_)) {
            let problem = format!("expected an object, found {}", self.0.kind());
            return Err(Fault::new(FaultCode::NotARecord, "", problem));
        }
        let media = match (self.path("image")?, self.path("video")?) {
            (Some(_), Some(_)) => {
                let problem = "the record has an image and a video, one of them is expected";
                return Err(Fault::new(FaultCode::TwoMedia, "video", problem));
            }
            (Some(path), None) => Media::Image(path),
            (None, Some(path)) => Media::video(path),
            (None, None) => Media::None,
        };
        let turns = match self.0.field("conversations") {
            Some(Node::List(turns)) => turns,
            Some(Node::TooMany) => {
                let problem = format!("more than {MAX_TURNS} messages");
                return Err(Fault::new(FaultCode::TooLarge, "conversations", problem));
            }
            Some(other) => {
                return Err(wrong_type("conversations", "a list of messages", other.kind()));
            }
            None => return Err(wrong_type("conversations", "a list of messages", "nothing")),
        };
        let turns =
            turns.iter().enumerate().map(|(turn, node)| message(turn, node)).collect::<Result<_, _>>()?;
        Ok(Record { id: self.id().unwrap_or_else(|| format!("#{index}")), media, turns })
    }

    fn path(&self, key: &'static str) -> Result<Option<String>, Fault> {
        match self.0.field(key) {
            None | Some(Node::Null) => Ok(None),
            Some(Node::Text(path)) => Ok(Some(path.to_string())),
            Some(other) => Err(wrong_type(key, "a path", other.kind())),
        }
    }
}

fn message(turn: usize, node: &Node<'_>) -> Result<Message, Fault> {
    if !matches!(node, Node::Object(_)) {
        return Err(wrong_type(&format!("conversations[{turn}]"), "a message", node.kind()));
    }
    let text = |key: &str| match node.field(key) {
        Some(Node::Text(text)) => Ok(text.as_ref()),
        found => {
            let found = found.map_or("nothing", Node::kind);
            Err(wrong_type(&format!("conversations[{turn}].{key}"), "text", found))
        }
    };
    let name = text("from")?;
    let from = Speaker::by_name(name).ok_or_else(|| {
        let problem = format!("expected `human` or `gpt`, found `{}`", shown(name));
        Fault::new(FaultCode::WrongSpeaker, format!("conversations[{turn}].from"), problem)
    })?;
    Ok(Message { from, value: text("value")?.to_owned() })
}

fn wrong_type(field: &str, expected: &str, found: &str) -> Fault {
    Fault::new(FaultCode::WrongType, field, format!("expected {expected}, found {found}"))
}

/// Most texts are ASCII, where a byte is a letter.
fn words(text: &str) -> usize {
    if !text.is_ascii() {
        return text.split(is_white_space).filter(|word| !word.is_empty()).count();
    }
    let mut in_space = true;
    let mut words = 0;
    for byte in text.bytes() {
        let space = matches!(byte, b'\t'..=b'\r' | 0x1c..=0x1f | b' ');
        words += usize::from(in_space & !space);
        in_space = space;
    }
    words
}

/// A JSON error without its line and column, which count from the record's start.
fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rfind(" at line ") {
        Some(end) => message.get(..end).unwrap_or(&message).to_owned(),
        None => message,
    }
}

fn offset_of(bytes: &[u8], error: &serde_json::Error) -> usize {
    let mut start = 0;
    for _ in 1..error.line() {
        let rest = bytes.get(start..).unwrap_or_default();
        match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => start += end + 1,
            None => break,
        }
    }
    start + error.column().saturating_sub(1)
}
