//! `pnpm parity <folder> [--json]`: compares every recorded tensor of a folder of cases with what this code computes.
//!
//! A folder is one case folder (it has `cases.json`) or holds several. Exit code 0 when everything is within
//! tolerance, 1 when something is not, 2 for wrong usage.

mod case;
mod model;
mod preprocess;
mod report;
mod training;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use report::FolderReport;

fn main() -> ExitCode {
    let (flags, folders): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|word| word.starts_with("--"));
    let json = flags.iter().any(|flag| flag == "--json");
    if folders.len() != 1 || flags.iter().any(|flag| flag != "--json") {
        eprintln!("usage: pnpm parity <folder> [--json]");
        return ExitCode::from(2);
    }
    let found = case_folders(Path::new(&folders[0]));
    if found.is_empty() {
        eprintln!("error: {}: no cases.json here or one folder below", folders[0]);
        return ExitCode::from(2);
    }
    let reports: Vec<_> = found.iter().map(|folder| compare(folder)).collect();
    let passed = reports.iter().all(FolderReport::passed);
    if json {
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

fn compare(folder: &Path) -> FolderReport {
    let mut report = FolderReport::new(folder.display().to_string());
    match case::read(folder) {
        Ok((case::Cases::Model(cases), recorded)) => model::compare(folder, &cases, &recorded, &mut report),
        Ok((case::Cases::Preprocess(cases), recorded)) => preprocess::compare(&cases, &recorded, &mut report),
        Err(problem) => report.failed("cases.json", problem),
    }
    report
}
