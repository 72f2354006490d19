//! Where tests find what not every machine has. What is missing is printed, and the test that asked for it ends.
#![allow(dead_code, reason = "no test needs all of it")]
#![allow(clippy::print_stderr, reason = "what is skipped is printed")]

use std::path::PathBuf;

/// ONNX Runtime's library, as `tools/setup-native` leaves it or as `FIELDTUNE_ONNXRUNTIME` names it.
pub(crate) fn onnxruntime() -> Option<PathBuf> {
    let default = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.native/libonnxruntime.so"));
    let path = std::env::var_os("FIELDTUNE_ONNXRUNTIME").map_or_else(default, PathBuf::from);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: no ONNX Runtime at {} (FIELDTUNE_ONNXRUNTIME names another place)", path.display());
    None
}

/// A file or folder of the data that lie beside a checkout, or in the folder that `FIELDTUNE_SHARED` names.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let default = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared"));
    let path = std::env::var_os("FIELDTUNE_SHARED").map_or_else(default, PathBuf::from).join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is not there", path.display());
    None
}
