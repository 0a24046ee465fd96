//! Compiles the kernels for NVIDIA graphics processors to PTX, under the feature `cuda`.
//!
//! `nvcc` is `NVCC`, or that of `CUDA_HOME`, or the one in the path. `CUDA_COMPUTE_CAP` (80, 89, 90, as candle reads it) is the oldest
//! architecture that runs them; a driver compiles PTX for newer ones.

use std::env::{VarError, var};
use std::path::Path;
use std::process::{Command, ExitCode};

const FOLDER: &str = "src/cuda/kernels";
const SOURCES: [&str; 6] = ["attention", "attention_rows", "rows", "cache", "row_products", "unpack"];
const HEADERS: [&str; 3] = ["attention_arguments.cuh", "numbers.cuh", "tensor_core.cuh"];
/// The oldest one with the instructions that the kernels use.
const OLDEST: &str = "80";
/// The oldest one that lets kernels begin before the one in front of them has ended; those for others do not know how to wait.
const EARLY_LAUNCHES: u32 = 90;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(early_launches)");
    if var("CARGO_FEATURE_CUDA").is_err() {
        return ExitCode::SUCCESS;
    }
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            println!("cargo::error={problem}");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), String> {
    for variable in ["NVCC", "CUDA_HOME", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    for file in HEADERS {
        println!("cargo::rerun-if-changed={FOLDER}/{file}");
    }
    let compiler = match (var("NVCC"), var("CUDA_HOME")) {
        (Ok(compiler), _) => compiler,
        (_, Ok(home)) => format!("{home}/bin/nvcc"),
        _ => "nvcc".to_owned(),
    };
    let wanted = match var("CUDA_COMPUTE_CAP") {
        Ok(wanted) => wanted.replace('.', ""),
        Err(VarError::NotPresent) => OLDEST.to_owned(),
        Err(error) => return Err(format!("CUDA_COMPUTE_CAP: {error}")),
    };
    let architecture = wanted.trim_end_matches(char::is_alphabetic);
    if architecture.parse::<u32>().is_ok_and(|found| found < 80) {
        return Err(format!("the kernels need an architecture of 80 or later, CUDA_COMPUTE_CAP is {wanted}"));
    }
    if architecture.parse::<u32>().is_ok_and(|found| found >= EARLY_LAUNCHES) {
        println!("cargo::rustc-cfg=early_launches");
    }
    let out = var("OUT_DIR").map_err(|error| format!("OUT_DIR: {error}"))?;
    for source in SOURCES {
        let file = format!("{FOLDER}/{source}.cu");
        println!("cargo::rerun-if-changed={file}");
        let result = Path::new(&out).join(format!("{source}.ptx"));
        let outcome = Command::new(&compiler)
            .args(["--ptx", "-O3", "-std=c++17", "-Werror", "all-warnings"])
            .arg(format!("-arch=compute_{architecture}"))
            .arg("-o")
            .args([result.as_path(), Path::new(&file)])
            .output()
            .map_err(|error| {
                format!("{compiler} does not start: {error}. Set CUDA_HOME to a CUDA toolkit.")
            })?;
        if !outcome.status.success() {
            let said = String::from_utf8_lossy(&outcome.stderr).replace('\n', " ");
            return Err(format!("{compiler} does not compile {file}: {said}"));
        }
    }
    Ok(())
}
