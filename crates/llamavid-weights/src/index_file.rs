//! `*.index.json`: which shard of a folder holds which tensor.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Fault, Result, shown};
use crate::mapped_file::MappedFile;

/// The published indexes have less than 0.1 MB.
const MAX_INDEX: usize = 64 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Reads an index: the names of each shard, with the shard's path, which lies inside `folder`.
///
/// # Errors
/// An index that is damaged or names a shard outside the folder, and a shard that is missing.
pub(crate) fn read(folder: &Path, index: &Path) -> Result<BTreeMap<PathBuf, Vec<String>>> {
    let file = MappedFile::open(index)?;
    let invalid = |problem: String| Fault::Invalid(problem).in_file(index);
    if file.bytes().len() > MAX_INDEX {
        return Err(invalid(format!("an index of {} bytes, {MAX_INDEX} at most", file.bytes().len())));
    }
    let parsed: Index = serde_json::from_slice(file.bytes())
        .map_err(|error| invalid(format!("expected JSON with a `weight_map` of tensor to shard: {error}")))?;
    if parsed.weight_map.is_empty() {
        return Err(invalid("`weight_map` is empty".to_string()));
    }
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, shard) in parsed.weight_map {
        names.entry(shard).or_default().push(name);
    }
    let mut shards = BTreeMap::new();
    for (shard, names) in names {
        if !is_plain_name(&shard) {
            return Err(invalid(format!(
                "shard `{}`: expected the name of a file in the same folder",
                shown(&shard)
            )));
        }
        let path = folder.join(&shard);
        if !path.exists() {
            return Err(Error::FileMissing {
                needed: format!("{} names it for {} tensors", index.display(), names.len()),
                file: path,
            });
        }
        if !stays_inside(folder, &path) {
            return Err(invalid(format!("shard `{}` is a link that leaves the folder", shown(&shard))));
        }
        shards.insert(path, names);
    }
    Ok(shards)
}

/// A name without separators of any system, drive letters or NUL, and neither `.` nor `..`.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    !name.contains(['/', '\\', ':', '\0'])
        && matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}

/// Whether a shard's file, links followed, is in the folder. In the Hugging Face cache, where `snapshots/REVISION` and the
/// `llamavid/NAME` of a pulled model are made of links to `blobs`, it may be there.
fn stays_inside(folder: &Path, shard: &Path) -> bool {
    let (Ok(folder), Ok(shard)) = (fs::canonicalize(folder), fs::canonicalize(shard)) else { return false };
    if shard.starts_with(&folder) {
        return true;
    }
    match folder.parent() {
        Some(parent) if parent.ends_with("snapshots") || parent.ends_with("llamavid") => {
            parent.parent().is_some_and(|repository| shard.parent() == Some(&repository.join("blobs")))
        }
        _ => false,
    }
}
