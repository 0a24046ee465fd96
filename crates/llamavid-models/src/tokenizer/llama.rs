//! The language model's tokenizer: SentencePiece pieces or byte pairs, special tokens and tokens added in training.
//!
//! Reference for pieces: `LlamaTokenizer` of transformers 4.31 (the "slow" one), whose treatment of text next to
//! special tokens the results depend on. Files: `tokenizer.model`, `tokenizer_config.json`,
//! `added_tokens.json`, `special_tokens_map.json`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::byte_pairs::{self, BytePairs};
use super::sentence_piece::{PieceDecoder, SPACE_MARK, SentencePiece};
use super::special_tokens::{Part, WholeToken, WholeTokens};
use super::stream::StreamDecoder;
use crate::{Error, Result};

const SPECIAL_TOKEN_KEYS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Text to ids and back. Clones share the vocabulary.
#[derive(Debug, Clone)]
pub struct LlamaTokenizer {
    kind: Kind,
}

/// How texts are cut.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// `tokenizer.model`.
    Pieces(Arc<Vocabulary>),
    /// `tokenizer.json`.
    BytePairs(Arc<BytePairs>),
}

#[derive(Debug)]
pub(super) struct Vocabulary {
    pieces: SentencePiece,
    /// Tokens behind the pieces, in order of their ids.
    added: Vec<String>,
    added_ids: HashMap<String, u32>,
    /// Ids that decoding can leave out.
    special_ids: HashSet<u32>,
    whole: WholeTokens,
    /// Whether text behind a special token gets a space in front like any other.
    legacy: bool,
    bos: u32,
    eos: u32,
    unk: u32,
    pad: u32,
}

/// What a decoder does with an id.
pub(super) enum IdRole<'a> {
    Special,
    Added(&'a str),
    Piece,
}

impl LlamaTokenizer {
    /// Reads the tokenizer's files; the first is `tokenizer.model` or, of byte pairs, `tokenizer.json`. Without a
    /// configuration the library's defaults hold (`legacy` on); without a padding token the unknown one pads, as the
    /// reference sets it, and of byte pairs the one that ends a text.
    pub fn from_bytes(
        tokenizer_model: &[u8],
        tokenizer_config_json: Option<&[u8]>,
        added_tokens_json: Option<&[u8]>,
        special_tokens_map: Option<&[u8]>,
    ) -> Result<Self> {
        let config = read_object("tokenizer_config.json", tokenizer_config_json)?;
        let added_tokens = read_object("added_tokens.json", added_tokens_json)?;
        let map = read_object("special_tokens_map.json", special_tokens_map)?;
        if tokenizer_model.starts_with(b"{") {
            let pairs = BytePairs::new(tokenizer_model, &config, &added_tokens, &map)?;
            return Ok(Self { kind: Kind::BytePairs(Arc::new(pairs)) });
        }
        let vocabulary = Vocabulary::new(tokenizer_model, &config, &added_tokens, &map)?;
        Ok(Self { kind: Kind::Pieces(Arc::new(vocabulary)) })
    }

    /// The byte of `text` at which each of its ids begins, the id of the beginning not among them; none of pieces, which put
    /// spaces of their own into a text.
    pub fn starts(&self, text: &str) -> Option<Vec<usize>> {
        match &self.kind {
            Kind::Pieces(_) => None,
            Kind::BytePairs(pairs) => Some(pairs.starts(text)),
        }
    }

    /// Ids of `text`, behind the id of the beginning if `add_bos`.
    pub fn encode(&self, text: &str, add_bos: bool) -> Vec<u32> {
        let vocabulary = match &self.kind {
            Kind::Pieces(vocabulary) => vocabulary,
            Kind::BytePairs(pairs) => {
                let mut ids: Vec<u32> = pairs.bos().filter(|_| add_bos).into_iter().collect();
                pairs.encode(text, &mut ids);
                return ids;
            }
        };
        // Without legacy the mark says that a part is the text's start, so the text itself must not hold it.
        let text = if vocabulary.legacy {
            Cow::Borrowed(text)
        } else {
            Cow::Owned(format!("{SPACE_MARK}{}", text.replace(SPACE_MARK, " ")))
        };
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if add_bos {
            ids.push(vocabulary.bos);
        }
        for part in vocabulary.whole.split(&text) {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(text) if vocabulary.legacy => vocabulary.pieces.encode(text, &mut ids),
                Part::Text(text) => match text.strip_prefix(SPACE_MARK) {
                    Some(start) => vocabulary.pieces.encode(start, &mut ids),
                    None if text.starts_with(' ') => vocabulary.pieces.encode(text, &mut ids),
                    None => vocabulary.pieces.encode_continuation(text, &mut ids),
                },
            }
        }
        ids
    }

    /// Text of `ids`, with special tokens written out or left out. An id without a token shows as U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        if skip_special {
            let mut stream = self.stream();
            let mut text: String = ids.iter().map(|id| stream.push(*id)).collect();
            text.push_str(&stream.finish());
            return text;
        }
        let vocabulary = match &self.kind {
            Kind::Pieces(vocabulary) => vocabulary,
            Kind::BytePairs(pairs) => {
                let (mut text, mut pending) = (String::new(), Vec::new());
                ids.iter().for_each(|id| pairs.decode(*id, false, &mut pending, &mut text));
                byte_pairs::finish(&mut pending, &mut text);
                return text;
            }
        };
        let mut parts: Vec<String> = Vec::new();
        let mut run: Vec<u32> = Vec::new();
        for id in ids {
            match vocabulary.role(*id) {
                IdRole::Added(token) => {
                    if !run.is_empty() {
                        parts.push(vocabulary.decode_run(&run));
                        run.clear();
                    }
                    parts.push(token.to_owned());
                }
                IdRole::Special | IdRole::Piece => run.push(*id),
            }
        }
        if !run.is_empty() {
            parts.push(vocabulary.decode_run(&run));
        }
        parts.join(" ")
    }

    /// Decodes ids one by one, special tokens left out.
    pub fn stream(&self) -> StreamDecoder {
        StreamDecoder::new(self.clone())
    }

    /// The id of a token, written as in the vocabulary (in pieces `▁` for a space, in byte pairs `Ġ`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        match &self.kind {
            Kind::Pieces(vocabulary) => vocabulary.id(token),
            Kind::BytePairs(pairs) => pairs.id(token),
        }
    }

    /// The token of an id, written as in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<&str> {
        match &self.kind {
            Kind::Pieces(vocabulary) => vocabulary.text(id),
            Kind::BytePairs(pairs) => pairs.text(id),
        }
    }

    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        match &self.kind {
            Kind::Pieces(vocabulary) => vocabulary.pieces.len() + vocabulary.added.len(),
            Kind::BytePairs(pairs) => pairs.len(),
        }
    }

    /// The id that starts a text; none where texts start as they are, as Qwen2's do.
    pub fn bos_id(&self) -> Option<u32> {
        match &self.kind {
            Kind::Pieces(vocabulary) => Some(vocabulary.bos),
            Kind::BytePairs(pairs) => pairs.bos(),
        }
    }

    /// The id that ends an answer.
    pub fn eos_id(&self) -> u32 {
        match &self.kind {
            Kind::Pieces(vocabulary) => vocabulary.eos,
            Kind::BytePairs(pairs) => pairs.eos(),
        }
    }

    /// The id of what the vocabulary cannot say; none where it can say everything.
    pub fn unk_id(&self) -> Option<u32> {
        match &self.kind {
            Kind::Pieces(vocabulary) => Some(vocabulary.unk),
            Kind::BytePairs(_) => None,
        }
    }

    /// The id that fills rows of a batch.
    pub fn pad_id(&self) -> u32 {
        match &self.kind {
            Kind::Pieces(vocabulary) => vocabulary.pad,
            Kind::BytePairs(pairs) => pairs.pad(),
        }
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.kind
    }
}

impl Vocabulary {
    /// Reads `tokenizer.model` and the objects of the files beside it.
    fn new(
        tokenizer_model: &[u8],
        config: &Map<String, Value>,
        added_tokens: &Map<String, Value>,
        map: &Map<String, Value>,
    ) -> Result<Self> {
        let pieces = SentencePiece::from_bytes(tokenizer_model)?;
        for (key, wanted) in
            [("add_bos_token", true), ("add_eos_token", false), ("clean_up_tokenization_spaces", false)]
        {
            if read_flag(config, key, wanted)? != wanted {
                return Err(Error::Tokenizer(format!(
                    "tokenizer_config.json: `{key}` is {}, only {wanted} is supported",
                    !wanted
                )));
            }
        }
        let legacy = read_flag(config, "legacy", true)?;
        let special = read_special_tokens(config, map)?;

        let mut added = read_added_tokens(added_tokens, &pieces)?;
        let mut added_ids: HashMap<String, u32> = HashMap::new();
        for (token, id) in added.iter().zip(next_id(&pieces, 0)?..) {
            added_ids.insert(token.clone(), id);
        }
        for token in &special {
            if pieces.id(&token.content).is_none() && !added_ids.contains_key(&token.content) {
                added_ids.insert(token.content.clone(), next_id(&pieces, added.len())?);
                added.push(token.content.clone());
            }
        }
        let id_of = |token: &str| pieces.id(token).or_else(|| added_ids.get(token).copied());
        let role_id = |key: &str, default: u32| {
            let token = special.iter().find(|token| token.key == key);
            token.and_then(|token| id_of(&token.content)).unwrap_or(default)
        };
        let unk = role_id("unk_token", pieces.unknown());

        let mut whole: BTreeMap<&str, WholeToken> = BTreeMap::new();
        for token in &added {
            let id = id_of(token).unwrap_or(unk);
            let content = token.clone();
            whole.insert(token, WholeToken { content, id, strips_left: true, strips_right: true });
        }
        // A token may have several keys (padding is `<unk>` too); one that says how to strip decides.
        for token in special
            .iter()
            .filter(|token| token.strips.is_none())
            .chain(special.iter().filter(|token| token.strips.is_some()))
        {
            let (strips_left, strips_right) = token.strips.unwrap_or((true, true));
            let id = id_of(&token.content).unwrap_or(unk);
            let content = token.content.clone();
            whole.insert(&token.content, WholeToken { content, id, strips_left, strips_right });
        }
        Ok(Self {
            bos: role_id("bos_token", unk),
            eos: role_id("eos_token", unk),
            unk,
            pad: role_id("pad_token", unk),
            special_ids: special.iter().filter_map(|token| id_of(&token.content)).collect(),
            whole: WholeTokens::new(whole.into_values()),
            legacy,
            added,
            added_ids,
            pieces,
        })
    }

    /// Pieces and special tokens between two added tokens. A special token behind text puts a space in
    /// front of that text, a habit of the reference.
    fn decode_run(&self, ids: &[u32]) -> String {
        let mut text = String::new();
        let mut pending = String::new();
        let mut pieces = PieceDecoder::new();
        let mut after_special = true;
        for id in ids {
            if self.special_ids.contains(id) {
                pieces.finish(&mut pending);
                if !after_special {
                    text.push(' ');
                }
                text.push_str(&pending);
                text.push_str(self.text(*id).unwrap_or_default());
                pending.clear();
                pieces = PieceDecoder::new();
                after_special = true;
            } else {
                pieces.push(&self.pieces, *id, &mut pending);
                after_special = false;
            }
        }
        pieces.finish(&mut pending);
        text + &pending
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.pieces.id(token).or_else(|| self.added_ids.get(token).copied())
    }

    fn text(&self, id: u32) -> Option<&str> {
        self.pieces.text(id).or_else(|| self.added(id))
    }

    pub(super) fn role(&self, id: u32) -> IdRole<'_> {
        if self.special_ids.contains(&id) {
            return IdRole::Special;
        }
        self.added(id).map_or(IdRole::Piece, IdRole::Added)
    }

    pub(super) fn pieces(&self) -> &SentencePiece {
        &self.pieces
    }

    fn added(&self, id: u32) -> Option<&str> {
        let index = usize::try_from(id).ok()?.checked_sub(self.pieces.len())?;
        self.added.get(index).map(String::as_str)
    }
}

/// A special token as the files describe it.
struct SpecialToken {
    key: &'static str,
    content: String,
    /// White space lost on its left and right; unknown for a plain string, which loses both.
    strips: Option<(bool, bool)>,
}

fn read_object(file: &str, bytes: Option<&[u8]>) -> Result<Map<String, Value>> {
    let Some(bytes) = bytes else { return Ok(Map::new()) };
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::Tokenizer(format!("{file} is not a JSON object"))),
        Err(error) => Err(Error::Tokenizer(format!("{file} is not JSON: {error}"))),
    }
}

fn read_flag(config: &Map<String, Value>, key: &str, default: bool) -> Result<bool> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => {
            Err(Error::Tokenizer(format!("tokenizer_config.json: `{key}` is {other}, not true or false")))
        }
    }
}

/// The map's entries win over the configuration's, and those over LLaMA's own.
fn read_special_tokens(config: &Map<String, Value>, map: &Map<String, Value>) -> Result<Vec<SpecialToken>> {
    let mut tokens = Vec::new();
    for key in SPECIAL_TOKEN_KEYS {
        let default = match key {
            "bos_token" => Some("<s>"),
            "eos_token" => Some("</s>"),
            "unk_token" => Some("<unk>"),
            _ => None,
        };
        let found = match (map.get(key), config.get(key)) {
            (Some(value), _) if !value.is_null() => Some(("special_tokens_map.json", value)),
            (_, Some(value)) if !value.is_null() => Some(("tokenizer_config.json", value)),
            _ => None,
        };
        match found {
            Some((file, value)) => tokens.push(read_special_token(file, key, value)?),
            None => tokens.extend(default.map(|content| SpecialToken {
                key,
                content: content.into(),
                strips: Some((false, false)),
            })),
        }
    }
    let key = "additional_special_tokens";
    for (file, object) in [("special_tokens_map.json", map), ("tokenizer_config.json", config)] {
        match object.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(values)) => {
                for value in values {
                    tokens.push(read_special_token(file, key, value)?);
                }
                break;
            }
            Some(other) => return Err(Error::Tokenizer(format!("{file}: `{key}` is {other}, not a list"))),
        }
    }
    Ok(tokens)
}

fn read_special_token(file: &str, key: &'static str, value: &Value) -> Result<SpecialToken> {
    let flag = |name: &str| value.get(name).and_then(Value::as_bool).unwrap_or(false);
    let (content, strips) = match value {
        // The reference wraps the configuration's plain strings, and leaves those of the map as they are.
        Value::String(content) => {
            (Some(content.as_str()), (file == "tokenizer_config.json").then_some((false, false)))
        }
        other => (other.get("content").and_then(Value::as_str), Some((flag("lstrip"), flag("rstrip")))),
    };
    match content {
        Some(content) if !content.is_empty() => Ok(SpecialToken { key, content: content.into(), strips }),
        _ => Err(Error::Tokenizer(format!("{file}: `{key}` is {value}, not a token"))),
    }
}

/// Tokens behind the pieces, in order. Their ids must go on where the pieces' end.
fn read_added_tokens(added_tokens: &Map<String, Value>, pieces: &SentencePiece) -> Result<Vec<String>> {
    let mut by_id: Vec<(u64, &str)> = Vec::with_capacity(added_tokens.len());
    for (token, id) in added_tokens {
        let id = id.as_u64().ok_or_else(|| {
            Error::Tokenizer(format!("added_tokens.json: the id of `{token}` is {id}, not a number"))
        })?;
        if token.is_empty() {
            return Err(Error::Tokenizer("added_tokens.json: a token is empty".into()));
        }
        if pieces.id(token).map(u64::from) != Some(id) {
            by_id.push((id, token));
        }
    }
    by_id.sort_unstable();
    let mut tokens = Vec::with_capacity(by_id.len());
    for (id, token) in by_id {
        let expected = next_id(pieces, tokens.len())?;
        if id != u64::from(expected) || pieces.id(token).is_some() {
            return Err(Error::Tokenizer(format!(
                "added_tokens.json: `{token}` has id {id}, expected a new token with id {expected}"
            )));
        }
        tokens.push(token.to_owned());
    }
    Ok(tokens)
}

fn next_id(pieces: &SentencePiece, added: usize) -> Result<u32> {
    u32::try_from(pieces.len() + added).map_err(|_| Error::Tokenizer("there are more tokens than ids".into()))
}
