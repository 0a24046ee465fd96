//! What a model's small files say, without its weights.

use llamavid_runtime as runtime;
use napi::Env;
use napi::bindgen_prelude::AsyncBlock;
use napi_derive::napi;

use crate::pixels::Preprocessing;
use crate::promise::{call, promise};

/// Tokens of a prompt.
#[napi(object, object_from_js = false)]
pub struct PromptTokens {
    /// All of them.
    pub prompt_tokens: u32,
    /// Places of visual tokens among them.
    pub places: u32,
}

/// A model folder's configuration and tokenizer: enough to write a prompt and count its tokens.
#[napi]
pub struct ModelDescription {
    inner: runtime::ModelDescription,
}

#[napi]
impl ModelDescription {
    /// Reads the small files of a folder.
    #[napi]
    pub fn read(env: &Env, folder: String) -> napi::Result<AsyncBlock<ModelDescription>> {
        promise(env, || Ok(runtime::ModelDescription::read(folder.into())), |inner| Self { inner })
    }

    /// Positions that prompt and answer share, rope scaling included.
    #[napi(getter)]
    pub fn context_length(&self) -> u32 {
        self.inner.context_length() as u32
    }

    /// The context token and the content tokens of a frame.
    #[napi(getter)]
    pub fn tokens_per_frame(&self) -> u32 {
        self.inner.tokens_per_frame() as u32
    }

    /// What stands in a prompt for one picture or video: `<image>`, or `<im_start><image><im_end>`.
    #[napi(getter)]
    pub fn image_placeholder(&self) -> &'static str {
        self.inner.image_placeholder()
    }

    /// The conversation template that the model was trained with, where its configuration names one.
    #[napi(getter)]
    pub fn conversation(&self) -> Option<&'static str> {
        self.inner.conversation()
    }

    /// How frames become pixels.
    #[napi(getter)]
    pub fn preprocessing(&self) -> Preprocessing {
        self.inner.preprocessing().into()
    }

    /// What an answer takes and whether it fits. Request and plan are JSON.
    #[napi]
    pub fn plan(&self, request: String) -> napi::Result<String> {
        call(|| self.inner.plan(&request))
    }

    /// Tokens of a prompt, the one that begins it included.
    #[napi]
    pub fn count_prompt_tokens(&self, prompt: String) -> napi::Result<PromptTokens> {
        call(|| {
            let (all, places) = self.inner.count_prompt_tokens(&prompt);
            Ok(PromptTokens { prompt_tokens: all as u32, places: places as u32 })
        })
    }
}
