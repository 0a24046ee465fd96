//! A conversion on a thread of its own, whose progress is asked for.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use llamavid_runtime::{Cancellation, Error, ErrorCode, Reply, Result, catch_panic, run_aside};

use crate::convert::{ConvertOptions, Converted, convert};
use crate::output::Progress;

/// What a conversion says next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConversionPart {
    /// How far it is.
    Progress(Progress),
    /// The end.
    Done(Converted),
}

/// A conversion that runs. It stops when it is dropped.
#[derive(Debug)]
pub struct Conversion {
    parts: Arc<Mutex<Receiver<Result<ConversionPart>>>>,
}

impl Conversion {
    /// Begins.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY` where the system has no thread left.
    pub fn start(options: ConvertOptions, cancellation: Cancellation) -> Result<Self> {
        let (sender, parts) = sync_channel(1);
        std::thread::Builder::new()
            .name("llamavid convert".to_owned())
            .spawn(move || run(&options, &cancellation, &sender))
            .map_err(|error| Error::new(ErrorCode::OutOfMemory, format!("no thread: {error}")))?;
        Ok(Self { parts: Arc::new(Mutex::new(parts)) })
    }

    /// What it says next; none behind the end.
    pub fn next(&self) -> Reply<Option<ConversionPart>> {
        let parts = self.parts.clone();
        run_aside("llamavid convert", move || {
            let part = parts.lock().unwrap_or_else(PoisonError::into_inner).recv();
            part.ok().transpose()
        })
    }
}

fn run(options: &ConvertOptions, cancellation: &Cancellation, parts: &SyncSender<Result<ConversionPart>>) {
    let on_progress = |progress| match parts.try_send(Ok(ConversionPart::Progress(progress))) {
        // Nobody has asked since the last time.
        Ok(()) | Err(TrySendError::Full(_)) => {}
        Err(TrySendError::Disconnected(_)) => cancellation.cancel(),
    };
    let done = catch_panic(|| convert(options, cancellation, &on_progress));
    // Nobody waiting is no error.
    let _ = parts.send(done.map(ConversionPart::Done));
}
