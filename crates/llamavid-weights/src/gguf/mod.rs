//! GGUF files: tensors in blocks that stay mapped, with a description that can replace a folder's small files.
//!
//! Files of llama.cpp (architectures `llama` and `qwen2`) are read under the published names of their weights; those of
//! architecture `llamavid` have these names themselves.

mod header;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Fault, Result, shown};
use crate::key_table::ROPE_DIVISORS;
use crate::mapped_file::MappedFile;

pub(crate) use header::{ALIGNMENT_KEY, Content, Placed, number, parse};
pub use header::{Value, layout_name};

/// A GGUF file, mapped.
#[derive(Debug)]
pub struct GgufFile {
    file: Arc<MappedFile>,
    metadata: BTreeMap<String, Value>,
    entries: Vec<(String, Range<usize>)>,
    tensors: BTreeMap<String, Placed>,
}

impl GgufFile {
    /// Opens a file and reads its head. The tensors' pages are read when they are used.
    ///
    /// # Errors
    /// A file that is missing, cut, damaged, hostile or of another format.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let header = parse(file.bytes()).map_err(|fault| fault.in_file(path))?;
        let (metadata, entries, tensors) = (header.metadata, header.entries, header.tensors);
        Ok(Self { file: Arc::new(file), metadata, entries, tensors })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// What it says of itself.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// The kind of model, `llama` for instance; empty when it does not say.
    pub fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or_default()
    }

    /// An entry that is a text.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// An entry that is a whole number, not below 0.
    pub fn whole(&self, key: &str) -> Option<u64> {
        match self.metadata.get(key) {
            Some(Value::Whole(value)) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// An entry that is a number.
    pub fn real(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key) {
            Some(Value::Real(value)) => Some(*value),
            _ => None,
        }
    }

    /// An entry that is a list.
    pub fn list(&self, key: &str) -> Option<&[Value]> {
        match self.metadata.get(key) {
            Some(Value::List(values)) => Some(values),
            _ => None,
        }
    }

    /// What it says of itself in the file's own bytes: of each entry its key, and the number of its kind with the value behind it.
    pub(crate) fn encoded_metadata(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let bytes = self.file.bytes();
        self.entries.iter().map(|(key, range)| (key.as_str(), bytes.get(range.clone()).unwrap_or_default()))
    }

    /// Its tensors by the names that it has for them.
    pub(crate) fn tensors(&self) -> &BTreeMap<String, Placed> {
        &self.tensors
    }

    pub(crate) fn file(&self) -> &MappedFile {
        &self.file
    }

    pub(crate) fn parts(self) -> (Arc<MappedFile>, BTreeMap<String, Placed>) {
        (self.file, self.tensors)
    }

    /// The published name of each tensor, and how its rows lie.
    ///
    /// # Errors
    /// [`Error::UnsupportedFile`] for another architecture, [`Error::UnsupportedTensor`] for a tensor that the decoder has no
    /// place for.
    pub(crate) fn published_names(&self) -> Result<Vec<Published>> {
        let architecture = self.architecture();
        let turned = match architecture {
            "llamavid" => {
                let same = |name: &String| Published { name: name.clone(), key: name.clone(), turned: None };
                return Ok(self.tensors.keys().map(same).collect());
            }
            "llama" => true,
            "qwen2" => false,
            other => {
                let known = "`llama`, `qwen2` and `llamavid` are read";
                let problem = format!("a GGUF file of architecture `{}`; {known}", shown(other));
                return Err(Fault::unsupported(problem).in_file(self.path()));
            }
        };
        let head_width = self.head_width(architecture)?;
        self.tensors
            .keys()
            .map(|key| {
                let Some(name) = published(key) else {
                    let problem = "the decoder of architecture `llama` has no place for it";
                    return Err(Fault::unsupported(problem).in_tensor(self.path(), key));
                };
                let queries_or_keys = name.contains(".q_proj.") || name.contains(".k_proj.");
                let turned = (turned && queries_or_keys).then_some(head_width);
                Ok(Published { name, key: key.clone(), turned })
            })
            .collect()
    }

    fn head_width(&self, architecture: &str) -> Result<usize> {
        let number = |key: &str| self.whole(&format!("{architecture}.{key}"));
        let width = number("attention.key_length").or_else(|| {
            let heads = number("attention.head_count").filter(|heads| *heads > 0)?;
            Some(number("embedding_length")? / heads)
        });
        match width.and_then(|width| usize::try_from(width).ok()) {
            Some(width) if width > 0 && width.is_multiple_of(2) => Ok(width),
            _ => {
                let problem =
                    format!("`{architecture}.attention.head_count` and the width do not go together");
                Err(Error::InvalidFile { file: self.path().to_path_buf(), problem })
            }
        }
    }
}

/// A tensor under its published name.
pub(crate) struct Published {
    pub(crate) name: String,
    /// What the file calls it.
    pub(crate) key: String,
    /// The width of a head whose rows lie in pairs, as llama.cpp turns them: those of a pair one behind the other, and not
    /// half a head apart.
    pub(crate) turned: Option<usize>,
}

/// llama.cpp's name for a weight gives the published one.
fn published(key: &str) -> Option<String> {
    let rest = match key {
        "token_embd.weight" => return Some("model.embed_tokens.weight".to_owned()),
        "output_norm.weight" => return Some("model.norm.weight".to_owned()),
        "output.weight" => return Some("lm_head.weight".to_owned()),
        ROPE_DIVISORS => return Some(key.to_owned()),
        key => key.strip_prefix("blk.")?,
    };
    let (layer, rest) = rest.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (module, kind) = rest.rsplit_once('.')?;
    let module = match module {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    matches!(kind, "weight" | "bias").then(|| format!("model.layers.{layer}.{module}.{kind}"))
}
