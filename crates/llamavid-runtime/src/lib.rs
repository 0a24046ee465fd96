//! Devices, jobs, sessions, cancellation and error codes around the LLaMA-VID model.
//!
//! Everything here is synchronous: work is handed to a device's thread as a job of small steps, and its result
//! comes as a [`Reply`], which Node's side awaits and a Rust program waits for.

mod cancellation;
mod cuda;
#[cfg(target_os = "linux")]
mod cuda_libraries;
mod data_check;
mod device;
mod dtype;
mod error;
mod feature_file;
mod gguf_model;
mod gguf_tokenizer;
mod gpus;
mod language_model;
mod layer_placement;
pub mod manifest;
mod model_description;
pub mod model_folder;
mod moments;
mod picture;
mod pixels;
mod plan;
mod processor;
mod profile;
mod reply;
mod session;
mod source_digest;
mod split;
mod subtitles;
mod threads;
mod token_generator;
mod tokenizer_files;
mod training;
mod video_store;
mod visual_encoder;
mod visual_features;
mod visual_tokens;
mod weight_shapes;

pub use cancellation::Cancellation;
pub use cuda::{CudaBuild, CudaDevice, CudaSupport, nccl as nccl_library, support as cuda_support};
pub use data_check::{
    CheckTotals, CheckedPart, CheckedSamples, DataCheck, Finding, VideoReference, published_data,
};
pub use device::{Device, DeviceKind, Weights};
pub use dtype::{Dtype, Precision, parse_quantisation};
pub use error::{Error, ErrorCode, Result};
pub use feature_file::{FeatureFile, FeatureFileWriter};
pub use gguf_tokenizer::{SPLIT_RULES, SplitRule, token_kind};
pub use language_model::LanguageModel;
/// What the addon needs of the model crate: it depends on this crate alone.
pub use llamavid_models::{
    language_model::{CachePrecision, FinishReason, SamplingOptions},
    preprocess::{Fit, Preprocessing, RgbImage},
    prompt::{
        conversation::{ImageTag, TEMPLATES, Template, Turn},
        movie::{movie_inputs, movie_question},
        splice::SpliceKind,
        subtitles::{CueFormat, Subtitle},
    },
    token_generation::FeatureKind,
};
pub use llamavid_store::{Precision as StorePrecision, SHARD_FRAMES};
pub use model_description::ModelDescription;
pub use moments::{Moment, moments};
pub use picture::{MAX_PICTURE_PIXELS, Picture, decode_picture, encode_png};
pub use pixels::{MAX_FRAME_SIZE, PixelChannel, Pixels};
pub use processor::{instruction_set, processor_features};
pub use profile::{finish_profile, record_phase, record_work, start_profile};
pub use reply::{Reply, catch_panic, run_aside};
pub use session::{GenerateRequest, Piece, Session, Started};
pub use split::Split;
pub use subtitles::{StreamCue, Subtitles};
pub use threads::thread_count;
pub use token_generator::{Ablation, TokenGenerator};
pub use tokenizer_files::TokenizerFiles;
pub use training::{
    MediaKind, TrainingBatch, TrainingFacts, TrainingFailure, TrainingRun, TrainingSample, TrainingStep,
    plan_training,
};
pub use video_store::{Progress as StoreProgress, StoreEntry, StoreWriter, StoredVideo, VideoStore};
pub use visual_encoder::VisualEncoder;
pub use visual_features::VisualFeatures;
pub use visual_tokens::VisualTokens;
pub use weight_shapes::{WeightShape, weight_shapes};
