//! Features that were made before, and files of them for the reference.

use std::sync::Arc;

use llamavid_runtime as runtime;
use napi::Env;
use napi::bindgen_prelude::AsyncBlock;
use napi_derive::napi;

use crate::arguments::word;
use crate::device::{Cancellation, flag};
use crate::handle::Handle;
use crate::promise::promise;
use crate::vision::{FEATURE_KINDS, VisualEncoder, VisualFeatures};

/// Features that were made before, without their numbers.
#[napi]
pub struct FeatureFile {
    file: Arc<runtime::FeatureFile>,
}

#[napi]
impl FeatureFile {
    /// Opens a pickle, a safetensors file, a store with one video, or the folder of a video in a store.
    #[napi]
    pub fn open(env: &Env, path: String) -> napi::Result<AsyncBlock<FeatureFile>> {
        promise(env, || Ok(runtime::FeatureFile::open(path.into())), |file| Self { file: Arc::new(file) })
    }

    /// Frames.
    #[napi(getter)]
    pub fn frame_count(&self) -> u32 {
        self.file.frame_count() as u32
    }

    /// The text of a feature file, with an `<image>` for each frame.
    #[napi(getter)]
    pub fn inputs(&self) -> Option<String> {
        self.file.inputs().map(str::to_owned)
    }

    /// What a store was told about the frames of a stored video.
    #[napi(getter)]
    pub fn report(&self) -> Option<String> {
        self.file.report().map(str::to_owned)
    }

    /// The features, for the device and the model of `encoder`; those of a file are always `precomputed`. Hashes of weights are
    /// remembered in the folder `digests`.
    #[napi]
    pub fn features(
        &self,
        env: &Env,
        encoder: &VisualEncoder,
        #[napi(ts_arg_type = "'pixels' | 'precomputed'")] kind: String,
        digests: Option<String>,
        c: Option<&Cancellation>,
    ) -> napi::Result<AsyncBlock<VisualFeatures>> {
        promise(
            env,
            || {
                let kind = word("kind", &kind, &FEATURE_KINDS)?;
                Ok(self.file.features(encoder.get()?, kind, digests.map(Into::into), flag(c)))
            },
            VisualFeatures::new,
        )
    }
}

/// Writes the reference's pickle of features and text. It gets its name when it is whole.
#[napi]
pub struct FeatureFileWriter {
    handle: Handle<runtime::FeatureFileWriter>,
}

#[napi]
impl FeatureFileWriter {
    /// Begins a file of features of `encoder`, in a folder that is there.
    #[napi]
    pub fn create(
        env: &Env,
        path: String,
        encoder: &VisualEncoder,
    ) -> napi::Result<AsyncBlock<FeatureFileWriter>> {
        promise(
            env,
            || Ok(runtime::FeatureFileWriter::create(path.into(), encoder.get()?)),
            |writer| Self { handle: Handle::new("writer of a feature file", writer) },
        )
    }

    /// Writes the features of the next frames. The features stay open.
    #[napi]
    pub fn append(&self, env: &Env, features: &VisualFeatures) -> napi::Result<AsyncBlock<()>> {
        promise(env, || self.handle.open()?.append(features.get()?), |()| ())
    }

    /// Ends the file with its text.
    #[napi]
    pub fn finish(&self, env: &Env, inputs: String) -> napi::Result<AsyncBlock<()>> {
        promise(env, || Ok(self.handle.open()?.finish(inputs)), |()| ())
    }

    /// Leaves no file that is not finished. Closing twice does nothing.
    #[napi]
    pub fn close(&self) {
        drop(self.handle.close());
    }
}
