//! `manifest.json` of a converted model: its files with sizes and checksums, and where each weight came from.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model_folder::{parse_json, read_optional};
use crate::{Cancellation, Error, ErrorCode, Result};

/// Bytes that are read and hashed at a time.
const BLOCK: usize = 1 << 20;

/// What a converted folder says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format of this file, [`Manifest::VERSION`].
    pub version: u32,
    /// Every file of the folder but this one, by its path from the folder, `/` between the parts.
    pub files: BTreeMap<String, ManifestFile>,
    /// Every weight by its published name.
    pub tensors: BTreeMap<String, TensorOrigin>,
}

/// A file of the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Its size.
    pub bytes: u64,
    /// Its checksum, in lower-case hexadecimal digits.
    pub sha256: String,
}

/// Where a weight is and came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorOrigin {
    /// The file of the folder that holds it.
    pub file: String,
    /// The format of its numbers: `F16`, `Q4_K`, ….
    pub dtype: String,
    /// Name of the file that it was read from.
    pub source: String,
    /// Its name in that file.
    pub key: String,
}

impl Manifest {
    /// The file's name.
    pub const NAME: &str = "manifest.json";
    /// The format that is written and read.
    pub const VERSION: u32 = 1;

    /// Reads the manifest of a folder; none where the folder has none.
    ///
    /// # Errors
    /// `MODEL_INVALID` for a damaged one, `MODEL_UNSUPPORTED` for one of another version.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(Self::NAME);
        let Some(bytes) = read_optional(&path)? else { return Ok(None) };
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = parse_json(&path, &bytes)?;
        if version != Self::VERSION {
            let known = Self::VERSION;
            let message =
                format!("{}: a manifest of version {version}, only {known} is read", path.display());
            return Err(Error::new(ErrorCode::ModelUnsupported, message)
                .with_hint("Take a newer llamavid, or convert the model again."));
        }
        let manifest: Self = parse_json(&path, &bytes)?;
        let inside = |name: &str| {
            !name.contains('\\')
                && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
        };
        match manifest.files.keys().find(|name| name.is_empty() || !inside(name)) {
            Some(name) => Err(Error::new(
                ErrorCode::ModelInvalid,
                format!("{}: {name:?} is no path inside the folder", path.display()),
            )),
            None => Ok(Some(manifest)),
        }
    }

    /// Checks that every file is there and as long as it should be.
    ///
    /// # Errors
    /// `MODEL_INVALID` names the first that is not.
    pub fn check_sizes(&self, folder: &Path) -> Result<()> {
        self.files.iter().try_for_each(|(name, file)| file.check_size(&folder.join(name)))
    }

    /// Checks the checksum of every file; `read` is told the bytes of each part that was read.
    ///
    /// # Errors
    /// `MODEL_INVALID` names the first file that is another, `ABORTED` when cancelled.
    pub fn verify(
        &self,
        folder: &Path,
        cancellation: &Cancellation,
        mut read: impl FnMut(u64),
    ) -> Result<()> {
        for (name, file) in &self.files {
            let path = folder.join(name);
            file.check_size(&path)?;
            let found = checksum(&path, cancellation, &mut read)?;
            if found != file.sha256 {
                let problem = format!("its sha256 is {found}, the manifest says {}", file.sha256);
                return Err(changed(&path, &problem));
            }
        }
        Ok(())
    }
}

impl ManifestFile {
    /// A file with this content.
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, sha256: hexadecimal(Sha256::new_with_prefix(bytes)) }
    }

    fn check_size(&self, path: &Path) -> Result<()> {
        match std::fs::metadata(path) {
            Ok(facts) if facts.is_file() && facts.len() == self.bytes => Ok(()),
            Ok(facts) if facts.is_file() => {
                let problem = format!("{} bytes, the manifest says {}", facts.len(), self.bytes);
                Err(changed(path, &problem))
            }
            Ok(_) => Err(changed(path, "is not a file")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(changed(path, "is missing; the manifest names it"))
            }
            Err(error) => Err(changed(path, &format!("cannot be read: {error}"))),
        }
    }
}

fn changed(path: &Path, problem: &str) -> Error {
    Error::new(ErrorCode::ModelInvalid, format!("{}: {problem}", path.display()))
        .with_hint("Copy the whole folder again, or convert the model again.")
}

fn checksum(path: &Path, cancellation: &Cancellation, read: &mut impl FnMut(u64)) -> Result<String> {
    let failed = |error: std::io::Error| changed(path, &format!("cannot be read: {error}"));
    let mut file = File::open(path).map_err(failed)?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; BLOCK]);
    loop {
        cancellation.check()?;
        match file.read(&mut block).map_err(failed)? {
            0 => return Ok(hexadecimal(hash)),
            count => {
                hash.update(&block[..count]);
                read(count as u64);
            }
        }
    }
}

/// A finished checksum as a manifest has it.
pub fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
