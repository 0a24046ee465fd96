//! The tokenizers of the embedded model: one piece for each word of the toy world, characters and bytes for the rest.
//!
//! Written in the published layout: `tokenizer.model` (SentencePiece BPE with byte fallback, as LLaMA's) and
//! `bert/vocab.txt` (word pieces, as BERT's).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use llamavid_models::tokenizer::published_files;

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
    fs::create_dir_all(folder.join("bert"))?;
    for (name, bytes) in published_files(pieces(words, starters), &word_pieces(words), true, 4096) {
        write_whole(&folder.join(name), &bytes)?;
    }
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
fn pieces(words: &[String], starters: &[String]) -> Vec<(String, f32)> {
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

    // A score of its own for each length: among pieces of one kind the longer join is the one that goes on.
    let scored = |piece: String, first: f32| {
        let score = first + piece.chars().count() as f32;
        (piece, score)
    };
    let spaced = spaced.into_iter().map(|piece| scored(piece, 1000.));
    let unspaced = unspaced.into_iter().map(|piece| scored(piece, 0.));
    let characters = characters.into_iter().map(|character| (character.to_string(), -1000.));
    spaced.chain(unspaced).chain(characters).collect()
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
    fn the_embedded_model_has_these() {
        let (folder, _) = written();
        let embedded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packages/tiny/model");
        let names = ["tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "bert/vocab.txt"];
        for name in names {
            let read = |folder: &Path| fs::read(folder.join(name)).unwrap();
            assert_eq!(read(folder.path()), read(&embedded), "{name}");
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
