//! When an answer ends, and what of its text is the answer.

use crate::tokenizer::strip;
use crate::{Error, Result};

/// New tokens whose text the keyword rule looks at.
const KEYWORD_WINDOW: usize = 3;

/// A word that ends the answer: the separator of the conversation template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyword {
    /// As text, `</s>` or `###`.
    pub text: String,
    /// As the tokenizer encodes it alone, without the begin-of-sequence id.
    pub ids: Vec<u32>,
}

/// Ends an answer: end-of-sequence ids, the reference's keyword rule, and stop strings.
///
/// Keywords and stop strings differ: a keyword ends the answer when the last ids are its ids or when it stands in the
/// text of the last three new tokens (the reference's rule, with what it misses); a stop string ends it as soon as the
/// text of the answer holds it anywhere, and the answer is cut before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopRule {
    eos_ids: Vec<u32>,
    keywords: Vec<Keyword>,
    strings: Vec<String>,
}

impl StopRule {
    /// Stops at end-of-sequence ids only.
    pub fn new(eos_ids: &[u32]) -> Self {
        Self { eos_ids: eos_ids.to_vec(), ..Self::default() }
    }

    /// Adds the reference's rule for each of `keywords`. An empty text or no ids is [`Error::Argument`].
    pub fn with_keywords(mut self, keywords: &[Keyword]) -> Result<Self> {
        if let Some(empty) = keywords.iter().find(|keyword| keyword.text.is_empty() || keyword.ids.is_empty())
        {
            return Err(Error::Argument(format!("the stop keyword {:?} is empty", empty.text)));
        }
        self.keywords.extend_from_slice(keywords);
        Ok(self)
    }

    /// Adds stop strings. An empty one is [`Error::Argument`].
    pub fn with_strings(mut self, strings: &[String]) -> Result<Self> {
        if strings.iter().any(String::is_empty) {
            return Err(Error::Argument("a stop string is empty".to_string()));
        }
        self.strings.extend_from_slice(strings);
        Ok(self)
    }

    /// Whether the answer ends with the last of `new_ids`, the ids generated so far.
    ///
    /// `text_of` decodes ids without special tokens.
    pub fn ends(&self, new_ids: &[u32], text_of: &dyn Fn(&[u32]) -> String) -> bool {
        let Some(last) = new_ids.last() else { return false };
        if self.eos_ids.contains(last) {
            return true;
        }
        if !self.keywords.is_empty() {
            let tail = text_of(&new_ids[new_ids.len().saturating_sub(KEYWORD_WINDOW)..]);
            let ended = |keyword: &Keyword| new_ids.ends_with(&keyword.ids) || tail.contains(&keyword.text);
            if self.keywords.iter().any(ended) {
                return true;
            }
        }
        if self.strings.is_empty() {
            return false;
        }
        let text = text_of(new_ids);
        self.strings.iter().any(|string| text.contains(string))
    }

    /// The answer in `text`, the text of all new ids: stripped, cut at the first stop string and without a keyword at
    /// its end, stripped again.
    pub fn answer<'a>(&self, text: &'a str) -> &'a str {
        let text = strip(self.cut(text));
        let text =
            self.keywords.iter().find_map(|keyword| text.strip_suffix(keyword.text.as_str())).unwrap_or(text);
        strip(text)
    }

    /// The part of `text` that will belong to the answer whatever comes next, so that it can be shown while more is
    /// generated: without a stop string, or the start of a stop string or keyword, at its end.
    pub fn settled<'a>(&self, text: &'a str) -> &'a str {
        let whole = self.cut(text);
        if whole.len() < text.len() {
            return whole;
        }
        let marks = self.strings.iter().map(String::as_str);
        let marks = marks.chain(self.keywords.iter().map(|keyword| keyword.text.as_str()));
        let held_back = marks.map(|mark| started(whole, mark)).max().unwrap_or(0);
        &whole[..whole.len() - held_back]
    }

    fn cut<'a>(&self, text: &'a str) -> &'a str {
        let first = self.strings.iter().filter_map(|string| text.find(string.as_str())).min();
        &text[..first.unwrap_or(text.len())]
    }
}

/// Bytes at the end of `text` that are a beginning (or all) of `mark`.
fn started(text: &str, mark: &str) -> usize {
    let ends = mark.char_indices().map(|(at, letter)| at + letter.len_utf8());
    ends.filter(|&end| text.ends_with(&mark[..end])).max().unwrap_or(0)
}
