//! The LLaMA decoder: forward pass, KV cache, sampling, stop rules.
