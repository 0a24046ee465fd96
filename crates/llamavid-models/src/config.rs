//! The configuration of a model, parsed once from `config.json`.
