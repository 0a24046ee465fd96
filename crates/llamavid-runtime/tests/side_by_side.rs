//! Sessions of one model that decode together.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod shared;

use std::path::PathBuf;
use std::sync::Arc;

use llamavid_models::language_model::{CachePrecision, FinishReason, SamplingOptions};
use llamavid_runtime::{
    Cancellation, Device, Dtype, Error, ErrorCode, GenerateRequest, LanguageModel, Precision, Session, Split,
};
use llamavid_weights::Quantisation;

use shared::request;

/// The embedded model.
fn load(dtype: Dtype, quantisation: Option<Quantisation>) -> Arc<LanguageModel> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../packages/tiny/model"));
    let device = Device::open("cpu").unwrap();
    let precision = Precision { dtype, quantisation };
    Arc::new(
        LanguageModel::load(folder, device, precision, Split::Layers, Cancellation::default())
            .wait()
            .unwrap(),
    )
}

/// Questions that the embedded model answers at different lengths, about nothing.
fn requests(cache: CachePrecision) -> Vec<GenerateRequest> {
    let sampled = SamplingOptions { temperature: 1.0, seed: 3, ..SamplingOptions::default() };
    let stopped = vec![" the".to_owned()];
    vec![
        request("USER: describe the video. ASSISTANT:", 40, cache),
        request("USER: what is shown? ASSISTANT: first a large", 3, cache),
        GenerateRequest {
            sampling: sampled,
            ..request("USER: describe the picture. ASSISTANT: there is", 24, cache)
        },
        GenerateRequest {
            stop: stopped,
            ..request("USER: what happens in the video? ASSISTANT:", 24, cache)
        },
    ]
}

fn start(model: &Arc<LanguageModel>, request: GenerateRequest) -> Session {
    let session = Session::new(model.clone());
    session.start(request, &Cancellation::default()).unwrap().wait().unwrap();
    session
}

/// What an answer came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Told {
    ids: Vec<u32>,
    text: String,
    end: Option<Result<FinishReason, ErrorCode>>,
}

/// Reads the sessions to their ends, all that have not ended in each round.
fn read(sessions: &[Session], cancellations: &[Cancellation]) -> Vec<Told> {
    let mut told = vec![Told::default(); sessions.len()];
    while told.iter().any(|each| each.end.is_none()) {
        let open: Vec<usize> = (0..told.len()).filter(|place| told[*place].end.is_none()).collect();
        let calls: Vec<_> = open.iter().map(|place| (&sessions[*place], &cancellations[*place])).collect();
        for (place, reply) in open.into_iter().zip(Session::next_of_each(&calls)) {
            let Told { ids, text, end } = &mut told[place];
            match reply.and_then(|reply| reply.wait()) {
                Ok(piece) => {
                    let piece = piece.expect("an answer that has not ended goes on");
                    ids.extend(piece.token_ids);
                    text.push_str(&piece.text);
                    *end = piece.finish.map(Ok);
                }
                Err(error) => *end = Some(Err(error.code)),
            }
        }
    }
    told
}

#[test]
fn each_answer_is_what_it_is_alone() {
    for (dtype, quantisation) in [
        (Dtype::F32, None),
        (Dtype::F16, None),
        (Dtype::F32, Some(Quantisation::Q8_0)),
        (Dtype::F32, Some(Quantisation::Q4K)),
    ] {
        let model = load(dtype, quantisation);
        for cache in [CachePrecision::Full, CachePrecision::EightBit, CachePrecision::FourBit] {
            let none = Cancellation::default();
            let alone: Vec<Told> = requests(cache)
                .into_iter()
                .flat_map(|request| read(&[start(&model, request)], std::slice::from_ref(&none)))
                .collect();
            let sessions: Vec<_> =
                requests(cache).into_iter().map(|request| start(&model, request)).collect();
            let together = read(&sessions, &vec![none; sessions.len()]);
            assert_eq!(together, alone, "{dtype:?} {quantisation:?} {cache:?}");
            assert_eq!(alone[1].end, Some(Ok(FinishReason::Length)));
            assert!(alone.iter().any(|told| told.ids.len() > 4), "{alone:?}");
        }
    }
}

#[test]
fn who_is_cancelled_closed_or_fails_leaves_the_others() {
    let model = load(Dtype::F32, None);
    let cache = CachePrecision::Full;
    let long = |prompt: &str| request(prompt, 60, cache);
    let prompts = ["USER: describe the video. ASSISTANT:", "USER: what is shown? ASSISTANT: first a large"];
    let none = Cancellation::default();
    let expected: Vec<Told> = prompts
        .iter()
        .flat_map(|prompt| read(&[start(&model, long(prompt))], std::slice::from_ref(&none)))
        .collect();

    let raised = Cancellation::default();
    raised.cancel();
    let sessions = [
        start(&model, long(prompts[0])),
        start(&model, long(prompts[1])),
        start(&model, long(prompts[0])),
        start(&model, long(prompts[0])),
        Session::new(model.clone()),
    ];
    sessions[3].close();
    let cancellations = [none.clone(), none.clone(), raised, none.clone(), none];
    let told = read(&sessions, &cancellations);
    assert_eq!(told[..2], expected[..]);
    let codes: Vec<_> = told[2..].iter().map(|told| told.end).collect();
    assert_eq!(
        codes,
        [ErrorCode::Aborted, ErrorCode::HandleClosed, ErrorCode::InvalidArgument].map(|code| Some(Err(code)))
    );
    // A session that was cancelled can start again.
    sessions[2].start(long(prompts[0]), &Cancellation::default()).unwrap().wait().unwrap();
    assert_eq!(read(&sessions[2..3], &[Cancellation::default()]), expected[..1]);
}

#[test]
fn sessions_of_other_models_and_busy_ones_are_refused() {
    let [one, other] = [load(Dtype::F32, None), load(Dtype::F32, None)];
    let prompt = || request("USER: describe the video. ASSISTANT:", 8, CachePrecision::Full);
    let sessions = [start(&one, prompt()), start(&other, prompt())];
    let none = Cancellation::default();
    let replies =
        Session::next_of_each(&[(&sessions[0], &none), (&sessions[0], &none), (&sessions[1], &none)]);
    let outcomes: Vec<Result<_, Error>> =
        replies.into_iter().map(|reply| reply.and_then(|reply| reply.wait())).collect();
    assert!(outcomes[0].as_ref().unwrap().is_some());
    for (outcome, told) in outcomes[1..].iter().zip(["earlier call", "different models"]) {
        let error = outcome.as_ref().unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(error.message.contains(told), "{error}");
    }
    // It was not touched.
    assert!(sessions[1].next(&none).unwrap().wait().unwrap().is_some());
    assert!(Session::next_of_each(&[]).is_empty());
}
