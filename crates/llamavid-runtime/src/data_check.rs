//! The check of a data list in parts, and what a folder lacks of the published data.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use llamavid_train::data::published::{self, PUBLISHED_LISTS, STARTING_WEIGHTS};
use llamavid_train::data::{
    CheckEvent, Folders, RecordFile, SampleCheck, SampleOptions, TrainingTemplate, check_each,
};
use llamavid_train::stage_tokenizer;
use serde_json::{Value, json};

pub use llamavid_train::data::{CheckTotals, Finding, VideoReference};

use crate::{Cancellation, Error, ErrorCode, Reply, Result, run_aside};

/// What was seen of the next records.
#[derive(Debug, Default)]
pub struct CheckedPart {
    /// What is wrong, in the list's order.
    pub findings: Vec<Finding>,
    /// Videos that are there, for the caller to open.
    pub videos: Vec<VideoReference>,
    /// Records so far.
    pub records: usize,
    /// Records of the list.
    pub total: usize,
    /// Numbers of the whole list, with the last part.
    pub totals: Option<CheckTotals>,
}

/// As what samples the records are looked at too, so that those are found that are cut or teach nothing.
#[derive(Debug, Clone)]
pub struct CheckedSamples {
    /// The folder with the language model's tokenizer.
    pub language_model: PathBuf,
    /// Name of the stage's template.
    pub template: String,
    /// Most ids of a sample.
    pub max_length: usize,
    /// Whether `<im_start>` and `<im_end>` stand around a tag.
    pub image_start_end: bool,
    /// Visual tokens of a long video's frame.
    pub tokens_per_frame: usize,
}

impl CheckedSamples {
    fn prepare(self) -> Result<SampleCheck> {
        Ok(SampleCheck {
            template: TrainingTemplate::by_name(&self.template)?,
            tokenizer: stage_tokenizer(&self.language_model, false, self.image_start_end)?,
            options: SampleOptions { max_length: self.max_length, image_start_end: self.image_start_end },
            tokens_per_frame: self.tokens_per_frame,
        })
    }
}

/// A check that goes on as far as its parts are asked for.
#[derive(Debug)]
pub struct DataCheck {
    parts: Arc<Mutex<Receiver<Result<CheckedPart>>>>,
}

impl DataCheck {
    /// Opens the list, which reads all of it and can be cancelled, and begins, on a thread of its own.
    pub fn open(
        list: PathBuf,
        images: Option<PathBuf>,
        videos: Option<PathBuf>,
        samples: Option<CheckedSamples>,
        cancellation: Cancellation,
    ) -> Reply<Self> {
        run_aside("llamavid data check", move || {
            let samples = samples.map(CheckedSamples::prepare).transpose()?;
            let list = open_list(&list, &cancellation)?;
            let folders = Folders { images, videos };
            // One part waits while the next is looked at.
            let (sender, parts) = sync_channel(1);
            std::thread::Builder::new()
                .name("llamavid data check".to_owned())
                .spawn(move || check(&list, &folders, samples.as_ref(), &sender))
                .map_err(|error| Error::new(ErrorCode::OutOfMemory, format!("no thread: {error}")))?;
            Ok(Self { parts: Arc::new(Mutex::new(parts)) })
        })
    }

    /// The next part; none behind the last.
    pub fn next(&self) -> Reply<Option<CheckedPart>> {
        let parts = self.parts.clone();
        run_aside("llamavid data check", move || {
            let part = parts.lock().unwrap_or_else(PoisonError::into_inner).recv();
            part.ok().transpose()
        })
    }
}

/// Opens a list; all of it is read once, which takes a minute for one of 10 GB.
pub(crate) fn open_list(list: &Path, cancellation: &Cancellation) -> Result<RecordFile> {
    let going_on = || match cancellation.check() {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };
    Ok(RecordFile::open_watched(list, |_, _| going_on())?)
}

fn check(
    list: &RecordFile,
    folders: &Folders,
    samples: Option<&SampleCheck>,
    sender: &SyncSender<Result<CheckedPart>>,
) {
    let mut part = CheckedPart::default();
    let totals = check_each(list, folders, samples, |event| {
        match event {
            CheckEvent::Finding(finding) => part.findings.push(finding),
            CheckEvent::Video(video) => part.videos.push(video),
            CheckEvent::Progress { records, total } => {
                (part.records, part.total) = (records, total);
                // Nobody asks any more.
                if sender.send(Ok(std::mem::take(&mut part))).is_err() {
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    });
    let last = totals.map_err(Error::from).map(|totals| CheckedPart {
        records: totals.records,
        total: totals.records,
        totals: Some(totals),
        ..part
    });
    let _ = sender.send(last);
}

/// The published lists and starting weights and which of them are under `root`, as JSON.
pub fn published_data(root: PathBuf) -> Reply<String> {
    run_aside("llamavid published data", move || {
        let missing = published::missing(&root);
        let found = |path: &Path| !missing.iter().any(|entry| entry.path == path);
        let lists: Vec<Value> = PUBLISHED_LISTS
            .iter()
            .map(|list| {
                let path = root.join(list.path());
                let folders: Vec<Value> = list
                    .needs
                    .iter()
                    .map(|folder| root.join(folder))
                    .map(|path| json!({ "path": path, "found": found(&path) }))
                    .collect();
                json!({
                    "name": list.name,
                    "stage": list.stage.number(),
                    "setting": list.setting.name(),
                    "about": list.about,
                    "found": found(&path),
                    "path": path,
                    "folders": folders,
                })
            })
            .collect();
        let weights: Vec<Value> = STARTING_WEIGHTS
            .iter()
            .map(|(path, stages)| {
                let path = root.join(path);
                let stages: Vec<u8> = stages.iter().map(|stage| stage.number()).collect();
                json!({ "found": found(&path), "path": path, "stages": stages })
            })
            .collect();
        Ok(json!({ "lists": lists, "weights": weights, "complete": missing.is_empty() }).to_string())
    })
}
