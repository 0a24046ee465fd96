//! Samples of different lengths side by side, as the reference puts them: spliced, padded, masked.
//!
//! Reference: `DataCollatorForSupervisedDataset`, `prepare_inputs_labels_for_multimodal`.
//! Letters: B samples, S sequence length after splicing, D language width.

use candle_core::{DType, Tensor};
use llamavid_models::language_model::LanguageModel;
use llamavid_models::prompt::placeholders::IMAGE_TOKEN;
use llamavid_models::prompt::splice::{BatchRow, SpliceKind, SplicedBatch, splice_batch};

use crate::data::{IGNORED, Sample};
use crate::error::Result;

/// Which input embeddings of the text learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EmbeddingGradient {
    /// All, where the table trains at all.
    #[default]
    All,
    /// The ids right before and behind a placeholder: stage 1 with `<im_start>` and `<im_end>`, where these are
    /// what has to be learned. The label of the id behind the placeholder is lost in that stage (SPEC quirk 15).
    BesideImages,
}

/// A batch for the decoder.
#[derive(Debug, Clone)]
pub struct Batch {
    /// (B, S, D)
    pub embeds: Tensor,
    /// (B, S) u8, 1 where a position is attended to.
    pub attention_mask: Tensor,
    /// For each sample, what is to be learned at each of the S positions.
    pub labels: Vec<Vec<i64>>,
}

impl Batch {
    /// Splices the visual tokens (N, D) of each sample into its text. Samples longer than `max_length` ids are cut.
    ///
    /// # Errors
    /// More placeholders than questions, or another number of places than tokens.
    pub fn new(
        samples: &[&Sample],
        visual: &[Vec<Tensor>],
        language_model: &LanguageModel,
        pad_id: u32,
        max_length: usize,
        gradient: EmbeddingGradient,
    ) -> Result<Self> {
        let ids: Vec<&[i64]> =
            samples.iter().map(|sample| &sample.ids[..sample.ids.len().min(max_length)]).collect();
        let mut rows = Vec::with_capacity(samples.len());
        for ((sample, ids), visual) in samples.iter().zip(&ids).zip(visual) {
            // Questions without a place are not seen: a picture that is only there to fill the batch, for instance.
            let visual = match sample.splice {
                SpliceKind::PerPlaceholder => &visual[..visual.len().min(places(ids))],
                SpliceKind::PerToken => visual,
            };
            rows.push(BatchRow { ids, visual, kind: sample.splice });
        }
        let longest = ids.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let mut row = 0;
        let SplicedBatch { embeds, attention_mask, .. } = splice_batch(&rows, pad_id, |text| {
            let embeds = language_model.embed(text)?;
            let learned = beside_images(ids.get(row).copied().unwrap_or_default(), longest);
            row += 1;
            match gradient {
                EmbeddingGradient::All => Ok(embeds),
                EmbeddingGradient::BesideImages => Ok(learn_only(&embeds, &learned)?),
            }
        })?;
        let length = embeds.dims3()?.1;
        let mut labels = Vec::with_capacity(samples.len());
        for (sample, row) in samples.iter().zip(&rows) {
            labels.push(spliced_labels(sample, row, gradient, length)?);
        }
        Ok(Self { embeds, attention_mask, labels })
    }

    /// Positions whose next label is learned, counted over all rows, and these labels.
    pub fn targets(&self) -> (Vec<u32>, Vec<u32>) {
        let mut targets = (Vec::new(), Vec::new());
        for (row, labels) in self.labels.iter().enumerate() {
            for (position, label) in labels.iter().skip(1).enumerate() {
                if let Ok(label) = u32::try_from(*label) {
                    targets.0.push((row * labels.len() + position) as u32);
                    targets.1.push(label);
                }
            }
        }
        targets
    }

    /// Positions that are attended to.
    pub fn tokens(&self) -> Result<usize> {
        Ok(self.attention_mask.to_dtype(DType::U32)?.sum_all()?.to_scalar::<u32>()? as usize)
    }

    /// The mask when it hides anything.
    pub fn padding(&self) -> Result<Option<&Tensor>> {
        let hidden = self.attention_mask.min_all()?.to_scalar::<u8>()? == 0;
        Ok(hidden.then_some(&self.attention_mask))
    }
}

fn places(ids: &[i64]) -> usize {
    ids.iter().filter(|id| **id == IMAGE_TOKEN).count()
}

/// Labels of a spliced row: those of the text, nothing to learn at visual tokens and padding.
fn spliced_labels(
    sample: &Sample,
    row: &BatchRow<'_>,
    gradient: EmbeddingGradient,
    length: usize,
) -> Result<Vec<i64>> {
    let mut labels = Vec::with_capacity(length);
    let mut visual = row.visual.iter();
    let mut behind_image = false;
    for (position, id) in row.ids.iter().enumerate() {
        let label = sample.labels.get(position).copied().unwrap_or(IGNORED);
        if *id == IMAGE_TOKEN && row.kind == SpliceKind::PerPlaceholder {
            let tokens = visual.next().map_or(Ok(0), |tokens| tokens.dims2().map(|(rows, _)| rows))?;
            labels.extend(std::iter::repeat_n(IGNORED, tokens));
            behind_image = true;
            continue;
        }
        let lost = behind_image && gradient == EmbeddingGradient::BesideImages;
        labels.push(if lost { IGNORED } else { label });
        behind_image = false;
    }
    labels.resize(length, IGNORED);
    Ok(labels)
}

/// For each id that is no placeholder, whether it stands right before or behind one.
fn beside_images(ids: &[i64], length: usize) -> Vec<bool> {
    let image = |position: Option<usize>| {
        position.and_then(|position| ids.get(position)).is_some_and(|id| *id == IMAGE_TOKEN)
    };
    (0..length)
        .filter(|position| !image(Some(*position)))
        .map(|position| image(position.checked_sub(1)) || image(Some(position + 1)))
        .collect()
}

/// Rows (N, D), of which only the `learned` ones let a gradient through.
fn learn_only(embeds: &Tensor, learned: &[bool]) -> candle_core::Result<Tensor> {
    let learned: Vec<u8> = learned.iter().map(|learned| u8::from(*learned)).collect();
    let (rows, width) = embeds.dims2()?;
    let learned = Tensor::from_vec(learned, (rows, 1), embeds.device())?.broadcast_as((rows, width))?;
    learned.where_cond(embeds, &embeds.detach())
}
