//! Whether a picture file is one, from its header and its end.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use image::{ImageFormat, ImageReader};

/// The bound at which Pillow refuses a file as a decompression bomb, in pixels.
const MAX_PIXELS: u64 = 178_956_970;

/// The end of a picture is looked for in so many bytes before the whole file is searched.
const TAIL: u64 = 1 << 16;

/// Says what is wrong with a JPEG, PNG, WebP or GIF, without decoding it.
pub(super) fn problem(path: &Path) -> Option<String> {
    check(path).err()
}

fn check(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    if file.metadata().map_err(|error| error.to_string())?.len() == 0 {
        return Err("the file is empty".to_owned());
    }
    let reader =
        ImageReader::new(BufReader::new(file)).with_guessed_format().map_err(|error| error.to_string())?;
    let format = reader.format().ok_or("the file is none of JPEG, PNG, WebP and GIF")?;
    let (width, height) = reader.into_dimensions().map_err(|error| format!("not a picture: {error}"))?;
    if width == 0 || height == 0 {
        return Err(format!("a picture of {width} x {height} pixels"));
    }
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MAX_PIXELS {
        return Err(format!("{width} x {height} pixels are over the limit of {MAX_PIXELS} pixels"));
    }
    let whole = match format {
        ImageFormat::Jpeg => has_end(path, |bytes| {
            let last = |marker: [u8; 2]| bytes.windows(2).rposition(|pair| pair == marker);
            match (last([0xFF, 0xDA]), last([0xFF, 0xD9])) {
                (Some(scan), Some(end)) => scan < end,
                (None, Some(_)) => true,
                (_, None) => false,
            }
        }),
        ImageFormat::Png => has_end(path, |bytes| bytes.windows(4).any(|name| name == b"IEND")),
        _ => Ok(true),
    };
    match whole {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("the {format:?} file ends before its picture does")),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether the mark of a picture's end is there, most often in the file's last bytes.
fn has_end(path: &Path, ends: impl Fn(&[u8]) -> bool) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
    file.read_to_end(&mut bytes)?;
    if ends(&bytes) {
        return Ok(true);
    }
    if size <= TAIL {
        return Ok(false);
    }
    bytes.clear();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(ends(&bytes))
}
