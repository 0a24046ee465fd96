//! The files of a model's tokenizers, written as the published models have them.

use prost::Message;
use sentencepiece_model::{ModelProto, ModelType, NormalizerSpec, SentencePiece, TrainerSpec};
use serde_json::{Value, json};

pub use sentencepiece_model::Type as PieceKind;

/// A piece: its text, its score, its kind.
pub type Piece = (String, f32, PieceKind);

/// The content of a `tokenizer.model`: `pieces` in the order of their ids, joined by their scores as LLaMA's are.
/// `space_in_front` says whether texts get a space in front.
pub fn piece_model(pieces: Vec<Piece>, space_in_front: bool) -> Vec<u8> {
    let trainer = TrainerSpec {
        model_type: Some(ModelType::Bpe as i32),
        vocab_size: i32::try_from(pieces.len()).ok(),
        byte_fallback: Some(pieces.iter().any(|(_, _, kind)| *kind == PieceKind::Byte)),
        ..TrainerSpec::default()
    };
    let normalizer = NormalizerSpec {
        name: Some("identity".to_owned()),
        precompiled_charsmap: Some(Vec::new()),
        add_dummy_prefix: Some(space_in_front),
        remove_extra_whitespaces: Some(false),
        escape_whitespaces: Some(true),
        ..NormalizerSpec::default()
    };
    let piece = |(text, score, kind): Piece| SentencePiece {
        piece: Some(text),
        score: Some(score),
        r#type: Some(kind as i32),
    };
    let model = ModelProto {
        pieces: pieces.into_iter().map(piece).collect(),
        trainer_spec: Some(trainer),
        normalizer_spec: Some(normalizer),
        ..ModelProto::default()
    };
    model.encode_to_vec()
}

/// Pieces that stand in front of those of a text in LLaMA's: `<unk>`, `<s>`, `</s>` and each byte.
pub const FIRST_PIECES: usize = 3 + 256;

/// The files of both tokenizers by their places in a model's folder: LLaMA's with `pieces` behind its [`FIRST_PIECES`], and
/// BERT's over `words`. `legacy` is the first one's habit of that name.
pub fn published_files(
    pieces: impl IntoIterator<Item = (String, f32)>,
    words: &[String],
    legacy: bool,
    max_length: usize,
) -> [(&'static str, Vec<u8>); 5] {
    let control = [("<unk>", PieceKind::Unknown), ("<s>", PieceKind::Control), ("</s>", PieceKind::Control)];
    let control = control.map(|(text, kind)| (text.to_owned(), 0., kind));
    let bytes = (0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 0., PieceKind::Byte));
    let pieces = pieces.into_iter().map(|(text, score)| (text, score, PieceKind::Normal));
    let pieces = control.into_iter().chain(bytes).chain(pieces).collect();

    let plain = |content: &str| {
        json!({ "content": content, "lstrip": false, "normalized": true, "rstrip": false,
            "single_word": false })
    };
    let token = |content: &str| {
        json!({ "__type": "AddedToken", "content": content, "lstrip": false, "normalized": true, "rstrip": false,
            "single_word": false })
    };
    let config = json!({
        "add_bos_token": true, "add_eos_token": false, "bos_token": token("<s>"), "eos_token": token("</s>"),
        "unk_token": token("<unk>"), "pad_token": null, "legacy": legacy, "clean_up_tokenization_spaces": false,
        "model_max_length": max_length, "padding_side": "right", "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    });
    let map = json!({ "bos_token": plain("<s>"), "eos_token": plain("</s>"), "pad_token": "<unk>",
        "unk_token": plain("<unk>") });
    let readable = |value: &Value| format!("{value:#}\n").into_bytes();
    [
        ("tokenizer.model", piece_model(pieces, true)),
        ("tokenizer_config.json", readable(&config)),
        ("special_tokens_map.json", readable(&map)),
        ("bert/vocab.txt", (words.join("\n") + "\n").into_bytes()),
        ("bert/tokenizer_config.json", readable(&json!({ "do_lower_case": true }))),
    ]
}
