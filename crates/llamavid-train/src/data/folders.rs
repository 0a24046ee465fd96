//! Where pictures and videos lie.
//!
//! Reference: the paths of `LazySupervisedDataset`.

use std::path::{Component, Path, PathBuf};

use llamavid_weights::shown;

use super::error::{Error, Fault, FaultCode, Result};
use super::record::{Media, Record};

/// The folders that the paths of records are relative to. Links inside them are followed, wherever they lead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Folders {
    /// Pictures.
    pub images: Option<PathBuf>,
    /// Videos and features.
    pub videos: Option<PathBuf>,
}

impl Folders {
    /// The file that a record is about; none for text alone.
    ///
    /// A picture of OCR-VQA that is not there as `.jpg` may be there as `.png`, and Visual Genome's two folders
    /// (`VG_100K`, `VG_100K_2`) may lie in one, `images`.
    ///
    /// # Errors
    /// A path that leads out of its folder, or no file there.
    pub fn resolve(&self, record: &Record) -> Result<Option<PathBuf>> {
        self.find(&record.media).map_err(|fault| Error::Sample { id: record.id.clone(), fault })
    }

    pub(super) fn find(&self, media: &Media) -> Result<Option<PathBuf>, Fault> {
        let (key, kind, folder, path) = match media {
            Media::None => return Ok(None),
            Media::Image(path) => ("image", "pictures", &self.images, path),
            Media::Video(path) | Media::Features(path) => ("video", "videos", &self.videos, path),
        };
        if let Some(problem) = unsafe_path(path) {
            return Err(Fault::new(FaultCode::UnsafePath, key, problem));
        }
        let missing = |problem: String| Err(Fault::new(FaultCode::MissingFile, key, problem));
        let Some(folder) = folder else {
            return missing(format!("`{}` is in the folder of {kind}, and none is given", shown(path)));
        };
        let candidates = match media {
            Media::Image(path) => pictures(path),
            _ => vec![path.clone()],
        };
        let found = candidates.iter().map(|path| folder.join(path)).find(|path| path.is_file());
        if found.is_some() {
            return Ok(found);
        }
        if !folder.is_dir() {
            return missing(format!("the folder of {kind}, {}, is not there", folder.display()));
        }
        let tried: Vec<String> = candidates.iter().map(|path| format!("`{}`", shown(path))).collect();
        missing(format!("{} has no file {}", folder.display(), tried.join(" or ")))
    }
}

/// Paths under which a picture may lie, the first that is there counts.
fn pictures(path: &str) -> Vec<String> {
    if path.contains("ocr") {
        let png = path.replace(".jpg", ".png");
        return if png == path { vec![png] } else { vec![path.to_owned(), png] };
    }
    if path.contains("VG_100K") {
        return vec![path.replace("VG_100K_2", "images").replace("VG_100K", "images"), path.to_owned()];
    }
    vec![path.to_owned()]
}

fn unsafe_path(path: &str) -> Option<String> {
    if path.is_empty() {
        return Some("the path is empty".to_owned());
    }
    if path.contains('\0') {
        return Some(format!("the path `{}` holds a zero byte", shown(path)));
    }
    let inside =
        Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    (!inside).then(|| format!("the path `{}` leads out of its folder", shown(path)))
}
