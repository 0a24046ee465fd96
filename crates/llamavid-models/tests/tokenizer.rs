//! The tokenizers give the reference's ids and texts, and refuse files they cannot read.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use llamavid_models::tokenizer::{LlamaTokenizer, MAX_QUERY_IDS, WordPieceTokenizer, strip};
use serde_json::Value;

type TestResult = Result<(), Box<dyn std::error::Error>>;

fn oracle(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/oracle")).join(path)
}

fn read_json(path: &str) -> Result<Value, Box<dyn std::error::Error>> {
    Ok(serde_json::from_slice(&std::fs::read(oracle(path))?)?)
}

/// A folder's tokenizer; `legacy` and `added` replace what its files say.
fn llama(folder: &str, legacy: Option<bool>, added: Option<&Value>) -> LlamaTokenizer {
    let read = |name: &str| std::fs::read(oracle(folder).join(name)).ok();
    let mut config: Value = serde_json::from_slice(&read("tokenizer_config.json").unwrap()).unwrap();
    if let Some(legacy) = legacy {
        config["legacy"] = legacy.into();
    }
    let added = added.map(|added| added.to_string().into_bytes()).or_else(|| read("added_tokens.json"));
    LlamaTokenizer::from_bytes(
        &read("tokenizer.model").unwrap(),
        Some(config.to_string().as_bytes()),
        added.as_deref(),
        read("special_tokens_map.json").as_deref(),
    )
    .unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn cases<'a>(file: &'a Value, key: &str) -> &'a Vec<Value> {
    let cases = file[key].as_array().unwrap();
    assert!(!cases.is_empty(), "{key}");
    cases
}

/// Small and the same in every run; the tests need variety, not quality.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }
}

#[test]
fn encodes_as_the_reference_with_and_without_legacy() -> TestResult {
    let file = read_json("text/tokenizer.json")?;
    for legacy in [false, true] {
        let tokenizer = llama("text/tokenizer", Some(legacy), None);
        for case in cases(&file, "encode").iter().filter(|case| case["legacy"] == legacy) {
            let text = case["text"].as_str().unwrap();
            let expected = ids(&case["ids"]);
            assert_eq!(tokenizer.encode(text, true), expected, "{text:?}, legacy {legacy}");
            assert_eq!(tokenizer.encode(text, false), expected[1..], "{text:?}, legacy {legacy}");
            for (id, piece) in expected[1..].iter().zip(case["pieces"].as_array().unwrap()) {
                if Some(*id) != tokenizer.unk_id() {
                    assert_eq!(tokenizer.id_to_token(*id), piece.as_str());
                    assert_eq!(tokenizer.token_to_id(piece.as_str().unwrap()), Some(*id));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn added_tokens_take_the_white_space_around_them() -> TestResult {
    let file = read_json("text/tokenizer.json")?;
    let tokenizer = llama("text/tokenizer", None, Some(&file["added_vocab"]));
    for case in cases(&file, "added_tokens").iter().filter(|case| case.get("ids").is_some()) {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, true), ids(&case["ids"]), "{text:?}");
    }
    assert_eq!(tokenizer.vocab_size(), 623);
    assert_eq!(tokenizer.token_to_id("<im_end>"), Some(622));
    assert_eq!(tokenizer.id_to_token(622), Some("<im_end>"));
    Ok(())
}

#[test]
fn decodes_as_the_reference_at_once_and_as_a_stream() -> TestResult {
    let file = read_json("text/tokenizer.json")?;
    let tokenizer = llama("text/tokenizer", None, None);
    for case in cases(&file, "decode") {
        let case_ids = ids(&case["ids"]);
        assert_eq!(tokenizer.decode(&case_ids, false), case["text"].as_str().unwrap(), "{case_ids:?}");
        assert_eq!(tokenizer.decode(&case_ids, true), case["skip_special"].as_str().unwrap(), "{case_ids:?}");
        let mut stream = tokenizer.stream();
        let streamed: String = case_ids.iter().map(|id| stream.push(*id)).collect();
        assert_eq!(streamed + &stream.finish(), case["skip_special"].as_str().unwrap(), "{case_ids:?}");
    }
    Ok(())
}

#[test]
fn a_stream_holds_back_half_characters_and_no_more() -> TestResult {
    let tokenizer = llama("text/tokenizer", None, None);
    let byte = |byte: u8| tokenizer.token_to_id(&format!("<0x{byte:02X}>")).unwrap();
    let mut stream = tokenizer.stream();
    let deltas: Vec<String> = "é😀".bytes().map(|value| stream.push(byte(value))).collect();
    assert_eq!(deltas, ["", "é", "", "", "", "😀"]);
    // A start that nothing can complete is settled as soon as that is known.
    assert_eq!(stream.push(byte(0xF0)), "");
    assert_eq!(stream.push(byte(0x9F)), "");
    assert_eq!(stream.push(byte(0x41)), "\u{fffd}\u{fffd}A");
    assert_eq!(stream.push(byte(0xE4)), "");
    assert_eq!(stream.finish(), "\u{fffd}");
    Ok(())
}

#[test]
fn streams_add_up_for_any_ids() -> TestResult {
    let file = read_json("text/tokenizer.json")?;
    let tokenizer = llama("text/tokenizer", None, Some(&file["added_vocab"]));
    let mut draws = Draws(7);
    for _ in 0..2000 {
        let length = draws.below(12);
        // Bytes, added tokens and ids outside of the vocabulary are more frequent than in a text.
        let drawn: Vec<u32> = (0..length)
            .map(|_| match draws.below(4) {
                0 => draws.below(630) as u32,
                1 => 3 + [0xC3, 0xA9, 0xE4, 0xBD, 0xA0, 0xF0, 0x9F, 0x41][draws.below(8)],
                2 => 618 + draws.below(6) as u32,
                _ => draws.below(4) as u32,
            })
            .collect();
        let mut stream = tokenizer.stream();
        let streamed: String = drawn.iter().map(|id| stream.push(*id)).collect();
        assert_eq!(streamed + &stream.finish(), tokenizer.decode(&drawn, true), "{drawn:?}");
        tokenizer.decode(&drawn, false);
    }
    Ok(())
}

#[test]
fn answers_of_all_cases_decode_to_their_texts() -> TestResult {
    for folder in folders()? {
        let tokenizer = llama(&format!("{folder}/model"), None, None);
        for case in cases(&read_json(&format!("{folder}/cases.json"))?, "cases") {
            let greedy = ids(&case["greedy_ids"]);
            let strip = |text: String| strip(&text).to_owned();
            assert_eq!(strip(tokenizer.decode(&greedy, true)), case["text"].as_str().unwrap(), "{folder}");
            assert_eq!(
                strip(tokenizer.decode(&greedy, false)),
                case["text_cli"].as_str().unwrap(),
                "{folder}"
            );
        }
    }
    Ok(())
}

/// Folders of cases.
fn folders() -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(oracle(""))? {
        let entry = entry?;
        if entry.path().join("model/tokenizer.model").exists() {
            folders.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    assert!(folders.len() >= 9, "{folders:?}");
    Ok(folders)
}

/// The same pieces as a BPE that joins by a list of merges, ordered by score.
#[test]
fn pieces_equal_those_of_a_list_of_merges() -> TestResult {
    use tokenizers::models::bpe::BPE;
    let bytes = std::fs::read(oracle("text/tokenizer/tokenizer.model"))?;
    let proto = sentencepiece_model::SentencePieceModel::from_slice(&bytes)?;
    let mut vocabulary = std::collections::HashMap::new();
    for (piece, id) in proto.pieces().iter().zip(0u32..) {
        vocabulary.insert(piece.piece().to_owned(), id);
    }
    let mut merges = Vec::new();
    for piece in proto.pieces().iter().filter(|piece| piece.r#type() == sentencepiece_model::Type::Normal) {
        let text = piece.piece();
        for (cut, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(cut);
            if let (Some(left_id), Some(right_id)) = (vocabulary.get(left), vocabulary.get(right)) {
                merges.push((-piece.score(), *left_id, *right_id, (left.to_owned(), right.to_owned())));
            }
        }
    }
    merges.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let merges = merges.into_iter().map(|merge| merge.3).collect::<Vec<_>>();
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .unk_token("<unk>".into())
        .fuse_unk(true)
        .byte_fallback(true)
        .build()
        .map_err(|error| error.to_string())?;
    let tokenizer = llama("text/tokenizer", Some(true), None);
    let alphabet: Vec<&str> = "a e i o u t n s r h l d T A S U E R . , ? 1 4 é 好 😀 \n \t ▁"
        .split(' ')
        .chain([" ", " ", "the", " and"])
        .collect();
    let mut draws = Draws(3);
    for _ in 0..500 {
        let length = 1 + draws.below(60);
        let text: String = (0..length).map(|_| alphabet[draws.below(alphabet.len())]).collect();
        let marked = format!("▁{}", text.replace(' ', "▁"));
        let expected = tokenizers::Model::tokenize(&bpe, &marked).map_err(|error| error.to_string())?;
        let expected: Vec<u32> = expected.into_iter().map(|token| token.id).collect();
        assert_eq!(tokenizer.encode(&text, false), expected, "{text:?}");
    }
    Ok(())
}

#[test]
fn word_pieces_equal_the_reference() -> TestResult {
    let file = read_json("text/qformer_tokenizer.json")?;
    let vocabulary = std::fs::read(oracle("text/bert/vocab.txt"))?;
    let tokenizer = WordPieceTokenizer::from_vocab(&vocabulary, true)?;
    assert_eq!(u64::from(tokenizer.dec_id()), file["dec_token_id"].as_u64().unwrap());
    assert_eq!(tokenizer.vocab_size() as u64, file["vocabulary_with_dec"].as_u64().unwrap());
    assert_eq!(MAX_QUERY_IDS as u64, file["max_length"].as_u64().unwrap());
    for case in cases(&file, "cases") {
        let prompts: Vec<String> = serde_json::from_value(case["prompts"].clone())?;
        let (input_ids, mask) = tokenizer.encode_batch(&prompts)?;
        assert_eq!(
            input_ids,
            serde_json::from_value::<Vec<Vec<u32>>>(case["input_ids"].clone())?,
            "{prompts:?}"
        );
        assert_eq!(
            mask,
            serde_json::from_value::<Vec<Vec<u32>>>(case["attention_mask"].clone())?,
            "{prompts:?}"
        );
    }
    assert_eq!(tokenizer.encode_batch(&[])?, (vec![], vec![]));
    Ok(())
}

#[test]
fn broken_tokenizer_models_are_refused() -> TestResult {
    let good = std::fs::read(oracle("text/tokenizer/tokenizer.model"))?;
    let read = |bytes: &[u8]| LlamaTokenizer::from_bytes(bytes, None, None, None);
    assert!(read(&good).is_ok());
    for bytes in [
        &[][..],
        b"\0",
        b"not a model",
        b"{}",
        &[0xFF; 4096],
        b"version https://git-lfs.github.com/spec/v1\n",
    ] {
        assert!(read(bytes).is_err(), "{bytes:?}");
    }
    let mut draws = Draws(11);
    for cut in (0..good.len()).step_by(41) {
        let _ = read(&good[..cut]).map(|tokenizer| tokenizer.encode("A dog.", true));
    }
    for _ in 0..500 {
        let mut bytes = good.clone();
        for _ in 0..=draws.below(8) {
            let position = draws.below(bytes.len());
            bytes[position] = draws.below(256) as u8;
        }
        if let Ok(tokenizer) = read(&bytes) {
            let ids = tokenizer.encode("A small dog</s> jumps.\0é", true);
            tokenizer.decode(&ids, false);
        }
    }
    Ok(())
}

#[test]
fn broken_json_is_refused_with_the_files_name() -> TestResult {
    let model = std::fs::read(oracle("text/tokenizer/tokenizer.model"))?;
    let bad: [&[u8]; 6] = [b"", b"{", b"[]", b"\"legacy\"", b"\0\0\0", &[0xFF, 0xFE, 0x7B]];
    for bytes in bad {
        for (file, config, added, map) in [
            ("tokenizer_config.json", Some(bytes), None, None),
            ("added_tokens.json", None, Some(bytes), None),
            ("special_tokens_map.json", None, None, Some(bytes)),
        ] {
            let error = LlamaTokenizer::from_bytes(&model, config, added, map).unwrap_err().to_string();
            assert!(error.contains(file), "{error}");
        }
    }
    let deep = "[".repeat(100_000);
    assert!(LlamaTokenizer::from_bytes(&model, Some(deep.as_bytes()), None, None).is_err());
    for (config, key) in [
        (r#"{"legacy": "no"}"#, "legacy"),
        (r#"{"add_bos_token": false}"#, "add_bos_token"),
        (r#"{"clean_up_tokenization_spaces": true}"#, "clean_up_tokenization_spaces"),
        (r#"{"bos_token": 5}"#, "bos_token"),
        (r#"{"eos_token": {"content": ""}}"#, "eos_token"),
        (r#"{"additional_special_tokens": "x"}"#, "additional_special_tokens"),
    ] {
        let error = LlamaTokenizer::from_bytes(&model, Some(config.as_bytes()), None, None).unwrap_err();
        assert!(error.to_string().contains(key), "{error}");
    }
    for added in [
        r#"{"<x>": 5}"#,
        r#"{"<x>": 621}"#,
        r#"{"<x>": -1}"#,
        r#"{"": 620}"#,
        r#"{"<s>": 620}"#,
        r#"{"a": 620, "b": 620}"#,
    ] {
        assert!(LlamaTokenizer::from_bytes(&model, None, Some(added.as_bytes()), None).is_err(), "{added}");
    }
    Ok(())
}

#[test]
fn broken_word_lists_are_refused() {
    let lists: [&[u8]; 5] = [b"", b"\0", b"[PAD]\n[CLS]", &[0xFF, 0xFE], b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n"];
    for bytes in lists {
        assert!(WordPieceTokenizer::from_vocab(bytes, true).is_err(), "{bytes:?}");
    }
    assert!(WordPieceTokenizer::from_vocab(b"[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n[MASK]", true).is_ok());
}

#[test]
fn zeros_and_control_characters_are_text() -> TestResult {
    let tokenizer = llama("text/tokenizer", None, None);
    for text in ["\0", "a\0b", "\u{1}\u{7f}\u{85}", "\u{fffd}\u{10ffff}", "\r\n"] {
        let encoded = tokenizer.encode(text, false);
        assert_eq!(tokenizer.decode(&encoded, true), text);
    }
    let words = WordPieceTokenizer::from_vocab(&std::fs::read(oracle("text/bert/vocab.txt"))?, true)?;
    let (ids, _) = words.encode_batch(&["a\0 \u{1}".into(), "a".into()])?;
    assert_eq!(ids[0], ids[1]);
    Ok(())
}

#[test]
fn a_long_question_takes_time_in_proportion() -> TestResult {
    let tokenizer = llama("text/tokenizer", None, None);
    let vocabulary = std::fs::read(oracle("text/bert/vocab.txt"))?;
    let size = 1_000_000;
    let questions = [
        "a",
        " ",
        "<",
        "</s>",
        "<im_start",
        "the dog ",
        "好",
        "\0",
        "?",
        "ing",
        "aaaaaaaaaa aaaaaaaaaaaaaaaaaaaaaaa ",
    ];
    for unit in questions {
        let question = unit.repeat(size / unit.len());
        let words = WordPieceTokenizer::from_vocab(&vocabulary, true)?;
        let started = Instant::now();
        let ids = tokenizer.encode(&question, true);
        assert!(ids.len() > 1);
        let (rows, _) = words.encode_batch(std::slice::from_ref(&question))?;
        assert!(rows[0].len() <= MAX_QUERY_IDS);
        let (few, _) = words.within(16).encode_batch(std::slice::from_ref(&question))?;
        assert_eq!(few[0].len(), rows[0].len().min(16));
        assert_eq!(few[0][1..], rows[0][rows[0].len() + 1 - few[0].len()..]);
        let elapsed = started.elapsed();
        println!("{unit:?}: {elapsed:?}");
        // Quadratic work would take hours; the limit leaves room for a busy machine.
        assert!(elapsed < Duration::from_secs(60), "{unit:?}: {elapsed:?}");
    }
    Ok(())
}
