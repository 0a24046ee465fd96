//! Pixels of frames, ready for the visual encoder, and the channel on which a worker thread delivers them.
//!
//! Letters: F frames, S side of a frame in pixels.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use llamavid_models::preprocess::{Preprocessing, RgbImage};
use rayon::prelude::*;
use tracing::info_span;

use crate::{Error, ErrorCode, Result};

/// Largest side of a frame that pixels are made for.
pub const MAX_FRAME_SIZE: usize = 8192;

/// Normalised pixels (F, 3, S, S) in main memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    data: Vec<f32>,
    frame_count: usize,
    size: usize,
}

impl Pixels {
    /// Resizes and normalises `frames`, in their order and in parallel.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` without a frame, or for one whose bytes do not fit its sides (named by its index).
    pub fn from_rgb(frames: &[RgbImage<'_>], preprocessing: &Preprocessing) -> Result<Self> {
        check(preprocessing)?;
        if frames.is_empty() {
            return Err(Error::argument("pixels need a frame or more"));
        }
        let mut data = zeros(frames.len(), frame_values(preprocessing.size))?;
        data.par_chunks_exact_mut(frame_values(preprocessing.size))
            .zip(frames)
            .enumerate()
            .try_for_each(|(index, (out, frame))| write_frame(preprocessing, frame, out, index))?;
        Ok(Self { data, frame_count: frames.len(), size: preprocessing.size })
    }

    /// F.
    pub fn frame_count(&self) -> usize {
        self.frame_count
    }

    /// S.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The values, row-major of (F, 3, S, S).
    pub fn values(&self) -> &[f32] {
        &self.data
    }

    /// The values of `count` frames from `start` on.
    pub(crate) fn frames(&self, start: usize, count: usize) -> &[f32] {
        let frame = frame_values(self.size);
        &self.data[start * frame..(start + count) * frame]
    }
}

fn frame_values(size: usize) -> usize {
    3 * size * size
}

fn check(preprocessing: &Preprocessing) -> Result<()> {
    let Preprocessing { size, mean, std, .. } = preprocessing;
    if !(1..=MAX_FRAME_SIZE).contains(size) {
        return Err(Error::argument(format!(
            "a frame of {size} pixels a side is not between 1 and {MAX_FRAME_SIZE}"
        )));
    }
    if !mean.iter().all(|value| value.is_finite())
        || !std.iter().all(|value| value.is_finite() && *value > 0.0)
    {
        return Err(Error::argument("mean and std must be finite, and std above 0"));
    }
    Ok(())
}

fn zeros(frames: usize, frame: usize) -> Result<Vec<f32>> {
    let full = |length: Option<usize>| {
        let values = length.map_or("too many".to_owned(), |length| length.to_string());
        Error::new(
            ErrorCode::OutOfMemory,
            format!("no memory for the pixels of {frames} frames ({values} values)"),
        )
        .with_hint("Make the pixels of fewer frames at a time.")
    };
    let length = frames.checked_mul(frame).ok_or_else(|| full(None))?;
    let mut data = Vec::new();
    data.try_reserve_exact(length).map_err(|_| full(Some(length)))?;
    data.resize(length, 0.0);
    Ok(data)
}

fn write_frame(
    preprocessing: &Preprocessing,
    frame: &RgbImage<'_>,
    out: &mut [f32],
    index: usize,
) -> Result<()> {
    preprocessing.pixels(frame, out).map_err(|error| {
        let error = Error::from(error);
        Error { message: format!("frame {index}: {}", error.message), ..error }
    })
}

/// Frames made ready on one thread and taken on another, in the order in which they came.
///
/// Node's threads share no objects, so the two find each other by a number.
#[derive(Debug)]
pub struct PixelChannel {
    id: u32,
    preprocessing: Preprocessing,
    state: Mutex<ChannelState>,
}

#[derive(Debug, Default)]
struct ChannelState {
    frames: VecDeque<Vec<f32>>,
    pushed: usize,
    closed: bool,
}

static CHANNELS: Mutex<Option<HashMap<u32, Weak<PixelChannel>>>> = Mutex::new(None);

impl PixelChannel {
    /// An empty channel; [`PixelChannel::open`] finds it until it is closed.
    pub fn new(preprocessing: Preprocessing) -> Result<Arc<Self>> {
        check(&preprocessing)?;
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let channel = Arc::new(Self { id, preprocessing, state: Mutex::default() });
        let mut channels = CHANNELS.lock().unwrap_or_else(PoisonError::into_inner);
        channels.get_or_insert_default().insert(id, Arc::downgrade(&channel));
        Ok(channel)
    }

    /// The open channel of that number. `HANDLE_CLOSED` when there is none.
    pub fn open(id: u32) -> Result<Arc<Self>> {
        let channels = CHANNELS.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = channels.as_ref().and_then(|channels| channels.get(&id)).and_then(Weak::upgrade);
        channel.ok_or_else(|| closed(id))
    }

    /// The number by which another thread finds it.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Resizes, normalises and appends a frame, in the calling thread. The bytes are borrowed.
    pub fn push(&self, frame: &RgbImage<'_>) -> Result<()> {
        let index = self.lock()?.pushed;
        let _span = info_span!("resize").entered();
        let mut out = zeros(1, frame_values(self.preprocessing.size))?;
        write_frame(&self.preprocessing, frame, &mut out, index)?;
        // Closed meanwhile: whoever closed it wants no more frames.
        let mut state = self.lock()?;
        state.frames.push_back(out);
        state.pushed += 1;
        Ok(())
    }

    /// Frames that wait.
    pub fn len(&self) -> Result<usize> {
        Ok(self.lock()?.frames.len())
    }

    /// Whether no frame waits.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Takes the first `count` frames. `INVALID_ARGUMENT` when fewer wait, or for 0.
    pub fn take(&self, count: usize) -> Result<Pixels> {
        let size = self.preprocessing.size;
        let mut state = self.lock()?;
        let waiting = state.frames.len();
        if count == 0 || count > waiting {
            return Err(Error::argument(format!(
                "{count} frames cannot be taken, {waiting} wait in the channel"
            )));
        }
        let mut data = zeros(count, frame_values(size))?;
        for (out, frame) in data.chunks_exact_mut(frame_values(size)).zip(state.frames.drain(..count)) {
            out.copy_from_slice(&frame);
        }
        Ok(Pixels { data, frame_count: count, size })
    }

    /// Drops what waits and refuses what comes. Closing twice does nothing.
    pub fn close(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        state.frames = VecDeque::new();
        drop(state);
        let mut channels = CHANNELS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channels) = channels.as_mut() {
            channels.remove(&self.id);
        }
    }

    fn lock(&self) -> Result<MutexGuard<'_, ChannelState>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed { Err(closed(self.id)) } else { Ok(state) }
    }
}

fn closed(id: u32) -> Error {
    Error::new(ErrorCode::HandleClosed, format!("the pixel channel {id} is closed"))
}

#[cfg(test)]
mod tests {
    use llamavid_models::preprocess::Fit;

    use super::*;

    fn preprocessing(size: usize) -> Preprocessing {
        Preprocessing { size, mean: [0.5; 3], std: [0.5; 3], fit: Fit::Crop }
    }

    fn frame(data: &[u8], side: usize) -> RgbImage<'_> {
        RgbImage { data, width: side, height: side, stride: 3 * side }
    }

    #[test]
    fn frames_keep_their_order_and_a_batch_equals_its_frames() {
        let grey: Vec<Vec<u8>> = (0..5u8).map(|value| vec![value * 50; 3 * 8 * 8]).collect();
        let frames: Vec<_> = grey.iter().map(|data| frame(data, 8)).collect();
        let all = Pixels::from_rgb(&frames, &preprocessing(4)).unwrap();
        assert_eq!((all.frame_count(), all.size(), all.values().len()), (5, 4, 5 * 48));
        for (index, one) in frames.iter().enumerate() {
            let one = Pixels::from_rgb(std::slice::from_ref(one), &preprocessing(4)).unwrap();
            assert_eq!(all.frames(index, 1), one.values());
        }
    }

    #[test]
    fn a_frame_that_does_not_fit_is_named() {
        let (good, short) = (vec![0; 3 * 64], vec![0; 3 * 64 - 1]);
        let error = Pixels::from_rgb(&[frame(&good, 8), frame(&short, 8)], &preprocessing(4)).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(error.message.starts_with("frame 1: "), "{}", error.message);
        assert!(Pixels::from_rgb(&[], &preprocessing(4)).is_err());
        assert!(Pixels::from_rgb(&[frame(&good, 8)], &preprocessing(1 << 40)).is_err());
    }

    #[test]
    fn a_channel_connects_two_threads() {
        let channel = PixelChannel::new(preprocessing(4)).unwrap();
        let id = channel.id();
        std::thread::spawn(move || {
            let channel = PixelChannel::open(id).unwrap();
            for value in [10u8, 20, 30] {
                channel.push(&frame(&[value; 3 * 64], 8)).unwrap();
            }
        })
        .join()
        .unwrap();
        assert_eq!(channel.len().unwrap(), 3);
        assert_eq!(channel.take(4).unwrap_err().code, ErrorCode::InvalidArgument);
        let first = channel.take(2).unwrap();
        assert_eq!(first.frame_count(), 2);
        assert!(first.frames(0, 1)[0] < first.frames(1, 1)[0]);
        assert_eq!(channel.take(1).unwrap().frame_count(), 1);
        assert!(channel.is_empty().unwrap());
    }

    #[test]
    fn a_closed_channel_is_gone() {
        let channel = PixelChannel::new(preprocessing(4)).unwrap();
        let other = PixelChannel::open(channel.id()).unwrap();
        channel.close();
        channel.close();
        assert_eq!(other.push(&frame(&[0; 3], 1)).unwrap_err().code, ErrorCode::HandleClosed);
        assert_eq!(other.len().unwrap_err().code, ErrorCode::HandleClosed);
        assert_eq!(PixelChannel::open(channel.id()).unwrap_err().code, ErrorCode::HandleClosed);
    }
}
