//! Feature files written, as the reference's scripts do with `pickle.dump(dict(feats=array, inputs=text))`.
//!
//! Protocol 4 without the frames and the memo that it may have, and with numpy's module names of before version 2, which later
//! versions read too. Numbers go through as they come: how many they were is put into the head at the end.

use std::io::{Error, ErrorKind, Result, Seek, SeekFrom, Write};

use half::f16;

/// Writes a feature file: features (F, R, V) in f16, and the text of the video.
#[derive(Debug)]
pub struct FeatureWriter<W> {
    out: W,
    frame_shape: [usize; 2],
    frames: usize,
    /// Where in `out` F stands, in 4 bytes.
    frames_at: u64,
    /// Where in `out` the number of bytes of the numbers stands, in 8.
    bytes_at: u64,
}

impl<W: Write + Seek> FeatureWriter<W> {
    /// Begins a file of frames of `frame_shape` (R, V).
    ///
    /// # Errors
    /// Those of `out`, and a shape that no array of Python's has.
    pub fn new(mut out: W, frame_shape: [usize; 2]) -> Result<Self> {
        let start = out.stream_position()?;
        let mut head = Vec::new();
        head.extend(b"\x80\x04}(");
        text(&mut head, "feats")?;
        // An empty array of bytes, and then what it becomes: version, shape, dtype, whether column by column, numbers.
        head.extend(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\x01btR(K\x01J");
        let frames_at = start + head.len() as u64;
        head.extend([0u8; 4]);
        for size in frame_shape {
            head.extend(b"J");
            head.extend(small(size)?);
        }
        head.extend(b"\x87cnumpy\ndtype\n(");
        text(&mut head, "f2")?;
        head.extend(b"\x89\x88tR(K\x03");
        text(&mut head, "<")?;
        head.extend(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89\x8e");
        let bytes_at = start + head.len() as u64;
        head.extend([0u8; 8]);
        out.write_all(&head)?;
        Ok(Self { out, frame_shape, frames: 0, frames_at, bytes_at })
    }

    /// Writes the next frames, row-major of (F, R, V).
    ///
    /// # Errors
    /// Those of `out`; `InvalidInput` for a part of a frame, `InvalidData` for a number that is no finite one in f16.
    pub fn append(&mut self, values: &[f32]) -> Result<()> {
        let [rows, width] = self.frame_shape;
        let a_frame = rows * width;
        if a_frame == 0 || !values.len().is_multiple_of(a_frame) {
            let problem = format!("{} numbers are no whole frames of {rows} x {width}", values.len());
            return Err(Error::new(ErrorKind::InvalidInput, problem));
        }
        let mut bytes = Vec::with_capacity(2 * a_frame);
        for frame in values.chunks(a_frame) {
            bytes.clear();
            for value in frame {
                let half = f16::from_f32(*value);
                if !half.is_finite() {
                    let problem =
                        format!("a feature of frame {} is {value}, which f16 cannot hold", self.frames);
                    return Err(Error::new(ErrorKind::InvalidData, problem));
                }
                bytes.extend(half.to_le_bytes());
            }
            self.out.write_all(&bytes)?;
            self.frames += 1;
        }
        Ok(())
    }

    /// Ends the file with the text of the video: one `<image>` a frame, subtitles between them. Gives `out` back, flushed.
    ///
    /// # Errors
    /// Those of `out`, and more frames than an array of Python's has.
    pub fn finish(mut self, inputs: &str) -> Result<W> {
        let mut tail = b"tb".to_vec();
        text(&mut tail, "inputs")?;
        text(&mut tail, inputs)?;
        tail.extend(b"u.");
        self.out.write_all(&tail)?;
        let end = self.out.stream_position()?;
        let [rows, width] = self.frame_shape;
        self.out.seek(SeekFrom::Start(self.frames_at))?;
        self.out.write_all(&small(self.frames)?)?;
        self.out.seek(SeekFrom::Start(self.bytes_at))?;
        self.out.write_all(&((2 * self.frames * rows * width) as u64).to_le_bytes())?;
        self.out.seek(SeekFrom::Start(end))?;
        self.out.flush()?;
        Ok(self.out)
    }
}

fn text(out: &mut Vec<u8>, text: &str) -> Result<()> {
    let length = u32::try_from(text.len())
        .map_err(|_| Error::new(ErrorKind::InvalidInput, "a text of 4 GB or more"))?;
    out.extend(b"X");
    out.extend(length.to_le_bytes());
    out.extend(text.as_bytes());
    Ok(())
}

fn small(size: usize) -> Result<[u8; 4]> {
    let size = i32::try_from(size)
        .map_err(|_| Error::new(ErrorKind::InvalidInput, format!("{size} is too large for an array")))?;
    Ok(size.to_le_bytes())
}
