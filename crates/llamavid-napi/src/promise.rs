//! Replies of the runtime as promises, its errors as JavaScript's.

use llamavid_runtime::{Error, Reply, Result, catch_panic};
use napi::bindgen_prelude::{AsyncBlock, AsyncBlockBuilder, ToNapiValue};
use napi::{Env, Status};

/// An error as `@llamavid/native` reads it.
fn to_js(error: &Error) -> napi::Error {
    let hint = error.hint.as_ref().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
    napi::Error::new(Status::GenericFailure, format!("[{}] {}{hint}", error.code, error.message))
}

/// Runs what JavaScript waits for: errors and panics become exceptions.
pub fn call<T>(work: impl FnOnce() -> Result<T>) -> napi::Result<T> {
    catch_panic(work).map_err(|error| to_js(&error))
}

/// Runs `begin` at once and makes a promise of its reply. Its own errors reject the promise too.
pub fn promise<T: Send + 'static, V: ToNapiValue + 'static>(
    env: &Env,
    begin: impl FnOnce() -> Result<Reply<T>>,
    convert: impl FnOnce(T) -> V + 'static,
) -> napi::Result<AsyncBlock<V>> {
    let begun = catch_panic(begin);
    let answer = async move { begun?.await };
    AsyncBlockBuilder::build_with_map(
        env,
        async move { answer.await.map_err(|error: Error| to_js(&error)) },
        move |_env, value| Ok(convert(value)),
    )
}
