//! The visual tokens of a batch: frames of several samples at once where that gives the same numbers.
//!
//! Letters: F frames of a sample, P questions of a sample, R rows of a frame, n content tokens, D language width,
//! S side of a picture.

use std::borrow::Cow;

use candle_core::Tensor;
use llamavid_models::observer::{Blind, Observer};
use llamavid_models::token_generation::{FeatureKind, Questions, TokenGenerator};
use llamavid_models::tokenizer::WordPieceTokenizer;
use llamavid_models::visual_encoder::VisualEncoder;

use crate::data::Sample;
use crate::error::Result;
use crate::example::{Example, Visual};

/// Frames that the visual encoder takes at once.
const FRAMES_AT_ONCE: usize = 64;
/// A sample of more frames goes through the token generator by itself, which makes blocks of them.
const FRAMES_TOGETHER: usize = 64;
/// Frames of different samples that the token generator takes at once.
const PAIRS_AT_ONCE: usize = 512;

/// The parts that make visual tokens.
pub(crate) struct VisualPath<'a> {
    /// Absent where all features were computed before.
    pub encoder: Option<&'a VisualEncoder>,
    pub generator: &'a TokenGenerator,
    pub query_tokenizer: &'a WordPieceTokenizer,
    /// Share of the query model's values that is dropped, and the seed of the batch.
    pub dropout: Option<(f32, u64)>,
}

/// A sample's features (F, R, V).
type Features = (Tensor, FeatureKind);

impl VisualPath<'_> {
    /// For each example the tokens (F * (1 + n), D) of each of its questions.
    pub fn tokens(&self, examples: &[Example], observer: &mut dyn Observer) -> Result<Vec<Vec<Tensor>>> {
        let features = self.features(examples)?;
        let mut tokens: Vec<Vec<Tensor>> = examples.iter().map(|_| Vec::new()).collect();
        let mut together = Vec::new();
        for (index, (example, features)) in examples.iter().zip(&features).enumerate() {
            let Some(features) = features else { continue };
            let frames = features.0.dims3()?.0;
            if example.sample.prompts.len() == 1 && frames <= FRAMES_TOGETHER && !observer.wants() {
                together.push(index);
                continue;
            }
            let mut numbered = Numbered { observer: &mut *observer, index };
            tokens[index] = self.alone(&example.sample, features, index, &mut numbered)?;
        }
        for (number, group) in groups(&together, &features)?.into_iter().enumerate() {
            let samples: Vec<&Sample> = group.iter().map(|index| &examples[*index].sample).collect();
            let features: Vec<&Features> =
                group.iter().filter_map(|index| features[*index].as_ref()).collect();
            for (index, made) in
                group.iter().zip(self.paired(&samples, &features, examples.len() + number)?)
            {
                tokens[*index] = vec![made];
            }
        }
        Ok(tokens)
    }

    /// Features of each example that looks at something.
    fn features(&self, examples: &[Example]) -> Result<Vec<Option<Features>>> {
        let mut pixels = Vec::new();
        for example in examples {
            if let Visual::Pixels(tensor) = &example.visual {
                pixels.push(tensor.clone());
            }
        }
        let mut encoded = self.encode(&pixels)?.into_iter();
        let features = examples.iter().map(|example| match &example.visual {
            Visual::None => None,
            Visual::Pixels(_) => encoded.next().map(|features| (features, FeatureKind::Pixels)),
            Visual::Features(features, kind) => Some((features.clone(), *kind)),
        });
        Ok(features.collect())
    }

    /// Pixels (F, 3, S, S) of several samples give their features, the frames of all of them in turn.
    fn encode(&self, pixels: &[Tensor]) -> Result<Vec<Tensor>> {
        if pixels.is_empty() {
            return Ok(Vec::new());
        }
        let Some(encoder) = self.encoder else {
            let problem = "an example with pixels needs the visual encoder, which was not built";
            return Err(llamavid_models::Error::Argument(problem.to_owned()).into());
        };
        let counts = pixels.iter().map(|pixels| Ok(pixels.dims4()?.0)).collect::<Result<Vec<_>>>()?;
        let pixels = Tensor::cat(pixels, 0)?;
        let all = counts.iter().sum();
        let mut encoded = Vec::new();
        for start in (0..all).step_by(FRAMES_AT_ONCE) {
            let block = pixels.narrow(0, start, FRAMES_AT_ONCE.min(all - start))?.contiguous()?;
            encoded.push(encoder.forward(&block, &mut Blind)?);
        }
        let encoded = Tensor::cat(&encoded, 0)?;
        let mut start = 0;
        let mut features = Vec::with_capacity(counts.len());
        for count in counts {
            features.push(encoded.narrow(0, start, count)?);
            start += count;
        }
        Ok(features)
    }

    /// One sample with all its questions.
    fn alone(
        &self,
        sample: &Sample,
        (features, kind): &Features,
        number: usize,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Tensor>> {
        let questions = self.questions(&sample.prompts, features)?;
        let tokens = self.generator(number)?.generate(features, *kind, &questions, observer)?;
        let count = tokens.dims3()?.0;
        Ok((0..count).map(|index| tokens.get(index)).collect::<candle_core::Result<_>>()?)
    }

    /// Samples of one question each, whose features have equally many rows.
    ///
    /// Their questions are padded to the longest of all of them. That changes no number: padding is hidden so far away
    /// that its share is exactly zero.
    fn paired(&self, samples: &[&Sample], features: &[&Features], number: usize) -> Result<Vec<Tensor>> {
        let prompts: Vec<String> = samples.iter().flat_map(|sample| sample.prompts.iter().cloned()).collect();
        let Some((first, kind)) = features.first() else { return Ok(Vec::new()) };
        let questions = self.questions(&prompts, first)?;
        let counts =
            features.iter().map(|(features, _)| Ok(features.dims3()?.0)).collect::<Result<Vec<_>>>()?;
        let of_frame: Vec<u32> =
            counts.iter().zip(0u32..).flat_map(|(count, row)| std::iter::repeat_n(row, *count)).collect();
        let of_frame = Tensor::new(of_frame, first.device())?;
        let questions = Questions {
            input_ids: questions.input_ids.index_select(&of_frame, 0)?,
            attention_mask: questions.attention_mask.index_select(&of_frame, 0)?,
        };
        let all = features.iter().map(|(features, _)| features).collect::<Vec<_>>();
        let tokens =
            self.generator(number)?.generate_paired(&Tensor::cat(&all, 0)?, *kind, &questions, &mut Blind)?;
        let mut start = 0;
        let mut made = Vec::with_capacity(counts.len());
        for count in counts {
            made.push(tokens.narrow(0, start, count)?.flatten(0, 1)?);
            start += count;
        }
        Ok(made)
    }

    /// The generator for a part of the batch: equal seeds would drop the same values in every part.
    fn generator(&self, number: usize) -> Result<Cow<'_, TokenGenerator>> {
        Ok(match self.dropout {
            Some((rate, seed)) => {
                let seed = seed.wrapping_add((number as u64).wrapping_mul(0xd1b5_4a32_d192_ed03));
                Cow::Owned(self.generator.with_dropout(rate, seed)?)
            }
            None => Cow::Borrowed(self.generator),
        })
    }

    fn questions(&self, prompts: &[String], features: &Tensor) -> Result<Questions> {
        let (ids, mask) = self.query_tokenizer.encode_batch(prompts)?;
        Ok(Questions {
            input_ids: Tensor::new(ids, features.device())?,
            attention_mask: Tensor::new(mask, features.device())?,
        })
    }
}

/// Examples whose features are of one shape a frame and one kind, of not too many frames together.
fn groups(examples: &[usize], features: &[Option<Features>]) -> Result<Vec<Vec<usize>>> {
    let mut groups: Vec<((FeatureKind, usize, usize), usize, Vec<usize>)> = Vec::new();
    for index in examples {
        let Some((tensor, kind)) = &features[*index] else { continue };
        let (frames, rows, width) = tensor.dims3()?;
        let key = (*kind, rows, width);
        match groups.iter_mut().find(|group| group.0 == key && group.1 + frames <= PAIRS_AT_ONCE) {
            Some((_, total, members)) => {
                *total += frames;
                members.push(*index);
            }
            None => groups.push((key, frames, vec![*index])),
        }
    }
    Ok(groups.into_iter().map(|(_, _, members)| members).collect())
}

/// Puts a sample's number behind the names of its tensors.
struct Numbered<'a> {
    observer: &'a mut dyn Observer,
    index: usize,
}

impl Observer for Numbered<'_> {
    fn see(&mut self, name: &str, tensor: &Tensor) {
        if self.observer.wants() {
            self.observer.see(&format!("{name}.{}", self.index), tensor);
        }
    }

    fn wants(&self) -> bool {
        self.observer.wants()
    }
}
