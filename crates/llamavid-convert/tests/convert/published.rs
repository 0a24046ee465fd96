//! A folder in the published layout, each of whose files is damaged in turn.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use llamavid_models::tokenizer::LlamaTokenizer;
use llamavid_runtime::model_folder::ModelFolder;
use llamavid_runtime::{Error, ErrorCode};
use llamavid_weights::Checkpoint;
use llamavid_weights::writer::write_safetensors;

use crate::folders::{copy, oracle, random_model};

fn load(folder: &Path) -> Result<LlamaTokenizer, Error> {
    let folder = ModelFolder::open(folder)?;
    folder.visual_encoder(DType::F32, &Device::Cpu)?;
    folder.token_generator(DType::F32, &Device::Cpu)?;
    folder.language_model(DType::F32, &Device::Cpu)?;
    folder.query_tokenizer()?;
    folder.generation_defaults()?;
    folder.llama_tokenizer()
}

/// Files below a folder, by their paths in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        match entry.path().is_dir() {
            true => found.extend(
                files(&entry.path()).into_iter().map(|file| Path::new(&entry.file_name()).join(file)),
            ),
            false => found.push(entry.file_name().into()),
        }
    }
    found.sort();
    found
}

/// A copy of the random model in which one file is another.
fn damaged(file: &Path, damage: impl FnOnce(&Path)) -> Result<LlamaTokenizer, Error> {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("model");
    copy(&random_model(), &folder);
    damage(&folder.join(file));
    load(&folder)
}

fn expect(result: Result<LlamaTokenizer, Error>, file: &Path, what: &str) {
    let Err(error) = result else { panic!("{} {what}: loads", file.display()) };
    let expected = [ErrorCode::ModelInvalid, ErrorCode::ModelUnsupported, ErrorCode::ModelFileMissing];
    assert!(expected.contains(&error.code), "{} {what}: {error}", file.display());
    let name = file.file_name().unwrap().to_str().unwrap();
    // A shard may be named by its index, and what has no file of its own by the folder.
    assert!(
        error.message.contains(name) || error.message.contains("model"),
        "{} {what}: {error}",
        file.display()
    );
}

/// Files that nothing reads.
const UNREAD: [&str; 2] = ["README.md", "processor/config.json"];
/// Others without which a model loads, by the defaults that the reference has for them.
const OPTIONAL: [&str; 6] = [
    "bert/tokenizer_config.json",
    // The shards have the visual encoder too.
    "eva_vit_g.pth",
    "generation_config.json",
    "processor/preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
];

/// Damages each file, and expects an error unless it is one of `harmless`.
fn damage_each(what: &str, harmless: &[&str], damage: impl Fn(&Path)) {
    for file in files(&random_model()) {
        let result = damaged(&file, &damage);
        match harmless.contains(&file.to_str().unwrap()) {
            true => drop(result.unwrap()),
            false => expect(result, &file, what),
        }
    }
}

#[test]
fn a_file_that_is_cut_is_named() {
    damage_each("cut", &UNREAD, |path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    });
}

#[test]
fn a_file_that_is_empty_is_named() {
    damage_each("empty", &UNREAD, |path| fs::write(path, "").unwrap());
}

#[test]
fn a_file_that_is_missing_is_named_where_there_is_no_default_for_it() {
    damage_each("renamed", &[&UNREAD[..], &OPTIONAL].concat(), |path| {
        fs::rename(path, path.with_extension("other")).unwrap();
    });
}

#[test]
fn a_file_of_another_model_is_named() {
    for (file, from) in [
        ("eva_vit_g.pth", random_model().join("pytorch_model-00001-of-00003.bin")),
        (
            "processor/preprocessor_config.json",
            oracle("image-336").join("processor/preprocessor_config.json"),
        ),
        ("pytorch_model-00001-of-00003.bin", random_model().join("pytorch_model-00002-of-00003.bin")),
        ("pytorch_model-00002-of-00003.bin", random_model().join("eva_vit_g.pth")),
        ("tokenizer.model", random_model().join("bert/vocab.txt")),
        ("bert/vocab.txt", random_model().join("tokenizer.model")),
        ("config.json", random_model().join("bert/config.json")),
        ("pytorch_model.bin.index.json", random_model().join("config.json")),
    ] {
        let result = damaged(Path::new(file), |path| {
            fs::copy(&from, path).unwrap();
        });
        expect(result, Path::new(file), "replaced");
    }
}

#[test]
fn weights_of_another_dtype_are_named() {
    let weights = Checkpoint::open_file(&random_model().join("eva_vit_g.pth")).unwrap();
    for dtype in [DType::U8, DType::I64] {
        let tensors = weights
            .names()
            .map(|name| (name.to_owned(), weights.read(name, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()))
            .collect();
        let result = damaged(Path::new("eva_vit_g.pth"), |path| {
            write_safetensors(&mut fs::File::create(path).unwrap(), &tensors, &Default::default()).unwrap();
        });
        let error = result.unwrap_err();
        assert_eq!(error.code, ErrorCode::ModelInvalid, "{error}");
        assert!(
            error.message.contains("eva_vit_g.pth") && error.message.contains("floating-point"),
            "{error}"
        );
    }
}
