//! Curves as a TensorBoard event file.
//!
//! Records of TensorFlow's `TFRecord` framing (length, masked CRC-32C, data, masked CRC-32C) that hold `Event`
//! messages with one scalar each. Metrics carry no time of day, so that only TensorBoard's step axis means anything.

use std::io::Write;

use prost::Message;

use super::history::{History, PANELS};

/// `tensorflow.Event`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

/// `tensorflow.Summary`.
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

/// `tensorflow.Summary.Value` with a simple value.
#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// Writes every curve as scalars, a bucket at its last point; tags are `event/curve`.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_events(history: &History, out: &mut impl Write) -> std::io::Result<()> {
    record(&Event { file_version: Some("brain.Event:2".into()), ..Event::default() }, out)?;
    for (p, panel) in PANELS.iter().enumerate() {
        for (c, (name, _)) in panel.curves.iter().enumerate() {
            let tag = format!("{}/{name}", panel.event).replace(' ', "_");
            for bucket in history.curve(p, c).map_or(&[][..], super::Series::buckets) {
                let value = Scalar { tag: tag.clone(), simple_value: bucket.mean as f32 };
                let summary = Some(Summary { value: vec![value] });
                record(&Event { step: bucket.to as i64, summary, ..Event::default() }, out)?;
            }
        }
    }
    Ok(())
}

fn record(event: &Event, out: &mut impl Write) -> std::io::Result<()> {
    let data = event.encode_to_vec();
    let length = (data.len() as u64).to_le_bytes();
    out.write_all(&length)?;
    out.write_all(&masked(&length).to_le_bytes())?;
    out.write_all(&data)?;
    out.write_all(&masked(&data).to_le_bytes())
}

/// The checksum of a checksum would be bad at finding errors, hence TensorFlow's rotation and constant.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_framed_and_hold_the_curves() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let lines = "{\"event\":\"update\",\"updates\":10,\"q_mean\":-2.5}\n{\"event\":\"update\",\"updates\":20,\"q_mean\":-3}\n";
        std::fs::write(&path, lines).unwrap();
        let mut bytes = Vec::new();
        write_events(&History::read(&path).unwrap(), &mut bytes).unwrap();
        // How event files written by TensorFlow begin: a first record of 24 bytes and its length's checksum.
        assert_eq!(masked(&24u64.to_le_bytes()), u32::from_le_bytes([0xa3, 0x7f, 0x4b, 0x22]));
        let mut events = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let n = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            events.push(Event::decode(&rest[12..12 + n]).unwrap());
            rest = &rest[16 + n..];
        }
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        let found: Vec<_> = events[1..]
            .iter()
            .map(|e| (e.step, e.summary.clone().unwrap().value.remove(0)))
            .map(|(step, scalar)| (step, scalar.tag, scalar.simple_value))
            .collect();
        assert_eq!(found, [(10, "update/Q".into(), -2.5), (20, "update/Q".into(), -3.0)]);
    }
}
