//! Policy bundles: a folder with a manifest, the policy as ONNX, all weights, and golden answers.
//!
#![doc = include_str!("../../docs/policy-bundle.md")]
//!
//! A [`Bundle`] that exists is verified: its parts were read from a folder and agree, or were made here from one set
//! of weights. Used by commands, at start-up and by the publisher; never by the control thread.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::checks::{self, Inputs, recorded};
use super::golden::{self, Golden, GoldenError};
use super::manifest::{
    self, Architecture, Description, EncoderFacts, FORMAT, FileEntry, Manifest, ManifestError, sha256,
};
use super::native::NativePolicy;
use super::{PolicyError, onnx_file, weights_file};
use crate::nn::weights::EnsembleWeights;

pub(super) const MANIFEST: &str = "manifest.toml";
pub(super) const POLICY: &str = "policy.onnx";
const WEIGHTS: &str = "weights.safetensors";
pub(super) const GOLDEN: &str = "golden.safetensors";
const FILES: [&str; 3] = [POLICY, WEIGHTS, GOLDEN];

/// Why a folder is not a bundle, or cannot become one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The operating system says no.
    #[error("{action} {path}: {source}")]
    Io {
        /// `read`, `write`, ...
        action: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest lists other files than a bundle has.
    #[error("manifest.toml lists {got:?}, a bundle has {FILES:?}")]
    Files {
        /// What it lists.
        got: Vec<String>,
    },
    /// A file of another length than the manifest says.
    #[error("{file} has {got} bytes, the manifest says {expected}: truncated or replaced, copy the bundle again")]
    Size {
        /// Which file.
        file: &'static str,
        /// In the manifest.
        expected: u64,
        /// On disk.
        got: u64,
    },
    /// A file too long to be read.
    #[error("{file} has {got} bytes, at most {limit} are read")]
    TooLarge {
        /// Which file.
        file: &'static str,
        /// Its length.
        got: u64,
        /// What is read.
        limit: usize,
    },
    /// A file with other content than the manifest says.
    #[error("{file} has SHA-256 {got}, the manifest says {expected}: damaged or replaced, copy the bundle again")]
    Hash {
        /// Which file.
        file: &'static str,
        /// In the manifest.
        expected: String,
        /// On disk.
        got: String,
    },
    /// Two parts of the bundle contradict each other.
    #[error("the bundle contradicts itself: {part} of {one} and {other} differ")]
    Contradiction {
        /// What they should agree on.
        part: &'static str,
        /// One file.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// A bundle without weights where weights are needed.
    #[error(
        "this bundle holds an ONNX actor of others, which has no weights to learn from: learn a residual on it (policy.base, docs/fine-tuning.md), set learner.enabled = false, or import a checkpoint with critics"
    )]
    Foreign,
    /// The golden file.
    #[error(transparent)]
    Golden(#[from] GoldenError),
    /// There is something else at the destination.
    #[error("{path} exists and holds more than a bundle (`{found}`); choose another folder or remove it")]
    Occupied {
        /// The destination.
        path: PathBuf,
        /// What was found.
        found: String,
    },
}

/// A verified bundle in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Bundle {
    manifest: Manifest,
    weights: EnsembleWeights,
    golden: Golden,
    onnx: Vec<u8>,
}

impl Bundle {
    /// Makes a bundle from weights.
    ///
    /// # Errors
    /// When the weights are not an ensemble, do not fit the spaces, ignore their input, or a value of the description
    /// is out of range.
    pub fn new(description: Description, weights: EnsembleWeights) -> Result<Self, PolicyError> {
        let onnx = onnx_file::encode(&weights.actor, &description.spaces, &[])?;
        let golden = Golden::of(&mut NativePolicy::new(&weights.actor)?)?;
        let mut bundle = Self {
            manifest: Manifest {
                format: FORMAT,
                architecture: architecture(&weights),
                description,
                files: std::collections::BTreeMap::new(),
            },
            weights,
            golden,
            onnx,
        };
        let entries = bundle
            .contents()?
            .map(|(name, bytes)| (String::from(name), FileEntry { size: bytes.len() as u64, sha256: sha256(&bytes) }));
        bundle.manifest.files = entries.into();
        bundle.manifest.to_text().map_err(BundleError::from)?;
        bundle.verify()?;
        Ok(bundle)
    }

    /// Reads a folder and verifies everything in it: seal, sizes, hashes, shapes, finite weights, checksum, and the
    /// golden answers on the built-in pass.
    ///
    /// # Errors
    /// With the file and the reason, at the first thing that is wrong.
    pub fn load(dir: &Path) -> Result<Self, PolicyError> {
        let text = read(&dir.join(MANIFEST), MANIFEST, manifest::MAX_BYTES, None)?;
        let manifest = Manifest::from_text(&String::from_utf8_lossy(&text)).map_err(BundleError::from)?;
        if !manifest.files.keys().map(String::as_str).eq(sorted_files()) {
            return Err(BundleError::Files { got: manifest.files.keys().take(8).cloned().collect() }.into());
        }
        let file = |name, limit| read(&dir.join(name), name, limit, manifest.files.get(name));
        let onnx = file(POLICY, onnx_file::MAX_BYTES)?;
        let weights = weights_file::decode(&file(WEIGHTS, weights_file::MAX_BYTES)?)?;
        let golden = Golden::decode(&file(GOLDEN, golden::MAX_BYTES)?, &weights.actor);
        let golden = golden.map_err(BundleError::from)?;
        let bundle = Self { manifest, weights, golden, onnx };
        bundle.verify()?;
        Ok(bundle)
    }

    /// Writes the bundle as folder `dir`, all or nothing: files and folder reach the disk under a temporary name and
    /// are then put in place in one step. A bundle that is there is replaced; at every moment there is a whole one.
    ///
    /// # Errors
    /// When the disk says no, or `dir` holds anything but a bundle.
    pub fn save(&self, dir: &Path) -> Result<(), PolicyError> {
        save_folder(dir, &self.files()?)
    }

    /// The files of the bundle, by name.
    ///
    /// # Errors
    /// When a value of the manifest is out of range.
    pub fn files(&self) -> Result<Vec<(&'static str, Vec<u8>)>, PolicyError> {
        let text = self.manifest.to_text().map_err(BundleError::from)?;
        Ok(self.contents()?.into_iter().chain([(MANIFEST, text.into_bytes())]).collect())
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// All weights.
    pub fn weights(&self) -> &EnsembleWeights {
        &self.weights
    }

    /// All weights, without a copy.
    pub fn into_weights(self) -> EnsembleWeights {
        self.weights
    }

    /// The exported policy, for [`super::prepare_file`].
    pub fn onnx(&self) -> &[u8] {
        &self.onnx
    }

    /// Golden observations and answers.
    pub fn golden(&self) -> &Golden {
        &self.golden
    }

    /// The parts agree with each other and the policy still gives its golden answers.
    fn verify(&self) -> Result<(), PolicyError> {
        let file = onnx_file::decode(&self.onnx)?;
        let differ = |part, one, other| BundleError::Contradiction { part, one, other };
        if file.actor != self.weights.actor {
            return Err(differ("the actors", POLICY, WEIGHTS).into());
        }
        if self.manifest.architecture != architecture(&self.weights) {
            return Err(differ("the architecture", MANIFEST, WEIGHTS).into());
        }
        if file.spaces != self.manifest.description.spaces {
            return Err(differ("the names of observation and action", MANIFEST, POLICY).into());
        }
        let mut policy = NativePolicy::new(&file.actor)?;
        let inputs = Inputs::of(&policy, golden::ROWS_WITH_IMAGES);
        recorded(&mut policy, &file.probe)?;
        for probe in self.golden.rows(&file.actor) {
            recorded(&mut policy, &probe)?;
        }
        checks::responds(&mut policy, &inputs)
    }

    fn contents(&self) -> Result<[(&'static str, Vec<u8>); 3], PolicyError> {
        let golden = self.golden.encode(&self.weights.actor).map_err(BundleError::from)?;
        Ok([(POLICY, self.onnx.clone()), (WEIGHTS, weights_file::encode(&self.weights)?), (GOLDEN, golden)])
    }
}

/// Writes the files of a bundle as folder `dir`, all or nothing, without a look at what is in them.
///
/// # Errors
/// As [`Bundle::save`].
pub fn save_folder(dir: &Path, files: &[(&str, Vec<u8>)]) -> Result<(), PolicyError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    vacant(dir)?;
    let absolute = std::path::absolute(dir).map_err(io_error("find", dir))?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        let source = io::Error::from(io::ErrorKind::InvalidInput);
        return Err(BundleError::Io { action: "write", path: absolute, source }.into());
    };
    fs::create_dir_all(parent).map_err(io_error("create", parent))?;
    let unique = format!(".{}-{}-{}.tmp", name.display(), std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let temporary = parent.join(unique);
    let written = write_files(&temporary, files).and_then(|()| put_in_place(&temporary, &absolute, parent));
    if written.is_err() {
        // The error in hand says more than a failed clean-up would.
        let _ = fs::remove_dir_all(&temporary);
    }
    written
}

fn write_files(dir: &Path, files: &[(&str, Vec<u8>)]) -> Result<(), PolicyError> {
    fs::create_dir(dir).map_err(io_error("create", dir))?;
    for (name, bytes) in files {
        let path = dir.join(name);
        let write = |mut file: File| file.write_all(bytes).and_then(|()| file.sync_all());
        File::create_new(&path).and_then(write).map_err(io_error("write", &path))?;
    }
    Ok(sync(dir)?)
}

fn architecture(weights: &EnsembleWeights) -> Architecture {
    let layers = &weights.actor.stack.layers;
    Architecture {
        ensemble_size: weights.actor.stack.members,
        hidden: layers.iter().take(layers.len().saturating_sub(1)).map(|l| l.outputs).collect(),
        log_std: weights.actor.log_std,
        critics: !weights.critic1.layers.is_empty(),
        encoder: weights.actor.eyes.as_ref().map(EncoderFacts::from),
    }
}

fn sorted_files() -> impl Iterator<Item = &'static str> {
    let mut names = FILES;
    names.sort_unstable();
    names.into_iter()
}

/// Reads a file that is no longer than `limit` and exactly what `entry` says.
pub(super) fn read(
    path: &Path,
    file: &'static str,
    limit: usize,
    entry: Option<&FileEntry>,
) -> Result<Vec<u8>, BundleError> {
    let error = io_error("read", path);
    let meta = fs::metadata(path).map_err(&error)?;
    if !meta.is_file() {
        return Err(error(io::Error::from(io::ErrorKind::InvalidInput)));
    }
    let got = meta.len();
    match entry {
        _ if got > limit as u64 => return Err(BundleError::TooLarge { file, got, limit }),
        Some(entry) if entry.size != got => {
            return Err(BundleError::Size { file, expected: entry.size, got });
        }
        _ => {}
    }
    let mut bytes = Vec::with_capacity(got as usize);
    File::open(path).and_then(|f| f.take(limit as u64).read_to_end(&mut bytes)).map_err(error)?;
    if let Some(entry) = entry {
        let got = sha256(&bytes);
        if got != entry.sha256 {
            return Err(BundleError::Hash { file, expected: entry.sha256.clone(), got });
        }
    }
    Ok(bytes)
}

/// `dir` is absent, or a folder with nothing but the files of a bundle.
fn vacant(dir: &Path) -> Result<(), BundleError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(BundleError::Io { action: "replace", path: dir.to_path_buf(), source });
        }
    };
    for entry in entries {
        let name = entry.map_err(io_error("read", dir))?.file_name();
        if !FILES.iter().chain(&[MANIFEST]).any(|known| name == *known) {
            return Err(BundleError::Occupied { path: dir.to_path_buf(), found: name.display().to_string() });
        }
    }
    Ok(())
}

/// Renames, or swaps and removes what was there.
fn put_in_place(temporary: &Path, dir: &Path, parent: &Path) -> Result<(), PolicyError> {
    let rename = |flags| renameat_with(CWD, temporary, CWD, dir, flags).map_err(io::Error::from);
    let swapped = match rename(RenameFlags::NOREPLACE) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => rename(RenameFlags::EXCHANGE).map(|()| true),
        other => other.map(|()| false),
    };
    let swapped = swapped.map_err(io_error("put in place", dir))?;
    sync(parent)?;
    if swapped {
        fs::remove_dir_all(temporary).map_err(io_error("remove the replaced", temporary))?;
    }
    Ok(())
}

fn sync(dir: &Path) -> Result<(), BundleError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io_error("sync", dir))
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> BundleError {
    let path = path.to_path_buf();
    move |source| BundleError::Io { action, path: path.clone(), source }
}
