//! Conversion of models, and what their folders hold.

use llamavid_convert::{self as converter, ConversionPart, ConvertOptions};
use llamavid_runtime::{self as runtime, DeviceKind, Dtype, run_aside};
use napi::Env;
use napi::bindgen_prelude::AsyncBlock;
use napi_derive::napi;

use crate::arguments::whole;
use crate::device::{Cancellation, flag};
use crate::handle::Handle;
use crate::promise::{call, promise};

/// What to convert, and to what.
#[napi(object, object_to_js = false)]
pub struct ConversionOptions {
    /// Files and folders in any order.
    pub inputs: Vec<String>,
    /// The folder to make.
    pub output: String,
    /// The dtype of the weights; absent, each keeps its own.
    #[napi(ts_type = "'f32' | 'bf16' | 'f16'")]
    pub dtype: Option<String>,
    /// The block format of the language model; absent, it stays as it is.
    #[napi(ts_type = "'q8_0' | 'q4_0' | 'q4_k' | 'q5_k' | 'q6_k'")]
    pub quantize: Option<String>,
    /// Whether the rows of the language model's matrices in blocks are interleaved; default not.
    pub interleave: Option<bool>,
    /// Whether visual encoder and token generator are written in 8 bits; default not.
    pub quantize_vision: Option<bool>,
    /// Bytes of a file of weights at most; default 5 GB.
    pub shard_bytes: Option<f64>,
}

/// How far a conversion is, and at its end what was made.
#[napi(object, object_from_js = false)]
pub struct ConversionReport {
    /// Bytes written.
    pub done: f64,
    /// Bytes of the result.
    pub total: f64,
    /// What was made.
    pub converted: Option<ConvertedModel>,
}

/// A folder that was made.
#[napi(object, object_from_js = false)]
pub struct ConvertedModel {
    /// The folder.
    pub folder: String,
    /// Bytes of all files.
    pub bytes: f64,
    /// Weights.
    pub tensors: u32,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// A conversion that runs; it stops when it is closed.
#[napi]
pub struct Conversion {
    handle: Handle<converter::Conversion>,
}

#[napi]
impl Conversion {
    /// Begins.
    #[napi(factory)]
    pub fn start(options: ConversionOptions, c: Option<&Cancellation>) -> napi::Result<Self> {
        call(|| {
            let dtype = match options.dtype.as_deref().map(Dtype::parse).transpose()? {
                None | Some(Dtype::Auto) => None,
                Some(dtype) => Some(dtype.for_kind(DeviceKind::Cpu)),
            };
            let options = ConvertOptions {
                inputs: options.inputs.into_iter().map(Into::into).collect(),
                output: options.output.into(),
                dtype,
                quantize: options.quantize.as_deref().map(runtime::parse_quantisation).transpose()?,
                interleave: options.interleave.unwrap_or(false),
                quantize_vision: options.quantize_vision.unwrap_or(false),
                shard_bytes: options.shard_bytes.map(|bytes| whole("shardBytes", bytes)).transpose()?,
            };
            let conversion = converter::Conversion::start(options, flag(c))?;
            Ok(Self { handle: Handle::new("conversion", conversion) })
        })
    }

    /// How far it is; null behind the end.
    #[napi(ts_return_type = "Promise<ConversionReport | null>")]
    pub fn next(&self, env: &Env) -> napi::Result<AsyncBlock<Option<ConversionReport>>> {
        promise(
            env,
            || Ok(self.handle.open()?.next()),
            |part| {
                part.map(|part| match part {
                    ConversionPart::Progress(progress) => ConversionReport {
                        done: progress.done as f64,
                        total: progress.total as f64,
                        converted: None,
                    },
                    ConversionPart::Done(made) => ConversionReport {
                        done: made.bytes as f64,
                        total: made.bytes as f64,
                        converted: Some(ConvertedModel {
                            folder: made.folder.to_string_lossy().into_owned(),
                            bytes: made.bytes as f64,
                            tensors: made.tensors as u32,
                            notes: made.notes,
                        }),
                    },
                })
            },
        )
    }

    /// Ends it. Closing twice does nothing.
    #[napi]
    pub fn close(&self) {
        drop(self.handle.close());
    }
}

/// What a model's folder or a file of weights holds, as JSON; `verify` compares checksums.
#[napi]
pub fn inspect_model(
    env: &Env,
    path: String,
    verify: bool,
    c: Option<&Cancellation>,
) -> napi::Result<AsyncBlock<String>> {
    let cancellation = flag(c);
    promise(
        env,
        move || {
            Ok(run_aside("llamavid inspect", move || {
                converter::inspect_json(path.as_ref(), verify, &cancellation)
            }))
        },
        |found| found,
    )
}

/// Instruction sets of this processor that the kernels use where they are there, and whether they are.
#[napi]
pub fn processor_features() -> Vec<ProcessorFeature> {
    runtime::processor_features()
        .into_iter()
        .map(|(name, present)| ProcessorFeature { name, present })
        .collect()
}

/// The instructions that the kernels use, such as `avx512vnni`, `avx2` or `portable`. `LLAMAVID_CPU` chooses among those that
/// the processor has; a name that is none of them is `INVALID_ARGUMENT`.
#[napi]
pub fn instruction_set() -> napi::Result<&'static str> {
    call(runtime::instruction_set)
}

/// An instruction set.
#[napi(object, object_from_js = false)]
pub struct ProcessorFeature {
    /// Its name.
    pub name: &'static str,
    /// Whether this processor has it.
    pub present: bool,
}
