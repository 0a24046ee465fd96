//! SentencePiece byte-pair encoding, as `tokenizer.model` of LLaMA describes it.
//!
//! Reference: the BPE model of SentencePiece. The text becomes characters, and the pair of neighbours
//! whose concatenation is the piece with the highest score is joined until no pair is a piece; among
//! equals the leftmost goes first. Pairs wait in a heap, so that a text of n characters costs n log n.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use sentencepiece_model::{ModelType, SentencePieceModel, Type};

use crate::{Error, Result};

/// Stands for a space inside pieces.
pub(super) const SPACE_MARK: char = '▁';

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PieceKind {
    Normal,
    Unknown,
    Control,
    Byte(u8),
}

#[derive(Debug)]
struct Piece {
    text: String,
    score: f32,
    kind: PieceKind,
}

/// A vocabulary of pieces with scores, and the rule that cuts a text into them.
#[derive(Debug)]
pub(super) struct SentencePiece {
    pieces: Vec<Piece>,
    ids: HashMap<String, u32>,
    unknown: u32,
    /// What an unknown piece decodes to.
    unknown_surface: String,
    /// Ids of the 256 byte pieces; without them a character that is not in the vocabulary is unknown.
    bytes: Option<Vec<u32>>,
    /// Whether a space goes in front of every text, and is taken off again when decoding.
    dummy_prefix: bool,
    /// Bytes of the longest piece that can be the result of a join.
    longest: usize,
}

impl SentencePiece {
    pub(super) fn from_bytes(file: &[u8]) -> Result<Self> {
        let proto = SentencePieceModel::from_slice(file).map_err(|error| {
            Error::Tokenizer(format!("tokenizer.model is not a SentencePiece model: {error}"))
        })?;
        if proto.pieces().is_empty() {
            return Err(Error::Tokenizer("tokenizer.model holds no pieces".into()));
        }
        let byte_fallback = falls_back_to_bytes(&proto)?;
        let dummy_prefix = puts_space_in_front(&proto)?;
        let surface = proto.trainer().map_or_else(String::new, |trainer| trainer.unk_surface().into());
        let pieces = proto.pieces();
        let mut model = Self {
            pieces: Vec::with_capacity(pieces.len()),
            ids: HashMap::with_capacity(pieces.len()),
            unknown: 0,
            unknown_surface: surface,
            bytes: None,
            dummy_prefix,
            longest: 0,
        };
        let mut unknown = None;
        let mut bytes = vec![None; 256];
        for (index, piece) in pieces.iter().enumerate() {
            let (text, score) = (piece.piece(), piece.score());
            let id = u32::try_from(index)
                .map_err(|_| Error::Tokenizer("tokenizer.model has more pieces than ids".into()))?;
            let problem = |problem: &str| {
                Error::Tokenizer(format!("tokenizer.model, piece {id} (`{text}`): {problem}"))
            };
            let kind = match piece.r#type() {
                Type::Normal => PieceKind::Normal,
                Type::Control => PieceKind::Control,
                Type::Unknown => {
                    if unknown.replace(id).is_some() {
                        return Err(problem("there is another unknown piece"));
                    }
                    PieceKind::Unknown
                }
                Type::Byte => {
                    let byte =
                        byte_of(text).ok_or_else(|| problem("a byte piece is named <0x00> to <0xFF>"))?;
                    if let Some(slot) = bytes.get_mut(usize::from(byte)) {
                        *slot = Some(id);
                    }
                    PieceKind::Byte(byte)
                }
                Type::UserDefined | Type::Unused => {
                    return Err(problem("user-defined and unused pieces are not supported"));
                }
            };
            if text.is_empty() {
                return Err(problem("it is empty"));
            }
            if !score.is_finite() {
                return Err(problem("its score is not a number"));
            }
            if model.ids.insert(text.to_owned(), id).is_some() {
                return Err(problem("there is another piece with this text"));
            }
            if kind == PieceKind::Normal {
                model.longest = model.longest.max(text.len());
            }
            // Adding zero makes -0 and 0 one score.
            model.pieces.push(Piece { text: text.to_owned(), score: score + 0.0, kind });
        }
        model.unknown =
            unknown.ok_or_else(|| Error::Tokenizer("tokenizer.model has no unknown piece".into()))?;
        if byte_fallback {
            let all: Option<Vec<u32>> = bytes.into_iter().collect();
            model.bytes = Some(all.ok_or_else(|| {
                Error::Tokenizer(
                    "tokenizer.model falls back to bytes and does not hold all 256 of them".into(),
                )
            })?);
        }
        Ok(model)
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn id(&self, piece: &str) -> Option<u32> {
        self.ids.get(piece).copied()
    }

    pub(super) fn unknown(&self) -> u32 {
        self.unknown
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        Some(self.piece(id)?.text.as_str())
    }

    fn piece(&self, id: u32) -> Option<&Piece> {
        self.pieces.get(usize::try_from(id).ok()?)
    }

    /// Ids of a text that starts on its own: a space is thought in front of it.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let normalized = self.normalize(text);
        self.push_all(&normalized, &self.segment(&normalized), ids);
    }

    /// Ids of a text that goes on behind a special token: the mark of the space that [`Self::encode`]
    /// thinks in front is cut off the first piece, whose rest may then be unknown.
    pub(super) fn encode_continuation(&self, text: &str, ids: &mut Vec<u32>) {
        let normalized = self.normalize(text);
        let symbols = self.segment(&normalized);
        let mut rest = symbols.as_slice();
        if let Some((first, others)) = rest.split_first() {
            let piece = first.text(&normalized);
            // A mark outside of the vocabulary falls back to bytes, which carry no mark.
            let carries_mark = self.ids.contains_key(piece) || self.bytes.is_none();
            if let Some(unmarked) = piece.strip_prefix(SPACE_MARK).filter(|_| carries_mark) {
                if !unmarked.is_empty() {
                    ids.push(self.id(unmarked).unwrap_or(self.unknown));
                }
                rest = others;
            }
        }
        self.push_all(&normalized, rest, ids);
    }

    fn normalize(&self, text: &str) -> String {
        let mut normalized = String::with_capacity(text.len() + text.len() / 4 + 3);
        if self.dummy_prefix && !text.is_empty() {
            normalized.push(SPACE_MARK);
        }
        normalized
            .extend(text.chars().map(|character| if character == ' ' { SPACE_MARK } else { character }));
        normalized
    }

    fn push_all(&self, normalized: &str, symbols: &[Symbol], ids: &mut Vec<u32>) {
        let mut after_unknown = false;
        for symbol in symbols {
            let piece = symbol.text(normalized);
            let id = self.id(piece).unwrap_or(self.unknown);
            if id != self.unknown {
                ids.push(id);
            } else if let Some(bytes) = &self.bytes {
                ids.extend(piece.bytes().filter_map(|byte| bytes.get(usize::from(byte))));
            } else if !after_unknown {
                // Unknown neighbours are one piece.
                ids.push(id);
            }
            after_unknown = id == self.unknown;
        }
    }

    /// The symbols, as ranges of `normalized`, that no join can make longer.
    fn segment(&self, normalized: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = normalized
            .char_indices()
            .enumerate()
            .map(|(index, (start, character))| Symbol {
                start,
                end: start + character.len_utf8(),
                previous: index.checked_sub(1),
                next: Some(index + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        let mut joins: BinaryHeap<Join> = (1..symbols.len())
            .filter_map(|right| self.join(normalized, &symbols, Some(right - 1), Some(right)))
            .collect();
        while let Some(join) = joins.pop() {
            let (Some(left), Some(right)) =
                (symbols.get(join.left).copied(), symbols.get(join.right).copied())
            else {
                continue;
            };
            // One of the two has been joined with another neighbour since.
            if left.is_gone() || right.is_gone() || right.end - left.start != join.length {
                continue;
            }
            if let Some(symbol) = symbols.get_mut(join.left) {
                symbol.end = right.end;
                symbol.next = right.next;
            }
            if let Some(symbol) = symbols.get_mut(join.right) {
                symbol.end = symbol.start;
            }
            if let Some(symbol) = right.next.and_then(|next| symbols.get_mut(next)) {
                symbol.previous = Some(join.left);
            }
            joins.extend(self.join(normalized, &symbols, left.previous, Some(join.left)));
            joins.extend(self.join(normalized, &symbols, Some(join.left), right.next));
        }
        symbols.retain(|symbol| !symbol.is_gone());
        symbols
    }

    fn join(
        &self,
        normalized: &str,
        symbols: &[Symbol],
        left: Option<usize>,
        right: Option<usize>,
    ) -> Option<Join> {
        let (left, right) = (left?, right?);
        let (start, end) = (symbols.get(left)?.start, symbols.get(right)?.end);
        // Keeps the cost of a join independent of the length of the text.
        if end - start > self.longest {
            return None;
        }
        let piece = self.piece(self.id(normalized.get(start..end)?)?)?;
        (piece.kind == PieceKind::Normal).then_some(Join {
            score: piece.score,
            left,
            right,
            length: end - start,
        })
    }
}

/// Whether characters outside the vocabulary become bytes. Fails for a model of another type than LLaMA's.
fn falls_back_to_bytes(proto: &SentencePieceModel) -> Result<bool> {
    match proto.trainer() {
        Some(trainer) if trainer.model_type() == ModelType::Bpe => Ok(trainer.byte_fallback()),
        Some(trainer) => Err(Error::Tokenizer(format!(
            "tokenizer.model is a {:?} model, LLaMA's is a BPE model",
            trainer.model_type()
        ))),
        None => Err(Error::Tokenizer("tokenizer.model does not say of what type it is".into())),
    }
}

/// Whether a space goes in front of every text. Fails for a model that rewrites texts otherwise.
fn puts_space_in_front(proto: &SentencePieceModel) -> Result<bool> {
    let normalizer = proto
        .normalizer()
        .ok_or_else(|| Error::Tokenizer("tokenizer.model has no rule for white space".into()))?;
    let rewrites = !normalizer.precompiled_charsmap().is_empty();
    if rewrites || normalizer.remove_extra_whitespaces() || !normalizer.escape_whitespaces() {
        return Err(Error::Tokenizer(format!(
            "tokenizer.model rewrites characters or white space (rule `{}`), LLaMA's leaves them as they are",
            normalizer.name()
        )));
    }
    Ok(normalizer.add_dummy_prefix())
}

/// `<0x41>` is the byte 0x41.
fn byte_of(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// A part of the text in a chain of parts; empty when it went into its left neighbour.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

impl Symbol {
    fn is_gone(&self) -> bool {
        self.start == self.end
    }

    fn text<'a>(&self, normalized: &'a str) -> &'a str {
        normalized.get(self.start..self.end).unwrap_or_default()
    }
}

/// Two neighbours that make a piece together.
#[derive(Debug)]
struct Join {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both when the join was proposed.
    length: usize,
}

impl Ord for Join {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Join {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Join {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Join {}

/// Puts pieces back into text, one at a time, and never gives out half a character.
#[derive(Debug, Clone)]
pub(super) struct PieceDecoder {
    /// Bytes that may become a character with the next ones.
    pending: Vec<u8>,
    /// Nothing has been given out: the space in front, if there is one, is the one that encoding added.
    at_start: bool,
}

impl PieceDecoder {
    pub(super) fn new() -> Self {
        Self { pending: Vec::new(), at_start: true }
    }

    /// Appends to `text` what `id` settles. An id without a piece shows as a replacement character.
    pub(super) fn push(&mut self, model: &SentencePiece, id: u32, text: &mut String) {
        let Some(piece) = model.piece(id) else {
            self.finish(text);
            text.push(char::REPLACEMENT_CHARACTER);
            return;
        };
        if let PieceKind::Byte(byte) = piece.kind {
            self.pending.push(byte);
            self.settle(text, false);
            return;
        }
        self.finish(text);
        match piece.kind {
            PieceKind::Control | PieceKind::Byte(_) => {}
            PieceKind::Unknown => {
                text.push_str(&model.unknown_surface);
                self.at_start = false;
            }
            PieceKind::Normal => {
                let marked =
                    piece.text.strip_prefix(SPACE_MARK).filter(|_| self.at_start && model.dummy_prefix);
                let shown = marked.unwrap_or(&piece.text);
                text.extend(
                    shown.chars().map(|character| if character == SPACE_MARK { ' ' } else { character }),
                );
                self.at_start &= marked.is_none() && shown.is_empty();
            }
        }
    }

    /// Gives out what is still held back; bytes that are no character become replacement characters.
    pub(super) fn finish(&mut self, text: &mut String) {
        self.settle(text, true);
    }

    fn settle(&mut self, text: &mut String, is_end: bool) {
        let mut rest = self.pending.as_slice();
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                }
                Err(error) => {
                    let (valid, broken) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = broken;
                    if error.error_len().is_none() && !is_end {
                        break;
                    }
                    // One replacement for each byte, as SentencePiece does, not for each broken sequence.
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = rest.get(1..).unwrap_or_default();
                }
            }
        }
        let settled = self.pending.len() - rest.len();
        self.at_start &= settled == 0;
        self.pending.drain(..settled);
    }
}
