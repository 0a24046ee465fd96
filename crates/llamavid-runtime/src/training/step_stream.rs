//! A step's batches on their way to the device's thread: each is computed as it comes, so that one is in memory at a
//! time however many make a step.

use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llamavid_train::Example;
use tokio::sync::oneshot;

use crate::{Error, ErrorCode, Result};

/// What a caller waits for: nothing but the step's end after its last batch.
type Answer<T> = oneshot::Sender<Result<Option<T>>>;

/// Makes a batch of what the caller gave.
type Batch = Box<dyn FnOnce() -> Result<Vec<Example>> + Send>;

struct Message<T> {
    batch: Batch,
    last: bool,
    answer: Answer<T>,
}

/// The caller's end of a step.
pub(crate) struct BatchSender<T>(Sender<Message<T>>);

/// The device thread's end.
pub(crate) struct BatchStream<T> {
    messages: Receiver<Message<T>>,
    ended: bool,
    step: u64,
    waiting: Waiting<T>,
}

/// Who waits for the batch that is computed.
pub(crate) struct Waiting<T>(Arc<Mutex<Option<Answer<T>>>>);

impl<T> Clone for Waiting<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Both ends of a step, which messages call `step`.
pub(crate) fn batch_stream<T>(step: u64) -> (BatchSender<T>, BatchStream<T>) {
    let (sender, messages) = channel();
    let waiting = Waiting(Arc::new(Mutex::new(None)));
    (BatchSender(sender), BatchStream { messages, ended: false, step, waiting })
}

impl<T> fmt::Debug for BatchSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchSender").finish_non_exhaustive()
    }
}

impl<T> BatchSender<T> {
    /// Sends a batch. The answer comes when it is computed; with the last one's comes the step's report.
    pub(crate) fn send(&self, batch: Batch, last: bool, answer: Answer<T>) {
        if let Err(lost) = self.0.send(Message { batch, last, answer }) {
            let _ = lost.0.answer.send(Err(Error::new(ErrorCode::Internal, "the step has ended already")));
        }
    }
}

impl<T> BatchStream<T> {
    /// For the end of the step, whatever it is.
    pub(crate) fn waiting(&self) -> Waiting<T> {
        self.waiting.clone()
    }
}

impl<T> Iterator for BatchStream<T> {
    type Item = llamavid_train::Result<Vec<Example>>;

    /// The next batch that has records; waits for it. The batch before it is answered.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.ended {
                return None;
            }
            self.waiting.answer(Ok(None));
            let Ok(Message { batch, last, answer }) = self.messages.recv() else {
                self.ended = true;
                return Some(Err(llamavid_train::Error::Cancelled { step: self.step }));
            };
            self.ended = last;
            *self.waiting.lock() = Some(answer);
            match batch() {
                Ok(examples) if examples.is_empty() => {}
                Ok(examples) => return Some(Ok(examples)),
                Err(error) => {
                    // The caller hears what it was; the step only has to end.
                    self.waiting.answer(Err(error));
                    self.ended = true;
                    return Some(Err(llamavid_train::Error::Cancelled { step: self.step }));
                }
            }
        }
    }
}

impl<T> Waiting<T> {
    /// Answers who waits, if anybody does.
    pub(crate) fn answer(&self, result: Result<Option<T>>) {
        if let Some(answer) = self.lock().take() {
            let _ = answer.send(result);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Answer<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use llamavid_train::Visual;
    use llamavid_train::data::Sample;

    use super::*;

    fn example(id: &str) -> Example {
        let sample = Sample {
            id: id.to_owned(),
            ids: vec![1],
            labels: vec![1],
            prompts: Vec::new(),
            splice: llamavid_models::prompt::splice::SpliceKind::PerPlaceholder,
        };
        Example { sample, visual: Visual::None }
    }

    type Waiter = oneshot::Receiver<Result<Option<u32>>>;

    fn send(sender: &BatchSender<u32>, batch: Result<Vec<Example>>, last: bool) -> Waiter {
        let (answer, waiter) = oneshot::channel();
        sender.send(Box::new(move || batch), last, answer);
        waiter
    }

    #[test]
    fn each_batch_is_answered_when_the_next_is_asked_for() {
        let (sender, mut stream) = batch_stream(7);
        let waiting = stream.waiting();
        let mut first = send(&sender, Ok(vec![example("a")]), false);
        let mut empty = send(&sender, Ok(Vec::new()), false);
        let mut last = send(&sender, Ok(vec![example("b")]), true);
        assert_eq!(stream.next().unwrap().unwrap()[0].sample.id, "a");
        assert!(first.try_recv().is_err());
        assert_eq!(stream.next().unwrap().unwrap()[0].sample.id, "b");
        assert_eq!((first.try_recv().unwrap().unwrap(), empty.try_recv().unwrap().unwrap()), (None, None));
        assert!(stream.next().is_none() && last.try_recv().is_err());
        waiting.answer(Ok(Some(3)));
        assert_eq!(last.try_recv().unwrap().unwrap(), Some(3));
    }

    #[test]
    fn a_batch_that_cannot_be_made_ends_the_step_and_says_why() {
        let (sender, mut stream) = batch_stream(7);
        let mut broken = send(&sender, Err(Error::argument("no pixels")), false);
        assert!(matches!(stream.next(), Some(Err(llamavid_train::Error::Cancelled { step: 7 }))));
        assert_eq!(broken.try_recv().unwrap().unwrap_err().message, "no pixels");
        assert!(stream.next().is_none());
    }

    #[test]
    fn a_closed_run_ends_its_step() {
        let (sender, mut stream) = batch_stream::<u32>(7);
        drop(sender);
        assert!(matches!(stream.next(), Some(Err(llamavid_train::Error::Cancelled { .. }))));
        assert!(stream.next().is_none());
    }
}
