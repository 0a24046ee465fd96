//! The tokenizers of the embedded model: one piece for each word of the toy world, characters and bytes for the rest.
//!
//! Written in the published layout: `tokenizer.model` (SentencePiece BPE with byte fallback, as LLaMA's) and
//! `bert/vocab.txt` (word pieces, as BERT's).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use prost::Message;
use sentencepiece_model::{ModelProto, ModelType, NormalizerSpec, SentencePiece, TrainerSpec, Type};
use serde_json::json;

use crate::Result;

const SPACE_MARK: char = '▁';

/// Words of the conversation templates and of the movie prompt, beside those of the world.
const TEMPLATE_TEXT: &str = "A chat between a curious user and an artificial intelligence assistant. \
    The assistant gives helpful, detailed, and polite answers to the user's questions. \
    A chat between a curious human USER: ASSISTANT: Below is a movie. Memorize the content and answer my question \
    after watching this movie. Now the movie end.";

/// Characters that stand behind a word without a space, or alone.
const MARKS: [char; 9] = ['.', ',', '?', '!', ':', ';', '\'', '"', '-'];

/// Writes `tokenizer.model` with its side files, and `bert/`, into `folder`.
///
/// `words` are those of the world. `starters` may stand behind a line break, where a text has no space in front.
pub fn write(folder: &Path, words: &[String], starters: &[String]) -> Result<()> {
    let model = sentence_piece(words, starters);
    fs::create_dir_all(folder.join("bert"))?;
    write_whole(&folder.join("tokenizer.model"), &model.encode_to_vec())?;
    let token = |content: &str| {
        json!({ "__type": "AddedToken", "content": content, "lstrip": false, "normalized": true, "rstrip": false,
            "single_word": false })
    };
    write_json(
        &folder.join("tokenizer_config.json"),
        &json!({
            "add_bos_token": true, "add_eos_token": false, "bos_token": token("<s>"), "eos_token": token("</s>"),
            "unk_token": token("<unk>"), "pad_token": null, "legacy": true, "clean_up_tokenization_spaces": false,
            "model_max_length": 4096, "padding_side": "right", "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
        }),
    )?;
    let plain = |content: &str| json!({ "content": content, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false });
    write_json(
        &folder.join("special_tokens_map.json"),
        &json!({ "bos_token": plain("<s>"), "eos_token": plain("</s>"), "pad_token": "<unk>",
            "unk_token": plain("<unk>") }),
    )?;
    let vocabulary = word_pieces(words);
    write_whole(&folder.join("bert/vocab.txt"), (vocabulary.join("\n") + "\n").as_bytes())?;
    write_json(&folder.join("bert/tokenizer_config.json"), &json!({ "do_lower_case": true }))?;
    Ok(())
}

/// Writes a JSON file, readable by people.
pub fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    write_whole(path, (serde_json::to_string_pretty(value)? + "\n").as_bytes())
}

/// Courses run side by side, and each writes these files: one must not see what another has half written.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&temporary, bytes)?;
    Ok(fs::rename(temporary, path)?)
}

/// BPE only joins to pieces that exist, so each word brings the pieces that lead to it from its first character.
/// Pieces that begin with a space win over others, and longer ones over shorter: a word is always joined to its end.
fn sentence_piece(words: &[String], starters: &[String]) -> ModelProto {
    let mut spaced: BTreeSet<String> = BTreeSet::new();
    let template = TEMPLATE_TEXT.split_whitespace().map(|word| word.trim_matches(MARKS));
    let template = template.flat_map(|word| word.split('\'')).map(str::to_owned);
    for word in words
        .iter()
        .cloned()
        .chain(template)
        .chain(starters.iter().flat_map(|word| [word.clone(), capitalised(word)]))
    {
        let marked: Vec<char> = std::iter::once(SPACE_MARK).chain(word.chars()).collect();
        spaced.extend((2..=marked.len()).map(|end| marked[..end].iter().collect::<String>()));
    }
    spaced.extend(MARKS.iter().map(|mark| format!("{SPACE_MARK}{mark}")));
    let mut unspaced: BTreeSet<String> = BTreeSet::new();
    for word in starters.iter().flat_map(|word| [word.clone(), capitalised(word)]).chain(["Now".to_owned()]) {
        let characters: Vec<char> = word.chars().collect();
        unspaced.extend((2..=characters.len()).map(|end| characters[..end].iter().collect::<String>()));
    }
    let mut characters: BTreeSet<char> = (' '..='~').filter(|character| *character != ' ').collect();
    characters.insert(SPACE_MARK);
    characters.insert('\n');

    let mut pieces = Vec::new();
    let mut push = |text: String, score: f32, kind: Type| {
        pieces.push(SentencePiece { piece: Some(text), score: Some(score), r#type: Some(kind as i32) });
    };
    push("<unk>".into(), 0., Type::Unknown);
    push("<s>".into(), 0., Type::Control);
    push("</s>".into(), 0., Type::Control);
    for byte in 0..=255u8 {
        push(format!("<0x{byte:02X}>"), 0., Type::Byte);
    }
    // A score of its own for each length: among pieces of one kind the longer join is the one that goes on.
    let mut by_length: Vec<(&String, f32)> = Vec::new();
    by_length.extend(spaced.iter().map(|piece| (piece, 1000. + piece.chars().count() as f32)));
    by_length.extend(unspaced.iter().map(|piece| (piece, piece.chars().count() as f32)));
    for (piece, score) in by_length {
        push(piece.clone(), score, Type::Normal);
    }
    for character in characters {
        push(character.to_string(), -1000., Type::Normal);
    }
    let vocab_size = pieces.len() as i32;
    ModelProto {
        pieces,
        trainer_spec: Some(TrainerSpec {
            model_type: Some(ModelType::Bpe as i32),
            vocab_size: Some(vocab_size),
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
        ..ModelProto::default()
    }
}

/// The word with its first letter in upper case, as a question may begin.
pub fn capitalised(word: &str) -> String {
    let mut characters = word.chars();
    characters
        .next()
        .map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + characters.as_str())
}

fn word_pieces(words: &[String]) -> Vec<String> {
    let mut pieces: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned).into();
    let mut known: BTreeSet<String> = pieces.iter().cloned().collect();
    let characters: Vec<char> = ('!'..='~').filter(|character| !character.is_ascii_uppercase()).collect();
    let singles = characters.iter().flat_map(|character| [character.to_string(), format!("##{character}")]);
    for piece in words.iter().map(|word| word.to_ascii_lowercase()).chain(singles) {
        if known.insert(piece.clone()) {
            pieces.push(piece);
        }
    }
    pieces
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use llamavid_models::tokenizer::{LlamaTokenizer, WordPieceTokenizer};
    use llamavid_world::vocabulary;

    use super::*;

    fn written() -> (tempfile::TempDir, LlamaTokenizer) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &vocabulary(), &crate::starters()).unwrap();
        let tokenizer = crate::tokenizer(folder.path()).unwrap();
        (folder, tokenizer)
    }

    #[test]
    fn each_word_of_the_world_is_one_piece() {
        let (_folder, tokenizer) = written();
        for word in vocabulary() {
            assert_eq!(tokenizer.encode(&word, false).len(), 1, "{word}");
            assert_eq!(tokenizer.decode(&tokenizer.encode(&word, false), true).trim(), word);
        }
    }

    #[test]
    fn a_question_behind_a_line_break_begins_with_one_piece() {
        let (_folder, tokenizer) = written();
        for word in crate::starters() {
            for word in [capitalised(&word), word] {
                // The space that every text begins with, the line break, the word.
                assert_eq!(tokenizer.encode(&format!("\n{word}"), false).len(), 3, "{word}");
            }
        }
    }

    #[test]
    fn other_text_survives() {
        let (_folder, tokenizer) = written();
        let text = "Wo ist der Rüssel? 象 {}";
        assert_eq!(tokenizer.decode(&tokenizer.encode(text, false), true).trim(), text);
    }

    #[test]
    fn the_query_model_knows_the_words() {
        let (folder, _) = written();
        let vocabulary_file = fs::read(folder.path().join("bert/vocab.txt")).unwrap();
        let tokenizer = WordPieceTokenizer::from_vocab(&vocabulary_file, true).unwrap();
        let words: Vec<String> = vocabulary();
        let (ids, _) = tokenizer.encode_batch(&words).unwrap();
        for (word, ids) in words.iter().zip(ids) {
            // [CLS], the word, [SEP], padding.
            assert!(ids.get(2) == Some(&3), "{word} {ids:?}");
        }
    }
}
