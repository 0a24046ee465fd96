//! `pnpm parity <folder> [--json] [--device cpu|cuda:N] [--dtype f32|f16|bf16]`: compares every recorded tensor of a folder of cases
//! with what this code computes.
//!
//! A folder is one case folder (it has `cases.json`) or holds several. Exit code 0 when everything is within
//! tolerance, 1 when something is not, 2 for wrong usage, 3 when the device cannot be used.

mod case;
mod model;
mod preprocess;
mod report;
mod setting;
mod training;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use report::FolderReport;
use setting::Setting;

const USAGE: &str = "usage: pnpm parity <folder> [--json] [--device cpu|cuda:N] [--dtype f32|f16|bf16]";

const DTYPES: [&str; 3] = ["f32", "f16", "bf16"];

/// What was asked for.
struct Wanted {
    folder: String,
    json: bool,
    device: String,
    dtype: String,
}

impl Wanted {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Self> {
        let mut wanted =
            Self { folder: String::new(), json: false, device: "cpu".into(), dtype: "f32".into() };
        while let Some(word) = arguments.next() {
            match word.as_str() {
                "--json" => wanted.json = true,
                "--device" => wanted.device = arguments.next()?,
                "--dtype" => {
                    wanted.dtype = arguments.next().filter(|name| DTYPES.contains(&name.as_str()))?
                }
                flag if flag.starts_with("--") => return None,
                _ if wanted.folder.is_empty() => wanted.folder = word,
                _ => return None,
            }
        }
        (!wanted.folder.is_empty()).then_some(wanted)
    }
}

fn main() -> ExitCode {
    let Some(wanted) = Wanted::parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let found = case_folders(Path::new(&wanted.folder));
    if found.is_empty() {
        eprintln!("error: {}: no cases.json here or one folder below", wanted.folder);
        return ExitCode::from(2);
    }
    let setting = match Setting::open(&wanted.device, &wanted.dtype) {
        Ok(setting) => setting,
        Err(problem) => {
            eprintln!("error: {problem}");
            return ExitCode::from(3);
        }
    };
    let reports: Vec<_> = found.iter().map(|folder| compare(folder, &setting)).collect();
    let passed = reports.iter().all(FolderReport::passed);
    if wanted.json {
        println!("{}", serde_json::json!({ "passed": passed, "folders": reports }));
    } else {
        reports.iter().for_each(FolderReport::print);
        println!("{}", if passed { "All within tolerance." } else { "Not all within tolerance." });
    }
    if passed { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn case_folders(folder: &Path) -> Vec<PathBuf> {
    if folder.join("cases.json").is_file() {
        return vec![folder.to_path_buf()];
    }
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("cases.json").is_file())
        .collect();
    found.sort();
    found
}

fn compare(folder: &Path, setting: &Setting) -> FolderReport {
    let mut report = FolderReport::new(folder.display().to_string());
    match case::read(folder) {
        Ok((case::Cases::Model(cases), recorded)) => {
            model::compare(folder, &cases, &recorded, setting, &mut report);
        }
        Ok((case::Cases::Preprocess(cases), recorded)) => preprocess::compare(&cases, &recorded, &mut report),
        Err(problem) => report.failed("cases.json", problem),
    }
    report
}
