use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use candle_core::DType;
use llamavid_train::{Checkpoints, Error, OutputLock, Schedule, Stage, TrainerOptions};
use serde_json::json;

use crate::model::{at, examples, trainer};

fn steps(checkpoints: &Checkpoints) -> Vec<u64> {
    checkpoints.list().unwrap().into_iter().map(|(step, _)| step).collect()
}

fn write(folder: &Path, text: &str) -> Result<(), Error> {
    fs::write(folder.join("file"), text).unwrap();
    Ok(())
}

#[test]
fn the_last_ones_stay() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path(), Some(2)).unwrap();
    for step in [9, 10, 100, 20] {
        checkpoints.save(step, |folder| write(folder, &step.to_string())).unwrap();
    }
    assert_eq!(steps(&checkpoints), [20, 100]);
    // A run that went back and saves the same step again.
    checkpoints.save(100, |folder| write(folder, "again")).unwrap();
    assert_eq!(steps(&checkpoints), [20, 100]);
    assert_eq!(fs::read_to_string(checkpoints.latest().unwrap().unwrap().join("file")).unwrap(), "again");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn a_failed_one_leaves_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path(), Some(1)).unwrap();
    checkpoints.save(1, |folder| write(folder, "good")).unwrap();
    let failed = checkpoints.save(2, |folder| {
        write(folder, "half")?;
        Err(Error::DiskFull { path: folder.to_path_buf() })
    });
    assert!(matches!(failed, Err(Error::DiskFull { .. })));
    assert_eq!(steps(&checkpoints), [1]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    // What a killed run left behind goes.
    fs::create_dir(folder.path().join(".unfinished-checkpoint-7")).unwrap();
    let checkpoints = Checkpoints::open(folder.path(), Some(1)).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(steps(&checkpoints), [1]);
}

/// The device that is always full stands in for the disk.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_has_its_own_error() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::open(folder.path(), Some(1)).unwrap();
    let trainer = trainer(
        at(Stage::Alignment, DType::F32),
        1e-3,
        TrainerOptions::new(Schedule::Constant { warmup: 0 }),
    );
    checkpoints.save(1, |folder| trainer.write_state(folder, &json!(1))).unwrap();
    let failed = checkpoints.save(2, |folder| {
        let name = format!("optimizer.safetensors.{}.part", std::process::id());
        std::os::unix::fs::symlink("/dev/full", folder.join(name)).unwrap();
        trainer.write_state(folder, &json!(2))
    });
    assert!(
        matches!(&failed, Err(Error::DiskFull { path }) if path.ends_with("optimizer.safetensors")),
        "{failed:?}"
    );
    let mut again = crate::model::trainer(
        at(Stage::Alignment, DType::F32),
        1e-3,
        TrainerOptions::new(Schedule::Constant { warmup: 0 }),
    );
    assert_eq!(again.read_state(&checkpoints.latest().unwrap().unwrap()).unwrap(), json!(1));
}

#[test]
fn a_folder_is_one_runs() {
    let folder = tempfile::tempdir().unwrap();
    let lock = OutputLock::acquire(folder.path()).unwrap();
    match OutputLock::acquire(folder.path()) {
        Err(Error::Locked { process, .. }) => assert_eq!(process, Some(std::process::id())),
        other => panic!("{other:?}"),
    }
    drop(lock);
    // The file is still there: what counts is the lock on it.
    OutputLock::acquire(folder.path()).unwrap();
}

const FOLDER: &str = "LLAMAVID_TRAIN_TEST_FOLDER";

/// Trains and saves until it is killed; does nothing unless [`survives_kill`] starts it.
#[test]
fn trains_until_killed() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder);
    let _lock = OutputLock::acquire(folder).unwrap();
    let checkpoints = Checkpoints::open(folder, Some(2)).unwrap();
    let options = TrainerOptions::new(Schedule::Constant { warmup: 0 });
    let mut trainer = trainer(at(Stage::Alignment, DType::F32), 1e-3, options);
    if let Some(latest) = checkpoints.latest().unwrap() {
        trainer.read_state(&latest).unwrap();
    }
    loop {
        trainer.step(&[examples(trainer.steps())]).unwrap();
        checkpoints.save(trainer.steps(), |folder| trainer.write_state(folder, &json!(null))).unwrap();
    }
}

#[test]
fn survives_kill() {
    let folder = tempfile::tempdir().unwrap();
    let options = TrainerOptions::new(Schedule::Constant { warmup: 0 });
    let mut last = 0;
    for round in 0..10u64 {
        // Before the run begins: opening removes what no run is writing.
        let checkpoints = Checkpoints::open(folder.path(), None).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "checkpoints::trains_until_killed"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Until it has gone on, then a moment more, so that the kill comes anywhere.
        while checkpoints.list().unwrap().last().is_none_or(|(step, _)| *step <= last) {
            assert!(child.try_wait().unwrap().is_none(), "the run ended by itself");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(700 * round));
        child.kill().unwrap();
        child.wait().unwrap();

        let mut trainer = trainer(at(Stage::Alignment, DType::F32), 1e-3, options.clone());
        trainer.read_state(&checkpoints.latest().unwrap().unwrap()).unwrap();
        assert!(trainer.steps() > last);
        last = trainer.steps();
    }
}
