//! Subtitles and the prompt of a video that has them.

use llamavid_runtime::{self as runtime, CueFormat, ImageTag, movie_inputs, run_aside};
use napi::Env;
use napi::bindgen_prelude::{AsyncBlock, Uint8Array};
use napi_derive::napi;

use crate::arguments::{size, word};
use crate::promise::{call, promise};

/// A text and when it is spoken.
#[napi(object)]
pub struct Subtitle {
    /// Seconds.
    pub start: f64,
    /// Seconds.
    pub end: f64,
    /// One line.
    pub text: String,
}

/// Subtitles that a prompt can hold.
#[napi(object, object_from_js = false)]
pub struct Subtitles {
    /// In the order of the file.
    pub subtitles: Vec<Subtitle>,
    /// What was left out or is odd, in words.
    pub notes: Vec<String>,
}

impl From<runtime::Subtitles> for Subtitles {
    fn from(read: runtime::Subtitles) -> Self {
        let subtitles = read.subtitles.into_iter();
        let subtitles =
            subtitles.map(|each| Subtitle { start: each.start_time, end: each.end_time, text: each.text });
        Self { subtitles: subtitles.collect(), notes: read.notes }
    }
}

fn parse(subtitles: Vec<Subtitle>) -> Vec<runtime::Subtitle> {
    let subtitles = subtitles.into_iter();
    subtitles
        .map(|each| runtime::Subtitle { start_time: each.start, end_time: each.end, text: each.text })
        .collect()
}

/// Reads the bytes of a `.srt`, WebVTT or SubStation Alpha file; `name` is what errors call it.
#[napi]
pub fn parse_subtitles(env: &Env, bytes: &[u8], name: String) -> napi::Result<AsyncBlock<Subtitles>> {
    // The file is copied, and it is small: JavaScript may change its bytes while another thread reads.
    let bytes = bytes.to_vec();
    promise(
        env,
        move || Ok(run_aside("llamavid subtitles", move || runtime::Subtitles::parse(&bytes, &name))),
        Subtitles::from,
    )
}

/// A subtitle of a text stream, as the video file holds it.
#[napi(object, object_to_js = false)]
pub struct StreamCue {
    /// Seconds.
    pub start: f64,
    /// Seconds.
    pub end: f64,
    /// In the stream's format.
    pub data: Uint8Array,
}

/// Reads what a text stream of a video file says.
#[napi]
pub fn read_subtitle_stream(
    env: &Env,
    #[napi(ts_arg_type = "'subrip' | 'webvtt' | 'ass' | 'mov_text'")] format: String,
    cues: Vec<StreamCue>,
) -> napi::Result<AsyncBlock<Subtitles>> {
    let formats = [
        ("subrip", CueFormat::SubRip),
        ("webvtt", CueFormat::WebVtt),
        ("ass", CueFormat::Ass),
        ("mov_text", CueFormat::MovText),
    ];
    let cues = cues.into_iter();
    let cues: Vec<runtime::StreamCue> = cues
        .map(|cue| runtime::StreamCue { start: cue.start, end: cue.end, bytes: cue.data.to_vec() })
        .collect();
    promise(
        env,
        move || {
            let format = word("format", &format, &formats)?;
            Ok(run_aside("llamavid subtitles", move || runtime::Subtitles::from_stream(&cues, format)))
        },
        Subtitles::from,
    )
}

/// Subtitles from elsewhere, made fit for a prompt.
#[napi]
pub fn check_subtitles(subtitles: Vec<Subtitle>) -> napi::Result<Subtitles> {
    call(|| Ok(runtime::Subtitles::new(parse(subtitles))?.into()))
}

/// A video with subtitles as the reference's feature files have it: an `<image>` for each frame, each followed by the subtitles that
/// end before the next one is shown. `frame_times` are seconds.
#[napi]
pub fn movie_text(subtitles: Vec<Subtitle>, frame_times: Vec<f64>) -> napi::Result<String> {
    call(|| Ok(movie_inputs(&parse(subtitles), &frame_times)?))
}

/// What a video with subtitles is in a prompt.
#[napi(object, object_to_js = false)]
pub struct MovieQuestion {
    /// As `movieText` gives it.
    pub inputs: String,
    /// The context token and the content tokens of a frame.
    pub tokens_per_frame: f64,
    /// The model's.
    pub image_placeholder: String,
    /// What is asked.
    pub question: String,
}

/// What the user says about a video with subtitles: an `<image>` for each visual token, the subtitles between the frames,
/// and the question. Its layout is `per-token`.
#[napi]
pub fn movie_question(m: MovieQuestion) -> napi::Result<String> {
    let tags = [("<image>", ImageTag::Bare), ("<im_start><image><im_end>", ImageTag::StartEnd)];
    call(|| {
        let tag = word("imagePlaceholder", &m.image_placeholder, &tags)?;
        let tokens = size("tokensPerFrame", m.tokens_per_frame)?;
        Ok(runtime::movie_question(&m.inputs, &m.question, tokens, tag))
    })
}
