//! The recorded cases.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use llamavid_models::prompt::conversation::{MediaPlacement, SeparatorStyle, Template};
use llamavid_models::tokenizer::LlamaTokenizer;
use llamavid_train::data::{Guidance, Message, Speaker, TrainingTemplate};
use serde_json::Value;

pub fn oracle(path: impl AsRef<Path>) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/oracle")).join(path)
}

pub fn read_json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&std::fs::read(oracle(path)).unwrap()).unwrap()
}

pub fn array<'a>(value: &'a Value, key: &str) -> &'a Vec<Value> {
    let values = value[key].as_array().unwrap_or_else(|| panic!("{key}"));
    assert!(!values.is_empty(), "{key}");
    values
}

pub fn of<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

pub fn tokenizer(folder: impl AsRef<Path>, legacy: Option<bool>) -> LlamaTokenizer {
    let read = |name: &str| std::fs::read(oracle(folder.as_ref()).join(name)).ok();
    let mut config: Value = serde_json::from_slice(&read("tokenizer_config.json").unwrap()).unwrap();
    if let Some(legacy) = legacy {
        config["legacy"] = legacy.into();
    }
    LlamaTokenizer::from_bytes(
        &read("tokenizer.model").unwrap(),
        Some(config.to_string().as_bytes()),
        read("added_tokens.json").as_deref(),
        read("special_tokens_map.json").as_deref(),
    )
    .unwrap()
}

/// A tokenizer of byte pairs.
pub fn byte_pairs(kind: &str) -> LlamaTokenizer {
    let read = |name: &str| std::fs::read(oracle("../byte-pairs").join(kind).join(name)).unwrap();
    LlamaTokenizer::from_bytes(&read("tokenizer.json"), Some(&read("tokenizer_config.json")), None, None)
        .unwrap()
}

/// A template by name; the custom ones are described in the fixtures.
pub fn template(name: &str) -> TrainingTemplate {
    if !name.starts_with("custom_") {
        return TrainingTemplate::by_name(name).unwrap();
    }
    let described = &read_json("text/conversations.json")["templates"][name];
    let text = |key: &str| Cow::Owned(described[key].as_str().unwrap().to_owned());
    assert_eq!(described["sep_style"], "LLAMA_2");
    let template = Template {
        name: Cow::Owned(name.to_owned()),
        // Another system text than in the fixtures' table of templates, as the recorded ids decode.
        system: Cow::Borrowed("Be brief."),
        roles: [Cow::Owned(of(&described["roles"][0])), Cow::Owned(of(&described["roles"][1]))],
        style: SeparatorStyle::Llama2,
        separator: text("sep"),
        second_separator: Some(text("sep2")),
        media: MediaPlacement::OwnLine,
    };
    TrainingTemplate::new(template, Guidance::None).unwrap()
}

/// Messages as `[["human", "…"], …]`.
pub fn turns(value: &Value) -> Vec<Message> {
    let pairs: Vec<(String, String)> = of(value);
    pairs.into_iter().map(|(from, value)| Message { from: Speaker::by_name(&from).unwrap(), value }).collect()
}
