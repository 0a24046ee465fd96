//! Videos of the toy world: drawn from a seed, rendered frame by frame, with their questions.

use std::sync::Arc;

use llamavid_runtime::{self as runtime, encode_png, run_aside};
use llamavid_world::{
    MediaKind, NeverTrainedPairs, Phrasing, Question, Recording, Video, WorldOptions, questions, seeded_item,
};
use napi::Env;
use napi::bindgen_prelude::{AsyncBlock, Uint8Array};
use napi_derive::napi;

use crate::arguments::{size, whole, word};
use crate::promise::{call, promise};

const KINDS: [(&str, MediaKind); 5] = [
    ("image", MediaKind::Image),
    ("clip", MediaKind::Clip),
    ("multi", MediaKind::Multi),
    ("long", MediaKind::Long),
    ("needle", MediaKind::Needle),
];
const PHRASINGS: [(&str, Phrasing); 3] =
    [("trained", Phrasing::Trained), ("unseen", Phrasing::Unseen), ("mixed", Phrasing::Mixed)];
const NEVER_TRAINED: [(&str, NeverTrainedPairs); 3] = [
    ("forbid", NeverTrainedPairs::Forbid),
    ("allow", NeverTrainedPairs::Allow),
    ("only", NeverTrainedPairs::Only),
];

/// Which video of the world, and which questions.
#[napi(object, object_to_js = false)]
pub struct WorldVideoOptions {
    /// Equal seeds give equal videos.
    pub seed: f64,
    /// Which of the seed's videos of this kind.
    pub index: f64,
    /// A picture, one scene, one to six scenes, many scenes with subtitles, or many of which one shows what no other does.
    #[napi(ts_type = "'image' | 'clip' | 'multi' | 'long' | 'needle'")]
    pub kind: String,
    /// Whether the pairs of colour and shape that training never shows may be shown, or nothing else.
    #[napi(ts_type = "'forbid' | 'allow' | 'only'")]
    pub never_trained: String,
    /// Phrasings that training uses, that it never uses, or both.
    #[napi(ts_type = "'trained' | 'unseen' | 'mixed'")]
    pub phrasing: String,
}

/// A question with its answer.
#[napi(object, object_from_js = false)]
pub struct WorldQuestion {
    /// The name of its type: "colour", "countc", ….
    #[napi(js_name = "type")]
    pub kind: String,
    /// The question.
    pub question: String,
    /// The answer.
    pub answer: String,
    /// Whether training never uses this phrasing.
    pub unseen_phrasing: bool,
    /// The seconds of the only scene that shows what is asked about, from and to.
    pub evidence: Option<Vec<f64>>,
}

impl WorldQuestion {
    fn new(question: &Question, video: &Video) -> Self {
        let evidence = video.evidence(question.subject);
        Self {
            evidence: evidence.map(|(start, end)| vec![start, end]),
            kind: question.kind.name().to_owned(),
            question: question.text.clone(),
            answer: question.answer.clone(),
            unseen_phrasing: question.unseen_phrasing,
        }
    }
}

/// A video of the toy world.
#[napi]
pub struct WorldVideo {
    video: Arc<Video>,
    recording: Recording,
    questions: Vec<Question>,
}

#[napi]
impl WorldVideo {
    /// Draws a video and its questions.
    #[napi(constructor)]
    pub fn new(options: WorldVideoOptions) -> napi::Result<Self> {
        call(|| {
            let kind = word("kind", &options.kind, &KINDS)?;
            let phrasing = word("phrasing", &options.phrasing, &PHRASINGS)?;
            let never_trained_pairs = word("neverTrained", &options.never_trained, &NEVER_TRAINED)?;
            let index = u32::try_from(size("index", options.index)?).unwrap_or(u32::MAX);
            let mut rng = seeded_item(whole("seed", options.seed)?, kind, index);
            let video = Video::random(
                &mut rng,
                kind,
                &WorldOptions { never_trained_pairs, ..WorldOptions::default() },
            );
            let recording = Recording::random(&mut rng, kind);
            let questions = questions(&video, kind, phrasing, &mut rng);
            Ok(Self { video: Arc::new(video), recording, questions })
        })
    }

    /// Every question that can be asked about it.
    #[napi(getter)]
    pub fn questions(&self) -> Vec<WorldQuestion> {
        self.questions.iter().map(|question| WorldQuestion::new(question, &self.video)).collect()
    }

    /// Pixels in a row.
    #[napi(getter)]
    pub fn width(&self) -> u32 {
        self.recording.width as u32
    }

    /// Rows.
    #[napi(getter)]
    pub fn height(&self) -> u32 {
        self.recording.height as u32
    }

    /// Frames a second.
    #[napi(getter)]
    pub fn fps(&self) -> u32 {
        self.recording.fps
    }

    /// H.264's constant rate factor.
    #[napi(getter)]
    pub fn crf(&self) -> u32 {
        self.recording.crf
    }

    /// Frames at `fps`; 1 for a picture.
    #[napi(getter)]
    pub fn frame_count(&self) -> u32 {
        // Scenes last whole seconds.
        (self.video.seconds() as u32 * self.recording.fps).max(1)
    }

    /// Frames that a model sees at one a second.
    #[napi(getter)]
    pub fn frames_at_one_a_second(&self) -> u32 {
        self.video.frames_at_one_a_second() as u32
    }

    /// The subtitles as a SubRip file; empty where there are none.
    #[napi(getter)]
    pub fn srt(&self) -> String {
        self.video.srt()
    }

    /// The frame of that number: rows of red, green and blue.
    #[napi]
    pub fn render_frame(&self, env: &Env, index: f64) -> napi::Result<AsyncBlock<Uint8Array>> {
        let (video, recording, frames) = (self.video.clone(), self.recording, self.frame_count());
        promise(
            env,
            move || {
                let index = size("index", index)?;
                if index >= frames as usize {
                    let message = format!("frame {index} is behind the last, {}", frames - 1);
                    return Err(runtime::Error::new(runtime::ErrorCode::InvalidArgument, message));
                }
                Ok(run_aside("llamavid world", move || Ok(frame(&video, recording, index))))
            },
            Uint8Array::from,
        )
    }

    /// The first frame as a PNG file.
    #[napi]
    pub fn to_png(&self, env: &Env) -> napi::Result<AsyncBlock<Uint8Array>> {
        let (video, recording) = (self.video.clone(), self.recording);
        promise(
            env,
            move || {
                Ok(run_aside("llamavid world", move || {
                    encode_png(&frame(&video, recording, 0), recording.width, recording.height)
                }))
            },
            Uint8Array::from,
        )
    }
}

fn frame(video: &Video, recording: Recording, index: usize) -> Vec<u8> {
    let (scene, progress) = video.frame(index as f64 / f64::from(recording.fps));
    let mut pixels = Vec::new();
    video.scenes[scene].render_frame(progress, recording.width, recording.height, &mut pixels);
    pixels
}
