//! Tokenizers of the published sizes over made-up pieces: 32,000 of SentencePiece, 30,522 of BERT.

use std::fs;
use std::path::Path;

use prost::Message;
use sentencepiece_model::{ModelProto, ModelType, NormalizerSpec, SentencePiece, TrainerSpec, Type};
use serde_json::{Value, json};

use crate::Result;
use crate::sizes::Size;

const PIECES: usize = 32_000;
const WORD_PIECES: usize = 30_522;

/// Writes `tokenizer.model` with its side files, `bert/` and the image processor's folder.
pub fn write(folder: &Path, size: Size) -> Result<()> {
    write_pieces(folder, PIECES)?;
    let query = size.model()?.tokens.query;
    fs::create_dir_all(folder.join("bert"))?;
    fs::write(folder.join("bert/vocab.txt"), word_pieces().join("\n") + "\n")?;
    write_json(
        &folder.join("bert/tokenizer_config.json"),
        &json!({ "do_lower_case": true, "model_max_length": 512 }),
    )?;
    write_json(
        &folder.join("bert/config.json"),
        &json!({ "architectures": ["BertForMaskedLM"], "hidden_act": "gelu", "hidden_size": query.width,
            "intermediate_size": query.mlp_width, "max_position_embeddings": query.max_positions,
            "model_type": "bert", "num_attention_heads": query.heads, "num_hidden_layers": query.layers,
            "type_vocab_size": 2, "vocab_size": WORD_PIECES }),
    )?;
    let processor = folder.join("clip-patch14-224");
    fs::create_dir_all(&processor)?;
    write_json(
        &processor.join("preprocessor_config.json"),
        &json!({ "crop_size": 224, "do_center_crop": true, "do_normalize": true, "do_resize": true,
            "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224 }),
    )
}

/// Writes `tokenizer.model` of so many pieces with its side files.
pub fn write_pieces(folder: &Path, count: usize) -> Result<()> {
    fs::write(folder.join("tokenizer.model"), sentence_piece(count).encode_to_vec())?;
    let token = |content: &str| {
        json!({ "__type": "AddedToken", "content": content, "lstrip": false, "normalized": true, "rstrip": false,
            "single_word": false })
    };
    write_json(
        &folder.join("tokenizer_config.json"),
        &json!({ "add_bos_token": true, "add_eos_token": false, "bos_token": token("<s>"), "eos_token": token("</s>"),
            "unk_token": token("<unk>"), "pad_token": null, "legacy": false, "clean_up_tokenization_spaces": false,
            "model_max_length": 2048, "padding_side": "right", "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer" }),
    )?;
    let plain = |content: &str| json!({ "content": content, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false });
    write_json(
        &folder.join("special_tokens_map.json"),
        &json!({ "bos_token": plain("<s>"), "eos_token": plain("</s>"), "pad_token": "<unk>",
            "unk_token": plain("<unk>") }),
    )
}

/// Writes a JSON file, readable by people.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, serde_json::to_string_pretty(value)? + "\n")?;
    Ok(())
}

/// Texts of one to three letters. Each of them is two shorter ones joined, as merges need.
fn letters() -> impl Iterator<Item = String> {
    let letters = || 'a'..='z';
    let pairs = letters().flat_map(move |a| letters().map(move |b| format!("{a}{b}")));
    let triples = letters()
        .flat_map(move |a| letters().flat_map(move |b| letters().map(move |c| format!("{a}{b}{c}"))));
    letters().map(String::from).chain(pairs).chain(triples)
}

/// In LLaMA's order: control pieces, bytes, merges by rank, and characters at the end.
fn sentence_piece(count: usize) -> ModelProto {
    let mut pieces = Vec::with_capacity(count);
    let mut push = |text: String, score: f32, kind: Type| {
        pieces.push(SentencePiece { piece: Some(text), score: Some(score), r#type: Some(kind as i32) });
    };
    push("<unk>".into(), 0., Type::Unknown);
    push("<s>".into(), 0., Type::Control);
    push("</s>".into(), 0., Type::Control);
    (0..=255u8).for_each(|byte| push(format!("<0x{byte:02X}>"), 0., Type::Byte));
    let characters: Vec<char> = ('!'..='~').chain(['▁', '\n']).collect();
    let merges = letters().flat_map(|text| match text.len() {
        1 => vec![format!("▁{text}")],
        _ => vec![format!("▁{text}"), text],
    });
    let count = count.saturating_sub(3 + 256 + characters.len());
    for (rank, text) in merges.take(count).enumerate() {
        push(text, -(rank as f32), Type::Normal);
    }
    for (index, character) in characters.into_iter().enumerate() {
        push(character.to_string(), -((count + index) as f32), Type::Normal);
    }
    ModelProto {
        trainer_spec: Some(TrainerSpec {
            model_type: Some(ModelType::Bpe as i32),
            vocab_size: Some(pieces.len() as i32),
            byte_fallback: Some(true),
            ..TrainerSpec::default()
        }),
        normalizer_spec: Some(NormalizerSpec {
            name: Some("identity".into()),
            precompiled_charsmap: Some(Vec::new()),
            add_dummy_prefix: Some(true),
            remove_extra_whitespaces: Some(false),
            escape_whitespaces: Some(true),
            ..NormalizerSpec::default()
        }),
        pieces,
        ..ModelProto::default()
    }
}

/// BERT's special pieces at their places, then characters and texts of letters.
fn word_pieces() -> Vec<String> {
    let mut pieces = vec!["[PAD]".to_owned()];
    pieces.extend((0..99).map(|index| format!("[unused{index}]")));
    pieces.extend(["[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned));
    let marks = ('!'..='~')
        .filter(|mark| !mark.is_ascii_alphabetic())
        .flat_map(|mark| [mark.to_string(), format!("##{mark}")]);
    pieces.extend(marks);
    pieces.extend(letters().flat_map(|text| [text.clone(), format!("##{text}")]));
    pieces.truncate(WORD_PIECES);
    pieces
}
