//! From visual features and a question to context and content tokens.
