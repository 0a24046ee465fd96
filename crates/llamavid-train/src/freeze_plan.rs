//! What trains and what does not.

/// Which weights train, by name. A name fits a prefix when it is equal or goes on with a dot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FreezePlan {
    trained: Vec<String>,
}

/// What InstructBLIP pretrained.
const QUERY_MODEL: [&str; 3] =
    ["token_generator.query_model", "token_generator.query_tokens", "token_generator.query_norm"];

impl FreezePlan {
    /// Everything trains.
    pub fn everything() -> Self {
        Self::only([""])
    }

    /// Nothing trains: for inference and evaluation.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// Only weights below these names train.
    pub fn only<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Self { trained: names.into_iter().map(Into::into).collect() }
    }

    /// What the reference's flags say.
    ///
    /// `alignment` is `tune_mm_mlp_adapter`: of what exists before, only the projector trains, and with `<im_start>` and
    /// `<im_end>` the input embeddings. Without it the language model trains too. Whatever the stage, `bert_type` decides
    /// about the query model and the context attention: `freeze` keeps the first, `freeze_all` both as they are.
    pub fn of_flags(alignment: bool, bert_type: &str, image_start_end: bool) -> Self {
        let mut trained = vec!["token_generator.projector"];
        match alignment {
            false => trained.push("language_model"),
            true if image_start_end => trained.push("language_model.embed_tokens"),
            true => {}
        }
        if !bert_type.contains("freeze_all") {
            trained.extend(["token_generator.context", "token_generator.bert_proj"]);
        }
        if !bert_type.contains("freeze") {
            trained.extend(QUERY_MODEL);
        }
        Self::only(trained)
    }

    /// The same with adapters of the language model in its place. Embeddings that a plan names by themselves stay.
    #[must_use]
    pub fn with_lora(mut self) -> Self {
        self.trained.retain(|name| name != "language_model");
        self.trained.push(crate::lora::PREFIX.to_owned());
        self
    }

    /// Whether the weight of this name trains.
    pub fn trains(&self, name: &str) -> bool {
        let below = |prefix: &String| match name.strip_prefix(prefix.as_str()) {
            Some(rest) => prefix.is_empty() || rest.is_empty() || rest.starts_with('.'),
            None => false,
        };
        self.trained.iter().any(below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_at_dots() {
        let plan = FreezePlan::only(["a.norm", "b"]);
        for (name, trains) in [
            ("a.norm.weight", true),
            ("a.norm", true),
            ("a.norm2.weight", false),
            ("b.x", true),
            ("c.b", false),
        ] {
            assert_eq!(plan.trains(name), trains, "{name}");
        }
        let of = |alignment, bert_type| FreezePlan::of_flags(alignment, bert_type, true);
        assert!(of(true, "qformer_pretrain").trains("token_generator.query_tokens"));
        assert!(!of(true, "qformer_pretrain_freeze").trains("token_generator.query_model.bert.x"));
        assert!(of(true, "qformer_pretrain_freeze").trains("language_model.embed_tokens.weight"));
        assert!(!of(true, "qformer_pretrain_freeze").trains("language_model.lm_head.weight"));
        assert!(!of(false, "qformer_pretrain_freeze_all").trains("token_generator.context.key_proj.weight"));
        assert!(of(false, "qformer_pretrain_freeze_all").trains("token_generator.projector.0.bias"));
        assert!(FreezePlan::everything().trains("any.weight"));
        assert!(!FreezePlan::nothing().trains("any.weight"));
    }
}
