//! Subtitle files of people: recognised, read, repaired where that can be told in a sentence.

use llamavid_models::prompt::placeholders::IMAGE_TAG;
use llamavid_models::prompt::subtitles::{Subtitle, parse_srt, parse_webvtt};

use crate::{Error, ErrorCode, Result};

/// Subtitles that a prompt can hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Subtitles {
    /// In the order of the file.
    pub subtitles: Vec<Subtitle>,
    /// What was left out or is odd, in words.
    pub notes: Vec<String>,
}

impl Subtitles {
    /// Reads a `.srt` or WebVTT file. `name` is what errors call it.
    ///
    /// # Errors
    /// `DATA_INVALID` for a file that holds no subtitles, or a line with broken times; `INVALID_ARGUMENT` for the
    /// kinds of subtitle files that are not read yet.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Self> {
        let start = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let ending = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        if matches!(ending.as_str(), "ass" | "ssa") || start.starts_with(b"[Script Info]") {
            let problem =
                format!("{name}: subtitles in the format of SubStation Alpha (.ass) are not read yet");
            return Err(Error::new(ErrorCode::InvalidArgument, problem)
                .with_hint("Convert them: ffmpeg -i subtitles.ass subtitles.srt"));
        }
        let wide = matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..]);
        let read = if start.starts_with(b"WEBVTT") { parse_webvtt(bytes) } else { parse_srt(bytes) };
        let read = read.map_err(|error| {
            Error::new(ErrorCode::DataInvalid, format!("{name}: {error}"))
                .with_hint("Correct the line, or ask without subtitles.")
        })?;
        if read.is_empty() {
            let problem = format!("{name}: there is not one subtitle in it");
            return Err(Error::new(ErrorCode::DataInvalid, problem)
                .with_hint("Give a .srt or .vtt file of this video, or ask without subtitles."));
        }
        let mut subtitles = Self::new(read)?;
        let lost: usize = if wide { 0 } else { bytes.utf8_chunks().map(|chunk| chunk.invalid().len()).sum() };
        if lost > 0 {
            subtitles.notes.insert(
                0,
                format!(
                    "{lost} bytes of the subtitles are not UTF-8 and were left out: save the file as UTF-8"
                ),
            );
        }
        Ok(subtitles)
    }

    /// Subtitles from elsewhere, such as speech recognition.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a time that is no number.
    pub fn new(mut subtitles: Vec<Subtitle>) -> Result<Self> {
        let mut tagged = 0;
        let mut turned = 0;
        for (index, subtitle) in subtitles.iter_mut().enumerate() {
            if !(subtitle.start_time.is_finite() && subtitle.end_time.is_finite()) {
                return Err(Error::argument(format!(
                    "the times of subtitle {index} are not numbers of seconds"
                )));
            }
            turned += usize::from(subtitle.end_time < subtitle.start_time);
            if subtitle.text.contains(IMAGE_TAG) {
                tagged += 1;
                // Until none is left: taking one out may join two halves of another.
                while subtitle.text.contains(IMAGE_TAG) {
                    subtitle.text = subtitle.text.replace(IMAGE_TAG, "");
                }
            }
        }
        let mut notes = Vec::new();
        if tagged > 0 {
            notes.push(format!(
                "{IMAGE_TAG}, which stands for a frame, was taken out of {tagged} of the subtitles"
            ));
        }
        if turned > 0 {
            notes.push(format!("{turned} of the subtitles end before they begin"));
        }
        Ok(Self { subtitles, notes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOG: &str = "00:00:01,000 --> 00:00:02,000\nA dog.\n";

    #[test]
    fn files_are_known_by_what_is_in_them() {
        let dog = Subtitle { start_time: 1.0, end_time: 2.0, text: "A dog.".into() };
        let web = "\u{feff}WEBVTT\n\n00:01.000 --> 00:02.000\nA dog.\n";
        for file in [DOG, web] {
            let read = Subtitles::parse(file.as_bytes(), "film.txt").unwrap();
            assert_eq!(read, Subtitles { subtitles: vec![dog.clone()], notes: vec![] });
        }
        for (file, name) in [("[Script Info]\n", "film.srt"), (DOG, "film.ASS")] {
            let error = Subtitles::parse(file.as_bytes(), name).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            assert!(error.message.contains(name) && error.hint.is_some(), "{error}");
        }
    }

    #[test]
    fn what_holds_no_subtitles_is_refused_by_name() {
        let noise: Vec<u8> =
            (0..100_000u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for bytes in [b"".as_slice(), b"\xff\xfe", b"WEBVTT\n", b"just words", &noise] {
            let error = Subtitles::parse(bytes, "film.srt").unwrap_err();
            assert_eq!(error.code, ErrorCode::DataInvalid);
            assert!(error.message.starts_with("film.srt: "), "{error}");
        }
        let error = Subtitles::parse(b"1\nsoon --> later\nA dog.", "film.srt").unwrap_err();
        assert!(error.message.contains("film.srt: subtitles, line 2: `soon`"), "{error}");
    }

    #[test]
    fn repairs_are_counted() {
        let mut file = DOG.replace("dog", "<im<image>age>dog\u{fe}").into_bytes();
        file.extend(b"2\n00:00:09,000 --> 00:00:02,000\n\xe9t\xe9\n");
        let read = Subtitles::parse(&file, "film.srt").unwrap();
        assert_eq!(read.subtitles[0].text, "A dog\u{fe}.");
        assert_eq!(read.subtitles[1].text, "t");
        assert_eq!(read.notes.len(), 3, "{:?}", read.notes);
        assert!(read.notes[0].starts_with("2 bytes"), "{:?}", read.notes);
        let endless = Subtitle { start_time: 0.0, end_time: f64::INFINITY, text: String::new() };
        assert_eq!(Subtitles::new(vec![endless]).unwrap_err().code, ErrorCode::InvalidArgument);
    }
}
