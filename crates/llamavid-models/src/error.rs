//! What can go wrong in the model, with the facts that name the cause.

/// Result of the model's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the model. Each variant holds what was expected and what was found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed, or a weight is missing or has another shape (the message names it).
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A configuration value that this model cannot have.
    #[error("config key `{key}`: {problem}")]
    Config {
        /// The key, as written in the file.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A configuration value that is valid elsewhere and not supported here.
    #[error("config key `{key}`: {problem}")]
    Unsupported {
        /// The key, as written in the file.
        key: String,
        /// What is not supported and what is.
        problem: String,
    },
    /// A tokenizer file that cannot be used.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// Devices that cannot compute the layers of a language model together.
    #[error("{ranks} devices cannot share the layers of this language model: {problem}")]
    Shares {
        /// How many.
        ranks: usize,
        /// What does not divide.
        problem: String,
    },
    /// A prompt that does not fit its visual tokens or its template.
    #[error("prompt: {0}")]
    Prompt(String),
    /// The prompt and the wanted answer do not fit the context.
    #[error(
        "the prompt has {prompt} tokens ({visual} of them visual) and {new} new ones were asked for, \
         the context holds {context}"
    )]
    ContextOverflow {
        /// Prompt tokens after splicing.
        prompt: usize,
        /// Visual tokens among them.
        visual: usize,
        /// New tokens asked for.
        new: usize,
        /// Positions of the context.
        context: usize,
    },
    /// An argument outside its range.
    #[error("{0}")]
    Argument(String),
}
