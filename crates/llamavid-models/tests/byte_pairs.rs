//! Tokenizers of byte pairs, as LLaMA 3 and Qwen2 have them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use llamavid_models::prompt::placeholders::{IMAGE_TOKEN, tokenize_with_images};
use llamavid_models::tokenizer::LlamaTokenizer;
use serde_json::{Value, json};

const LLAMA_3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Behind the letters of all bytes.
const FIRST_MERGE: u32 = 256;

/// The letters of the bytes 0 to 255 in GPT-2's alphabet.
fn letters() -> Vec<String> {
    let visible = |byte: u8| byte.is_ascii_graphic() || byte > 0xa0 && byte != 0xad;
    let mut unseen = (0x100..).filter_map(char::from_u32);
    (0..=255u8)
        .map(|byte| if visible(byte) { char::from(byte) } else { unseen.next().unwrap() }.to_string())
        .collect()
}

/// A file in LLaMA 3's layout: `t h`, `th e`, `Ġ the` are merged, and two special tokens and one plain stand behind.
fn file() -> Value {
    let mut vocabulary = serde_json::Map::new();
    for (letter, id) in letters().into_iter().zip(0u32..) {
        vocabulary.insert(letter, json!(id));
    }
    for (token, id) in ["th", "the", "Ġthe"].into_iter().zip(FIRST_MERGE..) {
        vocabulary.insert(token.to_owned(), json!(id));
    }
    let added = |id: u32, content: &str, special: bool| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special })
    };
    let bytes =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let begin = "<|begin|>";
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [added(259, begin, true), added(260, "<|end|>", true), added(261, "<plain>", false)],
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": LLAMA_3 }, "behavior": "Isolated", "invert": false }, bytes,
        ] },
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": begin, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { begin: { "id": begin, "ids": [259], "tokens": [begin] } } },
        "decoder": bytes,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocabulary, "merges": ["t h", "th e", "Ġ the"] },
    })
}

fn open(file: &Value, added: Option<&str>) -> Result<LlamaTokenizer, llamavid_models::Error> {
    let config = br#"{"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}}"#;
    LlamaTokenizer::from_bytes(file.to_string().as_bytes(), Some(config), added.map(str::as_bytes), None)
}

const TEXTS: [&str; 7] = [
    "the thethe  the",
    "It's 12345 o'clock,\n\n tabs\tand \r\n ends  ",
    "ü 猫 \u{1f600} e\u{301}",
    "<|end|> in the middle <plain>",
    "",
    "\u{0}\u{7f}",
    "<|begi n|>",
];

#[test]
fn merges_bytes_and_special_tokens() {
    let tokenizer = open(&file(), None).unwrap();
    let [t, h, e, space] = [b't', b'h', b'e', b' '].map(u32::from).map(|byte| {
        // Visible bytes come in their own order among the letters.
        tokenizer.token_to_id(&letters()[byte as usize]).unwrap()
    });
    assert_eq!(tokenizer.encode("the the", false), [257, 258]);
    assert_eq!(tokenizer.encode("t h", true), [259, t, space, h]);
    assert_eq!(tokenizer.encode("<|end|>e<plain>", false), [260, e, 261]);
    assert_eq!(tokenizer.encode("ü", false).len(), 2);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(259), 260, 260));
    assert_eq!((tokenizer.vocab_size(), tokenizer.unk_id()), (262, None));
    assert_eq!(tokenizer.id_to_token(258), Some("Ġthe"));
    assert_eq!(tokenizer.id_to_token(262), None);
}

#[test]
fn texts_come_back_byte_for_byte_also_one_id_at_a_time() {
    let tokenizer = open(&file(), None).unwrap();
    for text in TEXTS {
        let ids = tokenizer.encode(text, true);
        assert_eq!(tokenizer.decode(&ids, false), format!("<|begin|>{text}"));
        let mut stream = tokenizer.stream();
        let parts: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
        let streamed = parts.concat() + &stream.finish();
        assert_eq!(streamed, text.replace("<|end|>", ""));
        assert_eq!(tokenizer.decode(&ids, true), streamed);
        assert!(parts.iter().all(|part| !part.contains(char::REPLACEMENT_CHARACTER)), "{parts:?}");
    }
    // Half a character, then another, and an id that is none.
    let half = tokenizer.encode("é", false)[0];
    let text = tokenizer.decode(&[half, half, 500, tokenizer.encode("e", false)[0]], true);
    assert_eq!(text, "\u{fffd}\u{fffd}\u{fffd}e");
}

#[test]
fn a_prompt_begins_as_the_file_says() {
    let mut plain = file();
    let with = tokenize_with_images(&open(&plain, None).unwrap(), "the<image> the");
    assert_eq!(with, [259, 257, IMAGE_TOKEN, 258]);
    // Qwen2's file puts nothing in front.
    plain["post_processor"] = Value::Null;
    let tokenizer = open(&plain, None).unwrap();
    assert_eq!(tokenizer.bos_id(), None);
    assert_eq!(tokenize_with_images(&tokenizer, "the<image> the"), [257, IMAGE_TOKEN, 258]);
}

#[test]
fn tokens_added_by_a_training_follow() {
    let added = r#"{"<im_end>": 263, "<plain>": 261, "<im_start>": 262}"#;
    let tokenizer = open(&file(), Some(added)).unwrap();
    assert_eq!(tokenizer.encode("the<im_start><im_end>", false), [257, 262, 263]);
    assert_eq!(tokenizer.decode(&[262, 257, 263], true), "<im_start>the<im_end>");
    let error = open(&file(), Some(r#"{"<im_start>": 300}"#)).unwrap_err().to_string();
    assert!(error.contains("added_tokens.json") && error.contains("300"), "{error}");
}

#[test]
fn other_files_are_refused_by_name() {
    let refused = |file: &Value, told: &str| {
        let error = open(file, None).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json") && error.contains(told), "{error}");
    };
    let mut words = file();
    words["model"] = json!({ "type": "WordLevel", "vocab": { "a": 0 }, "unk_token": "a" });
    refused(&words, "byte pairs");
    let mut letterless = file();
    letterless["model"]["vocab"].as_object_mut().unwrap().remove("A");
    refused(&letterless, "letter for each byte");
    refused(&json!({ "a": 1 }), "tokenizers library");
    let text = file().to_string();
    let cut = LlamaTokenizer::from_bytes(&text.as_bytes()[..text.len() / 2], None, None, None);
    assert!(cut.unwrap_err().to_string().contains("tokenizer.json"));
    let nameless = LlamaTokenizer::from_bytes(text.as_bytes(), None, None, None).unwrap_err().to_string();
    assert!(nameless.contains("eos_token"), "{nameless}");
}
