//! What trains and what does not.

/// Which weights train, by name. A name fits a prefix when it is equal or goes on with a dot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FreezePlan {
    trained: Vec<String>,
    frozen: Vec<String>,
}

/// Layers that exist in no pretrained part; all stages but the third train all of them.
const NEW_LAYERS: [&str; 2] = ["token_generator.projector", "token_generator.context"];

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
        Self { trained: names.into_iter().map(Into::into).collect(), frozen: Vec::new() }
    }

    /// The same without the weights below these names.
    #[must_use]
    pub fn except<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.frozen.extend(names.into_iter().map(Into::into));
        self
    }

    /// Stage 1, alignment: projector and context attention; with `<im_start>` and `<im_end>` also the input
    /// embeddings.
    pub fn alignment(image_start_end: bool) -> Self {
        let embeddings = image_start_end.then_some("language_model.embed_tokens");
        Self::only(NEW_LAYERS.into_iter().chain(embeddings))
    }

    /// Stage 2, instruction tuning: everything but the visual encoder.
    pub fn instruction() -> Self {
        Self::only(["token_generator", "language_model"])
    }

    /// Stage 3, long video: the language model and the projector.
    pub fn long_video() -> Self {
        Self::only(["token_generator.projector", "language_model"])
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
        self.trained.iter().any(below) && !self.frozen.iter().any(below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_at_dots() {
        let plan = FreezePlan::only(["a.norm", "b"]).except(["b.norm"]);
        for (name, trains) in [
            ("a.norm.weight", true),
            ("a.norm", true),
            ("a.norm2.weight", false),
            ("b.x", true),
            ("b.norm.x", false),
        ] {
            assert_eq!(plan.trains(name), trains, "{name}");
        }
        assert!(FreezePlan::everything().trains("any.weight"));
        assert!(!FreezePlan::nothing().trains("any.weight"));
    }
}
