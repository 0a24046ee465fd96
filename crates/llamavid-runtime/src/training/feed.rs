//! The records of a run, batch after batch: read, tokenised, and their media named.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use llamavid_models::prompt::splice::SpliceKind;
use llamavid_models::token_generation::FeatureKind;
use llamavid_models::tokenizer::LlamaTokenizer;
use llamavid_train::Visual;
use llamavid_train::data::{
    Folders, Media, Movie, Order, RecordFile, Sample, SampleOptions, Sampler, TrainingTemplate, movie_sample,
    read_features, sample,
};

use super::config::Recipe;
use super::step_plan::{Place, StepPlan};
use crate::{Error, ErrorCode, Result};

/// What a sample shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaKind {
    /// Nothing: text alone.
    None,
    /// A picture file.
    Image,
    /// A video file.
    Video,
    /// Features that were computed before.
    Features,
}

impl From<&Media> for MediaKind {
    fn from(media: &Media) -> Self {
        match media {
            Media::None => Self::None,
            Media::Image(_) => Self::Image,
            Media::Video(_) => Self::Video,
            Media::Features(_) => Self::Features,
        }
    }
}

/// A record of a batch, as callers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingSample {
    /// The record's id, or `#` and its place.
    pub id: String,
    /// What it shows.
    pub media: MediaKind,
    /// Its picture's or video's file, which the caller reads.
    pub path: Option<PathBuf>,
}

/// A record that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingFailure {
    /// The record's id, or `#` and its place.
    pub id: String,
    /// A code and what is wrong.
    pub reason: String,
}

/// Records that are computed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingBatch {
    /// By which [`super::TrainingRun::step`] takes it.
    pub number: u64,
    /// In order.
    pub samples: Vec<TrainingSample>,
    /// Records of the batch that cannot be used.
    pub failures: Vec<TrainingFailure>,
}

/// A batch whose pictures and videos are still to come.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) number: u64,
    pub(crate) place: Place,
    pub(crate) samples: Vec<PreparedSample>,
}

#[derive(Debug)]
pub(crate) struct PreparedSample {
    pub(crate) sample: Sample,
    /// None where the caller brings pixels.
    pub(crate) visual: Option<Visual>,
}

/// Where the samples of a run come from. Its state is the last place alone.
#[derive(Debug)]
pub(crate) struct Feed {
    list: RecordFile,
    folders: Folders,
    sampler: Sampler,
    /// The order of an epoch.
    order: Option<(u64, Vec<usize>)>,
    template: TrainingTemplate,
    tokenizer: LlamaTokenizer,
    options: SampleOptions,
    tokens_per_frame: usize,
    seed: u64,
    plan: StepPlan,
    done_steps: u64,
    last: Option<Place>,
    number: u64,
}

impl Feed {
    pub(crate) fn new(
        recipe: &Recipe,
        list: RecordFile,
        folders: Folders,
        tokenizer: LlamaTokenizer,
        plan: StepPlan,
        done_steps: u64,
    ) -> Result<Self> {
        let one = NonZeroUsize::MIN;
        let order = if recipe.data.group_by_modality_length {
            Order::Grouped {
                batch: NonZeroUsize::new(recipe.batch.per_device).unwrap_or(one),
                // Without accumulation, as in the reference.
                world: NonZeroUsize::new(recipe.batch.devices).unwrap_or(one),
            }
        } else {
            Order::Shuffled
        };
        Ok(Self {
            sampler: Sampler::new(list.lengths().collect(), order, recipe.seed),
            order: None,
            template: TrainingTemplate::by_name(&recipe.data.template)?,
            options: SampleOptions {
                max_length: recipe.data.max_length,
                image_start_end: recipe.model.image_start_end,
            },
            tokens_per_frame: recipe.data.video_token,
            seed: recipe.seed,
            last: None,
            number: 0,
            list,
            folders,
            tokenizer,
            plan,
            done_steps,
        })
    }

    /// The next batch; none behind the last step.
    ///
    /// # Errors
    /// Those of the list as a whole, as when it changes while it is read. What is wrong with a record is told with
    /// the batch.
    pub(crate) fn next(&mut self) -> Result<Option<(TrainingBatch, Prepared)>> {
        let Some(place) = self.plan.next(self.last.as_ref(), self.done_steps) else { return Ok(None) };
        if self.order.as_ref().is_none_or(|(epoch, _)| *epoch != place.epoch) {
            self.order = Some((place.epoch, self.sampler.epoch(place.epoch)));
        }
        let order = self.order.as_ref().map(|(_, order)| order.as_slice()).unwrap_or_default();
        let records = order.get(place.records.clone()).unwrap_or_default();
        let mut batch = TrainingBatch { number: self.number, samples: Vec::new(), failures: Vec::new() };
        let mut prepared = Prepared { number: self.number, place: place.clone(), samples: Vec::new() };
        for record in records {
            match self.prepare(*record, place.epoch) {
                Ok((shown, sample)) => {
                    batch.samples.push(shown);
                    prepared.samples.push(sample);
                }
                Err(Unusable::Record(failure)) => batch.failures.push(failure),
                Err(Unusable::List(error)) => return Err(error),
            }
        }
        self.number += 1;
        self.last = Some(place);
        Ok(Some((batch, prepared)))
    }

    fn prepare(&self, index: usize, epoch: u64) -> Result<(TrainingSample, PreparedSample), Unusable> {
        use llamavid_train::data::Error as Data;
        let unusable = |id: Option<String>, error: Data| match &error {
            Data::Record { .. } | Data::Sample { .. } | Data::Features { .. } | Data::Weights(_) => {
                let id = match &error {
                    Data::Record { id: Some(id), .. } | Data::Sample { id, .. } => id.clone(),
                    _ => id.unwrap_or_else(|| format!("#{index}")),
                };
                Unusable::Record(TrainingFailure { id, reason: reason(&error) })
            }
            _ => Unusable::List(error.into()),
        };
        let record = self.list.record(index).map_err(|error| unusable(None, error))?;
        let named = |error| unusable(Some(record.id.clone()), error);
        let media = MediaKind::from(&record.media);
        let path = self.folders.resolve(&record).map_err(named)?;
        let mut coins = Coins::new(self.seed, epoch, index as u64);
        let (template, tokenizer, options) = (&self.template, &self.tokenizer, &self.options);
        let (made, visual) = match (&path, media) {
            (Some(path), MediaKind::Features) => {
                let features = read_features(path).map_err(named)?;
                let movie = Movie {
                    inputs: &features.inputs,
                    frames: features.frames(),
                    tokens_per_frame: self.tokens_per_frame,
                };
                let made = movie_sample(&record, &movie, template, tokenizer, options);
                (made, Some(Visual::Features(features.tensor, FeatureKind::Precomputed)))
            }
            _ => {
                let made = sample(&record, template, tokenizer, options, &mut || coins.next());
                (made, (media == MediaKind::None).then_some(Visual::None))
            }
        };
        let mut sample = made.map_err(named)?;
        // A long chat's later questions have lost their places, and the query model need not read them.
        if sample.splice == SpliceKind::PerPlaceholder {
            sample.prompts.truncate(sample.placeholders().max(1));
        }
        let path = path.filter(|_| matches!(media, MediaKind::Image | MediaKind::Video));
        let shown = TrainingSample { id: record.id.clone(), media, path };
        Ok((shown, PreparedSample { sample, visual }))
    }
}

/// Why a record gives no sample.
enum Unusable {
    /// The record's own fault.
    Record(TrainingFailure),
    /// The list cannot be read any more.
    List(Error),
}

/// A failure as reports write it: the kind and what is wrong.
fn reason(error: &llamavid_train::data::Error) -> String {
    match error.fault() {
        Some(fault) => format!("{}: {fault}", fault.code),
        None => error.to_string(),
    }
}

/// Coins of one record in one epoch, whatever was tossed before: splitmix64.
struct Coins(u64);

impl Coins {
    fn new(seed: u64, epoch: u64, record: u64) -> Self {
        let mut coins = Self(seed);
        for part in [epoch, record] {
            coins.0 = coins.draw() ^ part;
        }
        coins
    }

    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn next(&mut self) -> bool {
        self.draw() >> 63 == 1
    }
}

impl From<llamavid_train::data::Error> for Error {
    fn from(error: llamavid_train::data::Error) -> Self {
        use llamavid_train::data::Error as Data;
        let (message, hint) = (error.to_string(), error.hint());
        let code = match error {
            Data::Setting { .. } | Data::Template { .. } => ErrorCode::InvalidArgument,
            Data::Cancelled => ErrorCode::Aborted,
            Data::Weights(error) => return error.into(),
            _ => ErrorCode::DataInvalid,
        };
        Self { code, message, hint: hint.map(str::to_owned) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coins_depend_on_seed_epoch_and_record_alone() {
        let toss = |seed, epoch, record| {
            let mut coins = Coins::new(seed, epoch, record);
            (0..64).fold(0u64, |bits, _| bits << 1 | u64::from(coins.next()))
        };
        assert_eq!(toss(1, 2, 3), toss(1, 2, 3));
        let tossed = [toss(1, 2, 3), toss(2, 2, 3), toss(1, 3, 3), toss(1, 2, 4), toss(1, 3, 2)];
        for (index, bits) in tossed.iter().enumerate() {
            assert!((16..48).contains(&bits.count_ones()), "{bits:b}");
            assert!(!tossed[..index].contains(bits));
        }
    }
}
