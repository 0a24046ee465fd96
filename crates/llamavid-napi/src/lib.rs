//! The Node addon: opaque handles over the runtime, and nothing else.
//!
//! Handles are read when a method is called and not when its promise gets to run, so closing one behind a call is
//! safe. Errors are `[CODE] message`, with `\nhint: …` behind it where there is advice.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod arguments;
mod conversation;
mod convert;
mod description;
mod device;
mod feature_file;
mod handle;
mod language;
mod pixels;
mod profile;
mod promise;
mod speech;
mod store;
mod subtitles;
mod tokens;
mod training;
mod vision;
mod world;

use llamavid_runtime::ErrorCode;
use napi_derive::napi;

/// Keeps memory for the next layer: the system's allocator gives each large result back and has its pages cleared anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// All error codes that the addon can give.
#[napi]
pub fn error_codes() -> Vec<&'static str> {
    ErrorCode::ALL.iter().map(|code| code.name()).collect()
}
