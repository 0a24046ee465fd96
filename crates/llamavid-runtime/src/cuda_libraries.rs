//! Where NVIDIA's libraries lie on Linux, and the few calls that ask the driver what there is.

use std::env;
use std::error::Error as _;
use std::ffi::{CStr, c_char, c_int, c_uint};
use std::iter;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

use crate::Result;
use crate::cuda::{CudaDevice, unavailable};

/// The driver's own library.
pub(crate) const DRIVER: &str = "libcuda.so.1";
/// What candle calls beside the driver, in the order in which one needs the other.
pub(crate) const LIBRARIES: [&str; 3] = ["libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10"];

/// What adds up over several devices. Nobody else needs it, so it is opened when it is first asked for.
pub(crate) const NCCL: &str = "libnccl.so.2";

/// The CUDA whose machine code and PTX the builds hold; an older driver refuses them.
const VERSION: c_int = 13_000;

/// Opens a library for the whole process and for as long as it lives: from `CUDA_HOME` or `CUDA_PATH`, as the system's loader finds
/// it, or from NVIDIA's packages of the active Python. Gives it with its path, or says where it was looked for and what was wrong.
pub(crate) fn open_library(name: &str) -> std::result::Result<(&'static Library, String), String> {
    // A name without a folder is what the system's loader looks for.
    let system = iter::once(PathBuf::new());
    // The driver's library comes with the driver alone. Python is asked when all else has failed.
    let python = (name != DRIVER).then(|| iter::once_with(python_folders)).into_iter().flatten().flatten();
    let mut problems = Vec::new();
    for folder in toolkit_folders().into_iter().chain(system).chain(python) {
        let path = folder.join(name);
        if path.is_absolute() && !path.is_file() {
            continue;
        }
        // SAFETY: the libraries of CUDA set themselves up when they are opened and ask nothing of the process that opens them.
        match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                let found = if path.is_absolute() { path.display().to_string() } else { mapped_path(name) };
                return Ok((Box::leak(Box::new(library)), found));
            }
            Err(error) => problems.push(reason(&error)),
        }
    }
    Err(problems.join("; "))
}

/// What the system says: the error's own text tells only what was called.
fn reason(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// Library folders of the toolkits that the environment names.
fn toolkit_folders() -> Vec<PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let folders = homes.flat_map(|home| ["lib64", "lib"].map(|folder| Path::new(&home).join(folder)));
    folders.filter(|folder| folder.is_absolute()).collect()
}

/// Library folders of NVIDIA's packages for CUDA 13, in the virtual environment that is active or else of the first `python3`.
fn python_folders() -> Vec<PathBuf> {
    static FOLDERS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    let folders = FOLDERS.get_or_init(|| {
        let environment = env::var_os("VIRTUAL_ENV").map(|folder| Path::new(&folder).join("bin/python3"));
        let program = environment.filter(|python| python.is_file()).unwrap_or_else(|| "python3".into());
        let listed = Command::new(program).args(["-c", "import sys; print('\\n'.join(sys.path))"]).output();
        // Many machines have no Python.
        let text =
            listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        // NCCL has a folder of its own.
        let folders = text.lines().flat_map(|line| {
            ["nvidia/cu13/lib", "nvidia/nccl/lib"].map(|folder| Path::new(line).join(folder))
        });
        folders.filter(|folder| folder.is_absolute() && folder.is_dir()).collect()
    });
    folders.clone()
}

/// Where the system's loader found an open library.
fn mapped_path(name: &str) -> String {
    // The driver's file has its version in its name.
    let stem = name.split_inclusive(".so").next().unwrap_or(name);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut paths = maps.lines().filter_map(|line| line.find('/').and_then(|start| line.get(start..)));
    let found = paths.find(|path| path.rsplit('/').next().is_some_and(|file| file.starts_with(stem)));
    found.unwrap_or(name).to_owned()
}

/// Calls of the driver. Source: NVIDIA's "CUDA Driver API", on initialization, versions, devices and errors.
pub(crate) struct Driver {
    init: Symbol<unsafe extern "C" fn(c_uint) -> c_int>,
    version: Symbol<unsafe extern "C" fn(*mut c_int) -> c_int>,
    count: Symbol<unsafe extern "C" fn(*mut c_int) -> c_int>,
    get: Symbol<unsafe extern "C" fn(*mut c_int, c_int) -> c_int>,
    attribute: Symbol<unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int>,
    name: Symbol<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int>,
    uuid: Symbol<unsafe extern "C" fn(*mut [u8; 16], c_int) -> c_int>,
    error_name: Symbol<unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int>,
}

impl Driver {
    const COMPUTE_CAPABILITY: [c_int; 2] = [75, 76];

    /// Starts the driver.
    ///
    /// # Errors
    /// `DEVICE_UNAVAILABLE` when it is none, is too old, or finds no graphics processor.
    pub(crate) fn start(library: &Library) -> Result<Self> {
        let driver = Self {
            init: function(library, "cuInit")?,
            version: function(library, "cuDriverGetVersion")?,
            count: function(library, "cuDeviceGetCount")?,
            get: function(library, "cuDeviceGet")?,
            attribute: function(library, "cuDeviceGetAttribute")?,
            name: function(library, "cuDeviceGetName")?,
            uuid: function(library, "cuDeviceGetUuid")?,
            error_name: function(library, "cuGetErrorName")?,
        };
        // SAFETY: it takes flags, of which there are none.
        driver.check("cuInit", unsafe { (driver.init)(0) })?;
        // SAFETY: it writes where it is told, and there is room for it.
        let version = driver.number("cuDriverGetVersion", |version| unsafe { (driver.version)(version) })?;
        if version < VERSION {
            let of = |version: c_int| format!("{}.{}", version / 1000, version % 1000 / 10);
            return Err(unavailable(
                format!("NVIDIA's driver is for CUDA {}, and {} is needed", of(version), of(VERSION)),
                "Install the driver 580 or newer.",
            ));
        }
        Ok(driver)
    }

    /// All graphics processors that the process may use.
    ///
    /// # Errors
    /// `DEVICE_UNAVAILABLE` when the driver refuses.
    pub(crate) fn devices(&self) -> Result<Vec<CudaDevice>> {
        // SAFETY: as above, here and for the calls below.
        let count = self.number("cuDeviceGetCount", |count| unsafe { (self.count)(count) })?;
        (0..count).map(|index| self.device(index)).collect()
    }

    fn device(&self, index: c_int) -> Result<CudaDevice> {
        // SAFETY: it writes where it is told, and there is room for it.
        let device = self.number("cuDeviceGet", |device| unsafe { (self.get)(device, index) })?;
        let [major, minor] = Self::COMPUTE_CAPABILITY.map(|attribute| {
            // SAFETY: likewise.
            self.number("cuDeviceGetAttribute", |value| unsafe { (self.attribute)(value, attribute, device) })
        });
        let mut name = [0; 256];
        // SAFETY: it writes at most as many bytes as it is told, the last one of the array not among them.
        let code = unsafe { (self.name)(name.as_mut_ptr().cast(), name.len() as c_int - 1, device) };
        self.check("cuDeviceGetName", code)?;
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned();
        let mut uuid = [0; 16];
        // SAFETY: it writes that many bytes.
        self.check("cuDeviceGetUuid", unsafe { (self.uuid)(&mut uuid, device) })?;
        Ok(CudaDevice { name, uuid: written(uuid), capability: (major?, minor?) })
    }

    fn number(&self, call: &str, write: impl FnOnce(*mut c_int) -> c_int) -> Result<c_int> {
        let mut number = 0;
        self.check(call, write(&mut number))?;
        Ok(number)
    }

    fn check(&self, call: &str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: it writes a pointer to a text that is never freed, or none.
        let known = unsafe { (self.error_name)(code, &mut text) } == 0 && !text.is_null();
        // SAFETY: see above.
        let name = if known { unsafe { CStr::from_ptr(text) }.to_string_lossy() } else { "no name".into() };
        Err(unavailable(
            format!("NVIDIA's driver does not serve this process: {call} gives {code}, {name}"),
            "Check the driver with nvidia-smi, and CUDA_VISIBLE_DEVICES.",
        ))
    }
}

/// A UUID as NVIDIA's programs write it.
fn written(uuid: [u8; 16]) -> String {
    let bytes = uuid.iter().enumerate();
    let digits = bytes.map(|(index, byte)| match index {
        4 | 6 | 8 | 10 => format!("-{byte:02x}"),
        _ => format!("{byte:02x}"),
    });
    format!("GPU-{}", digits.collect::<String>())
}

fn function<F>(library: &Library, name: &str) -> Result<Symbol<F>> {
    // SAFETY: the types above are those of the driver's header, which keeps what was published.
    unsafe { library.get(name) }.map_err(|error| {
        let reason = reason(&error);
        unavailable(format!("{DRIVER} is not NVIDIA's driver: {reason}"), "Install the driver, 580 or newer.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_in_groups() {
        let uuid = std::array::from_fn(|index| 16 * index as u8 + 1);
        assert_eq!(written(uuid), "GPU-01112131-4151-6171-8191-a1b1c1d1e1f1");
    }
}
