//! What the weights are called in the two kinds of published files. Other files know them by the fields here.

/// Names of a kind of file, below `encoder` and `decoder`.
#[derive(Debug)]
pub(crate) struct Names {
    pub layers: &'static str,
    pub attention: &'static str,
    pub attention_norm: &'static str,
    pub across: &'static str,
    pub across_norm: &'static str,
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub output: &'static str,
    pub mlp_norm: &'static str,
    pub mlp_inner: &'static str,
    pub mlp_outer: &'static str,
    pub positions: &'static str,
    pub tokens: &'static str,
    pub audio_norm: &'static str,
    pub text_norm: &'static str,
}

/// Checkpoints of the public implementation.
pub(crate) static OPENAI: Names = Names {
    layers: "blocks",
    attention: "attn",
    attention_norm: "attn_ln",
    across: "cross_attn",
    across_norm: "cross_attn_ln",
    query: "query",
    key: "key",
    value: "value",
    output: "out",
    mlp_norm: "mlp_ln",
    mlp_inner: "mlp.0",
    mlp_outer: "mlp.2",
    positions: "positional_embedding",
    tokens: "token_embedding",
    audio_norm: "ln_post",
    text_norm: "ln",
};

/// Folders of the Hugging Face library.
pub(crate) static HUGGING_FACE: Names = Names {
    layers: "layers",
    attention: "self_attn",
    attention_norm: "self_attn_layer_norm",
    across: "encoder_attn",
    across_norm: "encoder_attn_layer_norm",
    query: "q_proj",
    key: "k_proj",
    value: "v_proj",
    output: "out_proj",
    mlp_norm: "final_layer_norm",
    mlp_inner: "fc1",
    mlp_outer: "fc2",
    positions: "embed_positions.weight",
    tokens: "embed_tokens",
    audio_norm: "layer_norm",
    text_norm: "layer_norm",
};
