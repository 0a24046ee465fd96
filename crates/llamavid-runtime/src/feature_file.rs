//! Features that were made before as what a question is about, and files of them for the reference.
//!
//! Three kinds of sources hold the same: the reference's pickles, safetensors files of the same content, and videos of a store.
//! What is in a store remembers its encoder; of a file only the shape can be compared.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use llamavid_store::{Store, StoredFeatures};
use llamavid_train::data::{inspect_features, read_features};
use llamavid_weights::pickle::FeatureWriter;

use crate::{
    Cancellation, Error, ErrorCode, FeatureKind, Reply, Result, VisualEncoder, VisualFeatures, run_aside,
};

/// What a feature file should be.
const FILE_HINT: &str = "Give what `llamavid movie-features --format pkl` or the reference's scripts write: a dict with `feats` \
                         (frames, patches and a class row, width) and `inputs`, a text with an `<image>` for each frame.";

/// Features that were made before, without their numbers.
#[derive(Debug)]
pub struct FeatureFile {
    path: PathBuf,
    frames: usize,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// A pickle or safetensors file, and its text.
    File(String),
    Stored(Arc<StoredFeatures>),
}

impl FeatureFile {
    /// Opens a feature file (`.safetensors`, else a pickle, of which nothing is run), the folder of a store with one video, or that
    /// of a video in a store.
    ///
    /// # Errors
    /// `MEDIA_NOT_FOUND`; `DATA_INVALID` for a file that is something else, cut short, or whose text does not fit its frames;
    /// `STORE_INVALID` for a store that is damaged or holds no or several whole videos.
    pub fn open(path: PathBuf) -> Reply<Self> {
        run_aside("llamavid features", move || {
            let facts = fs::metadata(&path).map_err(|error| {
                let code = match error.kind() {
                    io::ErrorKind::NotFound => ErrorCode::MediaNotFound,
                    _ => ErrorCode::MediaUnreadable,
                };
                Error::new(code, format!("{}: {error}", path.display())).with_hint("Check the path.")
            })?;
            if facts.is_dir() {
                let stored = Store::find_at(&path)?;
                let frames = stored.shape()[0];
                return Ok(Self { path, frames, content: Content::Stored(Arc::new(stored)) });
            }
            let (frames, inputs) = inspect_features(&path).map_err(file_error)?;
            Ok(Self { path, frames, content: Content::File(inputs) })
        })
    }

    /// F.
    pub fn frame_count(&self) -> usize {
        self.frames
    }

    /// The text of a feature file: one `<image>` a frame, subtitles between them. A stored video has it, if at all, in its report.
    pub fn inputs(&self) -> Option<&str> {
        match &self.content {
            Content::File(inputs) => Some(inputs),
            Content::Stored(_) => None,
        }
    }

    /// What a store was told about how the frames were chosen.
    pub fn report(&self) -> Option<&str> {
        match &self.content {
            Content::File(_) => None,
            Content::Stored(stored) => Some(stored.report()),
        }
    }

    /// The features, for the device and the model of `encoder`. As `Precomputed` ones they come without their class rows, as the
    /// reference reads all features that it did not just make; a file's are always so. Hashes of weights are remembered in `digests`.
    ///
    /// # Errors
    /// `DATA_INVALID` for a shape that is not the encoder's and for numbers that are not finite, `STORE_INVALID` for features of
    /// another encoder, `MEDIA_UNREADABLE` for a file that changed, `ABORTED`.
    pub fn features(
        &self,
        encoder: Arc<VisualEncoder>,
        kind: FeatureKind,
        digests: Option<PathBuf>,
        cancellation: Cancellation,
    ) -> Reply<VisualFeatures> {
        let path = self.path.clone();
        let device = encoder.device().clone();
        match &self.content {
            Content::Stored(stored) => {
                let stored = stored.clone();
                run_aside("llamavid features", move || {
                    let made_by = (&stored.description().encoder, &stored.description().preprocessing);
                    let digest = encoder.digest(digests.as_deref(), &cancellation)?;
                    if made_by != (&digest, &encoder.preprocessing_digest()) {
                        let problem = "the features are those of another visual encoder, or of this one computed in another dtype";
                        return Err(Error::new(ErrorCode::StoreInvalid, format!("{}: {problem}", path.display()))
                            .with_hint("Ask with the --model, --dtype and --load that they were made with, or make them again."));
                    }
                    Ok(VisualFeatures::stored(stored, kind, device))
                })
            }
            Content::File(inputs) => {
                let inputs = inputs.clone();
                run_aside("llamavid features", move || {
                    cancellation.check()?;
                    let movie = read_features(&path).map_err(file_error)?;
                    if movie.inputs != inputs {
                        let problem = format!("{}: the file changed while it was read", path.display());
                        return Err(Error::new(ErrorCode::MediaUnreadable, problem));
                    }
                    let (frames, rows, width) = movie.tensor.dims3()?;
                    if (rows, width) != (encoder.patch_count(), encoder.width()) {
                        let problem = format!(
                            "{}: `feats` is {:?}, and a frame of this model is {:?}",
                            path.display(),
                            [frames, rows + 1, width],
                            [encoder.patch_count() + 1, encoder.width()]
                        );
                        return Err(Error::new(ErrorCode::DataInvalid, problem)
                            .with_hint("Ask the model whose visual encoder made them, or make them again."));
                    }
                    let owner = device.clone();
                    let on_device = move |on: &candle_core::Device| {
                        VisualFeatures::new(movie.tensor.to_device(on)?, FeatureKind::Precomputed, owner)
                    };
                    device.run_once(&cancellation, on_device).wait()
                })
            }
        }
    }
}

/// An error of a feature file, which is media here and no weights.
fn file_error(error: llamavid_train::data::Error) -> Error {
    let error = Error::from(error);
    let code = match error.code {
        ErrorCode::ModelInvalid | ErrorCode::ModelUnsupported => ErrorCode::DataInvalid,
        ErrorCode::ModelFileMissing => ErrorCode::MediaNotFound,
        code => code,
    };
    Error { code, ..error }.with_hint(FILE_HINT)
}

/// Writes the reference's pickle. It gets its name when it is whole; one that is dropped before leaves nothing.
#[derive(Debug)]
pub struct FeatureFileWriter {
    /// None once finished.
    unfinished: Arc<Mutex<Option<Unfinished>>>,
    frame_shape: [usize; 2],
}

impl FeatureFileWriter {
    /// Begins the file `path` of features of `encoder`, in a folder that is there.
    ///
    /// # Errors
    /// `STORE_LOCKED` while another process writes it, `INVALID_ARGUMENT` where it is there already or cannot be written,
    /// `DISK_FULL`.
    pub fn create(path: PathBuf, encoder: Arc<VisualEncoder>) -> Reply<Self> {
        run_aside("llamavid features", move || {
            let frame_shape = [encoder.patch_count() + 1, encoder.width()];
            let unfinished = Unfinished::create(path, frame_shape)?;
            Ok(Self { unfinished: Arc::new(Mutex::new(Some(unfinished))), frame_shape })
        })
    }

    /// Writes the features of the next frames. One call at a time.
    ///
    /// # Errors
    /// `DATA_INVALID` for a number that 16 bits cannot hold, `DISK_FULL`.
    pub fn append(&self, features: Arc<VisualFeatures>) -> Result<Reply<()>> {
        let [_, rows, width] = features.shape();
        if [rows, width] != self.frame_shape {
            return Err(Error::argument(format!(
                "frames of {:?} do not fit a file of {:?}",
                [rows, width],
                self.frame_shape
            )));
        }
        let (unfinished, values) = (self.unfinished.clone(), features.values());
        Ok(run_aside("llamavid features", move || {
            let values = values.wait()?;
            let mut unfinished = unfinished.lock().unwrap_or_else(PoisonError::into_inner);
            let Unfinished { writer, path, .. } = unfinished.as_mut().ok_or_else(finished)?;
            writer.as_mut().ok_or_else(finished)?.append(&values).map_err(|error| write_error(path, &error))
        }))
    }

    /// Ends the file with its text, and gives it its name.
    ///
    /// # Errors
    /// `DISK_FULL`, `INVALID_ARGUMENT` where it cannot be written.
    pub fn finish(&self, inputs: String) -> Reply<()> {
        let unfinished = self.unfinished.clone();
        run_aside("llamavid features", move || {
            let taken = unfinished.lock().unwrap_or_else(PoisonError::into_inner).take();
            taken.ok_or_else(finished)?.finish(&inputs)
        })
    }
}

fn finished() -> Error {
    Error::argument("this feature file is written already")
}

/// A file under a name of its own, whose lock the system ends with the process: what a killed one left is begun again by the next.
#[derive(Debug)]
struct Unfinished {
    path: PathBuf,
    temporary: PathBuf,
    /// None while it is being finished.
    writer: Option<FeatureWriter<BufWriter<File>>>,
}

impl Unfinished {
    fn create(path: PathBuf, frame_shape: [usize; 2]) -> Result<Self> {
        let failed = |error: io::Error| write_error(&path, &error);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.writing"));
        let opened = File::options().write(true).create(true).truncate(false).open(&temporary);
        let file = opened.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let problem = format!("{}: another process writes this file", path.display());
                return Err(Error::new(ErrorCode::StoreLocked, problem).with_hint("Wait until it is done."));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mut unfinished = Self { path: path.clone(), temporary, writer: None };
        // Only now: who had the lock may just have given the file its name, and then this is that file.
        if path.exists() {
            return Err(Error::argument(format!("{}: the file is there already", path.display())));
        }
        file.set_len(0).map_err(failed)?;
        unfinished.writer = Some(FeatureWriter::new(BufWriter::new(file), frame_shape).map_err(failed)?);
        Ok(unfinished)
    }

    fn finish(mut self, inputs: &str) -> Result<()> {
        let writer = self.writer.take().ok_or_else(finished)?;
        let whole = || {
            let file = writer.finish(inputs)?.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            fs::rename(&self.temporary, &self.path)
        };
        whole().map_err(|error| write_error(&self.path, &error))
    }
}

impl Drop for Unfinished {
    /// Nothing is left to remove once the file has its name.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary);
    }
}

fn write_error(path: &Path, error: &io::Error) -> Error {
    let message = format!("{}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::new(ErrorCode::DiskFull, message)
            .with_hint("Make room, and start again: finished files stay."),
        io::ErrorKind::InvalidData => Error::new(ErrorCode::DataInvalid, message)
            .with_hint("The reference's files hold 16 bits; a store holds what does not fit in 32."),
        _ => Error::argument(message).with_hint("Give a folder that can be written to."),
    }
}
