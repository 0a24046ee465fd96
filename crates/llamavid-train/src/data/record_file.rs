//! A list of records on disk, of any size: opened by a scan that keeps where each record lies, read record by record.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use rayon::prelude::*;

use super::error::{Error, Fault, FaultCode, Result};
use super::raw_record::{RawRecord, Unreadable};
use super::record::Record;
use super::scan::{self, Found, MAX_RECORD_BYTES, ScanError};

/// Most records of a list, 16 bytes of memory each.
const MAX_RECORDS: usize = 100_000_000;

/// A list of records in LLaVA's format, or one record a line.
///
/// Opening reads the whole file once and keeps 16 bytes a record. The file must not be written to while it is in use.
#[derive(Debug)]
pub struct RecordFile {
    path: PathBuf,
    file: Mutex<File>,
    entries: Vec<Entry>,
    stamp: Stamp,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    start: u64,
    /// Bytes, at most [`MAX_RECORD_BYTES`]; [`TOO_LARGE`] for a record that is not read.
    size: u32,
    /// Words of all messages, negative without image or video.
    length: i32,
}

const TOO_LARGE: u32 = u32::MAX;

/// What tells a file from what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(file: &File) -> std::io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { bytes: metadata.len(), modified: metadata.modified().ok() })
    }
}

impl RecordFile {
    /// Opens a list. Records that are JSON and not what a record should be are found when they are read.
    ///
    /// # Errors
    /// A file that cannot be read, is not JSON, is cut short (with the byte and the line), or has no record.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_watched(path, |_, _| ControlFlow::Continue(()))
    }

    /// As [`RecordFile::open`]; `progress` gets the bytes read and those of the file, and may stop the work.
    ///
    /// # Errors
    /// As [`RecordFile::open`], and [`Error::Cancelled`].
    pub fn open_watched(path: &Path, mut progress: impl FnMut(u64, u64) -> ControlFlow<()>) -> Result<Self> {
        let io = |source| Error::io(path, source);
        // Before opening: opening a pipe would wait for a writer.
        let metadata = fs::metadata(path).map_err(io)?;
        if !metadata.is_file() {
            let problem = if metadata.is_dir() { "is a folder, not a list" } else { "is not a regular file" };
            return Err(io(std::io::Error::new(ErrorKind::InvalidInput, problem)));
        }
        let file = File::open(path).map_err(io)?;
        let stamp = Stamp::of(&file).map_err(io)?;
        let mut entries = Vec::new();
        let mut waiting = Waiting::default();
        let mut scanned = scan::scan(
            &file,
            |read| progress(read, stamp.bytes),
            |found| {
                waiting.add(&found);
                if waiting.bytes < WAITING_BYTES { Ok(()) } else { waiting.measure(&mut entries) }
            },
        );
        if !matches!(scanned, Err(ScanError::Io(_) | ScanError::Cancelled)) {
            // What is wrong with a record that waits comes before what is wrong behind it.
            scanned = waiting.measure(&mut entries).and(scanned);
        }
        match scanned {
            Ok(()) => {}
            Err(ScanError::Io(error)) => return Err(io(error)),
            Err(ScanError::Cancelled) => return Err(Error::Cancelled),
            Err(ScanError::NotRecords(offset, problem)) => {
                let line = line_of(path, offset).map_err(io)?;
                return Err(Error::NotRecords { file: path.to_path_buf(), offset, line, problem });
            }
        }
        if entries.is_empty() {
            return Err(Error::Empty { file: path.to_path_buf() });
        }
        entries.shrink_to_fit();
        Ok(Self { path: path.to_path_buf(), file: Mutex::new(file), entries, stamp })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Records, the bad ones too; never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Words of each record's messages, split at white space: negative without image or video, 0 where there are none.
    pub fn lengths(&self) -> impl ExactSizeIterator<Item = i64> + '_ {
        self.entries.iter().map(|entry| i64::from(entry.length))
    }

    /// Reads a record.
    ///
    /// # Errors
    /// A number beyond the list, a file that has changed, or a record that is not one (its number, id and field).
    pub fn record(&self, index: usize) -> Result<Record> {
        let bytes = self.bytes(index)?;
        let raw = match RawRecord::parse(&bytes) {
            Ok(raw) => raw,
            Err(Unreadable::NotText(problem)) => {
                return Err(self.fault(index, None, Fault::new(FaultCode::NotARecord, "", problem)));
            }
            // It was JSON when the file was opened.
            Err(Unreadable::NotJson(..)) => return Err(Error::Changed { file: self.path.clone() }),
        };
        raw.understand(index).map_err(|fault| self.fault(index, raw.id(), fault))
    }

    /// An error about one of these records.
    pub(super) fn fault(&self, record: usize, id: Option<String>, fault: Fault) -> Error {
        Error::Record { file: self.path.clone(), record, id, fault }
    }

    fn bytes(&self, index: usize) -> Result<Vec<u8>> {
        let Some(entry) = self.entries.get(index) else {
            let (file, records) = (self.path.clone(), self.len());
            return Err(Error::NoSuchRecord { file, record: index, records });
        };
        if entry.size == TOO_LARGE {
            let problem = format!("the record is larger than {} MiB", MAX_RECORD_BYTES >> 20);
            return Err(self.fault(index, None, Fault::new(FaultCode::TooLarge, "", problem)));
        }
        let mut bytes = vec![0; entry.size as usize];
        // A panic while the lock was held cannot have left the file in a bad state: every read seeks first.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = Stamp::of(&file).and_then(|stamp| {
            file.seek(SeekFrom::Start(entry.start))?;
            file.read_exact(&mut bytes)?;
            Ok(stamp)
        });
        match read {
            Ok(stamp) if stamp == self.stamp => Ok(bytes),
            Ok(_) => Err(Error::Changed { file: self.path.clone() }),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err(Error::Changed { file: self.path.clone() })
            }
            Err(error) => Err(Error::io(&self.path, error)),
        }
    }
}

/// Records that were found and not looked into, so that all cores can do it at once.
#[derive(Default)]
struct Waiting {
    found: Vec<(u64, Option<Vec<u8>>)>,
    bytes: usize,
}

/// Bytes of records that are looked into at once.
const WAITING_BYTES: usize = 16 << 20;

impl Waiting {
    fn add(&mut self, found: &Found<'_>) {
        // Small records cost more than their bytes.
        self.bytes += found.bytes.map_or(0, <[u8]>::len) + 64;
        self.found.push((found.start, found.bytes.map(<[u8]>::to_vec)));
    }

    fn measure(&mut self, entries: &mut Vec<Entry>) -> Result<(), ScanError> {
        self.bytes = 0;
        let found = std::mem::take(&mut self.found);
        if let Some((start, _)) = found.get(MAX_RECORDS - entries.len()..).and_then(<[_]>::first) {
            let problem = format!("the list has more than {MAX_RECORDS} records");
            return Err(ScanError::NotRecords(*start, problem));
        }
        let measured: Vec<_> =
            found.par_iter().map(|(start, bytes)| entry(*start, bytes.as_deref())).collect();
        for entry in measured {
            entries.push(entry?);
        }
        Ok(())
    }
}

fn entry(start: u64, bytes: Option<&[u8]>) -> Result<Entry, ScanError> {
    let too_large = Entry { start, size: TOO_LARGE, length: 0 };
    let Some(bytes) = bytes else { return Ok(too_large) };
    let Ok(size) = u32::try_from(bytes.len()) else { return Ok(too_large) };
    let length = match RawRecord::parse(bytes) {
        Ok(raw) => {
            let words = i32::try_from(raw.words()).unwrap_or(i32::MAX);
            if raw.has_media() { words } else { -words }
        }
        Err(Unreadable::NotText(_)) => 0,
        Err(Unreadable::NotJson(offset, problem)) => {
            return Err(ScanError::NotRecords(start + offset as u64, format!("not JSON: {problem}")));
        }
    };
    Ok(Entry { start, size, length })
}

/// The line of a byte, from 1.
fn line_of(path: &Path, offset: u64) -> std::io::Result<u64> {
    let mut input = BufReader::with_capacity(1 << 20, File::open(path)?.take(offset));
    let mut line = 1;
    loop {
        let bytes = input.fill_buf()?;
        if bytes.is_empty() {
            return Ok(line);
        }
        line += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        let count = bytes.len();
        input.consume(count);
    }
}
