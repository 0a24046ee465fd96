//! Files that are whole or not there: written to a temporary name, synchronised, then moved.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use llamavid_weights::writer;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Writes a file at once.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(bytes))
}

/// Writes a file through `fill`; what was there before stays until the new one is on the disk.
pub(crate) fn write_with(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    let temporary = temporary(path);
    let written = File::create(&temporary).and_then(|file| {
        let mut out = BufWriter::new(file);
        fill(&mut out)?;
        out.into_inner().map_err(|error| error.into_error())?.sync_all()
    });
    let moved = written.and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = moved {
        // What is half written is of no use, and may fill the disk.
        let _ = fs::remove_file(&temporary);
        return Err(Error::io(path, error));
    }
    sync_folder(path.parent());
    Ok(())
}

/// Makes a rename in `folder` outlast a loss of power, where the system can do so.
pub(crate) fn sync_folder(folder: Option<&Path>) {
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.part", std::process::id()));
    path.with_file_name(name)
}

/// Writes JSON, indented.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|error| Error::io(path, error.into()))?;
    bytes.push(b'\n');
    write(path, &bytes)
}

/// Reads JSON.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(|error| Error::io(path, error))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::State {
        file: path.to_path_buf(),
        problem: format!("is not the JSON that is expected: {error}"),
    })
}

/// Writes tensors by name, in their dtypes.
pub(crate) fn write_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    write_with(path, |out| writer::write_safetensors(out, tensors, metadata))
}
