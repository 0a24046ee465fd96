//! Folders to convert.

use std::fs;
use std::path::{Path, PathBuf};

use llamavid_convert::{ConvertOptions, Converted, convert};
use llamavid_runtime::{Cancellation, Error, ErrorCode};
use tempfile::TempDir;

/// A path in the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A whole model of random weights with everything beside it: torch shards, EVA file, vocabulary, processor.
pub fn random_model() -> PathBuf {
    repository("fixtures/random-model")
}

/// The embedded model: one safetensors file with all parts.
pub fn tiny_model() -> PathBuf {
    repository("packages/tiny/model")
}

/// A recorded model of the reference in its parts.
pub fn oracle(case: &str) -> PathBuf {
    repository("fixtures/oracle").join(case)
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// What stage 1 of a recorded model wrote, as a folder of its own.
pub fn stage_one(case: &str, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::copy(oracle(case).join("mm_projector.bin"), folder.join("mm_projector.bin")).unwrap();
    fs::copy(oracle(case).join("mm_projector_config.json"), folder.join("config.json")).unwrap();
}

pub fn options(inputs: &[PathBuf], output: &Path) -> ConvertOptions {
    ConvertOptions { inputs: inputs.to_vec(), output: output.to_path_buf(), ..ConvertOptions::default() }
}

pub fn run(options: &ConvertOptions) -> Result<Converted, Error> {
    convert(options, &Cancellation::default(), &|_| {})
}

/// Converts the random model into a folder of its own.
pub fn converted() -> (TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("converted");
    run(&options(&[random_model()], &output)).unwrap();
    (place, output)
}

/// Fails unless `result` is this error and its message has all of `words`; the place beside it must be clean.
pub fn refused<T: std::fmt::Debug>(result: Result<T, Error>, code: ErrorCode, words: &[&str]) {
    let error = result.unwrap_err();
    assert_eq!(error.code, code, "{error}");
    for word in words {
        assert!(error.message.contains(word), "{word:?} in {}", error.message);
    }
}

/// Everything in a folder, hidden files too.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
