//! Recorded runs and native files for the tests of the tasks.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use npyz::npz::NpzArchive;
use npyz::{Deserialize, NpyFile};

/// A data set, where the shared data are.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared"));
    let folder = std::env::var_os("FIELDTUNE_SHARED").map_or(beside, PathBuf::from);
    let path = folder.join("datasets").join(name);
    let found = path.exists();
    if !found {
        eprintln!("skipped: {} is missing", path.display());
    }
    found.then_some(path)
}

/// The folder of the native files, where MuJoCo is.
pub(crate) fn native() -> Option<&'static Path> {
    let native = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.native"));
    let found = native.join("libmujoco.so").exists();
    if !found {
        eprintln!("skipped: MuJoCo is missing; tools/setup-native fetches it");
    }
    found.then_some(native)
}

/// The first `limit` numbers of a column.
pub(crate) fn array<T: Deserialize>(archive: &mut NpzArchive<BufReader<File>>, name: &str, limit: usize) -> Vec<T> {
    let file: NpyFile<_> = archive.by_name(name).unwrap().unwrap();
    file.data::<T>().unwrap().take(limit).map(Result::unwrap).collect()
}
