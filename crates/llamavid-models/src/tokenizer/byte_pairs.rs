//! Byte pairs, as LLaMA 3 and Qwen2 cut a text: the one file `tokenizer.json` of the tokenizers library.
//!
//! Every byte is a letter of the vocabulary, so that no text is unknown, and what is not in a special token decodes to
//! the bytes that were encoded.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};
use tokenizers::models::ModelWrapper;
use tokenizers::{AddedToken, Tokenizer};

use crate::{Error, Result};

/// Tokens that texts begin, end and are filled with.
const ROLES: [&str; 3] = ["bos_token", "eos_token", "pad_token"];

/// A vocabulary of byte strings, and the merges that cut a text into them.
#[derive(Debug)]
pub(super) struct BytePairs {
    library: Tokenizer,
    /// By id; absent where an id has no token.
    tokens: Vec<Option<Token>>,
    /// The id of each single byte.
    letters: Vec<u32>,
    bos: Option<u32>,
    eos: u32,
    pad: u32,
}

#[derive(Debug)]
struct Token {
    /// As it stands in the file.
    text: String,
    bytes: Vec<u8>,
    /// Whether decoding can leave it out.
    special: bool,
}

impl BytePairs {
    /// Reads `tokenizer.json` and the objects of the files beside it.
    pub(super) fn new(
        tokenizer_json: &[u8],
        config: &Map<String, Value>,
        added_tokens: &Map<String, Value>,
        map: &Map<String, Value>,
    ) -> Result<Self> {
        let wrong = |problem: String| Error::Tokenizer(format!("tokenizer.json {problem}"));
        let mut library = Tokenizer::from_bytes(tokenizer_json)
            .map_err(|error| wrong(format!("is not one of the tokenizers library: {error}")))?;
        if !matches!(library.get_model(), ModelWrapper::BPE(_)) {
            return Err(wrong("is no model of byte pairs, the only kind that is read".to_owned()));
        }
        // A prompt is neither cut nor filled here.
        library.with_padding(None);
        let whole = library.with_truncation(None).map(drop);
        whole.map_err(|error| wrong(format!("cannot be read: {error}")))?;
        add(&mut library, added_tokens)?;

        let letter_of = letters();
        let byte_of: HashMap<char, u8> = letter_of.iter().copied().zip(0..=255).collect();
        let added = library.get_added_tokens_decoder();
        let count = library.get_vocab(true).into_values().max().map_or(0, |last| last as usize + 1);
        let tokens: Vec<Option<Token>> = (0..count as u32)
            .map(|id| {
                let text = library.id_to_token(id)?;
                let bytes = match added.get(&id) {
                    Some(token) => token.content.clone().into_bytes(),
                    None => text.chars().filter_map(|letter| byte_of.get(&letter).copied()).collect(),
                };
                let special = added.get(&id).is_some_and(|token| token.special);
                Some(Token { text, bytes, special })
            })
            .collect();
        let single = letter_of.iter().map(|letter| library.token_to_id(&letter.to_string()));
        let single: Option<Vec<u32>> = single.collect();
        let letters = single.ok_or_else(|| {
            wrong("has no letter for each byte; LLaMA 1 and 2 come with a tokenizer.model".to_owned())
        })?;

        // What the library puts in front of a text, which Qwen2's does not.
        let front = library.encode("", true);
        let front = front.map_err(|error| wrong(format!("cannot be used: {error}")))?;
        let bos = match front.get_ids() {
            [] => None,
            [bos] => Some(*bos),
            more => {
                return Err(wrong(format!(
                    "puts {} tokens around a text, one at most is supported",
                    more.len()
                )));
            }
        };
        let [_bos, eos, pad] = ROLES.map(|role| {
            let text = [map, config].into_iter().find_map(|file| text_of(file.get(role)?));
            text.map(|text| {
                library.token_to_id(text).ok_or_else(|| {
                    Error::Tokenizer(format!("`{role}` is {text:?}, which tokenizer.json does not have"))
                })
            })
        });
        let eos =
            eos.ok_or_else(|| Error::Tokenizer("tokenizer_config.json names no `eos_token`".into()))??;
        let pad = pad.transpose()?.unwrap_or(eos);
        Ok(Self { library, tokens, letters, bos, eos, pad })
    }

    /// Appends the ids of `text`.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        match self.library.encode_fast(text, false) {
            Ok(encoding) => ids.extend(encoding.get_ids()),
            // A rule of the file that does not end on this text: the same text, letter by letter.
            Err(_) => ids.extend(text.bytes().map(|byte| self.letters[usize::from(byte)])),
        }
    }

    /// The byte of `text` at which each of the ids that [`BytePairs::encode`] gives for it begins.
    pub(super) fn starts(&self, text: &str) -> Vec<usize> {
        match self.library.encode(text, false) {
            Ok(encoding) => encoding.get_offsets().iter().map(|(start, _end)| *start).collect(),
            Err(_) => (0..text.len()).collect(),
        }
    }

    /// Appends to `text` what `id` settles; `pending` are bytes that may become a character with the next ones.
    pub(super) fn decode(&self, id: u32, skip_special: bool, pending: &mut Vec<u8>, text: &mut String) {
        match self.token(id) {
            Some(token) if token.special && skip_special => return,
            Some(token) => pending.extend(&token.bytes),
            None => {
                finish(pending, text);
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        while !pending.is_empty() {
            let (valid, broken) = match std::str::from_utf8(pending) {
                Ok(valid) => (valid.len(), 0),
                Err(error) => match error.error_len() {
                    Some(broken) => (error.valid_up_to(), broken),
                    None if error.valid_up_to() == 0 => return,
                    None => (error.valid_up_to(), 0),
                },
            };
            text.push_str(&String::from_utf8_lossy(&pending[..valid + broken]));
            pending.drain(..valid + broken);
        }
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.library.token_to_id(token)
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        Some(self.token(id)?.text.as_str())
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(super) fn bos(&self) -> Option<u32> {
        self.bos
    }

    pub(super) fn eos(&self) -> u32 {
        self.eos
    }

    pub(super) fn pad(&self) -> u32 {
        self.pad
    }

    fn token(&self, id: u32) -> Option<&Token> {
        self.tokens.get(usize::try_from(id).ok()?)?.as_ref()
    }
}

/// Gives out bytes that never became a character.
pub(super) fn finish(pending: &mut Vec<u8>, text: &mut String) {
    text.push_str(&String::from_utf8_lossy(pending));
    pending.clear();
}

/// Tokens of `added_tokens.json` that the file has not: those that a training added.
fn add(library: &mut Tokenizer, added_tokens: &Map<String, Value>) -> Result<()> {
    let new: BTreeMap<u64, &String> = added_tokens
        .iter()
        .filter(|(token, _)| library.token_to_id(token).is_none())
        .map(|(token, id)| (id.as_u64().unwrap_or(u64::MAX), token))
        .collect();
    for (id, token) in new {
        let added = library.add_tokens([AddedToken::from(token.as_str(), false)]);
        if added.is_err() || library.token_to_id(token).map(u64::from) != Some(id) {
            let expected = library.get_vocab_size(true);
            return Err(Error::Tokenizer(format!(
                "added_tokens.json: `{token}` has id {id}, which does not go on where the {expected} others end"
            )));
        }
    }
    Ok(())
}

fn text_of(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// The letter that stands for each byte: itself where it can be seen, else one from U+0100 on, as GPT-2 has it.
fn letters() -> Vec<char> {
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut unseen = '\u{100}'..='\u{1ff}';
    (0..=255u8)
        .map(|byte| match visible(byte) {
            true => char::from(byte),
            false => unseen.next().unwrap_or(char::REPLACEMENT_CHARACTER),
        })
        .collect()
}
