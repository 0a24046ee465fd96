//! The embedded model, whose layers several devices share: here the CPU, several times.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod shared;

use std::path::PathBuf;
use std::sync::Arc;

use llamavid_models::language_model::CachePrecision;
use llamavid_runtime::{
    Cancellation, Device, Dtype, ErrorCode, LanguageModel, Precision, Result, Session, Split,
};
use llamavid_weights::Quantisation;

use shared::request;

fn folder(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(path)
}

fn load(path: &str, device: &str, precision: Precision, split: Split) -> Result<Arc<LanguageModel>> {
    let device = Device::open(device).unwrap();
    LanguageModel::load(folder(path), device, precision, split, Cancellation::default()).wait().map(Arc::new)
}

const EMBEDDED: &str = "packages/tiny/model";

/// Answers to questions about nothing, which are read side by side.
fn answers(model: &Arc<LanguageModel>, cache: CachePrecision) -> Vec<Vec<u32>> {
    let none = Cancellation::default();
    let prompts = [
        "USER: describe the video. ASSISTANT:",
        "USER: what is shown? ASSISTANT: first a large",
        "USER: what happens in the video, and in which order? ASSISTANT:",
    ];
    let sessions = prompts.map(|prompt| {
        let session = Session::new(model.clone());
        session.start(request(prompt, 40, cache), &none).unwrap().wait().unwrap();
        session
    });
    let mut ids = vec![Vec::new(); sessions.len()];
    let mut open: Vec<usize> = (0..sessions.len()).collect();
    while !open.is_empty() {
        let calls: Vec<_> = open.iter().map(|place| (&sessions[*place], &none)).collect();
        let replies =
            Session::next_of_each(&calls).into_iter().map(|reply| reply.unwrap().wait().unwrap().unwrap());
        let pieces: Vec<_> = replies.collect();
        let mut still = Vec::new();
        for (place, piece) in open.into_iter().zip(pieces) {
            ids[place].extend(piece.token_ids);
            still.extend(piece.finish.is_none().then_some(place));
        }
        open = still;
    }
    ids
}

#[test]
fn the_embedded_model_answers_as_on_one_device() {
    for (dtype, quantisation) in [(Dtype::F32, None), (Dtype::F32, Some(Quantisation::Q8_0))] {
        let precision = Precision { dtype, quantisation };
        let one = load(EMBEDDED, "cpu", precision, Split::Layers).unwrap();
        for devices in ["cpu,cpu", "cpu,cpu,cpu,cpu"] {
            let several = load(EMBEDDED, devices, precision, Split::Tensor).unwrap();
            assert_eq!(several.stored_as(), one.stored_as());
            for cache in [CachePrecision::Full, CachePrecision::EightBit] {
                assert_eq!(answers(&several, cache), answers(&one, cache), "{precision:?} on {devices}");
            }
        }
    }
}

#[test]
fn a_file_of_llama_cpp_is_shared_too() {
    let precision = Precision { dtype: Dtype::F32, quantisation: None };
    let ids = |device, split| {
        let model = load("fixtures/gguf/gguf-py.gguf", device, precision, split).unwrap();
        let session = Session::new(model.clone());
        let none = Cancellation::default();
        session.start(request("on the the", 12, CachePrecision::Full), &none).unwrap().wait().unwrap();
        session.next(&none).unwrap().wait().unwrap().unwrap().token_ids
    };
    assert_eq!(ids("cpu,cpu", Split::Tensor), ids("cpu", Split::Layers));
}

#[test]
fn a_cancelled_answer_leaves_the_devices_to_the_next() {
    let model = load(EMBEDDED, "cpu,cpu", Precision::default(), Split::Tensor).unwrap();
    let expected = answers(&model, CachePrecision::Full);
    let cancelled = Cancellation::default();
    let session = Session::new(model.clone());
    let long = "what is shown in the video? ".repeat(60);
    let reply = session.start(request(&long, 400, CachePrecision::Full), &cancelled).unwrap();
    cancelled.cancel();
    assert_eq!(reply.wait().unwrap_err().code, ErrorCode::Aborted);
    assert_eq!(answers(&model, CachePrecision::Full), expected);
}

#[test]
fn devices_that_cannot_share_layers_are_refused() {
    for (devices, problem) in [("cpu", "nothing to share"), ("cpu,cpu,cpu", "4 heads")] {
        let error = load(EMBEDDED, devices, Precision::default(), Split::Tensor).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");
        assert!(error.message.contains(problem) && error.hint.is_some(), "{error}");
    }
    assert_eq!(Split::parse("tensor").unwrap(), Split::Tensor);
    assert_eq!(Split::parse("rows").unwrap_err().code, ErrorCode::InvalidArgument);
}
