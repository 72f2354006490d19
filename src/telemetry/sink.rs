//! Where metric records go.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde::Serialize;

/// Takes metric records. A sink that cannot write counts what it lost.
pub trait Sink: Send {
    /// Takes one record: an event name and its fields.
    fn record(&mut self, event: &str, fields: &dyn erased::Fields);
    /// Records lost so far.
    fn lost(&self) -> u64;
}

/// Object-safe view of a serialisable value.
pub(super) mod erased {
    /// Anything that serialises to JSON.
    pub trait Fields {
        /// As a JSON value.
        ///
        /// # Errors
        /// When the value does not serialise.
        fn json(&self) -> serde_json::Result<serde_json::Value>;
    }

    impl<T: serde::Serialize> Fields for T {
        fn json(&self) -> serde_json::Result<serde_json::Value> {
            serde_json::to_value(self)
        }
    }
}

/// One JSON object per line: `{"event": ..., fields...}`.
#[derive(Debug)]
pub struct FileSink {
    file: BufWriter<File>,
    lost: u64,
}

impl FileSink {
    /// Appends to `path`.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn append(path: &Path) -> std::io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Self { file: BufWriter::new(file), lost: 0 })
    }
}

#[derive(Serialize)]
struct Line<'a> {
    event: &'a str,
    #[serde(flatten)]
    fields: serde_json::Value,
}

impl Sink for FileSink {
    fn record(&mut self, event: &str, fields: &dyn erased::Fields) {
        let written = fields.json().map_err(std::io::Error::from).and_then(|fields| {
            let line = serde_json::to_string(&Line { event, fields })?;
            writeln!(self.file, "{line}")?;
            self.file.flush()
        });
        if let Err(error) = written {
            if self.lost == 0 {
                log::warn!("metrics are lost from now on: {error}");
            }
            self.lost += 1;
        }
    }

    fn lost(&self) -> u64 {
        self.lost
    }
}

/// Takes everything and keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NullSink;

impl Sink for NullSink {
    fn record(&mut self, _event: &str, _fields: &dyn erased::Fields) {}

    fn lost(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json_objects_with_their_event() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut sink = FileSink::append(&path).unwrap();
        sink.record("episode", &serde_json::json!({"return": -200.5}));
        sink.record("swap", &serde_json::json!({"generation": 2}));
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines[0]["event"], "episode");
        assert_eq!(lines[0]["return"], -200.5);
        assert_eq!(lines[1]["generation"], 2);
        assert_eq!(sink.lost(), 0);
    }
}
