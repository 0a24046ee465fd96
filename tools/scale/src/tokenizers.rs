//! Tokenizers of the published sizes over made-up pieces: 32,000 of SentencePiece, 30,522 of BERT.

use std::fs;
use std::path::Path;

use llamavid_models::tokenizer::{FIRST_PIECES, published_files};
use serde_json::{Value, json};

use crate::Result;
use crate::sizes::Size;

const PIECES: usize = 32_000;
const WORD_PIECES: usize = 30_522;

/// Writes `tokenizer.model` with its side files, `bert/` and the image processor's folder.
pub fn write(folder: &Path, size: Size) -> Result<()> {
    write_pieces(folder, PIECES)?;
    let query = size.model()?.tokens.query;
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

/// Writes `tokenizer.model` of so many pieces with its side files, and `bert/vocab.txt` with its own.
pub fn write_pieces(folder: &Path, count: usize) -> Result<()> {
    fs::create_dir_all(folder.join("bert"))?;
    for (name, bytes) in published_files(pieces(count), &word_pieces(), false, 2048) {
        fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}

/// `count` of them with [`FIRST_PIECES`], in LLaMA's order: merges by rank, and characters at the end.
fn pieces(count: usize) -> impl Iterator<Item = (String, f32)> {
    let characters: Vec<char> = ('!'..='~').chain(['▁', '\n']).collect();
    let merges = letters().flat_map(|text| match text.len() {
        1 => vec![format!("▁{text}")],
        _ => vec![format!("▁{text}"), text],
    });
    let merges = merges.take(count.saturating_sub(FIRST_PIECES + characters.len()));
    let pieces = merges.chain(characters.into_iter().map(String::from));
    pieces.enumerate().map(|(rank, text)| (text, -(rank as f32)))
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
