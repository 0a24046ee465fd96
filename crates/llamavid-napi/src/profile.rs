//! Profiles and threads.

use std::time::Duration;

use llamavid_runtime as runtime;
use napi_derive::napi;

use crate::promise::call;

/// Begins to record where time goes. What is profiled began `earlierMs` milliseconds ago.
#[napi]
pub fn start_profile(earlier_ms: f64) -> napi::Result<()> {
    call(|| runtime::start_profile(milliseconds(earlier_ms)))
}

/// Ends the recording and gives the trace as JSON.
#[napi]
pub fn finish_profile() -> napi::Result<String> {
    call(runtime::finish_profile)
}

/// Records a part of the whole that has just ended and lasted so long. Does nothing while nobody records.
#[napi]
pub fn record_phase(name: String, lasted_ms: f64) {
    runtime::record_phase(&name, milliseconds(lasted_ms));
}

/// Records work of this thread that has just ended and lasted so long. Does nothing while nobody records.
#[napi]
pub fn record_work(name: String, lasted_ms: f64) {
    runtime::record_work(&name, milliseconds(lasted_ms));
}

/// Threads that compute.
#[napi]
pub fn thread_count() -> napi::Result<u32> {
    call(|| Ok(runtime::thread_count()? as u32))
}

/// What is no length of time is none.
fn milliseconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value / 1e3).unwrap_or_default()
}
