//! Subtitles of a long video, from a `.srt` file or from speech recognition.
//!
//! Reference: the feature extraction scripts. Their habits are kept, because the released long-video
//! model was trained on what they read.

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
            let read = |time: &str| {
                read_time(time).ok_or_else(|| {
                    Error::Argument(format!(
                        "subtitles, line {}: `{time}` is no time like 00:01:02,500",
                        number + 1
                    ))
                })
            };
            // Positions on the screen may stand behind the time.
            let end = end.split(is_white_space).find(|word| !word.is_empty()).unwrap_or_default();
            times = Some((read(strip(start))?, read(end)?));
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

/// The valid characters of a file, without zeros and byte-order mark, its lines ended by `\n`.
fn read_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.extend(chunk.valid().chars().filter(|character| *character != '\0'));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// Seconds of `hours:minutes:seconds,fraction`; a full stop does as well.
fn read_time(text: &str) -> Option<f64> {
    let (whole, fraction) = text.split_once([',', '.'])?;
    let mut units = whole.split(':').map(|unit| read_digits(unit, 2));
    let (hours, minutes, seconds) = (units.next()??, units.next()??, units.next()??);
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
