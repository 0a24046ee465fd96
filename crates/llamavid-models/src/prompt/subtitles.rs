//! Subtitles of a long video: from a file, from a text stream of the video file, or from speech recognition.
//!
//! Reference: the feature extraction scripts, which read `.srt` files and speech. Their habits are kept, because the
//! released long-video model was trained on what they read. What they do not read (WebVTT, SubStation Alpha, streams) becomes
//! what a viewer sees, in one line: "..." is left out there too.

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
        let text = in_one_line(&webvtt_text(&shown.join("\n")));
        if !text.is_empty() {
            subtitles.push(Subtitle { start_time, end_time, text });
        }
    }
    Ok(subtitles)
}

/// Reads a SubStation Alpha file (`.ass`, `.ssa`): its dialogue, without styles, drawings and comments.
///
/// Such files are ordered by style or layer as often as by time, so the subtitles are sorted by their start.
pub fn parse_ass(bytes: &[u8]) -> Result<Vec<Subtitle>> {
    let file = read_text(bytes);
    // Where a file does not name its columns, those that both versions have in common.
    let (mut columns, mut start_column, mut end_column) = (10, 1, 2);
    let mut in_events = false;
    let mut subtitles = Vec::new();
    for (number, line) in file.split('\n').enumerate() {
        let line = strip(line);
        if line.starts_with('[') {
            in_events = line.eq_ignore_ascii_case("[events]");
        }
        let Some((kind, fields)) = line.split_once(':').filter(|_| in_events) else { continue };
        let wrong = |problem: &str| Error::Argument(format!("subtitles, line {}: {problem}", number + 1));
        match kind {
            "Format" => {
                let names: Vec<&str> = fields.split(',').map(strip).collect();
                let find = |wanted| names.iter().position(|name| name.eq_ignore_ascii_case(wanted));
                let (Some(start), Some(end)) = (find("start"), find("end")) else {
                    return Err(wrong("the columns `Start` and `End` are missing"));
                };
                (columns, start_column, end_column) = (names.len(), start, end);
            }
            "Dialogue" => {
                // The text is the last column, so that it may hold commas.
                let fields: Vec<&str> = fields.splitn(columns, ',').collect();
                if fields.len() < columns {
                    return Err(wrong(&format!("{} of {columns} columns are there", fields.len())));
                }
                let read = |column: usize| {
                    let time = fields.get(column).copied().map_or("", strip);
                    read_time(time).ok_or_else(|| no_time(number, time, "0:01:02.50"))
                };
                let (start_time, end_time) = (read(start_column)?, read(end_column)?);
                let text = in_one_line(&ass_text(fields.last().copied().unwrap_or_default()));
                if !text.is_empty() {
                    subtitles.push(Subtitle { start_time, end_time, text });
                }
            }
            _ => {}
        }
    }
    subtitles.sort_by(|left, right| left.start_time.total_cmp(&right.start_time));
    Ok(subtitles)
}

/// How the text streams of video files write a subtitle, whose times are the container's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CueFormat {
    /// Text with a few HTML tags, as in SubRip files.
    SubRip,
    /// The text of a WebVTT cue.
    WebVtt,
    /// A line of SubStation Alpha behind its times: eight columns, then the text.
    Ass,
    /// 3GPP timed text: its length in two bytes, the text, and styles behind it.
    MovText,
}

/// What a viewer sees of a subtitle of a text stream, in one line; nothing for one that only ends the one before.
pub fn cue_text(bytes: &[u8], format: CueFormat) -> String {
    let shown = match format {
        CueFormat::SubRip => without_tags(&read_text(bytes)),
        CueFormat::WebVtt => webvtt_text(&read_text(bytes)),
        CueFormat::Ass => ass_text(read_text(bytes).splitn(9, ',').nth(8).unwrap_or_default()),
        CueFormat::MovText => match bytes {
            [high, low, rest @ ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
                read_text(&rest[..length])
            }
            _ => String::new(),
        },
    };
    in_one_line(&shown)
}

fn in_one_line(text: &str) -> String {
    let text = text.replace("...", "");
    let lines: Vec<&str> = text.split('\n').map(strip).filter(|line| !line.is_empty()).collect();
    lines.join(" ")
}

/// The text of a SubStation Alpha line without `{…}` and drawings; `\N` and `\n` end a line, `\h` is a space.
fn ass_text(text: &str) -> String {
    let mut pieces = text.split('{');
    let mut shown = pieces.next().unwrap_or_default().to_owned();
    let mut is_drawing = false;
    for piece in pieces {
        let Some((overrides, rest)) = piece.split_once('}') else {
            shown.push('{');
            shown.push_str(piece);
            continue;
        };
        // `\p1` begins a drawing, whose coordinates look like text, and `\p0` ends it.
        let scale = |tag: &str| strip(tag).strip_prefix('p')?.parse::<u32>().ok();
        if let Some(scale) = overrides.split('\\').rev().find_map(scale) {
            is_drawing = scale > 0;
        }
        if !is_drawing {
            shown.push_str(rest);
        }
    }
    shown.replace("\\N", "\n").replace("\\n", "\n").replace("\\h", " ")
}

/// The text without HTML tags and without `{\…}`, which some programs write into SubRip files.
fn without_tags(text: &str) -> String {
    let text = without(text, ['<', '>'], is_html_tag);
    without(&text, ['{', '}'], |inside| inside.starts_with('\\'))
}

/// Whether a subtitle holds HTML tags or `{\…}`.
pub fn holds_tags(text: &str) -> bool {
    text.contains(['<', '{']) && without_tags(text).len() < text.len()
}

fn is_html_tag(inside: &str) -> bool {
    let name = inside.strip_prefix('/').unwrap_or(inside);
    let name = name.split(|character: char| !character.is_ascii_alphabetic()).next().unwrap_or_default();
    ["b", "i", "u", "s", "font"].iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// The text without what stands between the brackets, where that is markup.
fn without(text: &str, [open, close]: [char; 2], is_markup: impl Fn(&str) -> bool) -> String {
    let mut pieces = text.split(open);
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        match piece.split_once(close) {
            Some((inside, rest)) if is_markup(inside) => plain.push_str(rest),
            _ => {
                plain.push(open);
                plain.push_str(piece);
            }
        }
    }
    plain
}

/// The text of a WebVTT cue without tags, its character references resolved.
fn webvtt_text(text: &str) -> String {
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
    plain
}

/// The characters of a file, without zeros and byte-order mark, its lines ended by `\n`. What is not UTF-8 is left out;
/// a mark of UTF-16 is obeyed.
pub fn read_text(bytes: &[u8]) -> String {
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
