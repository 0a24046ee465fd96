//! Numbers from JavaScript, which are never only the numbers that are wanted.

use llamavid_runtime::{Error, ErrorCode, Result};

/// The largest whole number that a JavaScript number surely is: 2^53 - 1.
const LARGEST: f64 = 9_007_199_254_740_991.0;

/// A whole number from 0 on.
pub fn whole(name: &str, value: f64) -> Result<u64> {
    if value.fract() == 0.0 && (0.0..=LARGEST).contains(&value) {
        // Checked above.
        return Ok(value as u64);
    }
    Err(Error::new(
        ErrorCode::InvalidArgument,
        format!("{name} is {value}, but must be a whole number, 0 or above"),
    ))
}

/// A size or count.
pub fn size(name: &str, value: f64) -> Result<usize> {
    usize::try_from(whole(name, value)?)
        .map_err(|_| Error::new(ErrorCode::InvalidArgument, format!("{name} is {value}, which is too large")))
}

/// One of a few words.
pub fn word<T: Copy>(name: &str, value: &str, words: &[(&str, T)]) -> Result<T> {
    words.iter().find(|(word, _)| *word == value).map(|(_, meaning)| *meaning).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let message = format!("{name} is {value:?}, but must be one of {}", known.join(", "));
        Error::new(ErrorCode::InvalidArgument, message)
    })
}
