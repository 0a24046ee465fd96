//! Where the records of a list lie, found without holding the list.

use std::io::{ErrorKind, Read};
use std::ops::ControlFlow;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// Largest record that is read.
pub(super) const MAX_RECORD_BYTES: usize = 256 << 20;

/// What is wrong with a list as a whole.
#[derive(Debug)]
pub(super) enum ScanError {
    Io(std::io::Error),
    /// Bytes from the start, and what was expected there.
    NotRecords(u64, String),
    Cancelled,
}

/// An element of the list.
pub(super) struct Found<'a> {
    /// Bytes from the file's start.
    pub(super) start: u64,
    /// The element; absent over [`MAX_RECORD_BYTES`].
    pub(super) bytes: Option<&'a [u8]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far.
    Start,
    /// Behind the bracket that opens the list.
    FirstOrEnd,
    /// Behind a comma.
    Next,
    /// In an object or list.
    Inside,
    InString,
    /// Behind a backslash.
    Escaped,
    /// A string as an element.
    BareString,
    BareEscaped,
    /// A number, or a word.
    Bare,
    /// Behind an element of a list.
    CommaOrEnd,
    /// Between the lines of a file without a list around them.
    NextLine,
    /// Behind the bracket that closes the list.
    Done,
}

/// Reads `input` and calls `found` for each element of the JSON list, or of the lines, that it holds, and `read` with
/// the bytes read so far. Elements are found by their brackets; whether they are JSON is for `found` to say.
pub(super) fn scan(
    mut input: impl Read,
    mut read: impl FnMut(u64) -> ControlFlow<()>,
    mut found: impl FnMut(Found<'_>) -> Result<(), ScanError>,
) -> Result<(), ScanError> {
    let mut chunk = vec![0; CHUNK];
    let mut element = Element { start: 0, size: 0, bytes: Vec::new(), depth: 0, lines: false };
    let mut state = State::Start;
    let mut offset = 0u64;
    loop {
        let count = match input.read(&mut chunk) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(ScanError::Io(error)),
        };
        let bytes = chunk.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        state = element.read(bytes, offset, state, &mut found)?;
        offset += count as u64;
        if read(offset).is_break() {
            return Err(ScanError::Cancelled);
        }
    }
    let ends = |what: &str| Err(ScanError::NotRecords(offset, what.to_owned()));
    match state {
        State::Done | State::NextLine => Ok(()),
        State::Start => ends("the file is empty"),
        State::Bare if element.lines => {
            element.finish(&mut found)?;
            Ok(())
        }
        State::FirstOrEnd | State::Next | State::CommaOrEnd => {
            ends("the file ends before its list does, it was cut short")
        }
        _ => ends(&format!("the file ends inside the record that starts at byte {}", element.start)),
    }
}

struct Element {
    start: u64,
    size: u64,
    bytes: Vec<u8>,
    depth: usize,
    /// Whether the file is lines, not a list.
    lines: bool,
}

impl Element {
    /// Takes the next bytes of the file, the first of them at `offset`.
    fn read(
        &mut self,
        bytes: &[u8],
        offset: u64,
        mut state: State,
        found: &mut impl FnMut(Found<'_>) -> Result<(), ScanError>,
    ) -> Result<State, ScanError> {
        let mut at = 0;
        // The part of this chunk that belongs to the element starts here.
        let mut kept = 0;
        while let Some(&byte) = bytes.get(at) {
            let place = offset + at as u64;
            let unexpected = |expected: &str| {
                let problem = format!("expected {expected}, found {}", named(byte));
                Err(ScanError::NotRecords(place, problem))
            };
            match state {
                State::InString | State::BareString => {
                    let rest = bytes.get(at..).unwrap_or_default();
                    let Some(end) = string_end(rest) else {
                        at = bytes.len();
                        continue;
                    };
                    at += end;
                    state = match (rest.get(end), state) {
                        (Some(b'\\'), State::InString) => State::Escaped,
                        (Some(b'\\'), _) => State::BareEscaped,
                        (_, State::InString) => State::Inside,
                        _ => {
                            self.keep(bytes.get(kept..=at));
                            self.finish(found)?
                        }
                    };
                }
                State::Escaped => state = State::InString,
                State::BareEscaped => state = State::BareString,
                State::Inside => match byte {
                    b'"' => state = State::InString,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => {
                        self.depth -= 1;
                        if self.depth == 0 {
                            self.keep(bytes.get(kept..=at));
                            state = self.finish(found)?;
                        }
                    }
                    _ => {}
                },
                State::Bare => {
                    if matches!(byte, b',' | b']' | b'}') || is_space(byte) {
                        self.keep(bytes.get(kept..at));
                        state = self.finish(found)?;
                        // This byte is looked at again, as what stands behind the element.
                        continue;
                    }
                }
                _ if is_space(byte) => {}
                // The mark that some editors put in front of UTF-8.
                State::Start if place < 3 && matches!(byte, 0xEF | 0xBB | 0xBF) => {}
                State::Start => match byte {
                    b'[' => state = State::FirstOrEnd,
                    b'{' => {
                        self.lines = true;
                        (state, kept) = (self.begin(byte, place), at);
                    }
                    _ if bytes.starts_with(b"version https://git-lfs") => {
                        let problem = "the file is a Git LFS pointer, not the list itself";
                        return Err(ScanError::NotRecords(place, problem.to_owned()));
                    }
                    _ => return unexpected("a JSON list (`[`) or an object a line (`{`)"),
                },
                State::FirstOrEnd if byte == b']' => state = State::Done,
                State::NextLine | State::FirstOrEnd | State::Next => match byte {
                    b',' | b':' | b']' | b'}' => return unexpected("a record"),
                    _ => (state, kept) = (self.begin(byte, place), at),
                },
                State::CommaOrEnd => match byte {
                    b',' => state = State::Next,
                    b']' => state = State::Done,
                    _ => return unexpected("a comma or the end of the list"),
                },
                State::Done => return unexpected("nothing behind the list"),
            }
            at += 1;
        }
        if !matches!(
            state,
            State::Start
                | State::FirstOrEnd
                | State::Next
                | State::CommaOrEnd
                | State::NextLine
                | State::Done
        ) {
            self.keep(bytes.get(kept..));
        }
        Ok(state)
    }

    fn begin(&mut self, byte: u8, place: u64) -> State {
        (self.start, self.size, self.depth) = (place, 0, 0);
        self.bytes.clear();
        match byte {
            b'{' | b'[' => {
                self.depth = 1;
                State::Inside
            }
            b'"' => State::BareString,
            _ => State::Bare,
        }
    }

    fn keep(&mut self, bytes: Option<&[u8]>) {
        let bytes = bytes.unwrap_or_default();
        self.size += bytes.len() as u64;
        if self.size <= MAX_RECORD_BYTES as u64 {
            self.bytes.extend_from_slice(bytes);
        } else {
            self.bytes = Vec::new();
        }
    }

    fn finish(
        &mut self,
        found: &mut impl FnMut(Found<'_>) -> Result<(), ScanError>,
    ) -> Result<State, ScanError> {
        let bytes = (self.size <= MAX_RECORD_BYTES as u64).then_some(self.bytes.as_slice());
        found(Found { start: self.start, bytes })?;
        Ok(if self.lines { State::NextLine } else { State::CommaOrEnd })
    }
}

/// The first quote or backslash. Whole blocks are passed over at once, as strings are most of a list.
fn string_end(bytes: &[u8]) -> Option<usize> {
    let ends = |byte: &u8| matches!(byte, b'"' | b'\\');
    let blocks = bytes.chunks_exact(64);
    let plain = blocks.take_while(|block| !block.iter().fold(false, |found, byte| found | ends(byte)));
    let passed = plain.count() * 64;
    bytes.get(passed..)?.iter().position(ends).map(|end| passed + end)
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

fn named(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("`{}`", char::from(byte)) } else { format!("byte {byte:#04x}") }
}
