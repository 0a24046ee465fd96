//! What a token generator is made of, parsed once from the strings of a checkpoint's `config.json`.

use crate::{Error, Result};

/// Sizes and kinds of everything between visual features and visual tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenGenerationConfig {
    /// The model that reads the question (`bert_type`, `num_query`, and the sizes of BERT).
    pub query: QueryModelConfig,
    /// Width V of the visual features (`mm_hidden_size`; 1408 for EVA ViT-g).
    pub visual_width: usize,
    /// Width D of the language model (`hidden_size`).
    pub language_width: usize,
    /// From V to D for content tokens (`mm_projector_type`).
    pub projector: Projector,
    /// How many content tokens a frame has (`compress_type`).
    pub compression: Compression,
    /// Which rows of a frame the tokens are made of (`mm_vision_select_feature`).
    pub rows: TokenRows,
}

impl TokenGenerationConfig {
    /// Tokens of a frame, context token included, whose features have `rows` rows: patches, and a class row where
    /// there is one.
    pub fn tokens_per_frame(&self, rows: usize) -> usize {
        1 + match self.compression {
            Compression::None => self.rows.count(rows),
            Compression::Mean => 1,
            Compression::Grid(cells) => cells * cells,
        }
    }
}

/// The model that turns a question and a frame into text queries; in brackets the sizes of the released models.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryModelConfig {
    /// Q-Former or plain BERT.
    pub kind: QueryKind,
    /// Width of a row (768).
    pub width: usize,
    /// Layers (12).
    pub layers: usize,
    /// Attention heads (12).
    pub heads: usize,
    /// Width inside the feed-forward (3072).
    pub mlp_width: usize,
    /// Learned queries Q of the Q-Former (32). Plain BERT has none.
    pub queries: usize,
    /// Rows of the word embedding: BERT's word pieces and one more for `[DEC]` (30522 + 1).
    pub vocab_size: usize,
    /// Rows of the position embedding (512).
    pub max_positions: usize,
    /// Rows of the token type embedding (2), which only plain BERT has.
    pub type_vocab_size: usize,
    /// `Some(1408)` when the checkpoint projects features of another width to that of the Q-Former
    /// before the visual norm (`vlm_att_bert_proj` next to a Q-Former); `None` in released models.
    pub projected_width: Option<usize>,
}

/// The kind of query model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKind {
    /// InstructBLIP's Q-Former: learned queries and words share self-attention, queries see the frame.
    QFormer {
        /// Whether the frame's rows pass a layer norm first; so it is in a pretrained Q-Former.
        visual_norm: bool,
    },
    /// A causal BERT with cross-attention in each layer. In no released model.
    RawBert,
}

impl QueryKind {
    /// Reads `bert_type`, for example `qformer_pretrain_freeze`. Freezing decides only what trains.
    pub fn parse(bert_type: &str) -> Result<Self> {
        let unsupported = |problem: &str| {
            Err(Error::Unsupported { key: "bert_type".into(), problem: format!("{bert_type:?}: {problem}") })
        };
        if bert_type.contains("layer") {
            return unsupported("cutting the query model to its first layers (`layer:N`) is not supported");
        }
        let pretrained = bert_type.contains("pretrain");
        if bert_type.contains("qformer") {
            Ok(Self::QFormer { visual_norm: pretrained })
        } else if !bert_type.contains("raw") {
            unsupported("the name must contain `qformer` or `raw`")
        } else if bert_type.contains("freeze") {
            unsupported("plain BERT has no visual norm that could be frozen; use `raw_bert`")
        } else if pretrained {
            unsupported("plain BERT has no pretrained Q-Former to start from; use `raw_bert`")
        } else {
            Ok(Self::RawBert)
        }
    }
}

/// How the patches of a frame become content tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Each patch is a token.
    None,
    /// One token: the mean of the patches.
    Mean,
    /// A grid of this many by this many cells, a token each: the mean of the cell's patches.
    Grid(usize),
}

impl Compression {
    /// Reads `compress_type`: absent or null, `mean`, or `grid:N`.
    pub fn parse(compress_type: Option<&str>) -> Result<Self> {
        let Some(name) = compress_type else { return Ok(Self::None) };
        if name == "mean" {
            return Ok(Self::Mean);
        }
        match name.strip_prefix("grid:").map(str::parse::<usize>) {
            Some(Ok(side)) if side > 0 => Ok(Self::Grid(side)),
            _ => Err(Error::Config {
                key: "compress_type".into(),
                problem: format!("{name:?} is neither null, `mean` nor `grid:N` with N of 1 or more"),
            }),
        }
    }
}

/// From the visual width V to the language width D.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projector {
    /// One linear layer.
    Linear,
    /// This many linear layers with an exact GELU between each two.
    MlpGelu {
        /// Linear layers, 1 or more.
        layers: usize,
    },
    /// Nothing: V must be D.
    Identity,
}

impl Projector {
    /// Reads `mm_projector_type`: `linear`, `mlpNx_gelu` or `identity`.
    pub fn parse(projector_type: &str) -> Result<Self> {
        match projector_type {
            "linear" => return Ok(Self::Linear),
            "identity" => return Ok(Self::Identity),
            _ => {}
        }
        let layers = projector_type.strip_prefix("mlp").and_then(|rest| rest.strip_suffix("x_gelu"));
        match layers.map(str::parse::<usize>) {
            Some(Ok(layers)) if layers > 0 => Ok(Self::MlpGelu { layers }),
            _ => Err(Error::Unsupported {
                key: "mm_projector_type".into(),
                problem: format!("{projector_type:?} is neither `linear`, `mlpNx_gelu` nor `identity`"),
            }),
        }
    }
}

/// Which rows of a frame context and content tokens are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenRows {
    /// The patches: the first row is the class row, and cut, when the number of rows is odd.
    ///
    /// That is the reference's test. It is right for 256 and 576 patches; a frame with an odd side, say
    /// 5 x 5 patches, keeps its class row.
    Patches,
    /// All rows, as they are.
    All,
}

impl TokenRows {
    /// Reads `mm_vision_select_feature`: `patch` or `cls_patch`.
    pub fn parse(select_feature: &str) -> Result<Self> {
        match select_feature {
            "patch" => Ok(Self::Patches),
            "cls_patch" => Ok(Self::All),
            _ => Err(Error::Config {
                key: "mm_vision_select_feature".into(),
                problem: format!("{select_feature:?} is neither `patch` nor `cls_patch`"),
            }),
        }
    }

    /// Rows that remain of `rows`.
    pub fn count(&self, rows: usize) -> usize {
        rows - self.cut(rows)
    }

    /// Rows to cut from the front.
    pub(super) fn cut(&self, rows: usize) -> usize {
        match self {
            Self::Patches => rows % 2,
            Self::All => 0,
        }
    }
}

/// What the rows of a frame's features are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureKind {
    /// The visual encoder's output. The class row, when there is one, comes first; the query model sees it.
    Pixels,
    /// Features from a file (long video), class row already cut off: the query model never sees one.
    Precomputed,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn bert_types() {
        let qformer = |visual_norm| QueryKind::QFormer { visual_norm };
        for (name, kind) in [
            ("qformer_pretrain", qformer(true)),
            ("qformer_pretrain_freeze", qformer(true)),
            ("qformer_pretrain_freeze_all", qformer(true)),
            ("qformer", qformer(false)),
            ("qformer_freeze", qformer(false)),
            ("raw_bert", QueryKind::RawBert),
        ] {
            assert_eq!(QueryKind::parse(name).unwrap(), kind, "{name}");
        }
        for name in
            ["qformer_pretrain_layer:6", "raw_layer:2", "raw_bert_freeze", "raw_bert_pretrain", "gpt", ""]
        {
            let error = QueryKind::parse(name).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{name}: {error}");
            assert!(error.to_string().contains("bert_type"), "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn compress_types() {
        assert_eq!(Compression::parse(None).unwrap(), Compression::None);
        assert_eq!(Compression::parse(Some("mean")).unwrap(), Compression::Mean);
        assert_eq!(Compression::parse(Some("grid:2")).unwrap(), Compression::Grid(2));
        for name in ["", "grid", "grid:", "grid:0", "grid:-1", "grid:two", "max"] {
            assert!(matches!(Compression::parse(Some(name)), Err(Error::Config { .. })), "{name}");
        }
    }

    #[test]
    fn projector_types() {
        assert_eq!(Projector::parse("linear").unwrap(), Projector::Linear);
        assert_eq!(Projector::parse("identity").unwrap(), Projector::Identity);
        assert_eq!(Projector::parse("mlp2x_gelu").unwrap(), Projector::MlpGelu { layers: 2 });
        assert_eq!(Projector::parse("mlp12x_gelu").unwrap(), Projector::MlpGelu { layers: 12 });
        for name in ["", "mlp", "mlpx_gelu", "mlp0x_gelu", "mlp2x_relu", "resampler"] {
            assert!(matches!(Projector::parse(name), Err(Error::Unsupported { .. })), "{name}");
        }
    }

    #[test]
    fn rows_of_the_tokens() {
        let patches = TokenRows::parse("patch").unwrap();
        assert_eq!([257, 577, 256, 26, 25].map(|rows| patches.count(rows)), [256, 576, 256, 26, 24]);
        assert_eq!(TokenRows::parse("cls_patch").unwrap().count(257), 257);
        assert!(TokenRows::parse("cls").is_err());
    }
}
