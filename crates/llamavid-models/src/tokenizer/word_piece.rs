//! The query model's tokenizer: BERT's word pieces.
//!
//! Reference: `BertTokenizer` of transformers 4.31 with `truncation_side="left"` and one added special
//! token, `[DEC]`, which no prompt needs but which counts among the ids.

use std::collections::HashMap;

use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
};

use super::special_tokens::{Part, WholeToken, WholeTokens};
use crate::{Error, Result};

/// Ids of the longest prompt, `[CLS]` and `[SEP]` included.
pub const MAX_QUERY_IDS: usize = 256;

/// Words with more characters are unknown.
const MAX_WORD_CHARACTERS: usize = 100;

/// A number for each prompt and position, rows of one length.
pub type QueryRows = Vec<Vec<u32>>;

/// Prompts to word pieces.
#[derive(Debug)]
pub struct WordPieceTokenizer {
    pieces: HashMap<String, u32>,
    /// Pieces that go on inside a word, without their `##`.
    continuations: HashMap<String, u32>,
    /// Bytes of the longest piece.
    longest: usize,
    /// Ids of the longest prompt.
    max_ids: usize,
    whole: WholeTokens,
    normalizer: BertNormalizer,
    dec: u32,
    pad: u32,
    unk: u32,
    cls: u32,
    sep: u32,
}

impl WordPieceTokenizer {
    /// Reads a `vocab.txt`: one piece a line, the line's number is its id. `lowercase` also strips accents.
    pub fn from_vocab(bytes: &[u8], lowercase: bool) -> Result<Self> {
        let text = std::str::from_utf8(bytes)
            .map_err(|error| Error::Tokenizer(format!("vocab.txt is not UTF-8: {error}")))?;
        let mut pieces: HashMap<String, u32> = HashMap::new();
        for (line, id) in text.split_terminator('\n').zip(0..) {
            pieces.insert(line.strip_suffix('\r').unwrap_or(line).to_owned(), id);
        }
        let next = u32::try_from(pieces.len())
            .map_err(|_| Error::Tokenizer("vocab.txt has more pieces than there are ids".into()))?;
        let dec = *pieces.entry("[DEC]".into()).or_insert(next);
        let special = |token: &str| {
            pieces.get(token).copied().ok_or_else(|| Error::Tokenizer(format!("vocab.txt has no {token}")))
        };
        let (unk, sep, pad, cls) =
            (special("[UNK]")?, special("[SEP]")?, special("[PAD]")?, special("[CLS]")?);
        let whole = [
            ("[DEC]", dec),
            ("[UNK]", unk),
            ("[SEP]", sep),
            ("[PAD]", pad),
            ("[CLS]", cls),
            ("[MASK]", special("[MASK]")?),
        ];
        let whole = WholeTokens::new(whole.map(|(content, id)| WholeToken {
            content: content.into(),
            id,
            // White space separates words and is never a piece, so stripping it changes nothing.
            strips_left: false,
            strips_right: false,
        }));
        let continuations = pieces
            .iter()
            .filter_map(|(piece, id)| Some((piece.strip_prefix("##")?.to_owned(), *id)))
            .collect();
        let longest = pieces.keys().map(String::len).max().unwrap_or(0);
        let normalizer = BertNormalizer::new(true, true, Some(lowercase), lowercase);
        let max_ids = MAX_QUERY_IDS;
        Ok(Self { pieces, continuations, longest, max_ids, whole, normalizer, dec, pad, unk, cls, sep })
    }

    /// The same for a query model of `positions`, which may be fewer than [`MAX_QUERY_IDS`].
    pub fn within(self, positions: usize) -> Self {
        Self { max_ids: positions.clamp(2, MAX_QUERY_IDS), ..self }
    }

    /// Number of ids, `[DEC]` included.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The id of `[DEC]`.
    pub fn dec_id(&self) -> u32 {
        self.dec
    }

    /// Ids and attention mask (1 for ids, 0 for padding) of one sample's prompts, both P rows of the same
    /// length. A prompt of more than [`MAX_QUERY_IDS`] ids, or than the query model has positions, loses its beginning.
    pub fn encode_batch(&self, prompts: &[String]) -> Result<(QueryRows, QueryRows)> {
        let mut ids = prompts.iter().map(|prompt| self.encode(prompt)).collect::<Result<Vec<_>>>()?;
        let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
        let mask = ids
            .iter()
            .map(|row| (0..longest).map(|column| u32::from(column < row.len())).collect())
            .collect();
        for row in &mut ids {
            row.resize(longest, self.pad);
        }
        Ok((ids, mask))
    }

    fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        // Only the end is kept, so the words are read from the back until there are enough pieces.
        let enough = self.max_ids - 2;
        let mut backwards: Vec<u32> = Vec::new();
        for part in self.whole.split(prompt).into_iter().rev() {
            match part {
                Part::Token(id) => backwards.push(id),
                Part::Text(text) => self.push_backwards(text, enough, &mut backwards)?,
            }
            if backwards.len() >= enough {
                break;
            }
        }
        backwards.truncate(enough);
        backwards.push(self.cls);
        backwards.reverse();
        backwards.push(self.sep);
        Ok(backwards)
    }

    fn push_backwards(&self, text: &str, enough: usize, backwards: &mut Vec<u32>) -> Result<()> {
        let failed = |error: tokenizers::Error| {
            Error::Tokenizer(format!("the prompt cannot be cut into words: {error}"))
        };
        let mut normalized = NormalizedString::from(text);
        self.normalizer.normalize(&mut normalized).map_err(failed)?;
        let mut words = PreTokenizedString::from(normalized);
        BertPreTokenizer.pre_tokenize(&mut words).map_err(failed)?;
        let mut ids = Vec::new();
        for (word, _, _) in
            words.get_splits(OffsetReferential::Normalized, OffsetType::Byte).into_iter().rev()
        {
            if backwards.len() >= enough {
                break;
            }
            ids.clear();
            self.push_word(word, &mut ids);
            backwards.extend(ids.iter().rev());
        }
        Ok(())
    }

    /// The longest piece that starts the word, then the longest that goes on, to its end; a word that has
    /// an end no piece reaches is unknown as a whole.
    fn push_word(&self, word: &str, ids: &mut Vec<u32>) {
        if word.is_empty() {
            return;
        }
        if word.chars().count() > MAX_WORD_CHARACTERS {
            ids.push(self.unk);
            return;
        }
        let mut rest = word;
        while !rest.is_empty() {
            let vocabulary = if rest.len() == word.len() { &self.pieces } else { &self.continuations };
            let found = (1..=rest.len().min(self.longest))
                .rev()
                .filter(|end| rest.is_char_boundary(*end))
                .find_map(|end| Some((*vocabulary.get(rest.get(..end)?)?, end)));
            let Some((id, end)) = found else {
                ids.clear();
                ids.push(self.unk);
                return;
            };
            ids.push(id);
            rest = rest.get(end..).unwrap_or_default();
        }
    }
}
