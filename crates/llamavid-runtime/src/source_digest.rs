//! Hashes of large files, remembered as long as the files stay as they are.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::manifest::hexadecimal;
use crate::{Cancellation, Error, ErrorCode, Result};

/// Bytes that are read and hashed at a time.
const BLOCK: usize = 1 << 20;
/// Systems count a file's times in steps: what was changed within so many nanoseconds of being hashed may have changed behind it.
const CLOCK_STEP: i64 = 2_000_000_000;
/// What of a folder is a video's frames: other files in it may be of any size.
const PICTURES: [&str; 5] = ["jpg", "jpeg", "png", "webp", "gif"];
/// Files of a folder that are hashed.
const MOST_FILES: usize = 1_000_000;

/// By what one sees that a file is as it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct FileState {
    path: PathBuf,
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: i64,
    /// Device, number and time of the last change, which no program can set back; absent where the system has none.
    identity: Option<(u64, u64, i64)>,
}

impl FileState {
    fn new(path: &Path, facts: &Metadata) -> Self {
        #[cfg(unix)]
        let identity = {
            use std::os::unix::fs::MetadataExt;
            Some((facts.dev(), facts.ino(), facts.ctime() * 1_000_000_000 + facts.ctime_nsec()))
        };
        #[cfg(not(unix))]
        let identity = None;
        let modified = facts.modified().map_or(0, nanoseconds);
        Self { path: path.to_path_buf(), bytes: facts.len(), modified, identity }
    }
}

/// The state of all files of a source when it was hashed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SourceState(Vec<FileState>);

impl SourceState {
    /// Looks at a file, or at the pictures directly in a folder.
    pub(crate) fn of(source: &Path) -> Result<Self> {
        let failed = |error: std::io::Error| unreadable(source, &error);
        let facts = fs::metadata(source).map_err(failed)?;
        if facts.is_file() {
            return Ok(Self(vec![FileState::new(source, &facts)]));
        }
        if !facts.is_dir() {
            return Err(Error::new(
                ErrorCode::MediaUnreadable,
                format!("{}: is neither a file nor a folder", source.display()),
            ));
        }
        let mut files = Vec::new();
        for entry in fs::read_dir(source).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            if !PICTURES.contains(&name.as_str()) {
                continue;
            }
            let facts = fs::metadata(&path).map_err(|error| unreadable(&path, &error))?;
            if facts.is_file() {
                files.push(FileState::new(&path, &facts));
            }
            if files.len() > MOST_FILES {
                let message = format!("{}: has more than {MOST_FILES} files", source.display());
                return Err(Error::new(ErrorCode::MediaTooLarge, message));
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self(files))
    }

    /// Looks at these files.
    pub(crate) fn of_files(files: BTreeSet<PathBuf>) -> Result<Self> {
        let states = files.into_iter().map(|path| {
            let facts = fs::metadata(&path).map_err(|error| unreadable(&path, &error))?;
            Ok(FileState::new(&path, &facts))
        });
        Ok(Self(states.collect::<Result<_>>()?))
    }

    /// `MEDIA_UNREADABLE` when the source is no longer in this state.
    pub(crate) fn check(&self, source: &Path) -> Result<()> {
        if Self::of(source)? == *self {
            return Ok(());
        }
        let message = format!("{}: the file changed while it was read", source.display());
        Err(Error::new(ErrorCode::MediaUnreadable, message).with_hint(
            "Ask again when it is whole; without a store (`none`) an answer sees what is there now.",
        ))
    }

    /// Whether nothing can have changed behind a hash that was begun at this time without being seen here.
    fn is_settled_at(&self, time: i64) -> bool {
        self.0.iter().all(|file| {
            file.identity.is_some_and(|(_, _, changed)| changed.max(file.modified) + CLOCK_STEP < time)
        })
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|file| file.path.as_path())
    }
}

/// A hash that was computed before.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    state: SourceState,
    digest: String,
}

/// The hash of a file's bytes, or of the names and bytes of the pictures directly in a folder; and the state that it is of.
pub(crate) fn digest(
    source: &Path,
    memory: Option<&Path>,
    cancellation: &Cancellation,
) -> Result<(String, SourceState)> {
    let state = SourceState::of(source)?;
    let is_file = state.0.len() == 1 && state.0.first().is_some_and(|file| file.path == source);
    let digest = remembered(memory, &state, "content", || {
        let mut hash = Sha256::new();
        for path in state.paths() {
            if !is_file {
                let name = path.file_name().unwrap_or_default().as_encoded_bytes();
                hash.update((name.len() as u64).to_le_bytes());
                hash.update(name);
                hash.update(
                    fs::metadata(path).map_err(|error| unreadable(path, &error))?.len().to_le_bytes(),
                );
            }
            hash_file(path, &mut hash, cancellation)?;
        }
        // What was hashed must be what the state says.
        state.check(source)?;
        Ok(hexadecimal(hash))
    })?;
    Ok((digest, state))
}

/// What `compute` makes of files in this state, or what it made before. `kind` says what is computed.
pub(crate) fn remembered(
    memory: Option<&Path>,
    state: &SourceState,
    kind: &str,
    compute: impl FnOnce() -> Result<String>,
) -> Result<String> {
    let mut name = Sha256::new_with_prefix(kind);
    for path in state.paths() {
        name.update([0]);
        name.update(path.as_os_str().as_encoded_bytes());
    }
    let path = memory.map(|folder| folder.join(format!("{}.json", &hexadecimal(name)[..32])));
    let read = path.as_deref().and_then(|path| fs::read(path).ok());
    let known = read.and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok());
    if let Some(Remembered { state: before, digest }) = known
        && before == *state
    {
        return Ok(digest);
    }
    let began = nanoseconds(SystemTime::now());
    let digest = compute()?;
    if let Some(path) = path
        && state.is_settled_at(began)
    {
        // Not to remember it costs time, and nothing else.
        let _ = remember(&path, &Remembered { state: state.clone(), digest: digest.clone() });
    }
    Ok(digest)
}

fn remember(path: &Path, remembered: &Remembered) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&serde_json::to_vec(remembered)?)?;
    file.persist(path)?;
    Ok(())
}

fn hash_file(path: &Path, hash: &mut Sha256, cancellation: &Cancellation) -> Result<()> {
    let failed = |error: std::io::Error| unreadable(path, &error);
    let mut file = File::open(path).map_err(failed)?;
    let mut block = vec![0; BLOCK];
    loop {
        cancellation.check()?;
        match file.read(&mut block).map_err(failed)? {
            0 => return Ok(()),
            count => hash.update(&block[..count]),
        }
    }
}

/// Since 1970; such numbers end in the year 2262.
fn nanoseconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as i64
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    let code = match error.kind() {
        std::io::ErrorKind::NotFound => ErrorCode::MediaNotFound,
        _ => ErrorCode::MediaUnreadable,
    };
    Error::new(code, format!("{}: {error}", path.display()))
        .with_hint("Check the path, and that this user may read it.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest_of(path: &Path, memory: &Path) -> String {
        digest(path, Some(memory), &Cancellation::default()).unwrap().0
    }

    #[test]
    fn another_content_is_another_hash() {
        let place = tempfile::tempdir().unwrap();
        let (memory, file) = (place.path().join("memory"), place.path().join("film.mp4"));
        fs::write(&file, "one").unwrap();
        let one = digest_of(&file, &memory);
        assert_eq!(one, hexadecimal(Sha256::new_with_prefix("one")));
        // Within the same tick of the clock, of the same length, and with the time set back.
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, "two").unwrap();
        File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
        assert_eq!(digest_of(&file, &memory), hexadecimal(Sha256::new_with_prefix("two")));
        fs::write(&file, "one").unwrap();
        assert_eq!(digest_of(&file, &memory), one);
    }

    #[test]
    #[cfg(unix)]
    fn a_file_that_stays_is_hashed_once() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("film.mp4");
        fs::write(&file, "one").unwrap();
        let mut state = SourceState::of(&file).unwrap();
        let memory = Some(place.path());
        let compute = |state: &SourceState, text: &str| {
            remembered(memory, state, "test", || Ok(text.to_owned())).unwrap()
        };
        // Too new to be sure.
        assert_eq!([compute(&state, "a"), compute(&state, "b")], ["a", "b"]);
        state.0[0].modified -= 10_000_000_000;
        if let Some((_, _, changed)) = &mut state.0[0].identity {
            *changed -= 10_000_000_000;
        }
        assert_eq!([compute(&state, "a"), compute(&state, "b")], ["a", "a"]);
        state.0[0].bytes += 1;
        assert_eq!(compute(&state, "c"), "c");
    }

    #[test]
    fn a_folder_is_its_files_and_their_names() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("frames");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("1.png"), "a").unwrap();
        fs::write(folder.join("2.png"), "b").unwrap();
        let memory = place.path().join("memory");
        let before = digest_of(&folder, &memory);
        fs::rename(folder.join("2.png"), folder.join("3.png")).unwrap();
        assert_ne!(digest_of(&folder, &memory), before);
        fs::rename(folder.join("3.png"), folder.join("2.png")).unwrap();
        assert_eq!(digest_of(&folder, &memory), before);
    }

    #[test]
    fn a_source_that_changes_is_noticed() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("film.mp4");
        fs::write(&file, "one").unwrap();
        let state = SourceState::of(&file).unwrap();
        state.check(&file).unwrap();
        fs::OpenOptions::new().append(true).open(&file).unwrap().write_all(b" more").unwrap();
        assert_eq!(state.check(&file).unwrap_err().code, ErrorCode::MediaUnreadable);
        fs::remove_file(&file).unwrap();
        assert_eq!(state.check(&file).unwrap_err().code, ErrorCode::MediaNotFound);
    }
}
