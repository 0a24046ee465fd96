//! The folder that a run writes to: one run at a time, and the same run when it goes on.
//!
//! `run.json` says what the run was told, so that a resumption with other settings is noticed.

use std::fs;
use std::path::{Path, PathBuf};

use llamavid_train::{Checkpoints, OutputLock};
use serde_json::{Map, Value};

use super::config::TrainingConfig;
use crate::{Error, ErrorCode, Result};

const RUN: &str = "run.json";
const PART: &str = "run.json.part";
/// Fields of a recipe that may change between two parts of one run: they do not change a number.
const FREE: [&str; 5] = ["name", "title", "source", "expects", "checkpoints"];

/// A locked folder. The lock goes with the process, however it ends.
#[derive(Debug)]
pub(crate) struct OutputFolder {
    path: PathBuf,
    run: Map<String, Value>,
    checkpoints: Checkpoints,
    _lock: OutputLock,
}

impl OutputFolder {
    /// Locks the folder, which is made when it is not there.
    ///
    /// # Errors
    /// `STORE_LOCKED` while another run writes to it; `INVALID_ARGUMENT` when there is something in it and nothing is to be
    /// resumed, or when what is to be resumed was told other things.
    pub(crate) fn open(config: &TrainingConfig) -> Result<Self> {
        let path = config.output()?.clone();
        // A folder that is in use is in use, whatever else is in it.
        let before = is_empty(&path)?;
        let lock = OutputLock::acquire(&path)?;
        let told = described(config)?;
        let run = match read_run(&path)? {
            Some(run) if config.resume => {
                check_same(&path, &run, &told)?;
                run
            }
            None if before => told,
            None if config.resume => {
                return Err(Error::argument(format!(
                    "{}: there is something in the folder, but no run to resume ({RUN} is missing)",
                    path.display()
                ))
                .with_hint("Give the folder of the run, or an empty one."));
            }
            _ => {
                return Err(Error::argument(format!("{}: the folder is not empty", path.display()))
                    .with_hint("Resume the run in it with --resume, or give another folder."));
            }
        };
        let checkpoints = Checkpoints::open(&path, Some(config.recipe.checkpoints.keep))?;
        let folder = Self { path, run, checkpoints, _lock: lock };
        folder.write_run()?;
        Ok(folder)
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the stage's files were written.
    pub(crate) fn finished(&self) -> bool {
        self.run.get("finished") == Some(&Value::Bool(true))
    }

    /// Remembers that the stage's files were written.
    pub(crate) fn set_finished(&mut self) -> Result<()> {
        self.run.insert("finished".to_owned(), Value::Bool(true));
        self.write_run()
    }

    /// Checkpoints of this run.
    pub(crate) fn checkpoints(&self) -> &Checkpoints {
        &self.checkpoints
    }

    fn write_run(&self) -> Result<()> {
        let path = self.path.join(RUN);
        let part = self.path.join(PART);
        let text = serde_json::to_string_pretty(&self.run)
            .map_err(|error| Error::new(ErrorCode::Internal, format!("{RUN}: {error}")))?;
        fs::write(&part, text + "\n")
            .and_then(|()| fs::rename(&part, &path))
            .map_err(|error| write_error(&path, &error))
    }
}

/// What the run is told, as `run.json` holds it.
fn described(config: &TrainingConfig) -> Result<Map<String, Value>> {
    let internal = |error: serde_json::Error| Error::new(ErrorCode::Internal, format!("{RUN}: {error}"));
    let mut run = Map::new();
    run.insert("recipe".to_owned(), serde_json::to_value(&config.recipe).map_err(internal)?);
    run.insert("inputs".to_owned(), serde_json::to_value(&config.inputs).map_err(internal)?);
    Ok(run)
}

fn read_run(folder: &Path) -> Result<Option<Map<String, Value>>> {
    let path = folder.join(RUN);
    let invalid = |problem: String| {
        Error::new(ErrorCode::DataInvalid, format!("{}: {problem}", path.display()))
            .with_hint("Give another output folder.")
    };
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| invalid(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(invalid(format!("cannot be read: {error}"))),
    }
}

/// A run goes on only as what it was; the files may have moved.
fn check_same(folder: &Path, run: &Map<String, Value>, told: &Map<String, Value>) -> Result<()> {
    let empty = Map::new();
    let recipe = |of: &Map<String, Value>| of.get("recipe").and_then(Value::as_object).cloned();
    let (before, now) = (recipe(run).unwrap_or_default(), recipe(told).unwrap_or_default());
    for name in now.keys().chain(before.keys()).filter(|name| !FREE.contains(&name.as_str())) {
        let (before, now) = (before.get(name), now.get(name));
        if before == now {
            continue;
        }
        let group = |value: Option<&Value>| value.and_then(Value::as_object).cloned();
        let (inner_before, inner_now) = (group(before), group(now));
        let names =
            inner_now.as_ref().unwrap_or(&empty).keys().chain(inner_before.as_ref().unwrap_or(&empty).keys());
        let inner = names
            .map(|inner| {
                (
                    inner,
                    inner_before.as_ref().and_then(|g| g.get(inner)),
                    inner_now.as_ref().and_then(|g| g.get(inner)),
                )
            })
            .find(|(_, before, now)| before != now);
        let (field, before, now) = match inner {
            Some((inner, before, now)) if inner_before.is_some() && inner_now.is_some() => {
                (format!("{name}.{inner}"), before, now)
            }
            _ => (name.clone(), before, now),
        };
        let shown = |value: Option<&Value>| value.map_or("absent".to_owned(), Value::to_string);
        return Err(Error::argument(format!(
            "{}: the run was begun with {field} {}, and is to go on with {}",
            folder.display(),
            shown(before),
            shown(now)
        ))
        .with_hint("Resume with the settings that it was begun with, or give another folder."));
    }
    Ok(())
}

/// Whether there is nothing in the folder, or only what a killed process leaves that had hardly begun.
fn is_empty(folder: &Path) -> Result<bool> {
    let ours = ["training.lock", PART];
    match fs::read_dir(folder) {
        Ok(mut entries) => {
            Ok(entries
                .all(|entry| entry.is_ok_and(|entry| ours.iter().any(|name| entry.file_name() == *name))))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(write_error(folder, &error)),
    }
}

pub(crate) fn write_error(path: &Path, error: &std::io::Error) -> Error {
    use std::io::ErrorKind;
    let message = format!("{}: {error}", path.display());
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::new(ErrorCode::DiskFull, message)
            .with_hint("Make room and resume: the last checkpoint is complete."),
        _ => Error::argument(message).with_hint("Give an output folder that can be written to."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(output: &Path, resume: bool, change: (&str, &str)) -> TrainingConfig {
        let recipe = fs::read_to_string(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packages/train/recipes/tiny-stage1.json"),
        )
        .unwrap();
        let recipe = recipe.replacen(change.0, change.1, 1);
        let json = format!(
            r#"{{"recipe": {recipe}, "inputs": {{"data": "list.json"}}, "output": {output:?}, "resume": {resume}}}"#
        );
        TrainingConfig::parse(&json).unwrap()
    }

    #[test]
    fn one_run_at_a_time_and_only_the_same() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let same = ("", "");
        let open = |resume, change| OutputFolder::open(&config(&path, resume, change));

        let first = open(false, same).unwrap();
        assert_eq!(open(false, same).unwrap_err().code, ErrorCode::StoreLocked);
        assert_eq!(open(true, same).unwrap_err().code, ErrorCode::StoreLocked);
        drop(first);
        assert_eq!(open(false, same).unwrap_err().code, ErrorCode::InvalidArgument);
        open(true, same).unwrap();
        open(true, ("\"everySteps\": 100", "\"everySteps\": 7")).unwrap();
        let other = open(true, ("\"learningRate\": 0.001", "\"learningRate\": 0.002")).unwrap_err();
        assert!(other.message.contains("optimizer.learningRate 0.001"), "{}", other.message);
        let other = open(true, ("\"seed\": 7", "\"seed\": 8")).unwrap_err();
        assert!(other.message.contains("seed 7, and is to go on with 8"), "{}", other.message);
    }

    #[test]
    fn a_resumption_of_nothing_begins() {
        let root = tempfile::tempdir().unwrap();
        OutputFolder::open(&config(&root.path().join("new"), true, ("", ""))).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let error = OutputFolder::open(&config(root.path(), true, ("", ""))).unwrap_err();
        assert!(error.message.contains("no run to resume"), "{}", error.message);
    }

    #[test]
    fn a_finished_run_is_known() {
        let root = tempfile::tempdir().unwrap();
        let mut folder = OutputFolder::open(&config(root.path(), false, ("", ""))).unwrap();
        assert!(!folder.finished());
        folder.set_finished().unwrap();
        drop(folder);
        assert!(OutputFolder::open(&config(root.path(), true, ("", ""))).unwrap().finished());
    }
}
