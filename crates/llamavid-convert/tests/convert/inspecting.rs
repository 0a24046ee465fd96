//! What `inspect` says of good and of bad folders.

use std::fs;

use llamavid_convert::inspect;
use llamavid_runtime::{Cancellation, ErrorCode};

use crate::folders::{converted, copy, random_model, refused};

#[test]
fn a_good_folder_is_described() {
    let found = inspect(&random_model(), false, &Cancellation::default()).unwrap();
    assert_eq!(found.problems, []);
    assert!(!found.converted);
    let names: Vec<&str> = found.parts.iter().map(|part| part.name).collect();
    assert_eq!(names, ["visual encoder", "token generator", "language model"]);
    assert!(found.parts.iter().all(|part| part.parameters > 0 && part.bytes > part.parameters));
    assert!(found.side_files.iter().all(|file| file.path.is_some()));
    refused(
        inspect(&random_model(), true, &Cancellation::default()),
        ErrorCode::InvalidArgument,
        &["manifest"],
    );
}

#[test]
fn a_converted_folder_is_verified() {
    let (_place, output) = converted();
    let found = inspect(&output, true, &Cancellation::default()).unwrap();
    assert!(found.converted && found.verified);
    assert_eq!(found.problems, []);
    let path = output.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let found = inspect(&output, true, &Cancellation::default()).unwrap();
    assert!(!found.verified);
    assert!(found.problems[0].message.contains("model.safetensors"), "{:?}", found.problems);
}

#[test]
fn what_is_missing_or_strange_is_listed() {
    let place = tempfile::tempdir().unwrap();
    copy(&random_model(), place.path());
    fs::remove_file(place.path().join("tokenizer.model")).unwrap();
    let config = fs::read_to_string(place.path().join("config.json")).unwrap();
    fs::write(
        place.path().join("config.json"),
        config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"),
    )
    .unwrap();
    let found = inspect(place.path(), false, &Cancellation::default()).unwrap();
    let said: Vec<&str> = found.problems.iter().map(|problem| problem.message.as_str()).collect();
    assert!(said.iter().any(|message| message.contains("model.layers.1")), "{said:?}");
    assert!(said.iter().any(|message| message.contains("tokenizer.model")), "{said:?}");
    assert!(found.side_files.iter().any(|file| file.name == "tokenizer.model" && file.path.is_none()));
}

#[test]
fn a_file_of_weights_is_listed() {
    let found = inspect(&random_model().join("eva_vit_g.pth"), false, &Cancellation::default()).unwrap();
    assert!(found.tensors.iter().any(|tensor| tensor.name == "pos_embed"));
    refused(inspect("none".as_ref(), false, &Cancellation::default()), ErrorCode::ModelNotFound, &["none"]);
}
