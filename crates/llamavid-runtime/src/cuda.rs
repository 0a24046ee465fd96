//! NVIDIA's libraries: found, opened, and asked what this machine's graphics processors are.
//!
//! A build with CUDA names no library that the system would have to bring when it is loaded (`tools/cuda`): its calls are bound when
//! they are first made, to whatever is open by then. A call before [`support`] would end the process.

use std::fmt;
use std::sync::OnceLock;

use crate::{Error, ErrorCode, Result};

/// The addon's package with CUDA for the first of the architectures.
pub(crate) const PACKAGE: &str = "@llamavid/native-linux-x64-gnu-cuda";

/// A build with CUDA that there is a package of.
#[derive(Debug)]
pub struct CudaBuild {
    /// What it is compiled for: `sm_90a`.
    pub architecture: &'static str,
    /// The package's name.
    pub package: &'static str,
    /// Whether it runs on a device of a compute capability.
    runs_on: fn((i32, i32)) -> bool,
}

/// The quickest first.
const BUILDS: [CudaBuild; 3] = [
    CudaBuild {
        architecture: "sm_90a",
        package: PACKAGE,
        // The letter says that it runs on no other.
        runs_on: |capability| capability == (9, 0),
    },
    CudaBuild {
        architecture: "sm_89",
        package: "@llamavid/native-linux-x64-gnu-cuda-sm89",
        runs_on: |capability| capability == (8, 9),
    },
    CudaBuild {
        architecture: "sm_80",
        package: "@llamavid/native-linux-x64-gnu-cuda-sm80",
        runs_on: |(major, _)| major == 8,
    },
];

/// What this machine has for a build with CUDA.
#[derive(Debug, Clone)]
pub struct CudaSupport {
    /// Paths of the libraries that were opened.
    pub libraries: Vec<String>,
    /// The graphics processors, as the driver numbers them.
    pub devices: Vec<CudaDevice>,
    /// Why nothing runs on them.
    pub problem: Option<Error>,
}

/// A graphics processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CudaDevice {
    /// Its product name.
    pub name: String,
    /// As NVIDIA's programs write it: `GPU-` and five groups of digits.
    pub uuid: String,
    /// Its compute capability: 9 and 0 of an H100.
    pub capability: (i32, i32),
}

impl CudaDevice {
    /// The builds that run on it, the quickest first.
    pub fn builds(&self) -> impl Iterator<Item = &'static CudaBuild> {
        BUILDS.iter().filter(|build| (build.runs_on)(self.capability))
    }

    /// Which package to install.
    pub(crate) fn advice(&self) -> String {
        match self.builds().next() {
            Some(build) => format!("Install {}, or take the device cpu.", build.package),
            None => format!("There is no build for {self}. Take the device cpu."),
        }
    }
}

impl fmt::Display for CudaDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.capability;
        write!(formatter, "{} (compute capability {major}.{minor})", self.name)
    }
}

/// Opens the libraries and asks the driver; done once in a process, and slow only where there is a driver.
pub fn support() -> &'static CudaSupport {
    static SUPPORT: OnceLock<CudaSupport> = OnceLock::new();
    SUPPORT.get_or_init(|| {
        let mut support = CudaSupport { libraries: Vec::new(), devices: Vec::new(), problem: None };
        support.problem = open(&mut support).err();
        support
    })
}

/// A device that the opened libraries serve.
///
/// # Errors
/// `DEVICE_UNAVAILABLE` with what is missing.
pub(crate) fn device(index: usize) -> Result<&'static CudaDevice> {
    let CudaSupport { devices, problem, .. } = support();
    if let Some(problem) = problem {
        return Err(problem.clone());
    }
    devices.get(index).ok_or_else(|| {
        unavailable(format!("{} are there, counted from cuda:0", devices.len()), "Take one that is there.")
    })
}

pub(crate) fn unavailable(message: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::new(ErrorCode::DeviceUnavailable, message).with_hint(hint)
}

/// Opens NCCL's library, by which several devices compute together, and gives its path.
///
/// # Errors
/// `DEVICE_UNAVAILABLE` with the places that were looked at.
pub fn nccl() -> Result<&'static str> {
    static NCCL: OnceLock<Result<String>> = OnceLock::new();
    NCCL.get_or_init(open_nccl).as_deref().map_err(Clone::clone)
}

#[cfg(not(target_os = "linux"))]
fn open_nccl() -> Result<String> {
    Err(unavailable("builds with CUDA are for Linux", "Take the device cpu."))
}

#[cfg(target_os = "linux")]
fn open_nccl() -> Result<String> {
    use crate::cuda_libraries::{NCCL, open_library};

    open_library(NCCL).map(|(_, path)| path).map_err(|problem| {
        unavailable(
            format!("{NCCL}, by which graphics processors share each layer, was not found: {problem}"),
            "`pip install nvidia-nccl-cu13`, or let each device have whole layers (split: layers).",
        )
    })
}

#[cfg(not(target_os = "linux"))]
fn open(_support: &mut CudaSupport) -> Result<()> {
    Err(unavailable("builds with CUDA are for Linux", "Take the device cpu."))
}

#[cfg(target_os = "linux")]
fn open(support: &mut CudaSupport) -> Result<()> {
    use crate::cuda_libraries::{DRIVER, Driver, LIBRARIES, open_library};

    let (driver, path) = open_library(DRIVER).map_err(|problem| {
        unavailable(
            format!("NVIDIA's driver was not found: {problem}"),
            "Install the driver, 580 or newer; a container needs to be started with the graphics processors.",
        )
    })?;
    support.libraries.push(path);
    support.devices = Driver::start(driver)?.devices()?;
    if support.devices.is_empty() {
        return Err(unavailable(
            "NVIDIA's driver lists no graphics processor",
            "Check CUDA_VISIBLE_DEVICES.",
        ));
    }
    for name in LIBRARIES {
        let (_, path) = open_library(name).map_err(|problem| {
            unavailable(
                format!("{name} was not found: {problem}"),
                "Install CUDA 13 and set CUDA_HOME to its folder, or `pip install nvidia-cublas nvidia-curand`.",
            )
        })?;
        support.libraries.push(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_the_builds_that_run_on_it() {
        let on = |capability| {
            let device = CudaDevice { name: String::new(), uuid: String::new(), capability };
            device.builds().map(|build| build.architecture).collect::<Vec<_>>()
        };
        assert_eq!(on((9, 0)), ["sm_90a"]);
        assert_eq!(on((8, 9)), ["sm_89", "sm_80"]);
        assert_eq!(on((8, 6)), ["sm_80"]);
        assert!(on((7, 5)).is_empty() && on((12, 0)).is_empty());
    }
}
