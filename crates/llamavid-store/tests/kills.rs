//! Writers in processes of their own: killed at random moments, and without room on their disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod shared;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use llamavid_store::{Error, Frames, Precision, SHARD_FRAMES, Store};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use shared::{ROWS, WIDTH, contents, description, values, write};

/// One test at a time: a process that is being started holds the locks of the one that starts it for a moment.
static ALONE: Mutex<()> = Mutex::new(());

const FOLDER: &str = "LLAMAVID_TEST_STORE";
const FRAMES: usize = 6 * SHARD_FRAMES + 7;

fn child(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "--nocapture", test])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn folder() -> PathBuf {
    std::env::var_os(FOLDER).expect("this runs as a child of another test").into()
}

#[test]
#[ignore = "a child of another test, which kills it"]
fn writes() {
    write(&Store::open(&folder()).unwrap(), Precision::Sixteen, FRAMES);
}

/// `LLAMAVID_KILL_SEED` and `LLAMAVID_KILLS` choose other moments and more of them.
#[test]
fn whenever_it_is_killed_the_result_is_the_same() {
    let number =
        |name: &str, usual: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let seed = number("LLAMAVID_KILL_SEED", 1);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let place = tempfile::tempdir().unwrap();
    let began = std::time::Instant::now();
    let whole = place.path().join("whole");
    assert!(child("writes", &whole).status().unwrap().success());
    let usual = began.elapsed();
    let expected = contents(&whole);
    assert_eq!(expected.keys().filter(|name| name.ends_with(".safetensors")).count(), 7);

    let mut interrupted = 0;
    for round in 0..number("LLAMAVID_KILLS", 50) {
        let store = place.path().join(format!("killed-{round}"));
        let mut frames = 0;
        // Killed again and again, later each time, until one run gets to its end.
        for attempt in 0.. {
            let mut run = child("writes", &store).spawn().unwrap();
            let most = usual.as_secs_f64() * (1.0 + f64::from(attempt));
            std::thread::sleep(Duration::from_secs_f64(random.random_range(0.0..most)));
            let ended = run.try_wait().unwrap();
            run.kill().unwrap();
            let _ = run.wait();
            if let Some(status) = ended {
                assert!(status.success(), "seed {seed}, round {round}");
                break;
            }
            interrupted += 1;
            // Whatever is there is readable, and no whole shard is lost.
            let store = Store::open(&store).unwrap();
            store.find(&description(Precision::Sixteen)).unwrap();
            let writer = store.writer(description(Precision::Sixteen)).unwrap();
            assert!(writer.repairs().is_empty(), "seed {seed}, round {round}: {:?}", writer.repairs());
            assert!(writer.times().len() >= frames, "seed {seed}, round {round}");
            frames = writer.times().len();
        }
        assert!(contents(&store) == expected, "seed {seed}, round {round}: other bytes");
        std::fs::remove_dir_all(store).unwrap();
    }
    assert!(interrupted > 0, "no run was killed before its end");
}

#[test]
#[ignore = "a child of another test, which gives it a small disk"]
fn fills_its_disk() {
    let store = Store::open(&folder()).unwrap();
    let mut writer = store.writer(description(Precision::Sixteen)).unwrap();
    let error = loop {
        let first = writer.times().len();
        let times: Vec<f64> = (first..first + SHARD_FRAMES).map(|frame| frame as f64).collect();
        let values = values(first, SHARD_FRAMES);
        let shape = [SHARD_FRAMES, ROWS, WIDTH];
        let frames = Frames { shape, values: &values, from_bf16: false, times: &times };
        if let Err(error) = writer.append(frames) {
            break error;
        }
    };
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    let frames = writer.times().len();
    assert!(frames > 0);
    drop(writer);
    let writer = store.writer(description(Precision::Sixteen)).unwrap();
    assert_eq!((writer.times().len(), writer.repairs().len()), (frames, 0));
    println!("\nfull");
}

/// Needs a system that lets this user mount, in a namespace of its own.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_told_and_what_was_there_stays() {
    let _alone = ALONE.lock();
    let place = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=64k none \"$0\" || { echo; echo no mounts; exit; }; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", mount]).arg(place.path());
    command.arg(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", "fills_its_disk"]).env(FOLDER, place.path());
    let Ok(output) = command.output() else {
        return eprintln!("skipped: this system has no unshare");
    };
    let said = String::from_utf8_lossy(&output.stdout);
    if said.trim().is_empty() || said.contains("no mounts") {
        return eprintln!("skipped: this system lets nobody mount");
    }
    assert!(output.status.success() && said.contains("\nfull"), "{said}");
}
