//! Text of an answer while it is made.

use super::byte_pairs;
use super::llama::{IdRole, Kind, LlamaTokenizer};
use super::sentence_piece::PieceDecoder;

/// Decodes ids as they come, special tokens left out. What it gives out never ends inside a character,
/// and all of it together is what [`LlamaTokenizer::decode`] makes of all ids.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: LlamaTokenizer,
    /// The decoder of the pieces since the last added token.
    run: Option<PieceDecoder>,
    /// Whether a part has come before: parts are put together with spaces.
    has_parts: bool,
    /// Of byte pairs: bytes that may become a character with the next ones.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// Starts an empty text.
    pub fn new(tokenizer: LlamaTokenizer) -> Self {
        Self { tokenizer, run: None, has_parts: false, pending: Vec::new() }
    }

    /// What `id` adds to the text; empty while a character is incomplete.
    pub fn push(&mut self, id: u32) -> String {
        let mut delta = String::new();
        let vocabulary = match self.tokenizer.kind() {
            Kind::Pieces(vocabulary) => vocabulary,
            Kind::BytePairs(pairs) => {
                pairs.decode(id, true, &mut self.pending, &mut delta);
                return delta;
            }
        };
        match vocabulary.role(id) {
            IdRole::Special => {}
            IdRole::Added(token) => {
                if let Some(mut run) = self.run.take() {
                    run.finish(&mut delta);
                }
                if self.has_parts {
                    delta.push(' ');
                }
                delta.push_str(token);
                self.has_parts = true;
            }
            IdRole::Piece => {
                let run = self.run.get_or_insert_with(|| {
                    if self.has_parts {
                        delta.push(' ');
                    }
                    self.has_parts = true;
                    PieceDecoder::new()
                });
                run.push(vocabulary.pieces(), id, &mut delta);
            }
        }
        delta
    }

    /// What was held back: bytes that never became a character. A new text may follow.
    pub fn finish(&mut self) -> String {
        let mut delta = String::new();
        if let Some(mut run) = self.run.take() {
            run.finish(&mut delta);
        }
        byte_pairs::finish(&mut self.pending, &mut delta);
        self.has_parts = false;
        delta
    }
}
