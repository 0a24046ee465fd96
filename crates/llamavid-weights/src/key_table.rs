//! The names of weights: ours ↔ those of the published checkpoints. Upstream's names appear here and nowhere else.

use std::collections::BTreeSet;

/// How one part of the model is named in a checkpoint.
#[derive(Debug)]
pub struct KeyTable {
    /// What the part is called in messages.
    pub part: &'static str,
    /// Pairs (ours, upstream): a module, or a single weight, and what it is called in the file. An empty name stands for
    /// all; the first that fits counts.
    renames: &'static [(&'static str, &'static str)],
    /// Families of keys that belong to this part, below other parts' ones.
    claims: Claims,
    /// Keys of this part that may be left unused.
    ignored: &'static [Ignored],
}

/// Which keys of a file with several parts belong to one of them.
#[derive(Debug)]
enum Claims {
    All,
    /// Those that begin with one of these.
    Only(&'static [&'static str]),
    /// Those that begin with none of these.
    Except(&'static [&'static str]),
}

/// Keys that a model may leave unused.
#[derive(Debug)]
enum Ignored {
    /// Those that begin so.
    Prefix(&'static str),
    /// Those that end so.
    Suffix(&'static str),
    /// Those that contain this.
    Part(&'static str),
    /// Those of a numbered layer, `PREFIX.N.…`, behind the last layer of which a key was used.
    LaterLayers(&'static str),
}

/// The EVA visual encoder: its own file, or shards below [`VISION_TOWER`]. The names are upstream's.
pub static VISUAL: KeyTable = KeyTable {
    part: "visual encoder",
    renames: &[("", "")],
    claims: Claims::All,
    // The file holds one block more than the model uses, and the head of its pre-training.
    ignored: &[
        Ignored::LaterLayers("blocks."),
        Ignored::Prefix("norm."),
        Ignored::Prefix("fc_norm."),
        Ignored::Prefix("head."),
    ],
};

/// The CLIP visual encoder of the Hugging Face library; ours are its names without `vision_model.`.
pub static CLIP: KeyTable = KeyTable {
    part: "visual encoder",
    renames: &[("", "vision_model")],
    claims: Claims::All,
    ignored: &[
        Ignored::LaterLayers("vision_model.encoder.layers."),
        Ignored::Prefix("vision_model.post_layernorm."),
        Ignored::Prefix("text_model."),
        Ignored::Prefix("visual_projection."),
        Ignored::Prefix("text_projection."),
        Ignored::Prefix("logit_scale"),
        Ignored::Suffix("position_ids"),
    ],
};

/// The query model in the file of InstructBLIP that stage 1 starts from.
pub static INSTRUCT_BLIP: KeyTable = KeyTable {
    part: "query model",
    renames: &[("query_norm", "ln_vision"), ("query_tokens", "query_tokens"), ("query_model", "Qformer")],
    claims: Claims::Only(&["Qformer.", "ln_vision.", "query_tokens"]),
    ignored: &[Ignored::Suffix(".position_ids"), Ignored::Prefix("Qformer.cls."), Ignored::Part(".pooler.")],
};

/// Query model, context attention and projector.
pub static TOKENS: KeyTable = KeyTable {
    part: "token generation",
    renames: &[
        ("query_norm", "model.vlm_att_ln"),
        ("query_tokens", "model.vlm_att_query"),
        ("query_model", "model.vlm_att_encoder"),
        ("context.query_proj", "model.vlm_att_projector"),
        ("context.key_proj", "model.vlm_att_key_projector"),
        ("context.value_proj", "model.vlm_att_val_projector"),
        ("projector", "model.mm_projector"),
        ("bert_proj", "model.vlm_att_bert_proj"),
    ],
    claims: Claims::Only(&["model.vlm_att_", "model.mm_projector."]),
    ignored: &[
        Ignored::Suffix(".position_ids"),
        Ignored::Prefix("model.vlm_att_encoder.cls."),
        Ignored::Part(".pooler."),
    ],
};

/// The language model. It answers for every key that no other part claims, so that an unknown family is noticed.
pub static LANGUAGE: KeyTable = KeyTable {
    part: "language model",
    renames: &[
        ("lm_head", "lm_head"),
        ("embed_tokens", "model.embed_tokens"),
        ("layers", "model.layers"),
        ("norm", "model.norm"),
    ],
    claims: Claims::Except(&["model.vlm_att_", "model.mm_projector.", "model.vision_tower."]),
    ignored: &[Ignored::Suffix(".rotary_emb.inv_freq"), Ignored::Prefix(ROPE_DIVISORS)],
};

/// Adapters of the language model in the PEFT library's files; ours are the names of the projections.
pub static LORA: KeyTable = KeyTable {
    part: "adapter",
    renames: &[("layers", "base_model.model.model.layers")],
    claims: Claims::All,
    ignored: &[],
};

/// A speech model, under the names of its own files.
pub static SPEECH: KeyTable =
    KeyTable { part: "speech model", renames: &[("", "")], claims: Claims::All, ignored: &[] };

/// What the rotary frequencies are divided by, in GGUF files of LLaMA 3.1 and later: part of the configuration elsewhere.
pub const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// Where the shards of a whole model hold the visual encoder; for [`Checkpoint::under`](crate::Checkpoint::under).
pub const VISION_TOWER: &str = "model.vision_tower.vision_tower.";

impl KeyTable {
    /// Upstream's name for one of ours; none if the table has no such module.
    pub fn upstream(&self, ours: &str) -> Option<String> {
        self.renames.iter().find_map(|(from, to)| rename(ours, from, to))
    }

    /// Our name for one of upstream's; none if it belongs to another part.
    pub fn ours(&self, upstream: &str) -> Option<String> {
        self.renames.iter().find_map(|(to, from)| rename(upstream, from, to))
    }

    /// Whether a key of the file belongs to this part.
    pub fn claims(&self, upstream: &str) -> bool {
        match self.claims {
            Claims::All => true,
            Claims::Only(families) => families.iter().any(|family| upstream.starts_with(family)),
            Claims::Except(families) => !families.iter().any(|family| upstream.starts_with(family)),
        }
    }

    /// Whether an unused key may stay so. `used` are the keys that were.
    pub(crate) fn ignores(&self, upstream: &str, used: &BTreeSet<String>) -> bool {
        self.ignored.iter().any(|ignored| match ignored {
            Ignored::Prefix(prefix) => upstream.starts_with(prefix),
            Ignored::Suffix(suffix) => upstream.ends_with(suffix),
            Ignored::Part(part) => upstream.contains(part),
            Ignored::LaterLayers(prefix) => {
                let last = used.iter().filter_map(|key| layer(key, prefix)).max();
                match (layer(upstream, prefix), last) {
                    (Some(layer), Some(last)) => layer > last,
                    _ => false,
                }
            }
        })
    }
}

/// `name` with the module `from` in front replaced by `to`.
fn rename(name: &str, from: &str, to: &str) -> Option<String> {
    let rest = match name.strip_prefix(from)? {
        rest if from.is_empty() => rest,
        "" => "",
        // Only at a dot: `norm` is not the beginning of `norm_of_another_kind`.
        rest => rest.strip_prefix('.')?,
    };
    Some(match (to, rest) {
        (to, "") => to.to_string(),
        ("", rest) => rest.to_string(),
        (to, rest) => format!("{to}.{rest}"),
    })
}

/// N of a key `PREFIX` `N` `.…`.
fn layer(key: &str, prefix: &str) -> Option<usize> {
    key.strip_prefix(prefix)?.split('.').next()?.parse().ok()
}
