//! The language model and its sessions.

use std::sync::Arc;

use llamavid_runtime::{
    self as runtime, CachePrecision, ErrorCode, FinishReason, SamplingOptions, SpliceKind,
};
use napi::Env;
use napi::bindgen_prelude::{AsyncBlock, ClassInstance};
use napi_derive::napi;

use crate::arguments::{size, whole, word};
use crate::device::{Cancellation, LoadOptions, flag};
use crate::handle::Handle;
use crate::promise::{call, promise};
use crate::tokens::VisualTokens;

/// What the checkpoint proposes for sampling.
#[napi(object, object_from_js = false)]
pub struct GenerationDefaults {
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// Nucleus sampling's share of the probability.
    pub top_p: Option<f64>,
    /// Number of candidates.
    pub top_k: Option<u32>,
}

/// The language model of a folder with its tokenizer. Holds the weights until `close`; sessions keep them alive.
#[napi]
pub struct LanguageModel {
    handle: Handle<runtime::LanguageModel>,
}

#[napi]
impl LanguageModel {
    /// Loads the language model of a folder, and nothing else of it.
    #[napi]
    pub fn load(env: &Env, folder: String, o: LoadOptions) -> napi::Result<AsyncBlock<LanguageModel>> {
        promise(
            env,
            || {
                let (device, precision, cancellation) = o.parts()?;
                let split = o.split()?;
                Ok(runtime::LanguageModel::load(folder.into(), device, precision, split, cancellation))
            },
            |model| Self { handle: Handle::new("language model", model) },
        )
    }

    /// Positions that prompt and answer share, rope scaling included.
    #[napi(getter)]
    pub fn context_length(&self) -> napi::Result<u32> {
        call(|| Ok(self.handle.open()?.context_length() as u32))
    }

    /// What the weights are computed in.
    #[napi(getter)]
    pub fn dtype(&self) -> napi::Result<&'static str> {
        call(|| Ok(self.handle.open()?.dtype().as_str()))
    }

    /// How most of the weights are stored: as `dtype` says, or `q8_0`, `q4_k` and the like.
    #[napi(getter)]
    pub fn stored_as(&self) -> napi::Result<String> {
        call(|| Ok(self.handle.open()?.stored_as()))
    }

    /// What stands in a prompt for one picture or video: `<image>`, or `<im_start><image><im_end>`.
    #[napi(getter)]
    pub fn image_placeholder(&self) -> napi::Result<&'static str> {
        call(|| Ok(self.handle.open()?.image_placeholder()))
    }

    /// The conversation template that the model was trained with, where its configuration names one.
    #[napi(getter)]
    pub fn conversation(&self) -> napi::Result<Option<&'static str>> {
        call(|| Ok(self.handle.open()?.conversation()))
    }

    /// What the checkpoint proposes for sampling.
    #[napi(getter)]
    pub fn generation_defaults(&self) -> napi::Result<GenerationDefaults> {
        call(|| {
            let defaults = self.handle.open()?.generation_defaults();
            let top_k = defaults.top_k.and_then(|count| u32::try_from(count).ok());
            Ok(GenerationDefaults { temperature: defaults.temperature, top_p: defaults.top_p, top_k })
        })
    }

    /// Tokens of a text, without the one that begins every prompt.
    #[napi]
    pub fn count_tokens(&self, text: String) -> napi::Result<u32> {
        call(|| Ok(self.handle.open()?.count_tokens(&text) as u32))
    }

    /// A place to generate in.
    #[napi]
    pub fn create_session(&self) -> napi::Result<Session> {
        call(|| {
            let session = runtime::Session::new(self.handle.open()?);
            Ok(Session { handle: Handle::new("session", session) })
        })
    }

    /// Frees the weights once no session uses them. Closing twice does nothing.
    #[napi]
    pub fn close(&self) {
        drop(self.handle.close());
    }
}

/// What a generation starts from.
#[napi(object, object_to_js = false)]
pub struct GenerateRequest<'env> {
    /// The prompt, with an `<image>` where visual tokens go.
    pub prompt: String,
    /// In the order of their places.
    pub visual_tokens: Vec<ClassInstance<'env, VisualTokens>>,
    /// What an `<image>` stands for: all tokens of a video (default), or one (long video).
    #[napi(ts_type = "'per-placeholder' | 'per-token'")]
    pub layout: Option<String>,
    /// At most this many new tokens.
    pub max_new_tokens: f64,
    /// 0 is greedy.
    pub temperature: f64,
    /// Default 1.
    pub top_p: Option<f64>,
    /// Default 50, as in the reference; 0 is all.
    pub top_k: Option<f64>,
    /// Default 1.
    pub repetition_penalty: Option<f64>,
    /// Default 0.
    pub seed: Option<f64>,
    /// How many bits keys and values of past positions are held in; default `16bit`, which is as the model computes them.
    #[napi(ts_type = "'16bit' | '8bit' | '4bit'")]
    pub kv_cache: Option<String>,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Whether to keep what was read for the next start that wants that too, and to take from the last one what both begin with.
    pub keep: Option<bool>,
}

impl GenerateRequest<'_> {
    fn parse(self) -> runtime::Result<runtime::GenerateRequest> {
        let layouts = [("per-placeholder", SpliceKind::PerPlaceholder), ("per-token", SpliceKind::PerToken)];
        let defaults = SamplingOptions::default();
        let caches = [
            ("16bit", CachePrecision::Full),
            ("8bit", CachePrecision::EightBit),
            ("4bit", CachePrecision::FourBit),
        ];
        Ok(runtime::GenerateRequest {
            prompt: self.prompt,
            visual_tokens: self
                .visual_tokens
                .iter()
                .map(|tokens| tokens.get())
                .collect::<runtime::Result<_>>()?,
            layout: word("layout", self.layout.as_deref().unwrap_or("per-placeholder"), &layouts)?,
            max_new_tokens: size("maxNewTokens", self.max_new_tokens)?,
            sampling: SamplingOptions {
                temperature: self.temperature,
                top_p: self.top_p.unwrap_or(defaults.top_p),
                top_k: match self.top_k.map(|count| size("topK", count)).transpose()? {
                    None => defaults.top_k,
                    Some(0) => None,
                    some => some,
                },
                repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
                seed: self.seed.map(|seed| whole("seed", seed)).transpose()?.unwrap_or(defaults.seed),
            },
            cache: word("kvCache", self.kv_cache.as_deref().unwrap_or("16bit"), &caches)?,
            stop: self.stop,
            keep: self.keep.unwrap_or(false),
        })
    }
}

/// What is known once the prompt is read.
#[napi(object, object_from_js = false)]
pub struct GenerationStart {
    /// Tokens of the prompt, visual ones included.
    pub prompt_tokens: u32,
    /// Visual tokens among them.
    pub visual_tokens: u32,
    /// Tokens that an earlier start had read.
    pub kept_tokens: u32,
}

/// A session that wants its next piece.
#[napi(object, object_to_js = false)]
pub struct NextRequest<'env> {
    /// It must not have another request under way.
    pub session: ClassInstance<'env, Session>,
    /// Stops its answer.
    pub cancellation: ClassInstance<'env, Cancellation>,
}

/// A piece of the answer.
#[napi(object, object_from_js = false)]
pub struct GenerationPiece {
    /// What it adds to the text; stop texts and what may become one are held back.
    pub text: String,
    /// The new tokens, the one that ended the answer included.
    pub token_ids: Vec<u32>,
    /// Set with the last piece.
    #[napi(ts_type = "'stop' | 'length'")]
    pub finish_reason: Option<&'static str>,
}

/// Generates one answer after another. Holds a key/value cache while an answer is made.
#[napi]
pub struct Session {
    handle: Handle<runtime::Session>,
}

#[napi]
impl Session {
    /// Splices and reads a prompt. What this session worked on before is given up, but for what is to be kept of it.
    #[napi]
    pub fn start(
        &self,
        env: &Env,
        r: GenerateRequest,
        c: Option<&Cancellation>,
    ) -> napi::Result<AsyncBlock<GenerationStart>> {
        promise(
            env,
            || self.handle.open()?.start(r.parse()?, &flag(c)),
            |started| GenerationStart {
                prompt_tokens: started.prompt_tokens as u32,
                visual_tokens: started.visual_tokens as u32,
                kept_tokens: started.kept_tokens as u32,
            },
        )
    }

    /// Decodes a few tokens for each of several sessions of one model, in one pass over its weights for each step. Gives a
    /// promise a request, null after the last piece. After an error the session's answer is given up.
    #[napi(ts_return_type = "Array<Promise<GenerationPiece | null>>")]
    pub fn next_of_each(
        env: &Env,
        requests: Vec<NextRequest>,
    ) -> napi::Result<Vec<AsyncBlock<Option<GenerationPiece>>>> {
        let requests: Vec<_> = requests
            .iter()
            .map(|request| (request.session.handle.open(), flag(Some(&request.cancellation))))
            .collect();
        let open: Vec<_> =
            requests.iter().filter_map(|(session, flag)| Some((session.as_deref().ok()?, flag))).collect();
        let mut replies = runtime::Session::next_of_each(&open).into_iter();
        let mut begin = |session: &runtime::Result<Arc<runtime::Session>>| {
            session.as_ref().map_err(Clone::clone)?;
            let missing = || Err(runtime::Error::new(ErrorCode::Internal, "a session got no reply"));
            replies.next().unwrap_or_else(missing)
        };
        requests.iter().map(|(session, _)| promise(env, || begin(session), to_piece)).collect()
    }

    /// Frees the cache and gives up what runs. Closing twice does nothing.
    #[napi]
    pub fn close(&self) {
        if let Some(session) = self.handle.close() {
            session.close();
        }
    }
}

fn to_piece(piece: Option<runtime::Piece>) -> Option<GenerationPiece> {
    piece.map(|piece| GenerationPiece {
        text: piece.text,
        token_ids: piece.token_ids,
        finish_reason: piece.finish.map(|reason| match reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }),
    })
}
