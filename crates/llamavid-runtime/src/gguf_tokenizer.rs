//! The tokenizer that a GGUF file describes, as the files that lie beside other models.
//!
//! Reference: `gguf-py`'s names and llama.cpp's `src/llama-vocab.cpp`.

use std::collections::BTreeMap;

use llamavid_models::tokenizer::{Piece, PieceKind, piece_model};
use llamavid_weights::gguf::{GgufFile, Value};
use serde_json::{Map, Value as Json, json};

use crate::tokenizer_files::{ADDED_TOKENS, BYTE_PAIRS, CONFIG, PIECES, TokenizerFiles};
use crate::{Error, ErrorCode, Result};

/// Kinds of tokens, by ggml's numbers.
pub mod token_kind {
    #![allow(missing_docs)]
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// How a text is split before byte pairs are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitRule {
    /// llama.cpp's name for it.
    pub name: &'static str,
    /// The expression in `tokenizer.json`.
    pub pattern: &'static str,
    /// Whether characters are composed first (NFC).
    pub composes: bool,
    /// Whether a part that is a token itself stays whole.
    pub whole_tokens: bool,
}

/// Those of the families that the decoder takes.
pub const SPLIT_RULES: [SplitRule; 2] = [
    SplitRule {
        name: "llama-bpe",
        pattern: concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        composes: false,
        whole_tokens: true,
    },
    SplitRule {
        name: "qwen2",
        pattern: concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        composes: true,
        whole_tokens: false,
    },
];

struct Token<'a> {
    text: &'a str,
    score: f32,
    kind: i32,
}

/// Reads the entries `tokenizer.ggml.…`.
struct Described<'a> {
    file: &'a GgufFile,
}

impl TokenizerFiles {
    /// What a file says of its tokenizer.
    ///
    /// # Errors
    /// `MODEL_INVALID` for a file that describes none or half of one, `MODEL_UNSUPPORTED` for another kind.
    pub fn of_gguf(file: &GgufFile) -> Result<Self> {
        let described = Described { file };
        let files = match file.text("tokenizer.ggml.model") {
            Some("llama") => described.pieces()?,
            Some("gpt2") => described.byte_pairs()?,
            None => return Err(described.invalid("no tokenizer (`tokenizer.ggml.model`)")),
            Some(other) => {
                return Err(described
                    .unsupported(&format!("a tokenizer of kind `{other}`; `llama` and `gpt2` are read")));
            }
        };
        Ok(Self::new(file.path(), files))
    }
}

impl<'a> Described<'a> {
    fn pieces(&self) -> Result<BTreeMap<&'static str, Vec<u8>>> {
        use token_kind::*;
        let tokens = self.tokens()?;
        // Pieces come first; what was added to them, behind.
        let count = tokens.iter().take_while(|token| !matches!(token.kind, USER_DEFINED | UNUSED)).count();
        let (pieces, added) = tokens.split_at(count);
        let kinds = [
            (NORMAL, PieceKind::Normal),
            (UNKNOWN, PieceKind::Unknown),
            (CONTROL, PieceKind::Control),
            (BYTE, PieceKind::Byte),
        ];
        let piece = |(id, token): (usize, &Token<'_>)| -> Result<Piece> {
            let Some((_, kind)) = kinds.iter().find(|(kind, _)| *kind == token.kind) else {
                return Err(self.invalid(&format!(
                    "token {id} (`{}`) is of an unknown kind, {}",
                    token.text, token.kind
                )));
            };
            Ok((token.text.to_owned(), token.score, *kind))
        };
        let pieces = pieces.iter().enumerate().map(piece).collect::<Result<_>>()?;
        let model = piece_model(pieces, self.flag("add_space_prefix").unwrap_or(true));
        let added = added.iter().zip(count..).filter(|(token, _)| token.kind != UNUSED);
        let added: Map<String, Json> = added.map(|(token, id)| (token.text.to_owned(), json!(id))).collect();
        let mut files = BTreeMap::from([(PIECES, model), (CONFIG, json_bytes(&self.roles(&tokens)?))]);
        if !added.is_empty() {
            files.insert(ADDED_TOKENS, json_bytes(&Json::Object(added)));
        }
        Ok(files)
    }

    fn byte_pairs(&self) -> Result<BTreeMap<&'static str, Vec<u8>>> {
        let name = self.file.text("tokenizer.ggml.pre").unwrap_or_default();
        let Some(rule) = SPLIT_RULES.iter().find(|rule| rule.name == name) else {
            let known = SPLIT_RULES.map(|rule| rule.name).join(" and ");
            return Err(self.unsupported(&format!("byte pairs that are split as `{name}`; {known} are read")));
        };
        let tokens = self.tokens()?;
        let roles = self.roles(&tokens)?;
        let merges = self.list("merges")?.iter().map(|merge| match merge {
            Value::Text(merge) => Ok(json!(merge)),
            _ => Err(self.invalid("a merge that is no text")),
        });
        let merges: Vec<Json> = merges.collect::<Result<_>>()?;
        let vocabulary: Map<String, Json> =
            tokens.iter().zip(0u32..).map(|(token, id)| (token.text.to_owned(), json!(id))).collect();
        let added = tokens
            .iter()
            .zip(0u32..)
            .filter(|(token, _)| matches!(token.kind, token_kind::CONTROL | token_kind::USER_DEFINED));
        let added: Vec<Json> = added
            .map(|(token, id)| {
                json!({ "id": id, "content": token.text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": token.kind == token_kind::CONTROL })
            })
            .collect();
        let begins = self.flag("add_bos_token").unwrap_or(rule.name == "llama-bpe");
        let front = match (begins, &roles["bos_token"], self.id("bos")) {
            (true, Json::String(bos), Some(id)) => json!({
                "type": "TemplateProcessing",
                "single": [{ "SpecialToken": { "id": bos, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
                "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
                "special_tokens": { bos: { "id": bos, "ids": [id], "tokens": [bos] } },
            }),
            _ => Json::Null,
        };
        let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": if rule.composes { json!({ "type": "NFC" }) } else { Json::Null },
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": rule.pattern }, "behavior": "Isolated", "invert": false },
                byte_level,
            ] },
            "post_processor": front,
            "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": rule.whole_tokens, "vocab": vocabulary, "merges": merges,
            },
        });
        Ok(BTreeMap::from([(BYTE_PAIRS, json_bytes(&tokenizer)), (CONFIG, json_bytes(&roles))]))
    }

    fn tokens(&self) -> Result<Vec<Token<'a>>> {
        let (texts, kinds) = (self.list("tokens")?, self.list("token_type")?);
        // Byte pairs are ordered by their merges, and have none.
        let scores = match self.file.list("tokenizer.ggml.scores") {
            None if self.file.text("tokenizer.ggml.model") == Some("gpt2") => &[],
            _ => self.list("scores")?,
        };
        let scored = scores.is_empty() || scores.len() == texts.len();
        if texts.len() != kinds.len() || !scored {
            return Err(self.invalid("tokens, scores and types of tokens are of different numbers"));
        }
        let scores = scores.iter().map(Some).chain(std::iter::repeat(None));
        let token = |((text, kind), score): ((&'a Value, &Value), Option<&Value>)| match (text, kind, score) {
            (Value::Text(text), Value::Whole(kind), None | Some(Value::Real(_))) => {
                let score = if let Some(Value::Real(score)) = score { *score as f32 } else { 0.0 };
                Some(Token { text, score, kind: i32::try_from(*kind).ok()? })
            }
            _ => None,
        };
        let tokens: Option<Vec<_>> = texts.iter().zip(kinds).zip(scores).map(token).collect();
        tokens.ok_or_else(|| self.invalid("tokens that are no texts with scores"))
    }

    /// `tokenizer_config.json`: which tokens begin, end and fill a text.
    fn roles(&self, tokens: &[Token<'_>]) -> Result<Json> {
        let mut roles = Map::new();
        for (theirs, ours) in
            [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")]
        {
            let Some(id) = self.id(theirs) else { continue };
            let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
            let token = token
                .ok_or_else(|| self.invalid(&format!("`{ours}` has id {id} of {} tokens", tokens.len())))?;
            roles.insert(ours.to_owned(), json!(token.text));
        }
        Ok(Json::Object(roles))
    }

    fn id(&self, role: &str) -> Option<u64> {
        self.file.whole(&format!("tokenizer.ggml.{role}_token_id"))
    }

    fn flag(&self, name: &str) -> Option<bool> {
        match self.file.metadata().get(&format!("tokenizer.ggml.{name}")) {
            Some(Value::Flag(flag)) => Some(*flag),
            _ => None,
        }
    }

    fn list(&self, name: &str) -> Result<&'a [Value]> {
        let key = format!("tokenizer.ggml.{name}");
        self.file.list(&key).ok_or_else(|| self.invalid(&format!("no list `{key}`")))
    }

    fn invalid(&self, problem: &str) -> Error {
        Error::new(ErrorCode::ModelInvalid, format!("{}: {problem}", self.file.path().display()))
            .with_hint("Download the file again, or take one with its tokenizer in it.")
    }

    fn unsupported(&self, problem: &str) -> Error {
        Error::new(ErrorCode::ModelUnsupported, format!("{}: {problem}", self.file.path().display()))
            .with_hint("Take a model with the tokenizer of LLaMA, Vicuna or Qwen2.")
    }
}

fn json_bytes(value: &Json) -> Vec<u8> {
    value.to_string().into_bytes()
}
