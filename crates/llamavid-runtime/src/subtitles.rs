//! Subtitles of people: recognised, read, repaired where that can be told in a sentence.

use llamavid_models::prompt::placeholders::IMAGE_TAG;
use llamavid_models::prompt::subtitles::{
    CueFormat, Subtitle, cue_text, holds_tags, parse_ass, parse_srt, parse_webvtt, read_text,
};

use crate::{Error, ErrorCode, Result};

/// Subtitles that a prompt can hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Subtitles {
    /// In the order of the file.
    pub subtitles: Vec<Subtitle>,
    /// What was left out or is odd, in words.
    pub notes: Vec<String>,
}

/// A subtitle of a text stream, as the video file holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamCue {
    /// Seconds.
    pub start: f64,
    /// Seconds.
    pub end: f64,
    /// In the stream's [`CueFormat`].
    pub bytes: Vec<u8>,
}

impl Subtitles {
    /// Reads a `.srt`, WebVTT or SubStation Alpha file. `name` is what errors call it.
    ///
    /// # Errors
    /// `DATA_INVALID` for a file that holds no subtitles, or a line with broken times.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Self> {
        // Enough for the words that a file begins with, whatever its characters are.
        let head = read_text(&bytes[..bytes.len().min(64)]);
        let ending = name.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
        let is_ass = head.starts_with("[Script Info]") || matches!(ending.as_str(), "ass" | "ssa");
        let is_webvtt = head.starts_with("WEBVTT");
        let read = match (is_webvtt, is_ass) {
            (true, _) => parse_webvtt(bytes),
            (_, true) => parse_ass(bytes),
            _ => parse_srt(bytes),
        };
        let read = read.map_err(|error| {
            Error::new(ErrorCode::DataInvalid, format!("{name}: {error}"))
                .with_hint("Correct the line, or ask without subtitles.")
        })?;
        if read.is_empty() {
            let problem = format!("{name}: there is not one subtitle in it");
            return Err(Error::new(ErrorCode::DataInvalid, problem)
                .with_hint("Give a .srt, .vtt or .ass file of this video, or ask without subtitles."));
        }
        let tagged = if is_ass || is_webvtt { 0 } else { count(&read, |each| holds_tags(&each.text)) };
        let mut subtitles = Self::new(read)?;
        if tagged > 0 {
            subtitles.notes.push(format!(
                "{tagged} of the subtitles hold tags such as <i>, which stay: so the long-video models were trained"
            ));
        }
        subtitles.note_losses([bytes]);
        Ok(subtitles)
    }

    /// Subtitles of a text stream of a video file.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a time that is no number.
    pub fn from_stream(cues: &[StreamCue], format: CueFormat) -> Result<Self> {
        let read = cues.iter().map(|cue| Subtitle {
            start_time: cue.start,
            end_time: cue.end,
            text: cue_text(&cue.bytes, format),
        });
        let mut subtitles = Self::new(read.filter(|subtitle| !subtitle.text.is_empty()).collect())?;
        subtitles.note_losses(cues.iter().map(|cue| match format {
            // Lengths and styles are no text.
            CueFormat::MovText => &[],
            _ => cue.bytes.as_slice(),
        }));
        Ok(subtitles)
    }

    /// Subtitles from elsewhere, such as speech recognition.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a time that is no number.
    pub fn new(mut subtitles: Vec<Subtitle>) -> Result<Self> {
        let endless = |each: &Subtitle| !(each.start_time.is_finite() && each.end_time.is_finite());
        if let Some(index) = subtitles.iter().position(endless) {
            return Err(Error::argument(format!("the times of subtitle {index} are not numbers of seconds")));
        }
        let tagged = count(&subtitles, |each| each.text.contains(IMAGE_TAG));
        for subtitle in &mut subtitles {
            // Until none is left: taking one out may join two halves of another.
            while subtitle.text.contains(IMAGE_TAG) {
                subtitle.text = subtitle.text.replace(IMAGE_TAG, "");
            }
        }
        let (mut overlapping, mut unordered) = (0, 0);
        let (mut latest_start, mut latest_end) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
        for each in &subtitles {
            if each.start_time < latest_start {
                unordered += 1;
            } else if each.start_time < latest_end {
                overlapping += 1;
            }
            latest_start = latest_start.max(each.start_time);
            latest_end = latest_end.max(each.end_time);
        }
        let notes = [
            (tagged, "held <image>, which stands for a frame and was taken out"),
            (count(&subtitles, |each| each.end_time < each.start_time), "end before they begin"),
            (count(&subtitles, |each| each.start_time < 0.0), "begin before the video does"),
            (overlapping, "begin before an earlier one ends"),
            (unordered, "are not in order of time: they stand behind those in front of them"),
        ];
        let notes = notes.into_iter().filter(|(count, _)| *count > 0);
        let notes = notes.map(|(count, what)| format!("{count} of the subtitles {what}")).collect();
        Ok(Self { subtitles, notes })
    }

    /// Notes the bytes that were left out.
    fn note_losses<'a>(&mut self, texts: impl IntoIterator<Item = &'a [u8]>) {
        let (mut foreign, mut zeros) = (0, 0);
        // In UTF-16 every other byte of plain text is a zero.
        for text in texts.into_iter().filter(|text| !matches!(text, [0xff, 0xfe, ..] | [0xfe, 0xff, ..])) {
            foreign += text.utf8_chunks().map(|chunk| chunk.invalid().len()).sum::<usize>();
            zeros += text.iter().filter(|byte| **byte == 0).count();
        }
        if zeros > 0 {
            self.notes.insert(0, format!("{zeros} zero bytes of the subtitles were left out"));
        }
        if foreign > 0 {
            let note = "bytes of the subtitles are not UTF-8 and were left out: save the file as UTF-8";
            self.notes.insert(0, format!("{foreign} {note}"));
        }
    }
}

fn count(subtitles: &[Subtitle], holds: impl Fn(&Subtitle) -> bool) -> usize {
    subtitles.iter().filter(|each| holds(each)).count()
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
        let events = "[Events]\nDialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,A dog.\n";
        for (file, name) in [(format!("[Script Info]\n{events}"), "film.srt"), (events.into(), "film.ASS")] {
            assert_eq!(
                Subtitles::parse(file.as_bytes(), name).unwrap().subtitles,
                std::slice::from_ref(&dog),
                "{name}"
            );
        }
        // In UTF-16 too.
        let wide: Vec<u8> = web.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(Subtitles::parse(&wide, "film.vtt").unwrap().subtitles, [dog]);
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
        file.extend(b"2\n00:00:09,000 --> 00:00:02,000\n\xe9t\xe9\0\n");
        file.extend(
            b"3\n00:00:01,500 --> 00:00:03,000\n<i>in</i>\n4\n00:00:09,000 --> 00:00:12,000\n2 < 3\n",
        );
        file.extend(b"5\n00:00:11,000 --> 00:00:12,000\nover\n");
        let read = Subtitles::parse(&file, "film.srt").unwrap();
        let texts: Vec<&str> = read.subtitles.iter().map(|each| each.text.as_str()).collect();
        assert_eq!(texts, ["A dog\u{fe}.", "t", "<i>in</i>", "2 < 3", "over"]);
        let expected = [
            "2 bytes of the subtitles are not UTF-8",
            "1 zero bytes",
            "1 of the subtitles held <image>",
            "1 of the subtitles end before they begin",
            "1 of the subtitles begin before an earlier one ends",
            "1 of the subtitles are not in order",
            "1 of the subtitles hold tags such as <i>",
        ];
        assert_eq!(read.notes.len(), expected.len(), "{:?}", read.notes);
        for (note, start) in read.notes.iter().zip(expected) {
            assert!(note.starts_with(start), "{note}");
        }
        let endless = Subtitle { start_time: 0.0, end_time: f64::INFINITY, text: String::new() };
        assert_eq!(Subtitles::new(vec![endless]).unwrap_err().code, ErrorCode::InvalidArgument);
    }

    #[test]
    fn streams_give_what_a_viewer_sees() {
        let cue = |start, end, bytes: &[u8]| StreamCue { start, end, bytes: bytes.to_vec() };
        let ass = [
            cue(0.0, 1.0, b"0,0,Default,,0,0,0,,{\\i1}one{\\i0}, two\\Nthree"),
            cue(1.0, 2.0, b"1,0,Default,,0,0,0,,{\\p1}m 0 0 l 9 9{\\p0}"),
            cue(-2.0, 3.0, b"2,0,Default,,0,0,0,,t\xe9"),
        ];
        let read = Subtitles::from_stream(&ass, CueFormat::Ass).unwrap();
        let texts: Vec<&str> = read.subtitles.iter().map(|each| each.text.as_str()).collect();
        assert_eq!(texts, ["one, two three", "t"]);
        assert!(read.notes[0].starts_with("1 bytes"), "{:?}", read.notes);
        let cues = [cue(0.0, 1.0, b"\0\x05Hello\0\0\0\x0cstyl"), cue(1.0, 2.0, b"\0\0"), cue(2.0, 3.0, b"")];
        let read = Subtitles::from_stream(&cues, CueFormat::MovText).unwrap();
        assert_eq!((read.subtitles.len(), read.subtitles[0].text.as_str()), (1, "Hello"));
        assert_eq!(read.notes, Vec::<String>::new());
    }
}
