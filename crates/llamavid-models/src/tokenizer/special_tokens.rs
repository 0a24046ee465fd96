//! Tokens that are looked for in the text before it is cut into pieces: `</s>`, `[MASK]`, `<im_start>`.

use super::is_white_space;

/// A token that stands for itself, and what it does to its neighbours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WholeToken {
    pub(super) content: String,
    pub(super) id: u32,
    /// Whether the white space in front of it is lost.
    pub(super) strips_left: bool,
    /// Whether the white space behind it is lost.
    pub(super) strips_right: bool,
}

/// A part of a text: a token, or what stands between tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Token(u32),
    Text(&'a str),
}

/// Cuts texts at whole tokens.
#[derive(Debug)]
pub(super) struct WholeTokens {
    /// By first byte; longer ones first, so that the longest match wins.
    by_first_byte: Vec<Vec<WholeToken>>,
}

impl WholeTokens {
    pub(super) fn new(tokens: impl IntoIterator<Item = WholeToken>) -> Self {
        let mut by_first_byte = vec![Vec::new(); 256];
        for token in tokens {
            let first = token.content.bytes().next().map(usize::from);
            if let Some(same_first) = first.and_then(|first| by_first_byte.get_mut(first)) {
                same_first.push(token);
            }
        }
        for same_first in &mut by_first_byte {
            same_first.sort_by_key(|token: &WholeToken| std::cmp::Reverse(token.content.len()));
        }
        Self { by_first_byte }
    }

    /// The parts of `text` in order, stripped as their neighbours demand; empty ones are left out.
    pub(super) fn split<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        let bytes = text.as_bytes();
        let mut parts = Vec::new();
        let (mut start, mut position, mut strip_next) = (0, 0, false);
        while let Some(first) = bytes.get(position) {
            let same_first =
                self.by_first_byte.get(usize::from(*first)).map(Vec::as_slice).unwrap_or_default();
            let rest = bytes.get(position..).unwrap_or_default();
            let Some(token) = same_first.iter().find(|token| rest.starts_with(token.content.as_bytes()))
            else {
                position += 1;
                continue;
            };
            push_text(&mut parts, text.get(start..position), strip_next, token.strips_left);
            parts.push(Part::Token(token.id));
            position += token.content.len();
            (start, strip_next) = (position, token.strips_right);
        }
        push_text(&mut parts, text.get(start..), strip_next, false);
        parts
    }
}

fn push_text<'a>(parts: &mut Vec<Part<'a>>, text: Option<&'a str>, strip_start: bool, strip_end: bool) {
    let mut text = text.unwrap_or_default();
    if strip_start {
        text = text.trim_start_matches(is_white_space);
    }
    if strip_end {
        text = text.trim_end_matches(is_white_space);
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
}
