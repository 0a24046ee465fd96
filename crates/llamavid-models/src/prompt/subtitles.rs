//! Subtitles of a long video, from a `.srt` or WebVTT file or from speech recognition.
//!
//! Reference: the feature extraction scripts, which read `.srt` files and speech. Their habits are kept, because the
//! released long-video model was trained on what they read.

use std::iter;

use crate::tokenizer::{is_white_space, strip};
use crate::{Error, Result};

/// Segments that the recogniser is less sure of are dropped.
const LEAST_AVERAGE_LOG_PROBABILITY: f64 = -2.0;

/// A text and when it is spoken.
#[derive(Debug, Clone, PartialEq)]
pub struct Subtitle {
    /// Seconds.
    pub start_time: f64,
    /// Seconds.
    pub end_time: f64,
    /// Lines are joined with spaces.
    pub text: String,
}

/// What speech recognition makes of a stretch of sound.
#[derive(Debug, Clone, PartialEq)]
pub struct SpeechSegment {
    /// Seconds.
    pub start: f64,
    /// Seconds.
    pub end: f64,
    /// The words, usually behind a space.
    pub text: String,
    /// Mean log probability of the words.
    pub avg_logprob: f64,
}

/// Reads a `.srt` file. Bytes that are not UTF-8 are left out, and so is "...".
///
/// A line of digits ends a subtitle that is complete and is lost otherwise: a spoken "1984" is taken for
/// a number, and what follows it belongs to the next subtitle.
pub fn parse_srt(bytes: &[u8]) -> Result<Vec<Subtitle>> {
    let mut subtitles = Vec::new();
    let mut text = String::new();
    let mut times = None;
    let file = read_text(bytes);
    for (number, line) in file.split('\n').enumerate() {
        let line = strip(line).replace("...", "");
        let line = strip(&line);
        if line.is_empty() {
            continue;
        }
        if line.bytes().all(|byte| byte.is_ascii_digit()) {
            finish(&mut subtitles, &mut text, &mut times);
        } else if let Some((start, end)) = line.split_once(" --> ") {
            let read = |time: &str| read_time(time).ok_or_else(|| no_time(number, time, "00:01:02,500"));
            times = Some((read(strip(start))?, read(first_word(end))?));
        } else {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(line);
        }
    }
    finish(&mut subtitles, &mut text, &mut times);
    Ok(subtitles)
}

fn finish(subtitles: &mut Vec<Subtitle>, text: &mut String, times: &mut Option<(f64, f64)>) {
    if text.is_empty() {
        return;
    }
    if let Some((start_time, end_time)) = times.take() {
        subtitles.push(Subtitle { start_time, end_time, text: std::mem::take(text) });
    }
}

/// Reads a WebVTT file. What is not text is left out: styles, regions, notes, names and settings of cues, tags.
///
/// The reference reads no such files. As in its `.srt` reader, lines are joined with spaces, and bytes that are not UTF-8
/// and "..." are left out; a line of digits is text here, because a cue's name cannot be mistaken for it.
pub fn parse_webvtt(bytes: &[u8]) -> Result<Vec<Subtitle>> {
    let file = read_text(bytes);
    let mut lines = file.split('\n').enumerate().peekable();
    match lines.next().and_then(|(_, line)| line.strip_prefix("WEBVTT")) {
        Some(rest) if rest.is_empty() || rest.starts_with([' ', '\t']) => {}
        _ => return Err(Error::Argument("subtitles, line 1: a WebVTT file begins with `WEBVTT`".into())),
    }
    let mut subtitles = Vec::new();
    while let Some((number, line)) = lines.next() {
        // Cues begin with their times, or with a name and then their times; all else is not shown.
        let Some((start, end)) = line.split_once("-->") else { continue };
        let read = |time: &str| read_time(time).ok_or_else(|| no_time(number, time, "00:01:02.500"));
        let (start_time, end_time) = (read(strip(start))?, read(first_word(end))?);
        let shown = iter::from_fn(|| lines.next_if(|(_, line)| !line.is_empty() && !line.contains("-->")));
        let shown: Vec<&str> = shown.map(|(_, line)| line).collect();
        let text = without_markup(&shown.join("\n"));
        let text: Vec<&str> = text.split('\n').map(strip).filter(|line| !line.is_empty()).collect();
        if !text.is_empty() {
            subtitles.push(Subtitle { start_time, end_time, text: text.join(" ") });
        }
    }
    Ok(subtitles)
}

/// The text of a cue without tags and "...", its character references resolved.
fn without_markup(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for (index, piece) in text.split('<').enumerate() {
        // Behind a `<` is a tag, to the end of the text if nothing closes it.
        plain.push_str(if index == 0 { piece } else { piece.split_once('>').map_or("", |(_, rest)| rest) });
    }
    for (reference, character) in
        [("&lt;", "<"), ("&gt;", ">"), ("&nbsp;", "\u{a0}"), ("&lrm;", ""), ("&rlm;", ""), ("&amp;", "&")]
    {
        plain = plain.replace(reference, character);
    }
    plain.replace("...", "")
}

/// The characters of a file, without zeros and byte-order mark, its lines ended by `\n`. What is not UTF-8 is left out;
/// a mark of UTF-16 is obeyed.
fn read_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut push = |character: char| {
        if character != '\0' {
            text.push(character);
        }
    };
    match bytes {
        [0xff, 0xfe, wide @ ..] => read_utf16(wide, u16::from_le_bytes).for_each(&mut push),
        [0xfe, 0xff, wide @ ..] => read_utf16(wide, u16::from_be_bytes).for_each(&mut push),
        _ => bytes.utf8_chunks().flat_map(|chunk| chunk.valid().chars()).for_each(&mut push),
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    text.replace("\r\n", "\n").replace('\r', "\n")
}

fn read_utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> impl Iterator<Item = char> {
    let (pairs, _odd_byte) = bytes.as_chunks::<2>();
    char::decode_utf16(pairs.iter().map(move |pair| unit(*pair))).filter_map(Result::ok)
}

fn no_time(line: usize, time: &str, example: &str) -> Error {
    Error::Argument(format!("subtitles, line {}: `{}` is no time like {example}", line + 1, excerpt(time)))
}

/// The start of a text that may be a whole film's.
fn excerpt(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// Positions on the screen may stand behind a time.
fn first_word(text: &str) -> &str {
    text.split(is_white_space).find(|word| !word.is_empty()).unwrap_or_default()
}

/// Seconds of `hours:minutes:seconds,fraction`; a full stop does as well, and hours may be left out.
fn read_time(text: &str) -> Option<f64> {
    let (whole, fraction) = text.split_once([',', '.'])?;
    let mut units = whole.rsplit(':');
    let (seconds, minutes) = (read_digits(units.next()?, 2)?, read_digits(units.next()?, 2)?);
    let hours = units.next().map_or(Some(0.0), |hours| read_digits(hours, 3))?;
    if units.next().is_some() || minutes >= 60.0 || seconds >= 62.0 {
        return None;
    }
    // Microseconds, as whole numbers: the sum is then the nearest float to the time, as in the reference.
    let microseconds = read_digits(fraction, 6)? * 10f64.powi(6 - i32::try_from(fraction.len()).ok()?);
    Some((((hours * 60.0 + minutes) * 60.0 + seconds) * 1e6 + microseconds) / 1e6)
}

fn read_digits(text: &str, most: usize) -> Option<f64> {
    let is_number = (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

/// Subtitles from speech recognition: segments it is unsure of are dropped, and the space in front of a text.
pub fn from_speech(segments: &[SpeechSegment]) -> Vec<Subtitle> {
    segments
        .iter()
        .filter(|segment| segment.avg_logprob >= LEAST_AVERAGE_LOG_PROBABILITY)
        .map(|segment| Subtitle {
            start_time: segment.start,
            end_time: segment.end,
            text: segment.text.strip_prefix(' ').unwrap_or(&segment.text).to_owned(),
        })
        .collect()
}
