//! Looks at every record of a list before training does, and names each bad one.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use llamavid_models::prompt::placeholders::IMAGE_TAG;
use llamavid_models::tokenizer::{LlamaTokenizer, strip};
use rayon::prelude::*;

use super::error::{Error, Fault, FaultCode, Result};
use super::features;
use super::folders::Folders;
use super::picture;
use super::record::{Media, Record, Speaker};
use super::record_file::RecordFile;
use super::sample::{Movie, Prepared, SampleOptions, prepare};
use super::training_template::TrainingTemplate;

/// Records looked at between two reports of progress.
const BLOCK: usize = 512;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// The record cannot be trained on, or would teach something wrong.
    Error,
    /// The record is trained on, in part or without effect.
    Warning,
}

impl Severity {
    /// The severity as reports write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Something wrong with a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The record's number in the list, from 0.
    pub record: usize,
    /// Its id; `#` and its number where it has none.
    pub id: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub fault: Fault,
}

/// A video file that is there; whether it can be decoded is for the caller to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VideoReference {
    /// The record's number in the list, from 0.
    pub record: usize,
    /// Its id.
    pub id: String,
    /// The file. Several records may name one.
    pub path: PathBuf,
}

/// What a check tells while it goes through the list, in the list's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckEvent {
    /// Something is wrong with a record.
    Finding(Finding),
    /// A record is about this video.
    Video(VideoReference),
    /// So many records of all were looked at.
    Progress {
        /// Records so far.
        records: usize,
        /// Records of the list.
        total: usize,
    },
}

/// Samples are made too, so that cut and fully masked ones are found.
#[derive(Debug, Clone)]
pub struct SampleCheck {
    /// The template of the stage.
    pub template: TrainingTemplate,
    /// The language model's tokenizer.
    pub tokenizer: LlamaTokenizer,
    /// As in training.
    pub options: SampleOptions,
    /// Visual tokens of a movie's frame, the context token included.
    pub tokens_per_frame: usize,
}

/// Numbers of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckTotals {
    /// Records.
    pub records: usize,
    /// Records about a picture.
    pub images: usize,
    /// Records about a video file.
    pub videos: usize,
    /// Records about features.
    pub features: usize,
    /// Records of text alone.
    pub texts: usize,
    /// Records with an error.
    pub bad_records: usize,
    /// Records with warnings and no error.
    pub warned_records: usize,
    /// Findings of each kind.
    pub findings: BTreeMap<FaultCode, usize>,
}

/// All that a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Numbers of the list.
    pub totals: CheckTotals,
    /// What is wrong, in the list's order.
    pub findings: Vec<Finding>,
    /// Videos for the caller to open, in the list's order, one for each record.
    pub videos: Vec<VideoReference>,
}

/// Looks at every record of the list: its form, its tags, its files (but the inside of videos), and, with `samples`,
/// its labels and length.
///
/// # Errors
/// A list that cannot be read at all.
pub fn check(list: &Path, folders: &Folders, samples: Option<&SampleCheck>) -> Result<CheckReport> {
    let list = RecordFile::open(list)?;
    let mut report = CheckReport::default();
    report.totals = check_each(&list, folders, samples, |event| {
        match event {
            CheckEvent::Finding(finding) => report.findings.push(finding),
            CheckEvent::Video(video) => report.videos.push(video),
            CheckEvent::Progress { .. } => {}
        }
        ControlFlow::Continue(())
    })?;
    Ok(report)
}

/// As [`check`], without holding what it finds; `event` may stop the work.
///
/// # Errors
/// A list that has changed or cannot be read, and [`Error::Cancelled`].
pub fn check_each(
    list: &RecordFile,
    folders: &Folders,
    samples: Option<&SampleCheck>,
    mut event: impl FnMut(CheckEvent) -> ControlFlow<()>,
) -> Result<CheckTotals> {
    let checker = Checker { list, folders, samples, files: Mutex::default() };
    let mut totals = CheckTotals { records: list.len(), ..CheckTotals::default() };
    let mut tell = |told: CheckEvent| match event(told) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    };
    for start in (0..list.len()).step_by(BLOCK) {
        let end = list.len().min(start + BLOCK);
        let block: Vec<Result<Looked>> =
            (start..end).into_par_iter().map(|record| checker.look(record)).collect();
        for (looked, record) in block.into_iter().zip(start..) {
            let looked = looked?;
            match looked.media {
                Some(Media::None) => totals.texts += 1,
                Some(Media::Image(_)) => totals.images += 1,
                Some(Media::Video(_)) => totals.videos += 1,
                Some(Media::Features(_)) => totals.features += 1,
                None => {}
            }
            if looked.faults.iter().any(|(severity, _)| *severity == Severity::Error) {
                totals.bad_records += 1;
            } else if !looked.faults.is_empty() {
                totals.warned_records += 1;
            }
            for (severity, fault) in looked.faults {
                *totals.findings.entry(fault.code).or_default() += 1;
                tell(CheckEvent::Finding(Finding { record, id: looked.id.clone(), severity, fault }))?;
            }
            if let Some(path) = looked.video {
                tell(CheckEvent::Video(VideoReference { record, id: looked.id, path }))?;
            }
        }
        tell(CheckEvent::Progress { records: end, total: list.len() })?;
    }
    Ok(totals)
}

/// What was seen of one record.
struct Looked {
    id: String,
    /// None for a record that is none.
    media: Option<Media>,
    faults: Vec<(Severity, Fault)>,
    video: Option<PathBuf>,
}

/// What was seen of a file that several records may name.
#[derive(Debug, Clone)]
enum Seen {
    Good,
    /// Frames and text.
    Movie(usize, String),
    Bad(FaultCode, String),
}

struct Checker<'a> {
    list: &'a RecordFile,
    folders: &'a Folders,
    samples: Option<&'a SampleCheck>,
    files: Mutex<HashMap<PathBuf, Seen>>,
}

impl Checker<'_> {
    fn look(&self, index: usize) -> Result<Looked> {
        let record = match self.list.record(index) {
            Ok(record) => record,
            Err(Error::Record { id, fault, .. }) => {
                let id = id.unwrap_or_else(|| format!("#{index}"));
                let faults = vec![(Severity::Error, fault)];
                return Ok(Looked { id, media: None, faults, video: None });
            }
            Err(other) => return Err(other),
        };
        let mut faults = Vec::new();
        of_turns(&record, &mut faults);
        of_tags(&record, &mut faults);
        let mut video = None;
        let mut movie = None;
        match self.folders.find(&record.media) {
            Ok(None) => {}
            Ok(Some(path)) => match self.file(&record.media, &path) {
                Seen::Bad(code, problem) => {
                    let key = if matches!(record.media, Media::Image(_)) { "image" } else { "video" };
                    let problem = format!("{}: {problem}", path.display());
                    faults.push((Severity::Error, Fault::new(code, key, problem)));
                }
                Seen::Movie(frames, inputs) => movie = Some((frames, inputs)),
                Seen::Good => {
                    video = matches!(record.media, Media::Video(_)).then_some(path);
                }
            },
            Err(fault) => faults.push((Severity::Error, fault)),
        }
        let sound = !faults.iter().any(|(severity, _)| *severity == Severity::Error);
        if let Some(samples) = self.samples.filter(|_| sound) {
            faults.extend(samples.look(&record, movie));
        }
        Ok(Looked { id: record.id, media: Some(record.media), faults, video })
    }

    fn file(&self, media: &Media, path: &Path) -> Seen {
        if matches!(media, Media::Video(_)) {
            return Seen::Good;
        }
        // A panic while the lock was held cannot have left half an entry.
        let known = self.files.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        if let Some(seen) = known {
            return seen;
        }
        let seen = match media {
            Media::Features(_) => match features::inspect_features(path) {
                Ok((frames, inputs)) => Seen::Movie(frames, inputs),
                Err(Error::Features { problem, .. }) => Seen::Bad(FaultCode::UnreadableFeatures, problem),
                Err(error) => Seen::Bad(FaultCode::UnreadableFeatures, error.to_string()),
            },
            _ => match picture::problem(path) {
                Some(problem) => Seen::Bad(FaultCode::UnreadablePicture, problem),
                None => Seen::Good,
            },
        };
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.entry(path.to_path_buf()).or_insert(seen).clone()
    }
}

impl SampleCheck {
    fn look(&self, record: &Record, movie: Option<(usize, String)>) -> Vec<(Severity, Fault)> {
        let movie = movie.as_ref().map(|(frames, inputs)| Movie {
            inputs,
            frames: *frames,
            tokens_per_frame: self.tokens_per_frame,
        });
        // Where the coins fall changes neither the number of ids nor what is learned.
        let prepared =
            prepare(record, movie.as_ref(), &self.template, &self.tokenizer, &self.options, &mut || false);
        let Prepared { sample, uncut, mismatch } = match prepared {
            Ok(prepared) => prepared,
            Err(Error::Sample { fault, .. }) => return vec![(Severity::Error, fault)],
            Err(other) => {
                let fault = Fault::new(FaultCode::Template, "", other.to_string());
                return vec![(Severity::Error, fault)];
            }
        };
        let mut faults = Vec::new();
        if uncut > self.options.max_length {
            let problem = format!("{uncut} ids are cut to {}", self.options.max_length);
            faults.push((Severity::Warning, Fault::new(FaultCode::Cut, "conversations", problem)));
        }
        if sample.learned() == 0 {
            let problem = match mismatch {
                Some((counted, present)) => format!(
                    "nothing is learned: its rounds have {counted} ids by themselves, together they have {present}"
                ),
                None => "nothing is learned: no answer is left".to_owned(),
            };
            faults.push((Severity::Warning, Fault::new(FaultCode::FullyMasked, "conversations", problem)));
        }
        faults
    }
}

/// Empty conversations and messages, and who speaks when.
fn of_turns(record: &Record, faults: &mut Vec<(Severity, Fault)>) {
    let mut add = |severity, code, field: String, problem: &str| {
        faults.push((severity, Fault::new(code, field, problem)));
    };
    let all = "conversations".to_owned();
    let turns = record.turns.as_slice();
    let greeting = turns.first().is_some_and(|turn| turn.from == Speaker::Gpt);
    if turns.len() == usize::from(greeting) {
        let problem = if greeting { "there is nothing but a greeting" } else { "there are no messages" };
        add(Severity::Error, FaultCode::EmptyConversation, all, problem);
        return;
    }
    if greeting {
        let problem = "the conversation starts with an answer, which is left out";
        add(Severity::Warning, FaultCode::WrongOrder, "conversations[0].from".to_owned(), problem);
    }
    let mut expected = Speaker::Human;
    for (index, turn) in turns.iter().enumerate().skip(usize::from(greeting)) {
        if turn.from != expected {
            let problem = format!("expected `{}`, found `{}`", expected.name(), turn.from.name());
            add(Severity::Error, FaultCode::WrongOrder, format!("conversations[{index}].from"), &problem);
            break;
        }
        expected = match expected {
            Speaker::Human => Speaker::Gpt,
            Speaker::Gpt => Speaker::Human,
        };
    }
    if turns.last().is_some_and(|turn| turn.from == Speaker::Human) {
        let field = format!("conversations[{}]", turns.len() - 1);
        add(Severity::Error, FaultCode::WrongOrder, field, "the last question has no answer");
    }
    for (index, turn) in turns.iter().enumerate() {
        let field = || format!("conversations[{index}].value");
        match turn.from {
            Speaker::Gpt if strip(&turn.value).is_empty() => {
                add(Severity::Error, FaultCode::EmptyAnswer, field(), "the answer is empty");
            }
            Speaker::Human if strip(&turn.value.replace(IMAGE_TAG, "")).is_empty() => {
                let problem = "the question is empty, the query model is asked nothing";
                add(Severity::Warning, FaultCode::EmptyQuestion, field(), problem);
            }
            _ => {}
        }
    }
}

/// Tags where there is something to look at, and nowhere else.
fn of_tags(record: &Record, faults: &mut Vec<(Severity, Fault)>) {
    let mut add = |field: String, problem: String| {
        faults.push((Severity::Error, Fault::new(FaultCode::TagMismatch, field, problem)));
    };
    let field = |index: usize| format!("conversations[{index}].value");
    let shows = match &record.media {
        Media::None => None,
        Media::Image(_) => Some("an image"),
        Media::Video(_) | Media::Features(_) => Some("a video"),
    };
    let tags = |value: &str| value.matches(IMAGE_TAG).count();
    let Some(shows) = shows else {
        if let Some((index, turn)) = record.turns.iter().enumerate().find(|(_, turn)| tags(&turn.value) > 0) {
            let problem = format!("{} tags `{IMAGE_TAG}`, and no image or video", tags(&turn.value));
            add(field(index), problem);
        }
        return;
    };
    let mut tagged = 0;
    let mut untagged_question = None;
    for (index, turn) in record.turns.iter().enumerate() {
        let count = tags(&turn.value);
        match (turn.from, count) {
            (Speaker::Gpt, 1..) => add(field(index), format!("a tag `{IMAGE_TAG}` stands in an answer")),
            (Speaker::Human, 2..) => {
                add(field(index), format!("{count} tags `{IMAGE_TAG}` in one question, for {shows}"));
            }
            (Speaker::Human, 0) if tagged == 0 => {
                untagged_question.get_or_insert(index);
            }
            _ => {}
        }
        tagged += count;
    }
    if tagged == 0 && record.turns.iter().any(|turn| turn.from == Speaker::Human) {
        add("conversations".to_owned(), format!("{shows}, and no tag `{IMAGE_TAG}`"));
    } else if let Some(index) = untagged_question.filter(|_| tagged > 0) {
        let problem = format!("a question without a tag `{IMAGE_TAG}` stands in front of one that has it");
        add(field(index), problem);
    } else if tagged > 1 && matches!(record.media, Media::Features(_)) {
        add("conversations".to_owned(), format!("{tagged} tags `{IMAGE_TAG}` for one long video"));
    }
}
