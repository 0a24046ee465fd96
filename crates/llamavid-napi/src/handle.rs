//! What a JavaScript object holds until it is closed.

use std::sync::{Arc, Mutex, PoisonError};

use llamavid_runtime::{Error, ErrorCode, Result};

/// A closable share of something native.
pub struct Handle<T> {
    kind: &'static str,
    inner: Mutex<Option<Arc<T>>>,
}

impl<T> Handle<T> {
    /// `kind` is what errors call it.
    pub fn new(kind: &'static str, value: impl Into<Arc<T>>) -> Self {
        Self { kind, inner: Mutex::new(Some(value.into())) }
    }

    /// The value, or `HANDLE_CLOSED`.
    pub fn open(&self) -> Result<Arc<T>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clone().ok_or_else(|| {
            Error::new(ErrorCode::HandleClosed, format!("this {} is closed", self.kind))
                .with_hint("Close it after its last use.")
        })
    }

    /// Gives the share up. Closing twice does nothing.
    pub fn close(&self) -> Option<Arc<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
