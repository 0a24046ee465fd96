//! Conversions in processes of their own: killed in the middle, and on a disk that gets full.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use llamavid_convert::convert;
use llamavid_runtime::manifest::Manifest;
use llamavid_runtime::model_folder::ModelFolder;
use llamavid_runtime::{Cancellation, ErrorCode};

use crate::folders::{names, options, random_model, run};

const OUTPUT: &str = "LLAMAVID_TEST_OUTPUT";

/// This test program, running one of the ignored tests below, as a child of `command`.
fn child(mut command: Command, test: &str, output: &Path) -> std::io::Result<Child> {
    let arguments = [std::env::current_exe().unwrap().into_os_string(), "--ignored".into()];
    command
        .args(arguments)
        .args(["--exact", "--nocapture", &format!("processes::{test}")])
        .env(OUTPUT, output)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

fn output() -> PathBuf {
    std::env::var_os(OUTPUT).expect("this runs as a child of another test").into()
}

fn say(line: &str) {
    println!("\n{line}");
    std::io::stdout().flush().unwrap();
}

/// Waits until the child says `line`, or has ended.
fn heard(child: &mut Child, line: &str) -> bool {
    BufReader::new(child.stdout.as_mut().unwrap()).lines().map_while(Result::ok).any(|said| said == line)
}

#[test]
#[ignore = "a child of another test, which kills it"]
fn stops_in_the_middle() {
    let options = options(&[random_model()], &output());
    let on_progress = |_| {
        say("writing");
        loop {
            std::thread::park();
        }
    };
    let _ = convert(&options, &Cancellation::default(), &on_progress);
}

#[test]
fn a_killed_conversion_leaves_nothing_that_loads_and_the_next_one_succeeds() {
    let place = tempfile::tempdir().unwrap();
    let output = place.path().join("out");
    // `env` adds nothing: the child is the test program itself.
    let mut killed = child(Command::new("env"), "stops_in_the_middle", &output).unwrap();
    assert!(heard(&mut killed, "writing"));
    let hidden = place.path().join(".out.converting");
    assert!(hidden.join("model.safetensors").is_file());
    // While it lives, the place is taken.
    let error = run(&options(&[random_model()], &output)).unwrap_err();
    assert_eq!(error.code, ErrorCode::StoreLocked, "{error}");
    killed.kill().unwrap();
    killed.wait().unwrap();

    assert_eq!(names(place.path()), [".out.converting"]);
    assert_eq!(ModelFolder::open(&hidden).unwrap_err().code, ErrorCode::ModelFileMissing);
    run(&options(&[random_model()], &output)).unwrap();
    assert_eq!(names(place.path()), ["out"]);
    ModelFolder::open(&output).unwrap();
}

#[test]
#[ignore = "a child of another test, which kills it"]
fn takes_its_time() {
    let options = options(&[random_model()], &output());
    say("begun");
    convert(&options, &Cancellation::default(), &|_| std::thread::sleep(Duration::from_micros(300))).unwrap();
    say("done");
}

#[test]
fn a_conversion_that_is_killed_at_any_moment_leaves_a_whole_folder_or_none() {
    let place = tempfile::tempdir().unwrap();
    let start = |output: &Path| {
        let mut child = child(Command::new("env"), "takes_its_time", output).unwrap();
        assert!(heard(&mut child, "begun"));
        child
    };
    let begun = Instant::now();
    let mut whole = start(&place.path().join("measured"));
    assert!(whole.wait().unwrap().success());
    let longest = begun.elapsed();
    std::fs::remove_dir_all(place.path().join("measured")).unwrap();

    let output = place.path().join("out");
    let is_whole = |folder: &Path| {
        let manifest = Manifest::read(folder).unwrap().unwrap();
        manifest.verify(folder, &Cancellation::default(), |_| {}).unwrap();
    };
    const ROUNDS: u32 = 12;
    for round in 0..ROUNDS {
        let mut killed = start(&output);
        std::thread::sleep(longest * round / ROUNDS);
        killed.kill().unwrap();
        killed.wait().unwrap();
        let unnamed = place.path().join(".out.converting");
        if output.exists() {
            is_whole(&output);
            ModelFolder::open(&output).unwrap();
            std::fs::remove_dir_all(&output).unwrap();
        } else if ModelFolder::open(&unnamed).is_ok() {
            // Killed behind the last byte, before the folder got its name.
            is_whole(&unnamed);
        }
    }
    run(&options(&[random_model()], &output)).unwrap();
    assert_eq!(names(place.path()), ["out"]);
    ModelFolder::open(&output).unwrap();
}

#[test]
#[ignore = "a child of another test, which gives it a small disk"]
fn fills_its_disk() {
    let place = output();
    let error = run(&options(&[random_model()], &place.join("small/out"))).unwrap_err();
    assert_eq!(error.code, ErrorCode::DiskFull, "{error}");
    assert_eq!(names(&place.join("small")), Vec::<String>::new());

    // Enough at the start, and then somebody else takes it.
    let options = options(&[random_model()], &place.join("large/out"));
    let on_progress = |_| {
        let mut filler = std::fs::File::create(place.join("large/filler")).unwrap();
        while filler.write_all(&[0; 1 << 16]).is_ok() {}
    };
    let error = convert(&options, &Cancellation::default(), &on_progress).unwrap_err();
    assert_eq!(error.code, ErrorCode::DiskFull, "{error}");
    assert_eq!(names(&place.join("large")), ["filler"]);
    say("both refused");
}

#[test]
fn a_full_disk_is_said_and_nothing_remains() {
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    // Small disks that only the child sees, made where users may make them.
    let mounts = "mkdir -p $0/small $0/large && mount -t tmpfs -o size=1m none $0/small && \
                  mount -t tmpfs -o size=80m none $0/large || { echo; echo no mounts; exit; }; exec \"$@\"";
    command.args(["--map-root-user", "--mount", "sh", "-c", mounts]).arg(place.path());
    let Ok(mut child) = child(command, "fills_its_disk", place.path()) else {
        return eprintln!("skipped: this system has no unshare");
    };
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let lines: Vec<String> = said.by_ref().collect();
    let status = child.wait().unwrap();
    if lines.is_empty() || lines.iter().any(|line| line == "no mounts") {
        return eprintln!("skipped: this system lets nobody mount");
    }
    assert!(status.success() && lines.iter().any(|line| line == "both refused"), "{lines:?}");
}
