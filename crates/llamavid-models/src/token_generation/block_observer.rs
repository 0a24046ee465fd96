//! Puts what an observer sees of each block of frames together again.

use candle_core::{Result, Tensor};

use super::pairs;
use crate::observer::Observer;

/// Keeps tensors block by block while somebody looks, and shows them whole in the end.
pub(super) struct BlockObserver<'a> {
    observer: &'a mut dyn Observer,
    questions: usize,
    /// By name, in the order of the first block; each (P * frames of the block, …).
    seen: Vec<(String, Vec<Tensor>)>,
}

impl<'a> BlockObserver<'a> {
    pub(super) fn new(observer: &'a mut dyn Observer, questions: usize) -> Self {
        Self { observer, questions, seen: Vec::new() }
    }

    pub(super) fn wants(&self) -> bool {
        self.observer.wants()
    }

    /// Something of each pair: (P * F, …).
    pub(super) fn see(&mut self, name: &str, per_pair: &Tensor) {
        if !self.wants() {
            return;
        }
        match self.seen.iter_mut().find(|(seen, _)| seen == name) {
            Some((_, blocks)) => blocks.push(per_pair.clone()),
            None => self.seen.push((name.to_owned(), vec![per_pair.clone()])),
        }
    }

    /// Something of each frame (F, …), shown as the reference has it: a copy for each question.
    pub(super) fn see_frames(&mut self, name: &str, per_frame: &Tensor) -> Result<()> {
        if self.wants() {
            self.see(name, &pairs::repeat_frames(per_frame, self.questions)?);
        }
        Ok(())
    }

    /// Shows everything, and then `features`, the result.
    pub(super) fn finish(self, features: &Tensor) -> Result<()> {
        for (name, blocks) in &self.seen {
            let whole = match blocks.as_slice() {
                [block] => block.clone(),
                blocks => {
                    let by_question =
                        blocks.iter().map(|block| self.by_question(block)).collect::<Result<Vec<_>>>()?;
                    Tensor::cat(&by_question, 1)?.flatten(0, 1)?
                }
            };
            self.observer.see(name, &whole);
        }
        self.observer.see("tok.features", features);
        Ok(())
    }

    /// (P * F, …) gives (P, F, …).
    fn by_question(&self, block: &Tensor) -> Result<Tensor> {
        let mut shape = block.dims().to_vec();
        let frames = shape.first().map_or(0, |pairs| pairs / self.questions);
        shape.splice(..1, [self.questions, frames]);
        block.reshape(shape)
    }
}
