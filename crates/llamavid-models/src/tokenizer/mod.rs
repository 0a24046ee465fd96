//! The tokenizers of the language model and of the query model.
