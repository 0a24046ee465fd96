//! The prompt of a long video: a tag for each frame, and subtitles between the frames.

use super::conversation::ImageTag;
use super::placeholders::{IMAGE_END, IMAGE_START, IMAGE_TAG};
use super::subtitles::Subtitle;
use crate::{Error, Result};

const START: &str =
    "Below is a movie. Memorize the content and answer my question after watching this movie.";
const END: &str = "Now the movie end.";

/// A tag for each frame, each followed by the subtitles that end before the next one is shown.
///
/// `frame_times` are seconds, rising. A subtitle that ends at or before the first frame's time stands
/// behind the **last** frame: the reference's index of -1, which its model was trained with.
pub fn movie_inputs(subtitles: &[Subtitle], frame_times: &[f64]) -> Result<String> {
    let last = frame_times
        .len()
        .checked_sub(1)
        .ok_or_else(|| Error::Argument("the movie has no frames to put its subtitles to".into()))?;
    let mut behind: Vec<Vec<&str>> = vec![Vec::new(); frame_times.len()];
    let mut shown = 0;
    for subtitle in subtitles {
        // Frames are never gone back over, even if the subtitles are out of order.
        while frame_times.get(shown).is_some_and(|time| *time < subtitle.end_time) {
            shown += 1;
        }
        if let Some(texts) = behind.get_mut(shown.checked_sub(1).unwrap_or(last)) {
            texts.push(&subtitle.text);
        }
    }
    Ok(behind.into_iter().map(|texts| format!("{IMAGE_TAG}{}", texts.join(" "))).collect())
}

/// What the user says about a movie: its `inputs` (see [`movie_inputs`]) with one tag for each visual
/// token of a frame, and the question. The query model is given the question alone.
pub fn movie_question(inputs: &str, question: &str, tokens_per_frame: usize, tag: ImageTag) -> String {
    let inputs = inputs.replace(IMAGE_TAG, &IMAGE_TAG.repeat(tokens_per_frame));
    match tag {
        ImageTag::Bare => format!("{START}{inputs}{END}\n{question}"),
        ImageTag::StartEnd => format!("{IMAGE_START}{START}{inputs}{END}{IMAGE_END}\n{question}"),
    }
}
