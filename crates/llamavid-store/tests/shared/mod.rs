//! What both test programs need: a video's features, and a folder's bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use llamavid_store::{Description, Frames, Precision, SHARD_FRAMES, Store, StoredFeatures};

pub const ROWS: usize = 5;
pub const WIDTH: usize = 8;

pub fn description(precision: Precision) -> Description {
    Description {
        source: "film.mp4".into(),
        content: "c0ffee".into(),
        sampling: "1 fps".into(),
        preprocessing: "abc".into(),
        encoder: "def".into(),
        precision,
    }
}

/// Numbers that f16 rounds, other ones for each place.
pub fn values(first: usize, frames: usize) -> Vec<f32> {
    let count = frames * ROWS * WIDTH;
    (0..count).map(|index| ((first * ROWS * WIDTH + index) as f32 * 0.37).sin() * 3.).collect()
}

/// Appends the frames that are missing of `total`, shard by shard.
pub fn write(store: &Store, precision: Precision, total: usize) -> StoredFeatures {
    let mut writer = store.writer(description(precision)).unwrap();
    if writer.is_complete() {
        return store.find(&description(precision)).unwrap().unwrap();
    }
    while writer.times().len() < total {
        let first = writer.times().len();
        let count = SHARD_FRAMES.min(total - first);
        let times: Vec<f64> = (first..first + count).map(|frame| frame as f64).collect();
        let values = values(first, count);
        let frames = Frames { shape: [count, ROWS, WIDTH], values: &values, from_bf16: false, times: &times };
        writer.append(frames).unwrap();
    }
    writer.finish(format!("{total} frames")).unwrap()
}

/// Every file of a folder with its bytes.
pub fn contents(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}
