//! Files that are whole or not there, and files that are mapped.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use memmap2::Mmap;
use tempfile::Builder;

use crate::error::{Error, Result};

/// What the names of files begin with that are not whole yet.
const UNFINISHED: &str = ".unfinished-";

/// Writes a file in one piece: what had its name before stays until the new one is on the disk.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |error| Error::io(path, error);
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = Builder::new().prefix(UNFINISHED).tempfile_in(folder).map_err(failed)?;
    readable_as_usual(file.as_file()).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    sync(folder);
    Ok(())
}

/// Temporary files are their owner's alone; a store may be shared.
fn readable_as_usual(file: &File) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
    }
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

/// Makes a folder's names outlast a loss of power, where the system can do so.
fn sync(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// Removes what killed writers left. Only for who holds the folder's lock.
pub(crate) fn remove_unfinished(folder: &Path) -> Result<()> {
    let failed = |error| Error::io(folder, error);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a file that may be gone already.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}

/// Maps a file; none where there is none.
pub(crate) fn map(path: &Path) -> Result<Option<Mmap>> {
    let failed = |error| Error::io(path, error);
    // Before opening: opening a pipe would wait for a writer.
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(facts) if !facts.is_file() => return Err(Error::invalid(path, "is not a file")),
        // It cannot be mapped everywhere.
        Ok(facts) if facts.len() == 0 => return Err(Error::invalid(path, "is empty")),
        Ok(_) => {}
    }
    let file = File::open(path).map_err(failed)?;
    // SAFETY: the map is only read, and within its length. Files of a store keep their content once they have their name; as
    // with any mapped file, nobody else must cut them short while they are in use.
    Ok(Some(unsafe { Mmap::map(&file) }.map_err(failed)?))
}
