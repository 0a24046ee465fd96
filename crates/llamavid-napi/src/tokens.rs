//! Token generation and its tokens.

use std::sync::Arc;

use llamavid_runtime::{self as runtime, Ablation};
use napi::Env;
use napi::bindgen_prelude::{AsyncBlock, Float32Array};
use napi_derive::napi;

use crate::arguments::word;
use crate::device::{Cancellation, LoadOptions, flag};
use crate::handle::Handle;
use crate::pixels::float32_array;
use crate::promise::{call, promise};
use crate::vision::VisualFeatures;

/// The query model, context attention and projector of a model folder. Holds their weights until `close`.
#[napi]
pub struct TokenGenerator {
    handle: Handle<runtime::TokenGenerator>,
}

#[napi]
impl TokenGenerator {
    /// Loads the token generator of a folder, and nothing else of it.
    #[napi]
    pub fn load(env: &Env, folder: String, o: LoadOptions) -> napi::Result<AsyncBlock<TokenGenerator>> {
        promise(
            env,
            || {
                let (device, precision, cancellation) = o.parts()?;
                Ok(runtime::TokenGenerator::load(folder.into(), device, precision, cancellation))
            },
            |generator| Self { handle: Handle::new("token generator", generator) },
        )
    }

    /// Width of a token: the language model's.
    #[napi(getter)]
    pub fn width(&self) -> napi::Result<u32> {
        call(|| Ok(self.handle.open()?.width() as u32))
    }

    /// Tokens of the same frames for each question, in the questions' order. The features stay open. `ablate` sets a
    /// kind of tokens to zero, for evaluations.
    #[napi]
    pub fn generate(
        &self,
        env: &Env,
        features: &VisualFeatures,
        questions: Vec<String>,
        c: Option<&Cancellation>,
        #[napi(ts_arg_type = "'context' | 'content' | undefined | null")] ablate: Option<String>,
    ) -> napi::Result<AsyncBlock<Vec<VisualTokens>>> {
        let kinds = [("context", Ablation::Context), ("content", Ablation::Content)];
        promise(
            env,
            || {
                let ablation = ablate.map(|kind| word("ablate", &kind, &kinds)).transpose()?;
                Ok(self.handle.open()?.generate(features.get()?, questions, ablation, &flag(c)))
            },
            |tokens| tokens.into_iter().map(VisualTokens::new).collect(),
        )
    }

    /// How much each frame has to do with a question, by frame. The features stay open.
    #[napi]
    pub fn relevance(
        &self,
        env: &Env,
        features: &VisualFeatures,
        question: String,
        c: Option<&Cancellation>,
    ) -> napi::Result<AsyncBlock<Float32Array>> {
        float32_array(env, || Ok(self.handle.open()?.relevance(features.get()?, question, &flag(c))))
    }

    /// Frees the weights, behind what still runs. Closing twice does nothing.
    #[napi]
    pub fn close(&self) {
        drop(self.handle.close());
    }
}

/// Frames in a row whose relevance stands out.
#[napi(object, object_from_js = false)]
pub struct Moment {
    /// Its first frame.
    pub first: u32,
    /// Its last frame.
    pub last: u32,
    /// Its most relevant frame.
    pub peak: u32,
}

/// The moments of a video by the relevance of its frames, the most relevant first.
#[napi]
pub fn relevant_moments(relevance: &[f32]) -> napi::Result<Vec<Moment>> {
    call(|| {
        let found = runtime::moments(relevance).into_iter();
        let numbers = |moment: runtime::Moment| Moment {
            first: moment.first as u32,
            last: moment.last as u32,
            peak: moment.peak as u32,
        };
        Ok(found.map(numbers).collect())
    })
}

/// Context and content tokens of a video for one question. Holds device memory until `close`.
#[napi]
pub struct VisualTokens {
    handle: Handle<runtime::VisualTokens>,
}

#[napi]
impl VisualTokens {
    /// Frames.
    #[napi(getter)]
    pub fn frame_count(&self) -> napi::Result<u32> {
        call(|| Ok(self.get()?.frame_count() as u32))
    }

    /// The context token and the content tokens of a frame.
    #[napi(getter)]
    pub fn tokens_per_frame(&self) -> napi::Result<u32> {
        call(|| Ok(self.get()?.tokens_per_frame() as u32))
    }

    /// Tokens of all frames, width.
    #[napi(getter)]
    pub fn shape(&self) -> napi::Result<Vec<u32>> {
        call(|| Ok(self.get()?.shape().iter().map(|length| *length as u32).collect()))
    }

    /// A copy of the values, row-major of `shape`.
    #[napi]
    pub fn to_float32_array(&self, env: &Env) -> napi::Result<AsyncBlock<Float32Array>> {
        float32_array(env, || Ok(self.get()?.values()))
    }

    /// Frees the memory. Closing twice does nothing.
    #[napi]
    pub fn close(&self) {
        drop(self.handle.close());
    }
}

impl VisualTokens {
    fn new(tokens: runtime::VisualTokens) -> Self {
        Self { handle: Handle::new("VisualTokens", tokens) }
    }

    pub(crate) fn get(&self) -> runtime::Result<Arc<runtime::VisualTokens>> {
        self.handle.open()
    }
}
