//! Results of work that runs on another thread.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use crate::{Error, ErrorCode, Result};

/// What another thread will answer: awaited by Node's side, waited for by Rust programs.
#[derive(Debug)]
#[must_use = "the work is given up when nobody waits for its reply"]
pub struct Reply<T>(oneshot::Receiver<Result<T>>);

impl<T> Reply<T> {
    pub(crate) fn channel() -> (oneshot::Sender<Result<T>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(receiver))
    }

    /// An answer that is known already.
    pub(crate) fn ready(value: T) -> Self {
        let (sender, reply) = Self::channel();
        let _ = sender.send(Ok(value));
        reply
    }

    /// Blocks this thread until the answer is there. Not for an async runtime's threads.
    pub fn wait(self) -> Result<T> {
        self.0.blocking_recv().unwrap_or_else(|_| Err(abandoned()))
    }
}

impl<T> Future for Reply<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or_else(|_| Err(abandoned())))
    }
}

fn abandoned() -> Error {
    Error::new(ErrorCode::Internal, "the thread that worked on this ended without an answer")
}

/// Runs `work`; a panic, which is a bug by definition, becomes `INTERNAL` instead of ending the process. One about a device's
/// memory, which libraries below us may raise, becomes `OUT_OF_MEMORY`.
pub fn catch_panic<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let error = Error::of_device(panic_text(payload.as_ref()).to_owned());
        Err(match error.code {
            ErrorCode::OutOfMemory => error,
            _ => Error::new(ErrorCode::Internal, format!("a bug in native code: {error}"))
                .with_hint("Please report this with the steps that led to it."),
        })
    })
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a text")
}

/// Runs `work` on a thread of its own: for what takes long, uses no device and must not hold up the jobs of one.
pub fn run_aside<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Reply<T> {
    let (sender, reply) = Reply::channel();
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Nobody waiting is no error.
        let _ = sender.send(catch_panic(work));
    });
    match spawned {
        Ok(_) => reply,
        Err(error) => {
            let (sender, reply) = Reply::channel();
            let _ = sender
                .send(Err(Error::new(ErrorCode::OutOfMemory, format!("no thread for {name}: {error}"))));
            reply
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_internal_error() {
        let reply: Reply<()> = run_aside("test", || panic!("index {} of {}", 3, 2));
        let error = reply.wait().unwrap_err();
        assert_eq!(error.code, ErrorCode::Internal);
        assert!(error.message.contains("index 3 of 2"), "{}", error.message);
        let full: Reply<()> = run_aside("test", || panic!("DriverError(CUDA_ERROR_OUT_OF_MEMORY)"));
        assert_eq!(full.wait().unwrap_err().code, ErrorCode::OutOfMemory);
    }
}
