//! How many steps a run has, and which records each of them takes.
//!
//! Reference: the trainer of the library (`num_update_steps_per_epoch`), with the devices' batches side by side.

use std::ops::Range;

use super::config::Recipe;
use crate::{Error, Result};

/// The arithmetic of a run. A step is some batches; a batch is some records in a row of the epoch's order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct StepPlan {
    records: usize,
    per_batch: usize,
    batches_per_step: usize,
    steps_per_epoch: u64,
    steps: u64,
}

/// Which records of which epoch a batch takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The step that it belongs to, from 1.
    pub(crate) step: u64,
    /// From 0.
    pub(crate) epoch: u64,
    /// Places in the epoch's order.
    pub(crate) records: Range<usize>,
    /// Whether it is the step's last batch.
    pub(crate) last: bool,
}

impl StepPlan {
    /// The plan of a recipe for a list of `records` records.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an empty list.
    pub(crate) fn new(recipe: &Recipe, records: usize) -> Result<Self> {
        if records == 0 {
            return Err(Error::argument("the list has no records"));
        }
        let (per_batch, batches_per_step) = (recipe.batch.per_device, recipe.batch.per_step());
        let batches = records.div_ceil(per_batch);
        // A device's share of an epoch, cut to whole steps: as in the reference, what does not fill one takes no part.
        let steps_per_epoch =
            (batches.div_ceil(recipe.batch.devices) / recipe.batch.accumulation).max(1) as u64;
        let steps = match recipe.max_steps {
            Some(steps) => steps,
            None => (recipe.epochs * steps_per_epoch as f64).ceil() as u64,
        };
        if steps > u64::from(u32::MAX) {
            return Err(Error::argument(format!("a run of {steps} steps")));
        }
        Ok(Self { records, per_batch, batches_per_step, steps_per_epoch, steps: steps.max(1) })
    }

    /// Steps of the run.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// Steps in which the learning rate rises.
    pub(crate) fn warmup_steps(&self, ratio: f64) -> u64 {
        (self.steps as f64 * ratio).ceil() as u64
    }

    /// Epochs that are done with a step.
    pub(crate) fn epoch(&self, step: u64) -> f64 {
        step as f64 / self.steps_per_epoch as f64
    }

    /// The batch behind a place, from the first one of the step after `done_steps`; none behind the last step.
    pub(crate) fn next(&self, last: Option<&Place>, done_steps: u64) -> Option<Place> {
        let (step, batch) = match last {
            None => (done_steps + 1, 0),
            Some(place) if place.last => (place.step + 1, 0),
            Some(place) => {
                let start = self.start(place.step);
                (place.step, (place.records.end - start).div_ceil(self.per_batch))
            }
        };
        if step > self.steps {
            return None;
        }
        let start = self.start(step).saturating_add(batch.saturating_mul(self.per_batch));
        let end = start.saturating_add(self.per_batch).min(self.records);
        Some(Place {
            step,
            epoch: (step - 1) / self.steps_per_epoch,
            last: batch + 1 >= self.batches_per_step || end >= self.records,
            records: start..end,
        })
    }

    /// Where a step's records begin in its epoch's order.
    fn start(&self, step: u64) -> usize {
        let within = ((step - 1) % self.steps_per_epoch) as usize;
        within * self.batches_per_step * self.per_batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::config::TrainingConfig;

    fn step_plan(
        records: usize,
        batch: (usize, usize, usize),
        epochs: f64,
        max_steps: Option<u64>,
    ) -> StepPlan {
        let recipe = std::fs::read_to_string(
            std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../../packages/train/recipes/tiny-stage1.json"),
        )
        .unwrap();
        let json = format!(r#"{{"recipe": {recipe}, "inputs": {{"data": "list.json"}}}}"#);
        let mut recipe = TrainingConfig::parse(&json).unwrap().recipe;
        (recipe.batch.per_device, recipe.batch.accumulation, recipe.batch.devices) = batch;
        (recipe.epochs, recipe.max_steps) = (epochs, max_steps);
        StepPlan::new(&recipe, records).unwrap()
    }

    fn places(plan: &StepPlan, done: u64) -> Vec<Place> {
        let mut places: Vec<Place> = Vec::new();
        while let Some(place) = plan.next(places.last(), done) {
            places.push(place);
        }
        places
    }

    #[test]
    fn an_epoch_takes_each_record_once() {
        for (records, batch) in
            [(3, (16, 1, 8)), (100, (4, 1, 1)), (101, (4, 1, 1)), (64, (4, 4, 2)), (1, (1, 1, 1))]
        {
            let plan = step_plan(records, batch, 1.0, None);
            let places = places(&plan, 0);
            let taken: Vec<usize> = places.iter().flat_map(|place| place.records.clone()).collect();
            assert_eq!(taken, (0..records).collect::<Vec<_>>(), "{records} {batch:?}");
            assert_eq!(places.iter().filter(|place| place.last).count() as u64, plan.steps());
            assert!(places.iter().all(|place| place.epoch == 0 && !place.records.is_empty()));
        }
    }

    /// 558,128 pictures in batches of 32 on 8 devices are 2,181 steps, as in the reference's logs.
    #[test]
    fn steps_of_published_sizes() {
        assert_eq!(step_plan(558_128, (32, 1, 8), 1.0, None).steps(), 2181);
        assert_eq!(step_plan(665_298, (4, 4, 8), 1.0, None).steps(), 5197);
    }

    #[test]
    fn what_does_not_fill_a_step_takes_no_part() {
        let plan = step_plan(10, (2, 2, 1), 2.0, None);
        assert_eq!(plan.steps(), 4);
        let places = places(&plan, 0);
        let ranges: Vec<_> =
            places.iter().map(|place| (place.step, place.epoch, place.records.clone(), place.last)).collect();
        assert_eq!(
            ranges[..5],
            [
                (1, 0, 0..2, false),
                (1, 0, 2..4, true),
                (2, 0, 4..6, false),
                (2, 0, 6..8, true),
                (3, 1, 0..2, false)
            ]
        );
    }

    #[test]
    fn a_resumed_run_takes_what_an_uninterrupted_one_does() {
        let plan = step_plan(23, (2, 3, 1), 3.0, Some(9));
        let all = places(&plan, 0);
        for done in 0..=9 {
            let rest: Vec<_> = all.iter().filter(|place| place.step > done).cloned().collect();
            assert_eq!(places(&plan, done), rest);
        }
    }
}
