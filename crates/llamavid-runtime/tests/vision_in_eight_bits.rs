//! What the visual encoder loses in 8 bits: directions of features, and answers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod shared;

use std::path::PathBuf;
use std::sync::Arc;

use llamavid_models::language_model::CachePrecision;
use llamavid_models::prompt::conversation::{ImageTag, Template, question_with_media};
use llamavid_runtime::{
    Cancellation, Device, Dtype, GenerateRequest, LanguageModel, Pixels, Precision, Preprocessing, RgbImage,
    Session, Split, TokenGenerator, VisualEncoder, VisualFeatures,
};
use llamavid_weights::Quantisation;
use llamavid_world::{MediaKind, Phrasing, Video, WorldOptions, questions, seeded_item};

use shared::request;

/// Videos that no training has seen: it draws from other seeds.
const SEED: u64 = 7_2026;
/// Side of what is rendered.
const SIDE: usize = 160;

fn model() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../packages/tiny/model"))
}

fn precision(quantisation: Option<Quantisation>) -> Precision {
    Precision { dtype: Dtype::F32, quantisation }
}

/// The encoder of the embedded model as it is, and in 8 bits.
fn encoders(device: &Arc<Device>) -> [VisualEncoder; 2] {
    [None, Some(Quantisation::Q8_0)].map(|quantisation| {
        let precision = precision(quantisation);
        VisualEncoder::load(model(), device.clone(), precision, Cancellation::default()).wait().unwrap()
    })
}

fn encode(encoder: &VisualEncoder, pixels: &Arc<Pixels>) -> Arc<VisualFeatures> {
    Arc::new(encoder.encode(pixels.clone(), &Cancellation::default()).wait().unwrap())
}

/// One frame a second of a video.
fn rendered(video: &Video, preprocessing: &Preprocessing) -> Arc<Pixels> {
    let frames: Vec<Vec<u8>> = (0..video.frames_at_one_a_second())
        .map(|second| {
            let (scene, progress) = video.frame(second as f64);
            let mut picture = Vec::new();
            video.scenes[scene].render(progress, SIDE, &mut picture);
            picture
        })
        .collect();
    let images: Vec<RgbImage> =
        frames.iter().map(|data| RgbImage { data, width: SIDE, height: SIDE, stride: 3 * SIDE }).collect();
    Arc::new(Pixels::from_rgb(&images, preprocessing).unwrap())
}

fn videos() -> impl Iterator<Item = (MediaKind, Video, rand_chacha::ChaCha8Rng)> {
    [MediaKind::Image, MediaKind::Clip, MediaKind::Multi].into_iter().flat_map(|kind| {
        (0..6).map(move |index| {
            let mut random = seeded_item(SEED, kind, index);
            (kind, Video::random(&mut random, kind, &WorldOptions::default()), random)
        })
    })
}

/// The cosine between each two rows of features.
fn cosines(features: &[Arc<VisualFeatures>; 2]) -> Vec<f64> {
    let [.., width] = features[0].shape();
    let [exact, rounded] = features.each_ref().map(|features| features.values().wait().unwrap());
    assert_eq!(exact.len(), rounded.len());
    let cosines = exact.chunks_exact(width).zip(rounded.chunks_exact(width)).map(|(exact, rounded)| {
        let product = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        product(exact, rounded) / (product(exact, exact) * product(rounded, rounded)).sqrt()
    });
    cosines.collect()
}

#[test]
fn patches_point_where_they_did() {
    let device = Device::open("cpu").unwrap();
    let encoders = encoders(&device);
    let preprocessing = encoders[0].preprocessing();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/world/media");
    let pictures = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let pictures: Vec<_> = pictures
        .filter(|path| path.extension().is_some_and(|extension| extension == "png"))
        .map(|path| image::open(path).unwrap().to_rgb8())
        .collect();
    assert!(pictures.len() >= 10);
    let images: Vec<RgbImage> = pictures
        .iter()
        .map(|picture| {
            let (width, height) = (picture.width() as usize, picture.height() as usize);
            RgbImage { data: picture.as_raw(), width, height, stride: 3 * width }
        })
        .collect();
    let pictures = Arc::new(Pixels::from_rgb(&images, preprocessing).unwrap());
    let videos = videos().map(|(_, video, _)| rendered(&video, preprocessing));
    let all: Vec<f64> = [pictures]
        .into_iter()
        .chain(videos)
        .flat_map(|pixels| cosines(&encoders.each_ref().map(|encoder| encode(encoder, &pixels))))
        .collect();
    let least = all.iter().copied().min_by(f64::total_cmp).unwrap();
    assert!(all.iter().all(|cosine| *cosine >= 0.999), "{} patches: {least}", all.len());
}

#[test]
fn nearly_all_answers_stay_the_same() {
    let device = Device::open("cpu").unwrap();
    let encoders = encoders(&device);
    let generator = TokenGenerator::load(model(), device.clone(), precision(None), Cancellation::default())
        .wait()
        .unwrap();
    let language =
        LanguageModel::load(model(), device, precision(None), Split::Layers, Cancellation::default())
            .wait()
            .unwrap();
    let session = Session::new(Arc::new(language));
    let template = Template::by_name("vicuna_v1").unwrap();
    let answer = |features: &Arc<VisualFeatures>, question: &str| {
        let texts = vec![question.to_owned()];
        let tokens = generator.generate(features.clone(), texts, None, &Cancellation::default());
        let prompt = template.render(&[(question_with_media(question, ImageTag::Bare), None)]).unwrap();
        let request = GenerateRequest {
            visual_tokens: tokens.wait().unwrap().into_iter().map(Arc::new).collect(),
            stop: vec![template.stop().to_owned()],
            ..request(&prompt, 100, CachePrecision::Full)
        };
        session.start(request, &Cancellation::default()).unwrap().wait().unwrap();
        let mut text = String::new();
        while let Some(piece) = session.next(&Cancellation::default()).unwrap().wait().unwrap() {
            text.push_str(&piece.text);
        }
        text
    };
    let (mut asked, mut right, mut changed) = (0, 0, Vec::new());
    for (kind, video, mut random) in videos() {
        let pixels = rendered(&video, encoders[0].preprocessing());
        let features = encoders.each_ref().map(|encoder| encode(encoder, &pixels));
        for question in questions(&video, kind, Phrasing::Trained, &mut random) {
            let [exact, rounded] = features.each_ref().map(|features| answer(features, &question.text));
            asked += 1;
            right += usize::from(exact.trim() == question.answer);
            if exact != rounded {
                changed.push((question.text, exact, rounded));
            }
        }
    }
    assert!(asked > 150, "{asked} questions");
    // They are answers, not noise.
    assert!(10 * right > 8 * asked, "{right} of {asked} right");
    assert!(100 * changed.len() <= asked, "{} of {asked} answers differ: {changed:#?}", changed.len());
}
