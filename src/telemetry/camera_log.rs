//! Camera frames in an MCAP log: each once, as PNG in the messages that Foxglove calls `foxglove.CompressedImage`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use firmware_bridge::MAX_IMAGE_SIDE;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::pixels;
use crate::spaces::{Frame, FrameShape};

/// Name of the schema, by which a viewer knows an image.
pub(super) const SCHEMA: &str = "foxglove.CompressedImage";
/// Topic of the only camera; several have a number behind it.
const TOPIC: &str = "/camera";

/// Topics of so many cameras.
pub(super) fn topics(cameras: usize) -> Vec<String> {
    match cameras {
        1 => vec![TOPIC.into()],
        several => (0..several).map(|camera| format!("{TOPIC}_{camera:02}")).collect(),
    }
}

/// Whether a topic is a camera's.
pub(super) fn is_camera(topic: &str) -> bool {
    topic.starts_with(TOPIC)
}

/// Foxglove's JSON schema of an image.
pub(super) fn schema() -> Value {
    let integer = |most: Option<u32>| json!({"type": "integer", "minimum": 0, "maximum": most.unwrap_or(u32::MAX)});
    let time = json!({"sec": integer(None), "nsec": integer(Some(999_999_999))});
    let properties = json!({
        "timestamp": {"type": "object", "title": "time", "properties": time},
        "frame_id": {"type": "string"},
        "data": {"type": "string", "contentEncoding": "base64"},
        "format": {"type": "string"},
    });
    json!({"title": SCHEMA, "type": "object", "properties": properties})
}

#[derive(Serialize)]
struct Time {
    sec: u64,
    nsec: u64,
}

/// A message.
#[derive(Serialize)]
pub(super) struct Compressed<'a> {
    timestamp: Time,
    frame_id: &'a str,
    data: String,
    format: &'a str,
}

/// The image of one of several cameras in a frame.
///
/// # Errors
/// When the frame does not have the size it states.
pub(super) fn compressed(
    frame: &Frame,
    cameras: usize,
    camera: usize,
    time_ns: u64,
) -> Result<Compressed<'static>, String> {
    let FrameShape { width, height, .. } = frame.shape;
    let png = pixels::to_png(width, height, &pixels::of_camera(cameras, camera, &frame.pixels))?;
    let timestamp = Time { sec: time_ns / 1_000_000_000, nsec: time_ns % 1_000_000_000 };
    Ok(Compressed { timestamp, frame_id: "camera", data: STANDARD.encode(png), format: "png" })
}

/// Images that were read and are not yet a frame: one of each camera, in their order.
#[derive(Debug, Default)]
pub(super) struct Planes {
    size: (u16, u16),
    images: Vec<Vec<u8>>,
    time_ns: u64,
    frames: u64,
}

impl Planes {
    /// Takes the message of the next camera.
    pub(super) fn add(&mut self, time_ns: u64, data: &[u8]) -> Result<(), String> {
        #[derive(Deserialize)]
        struct Image {
            data: String,
            format: String,
        }
        let image: Image = serde_json::from_slice(data).map_err(|e| e.to_string())?;
        let png = STANDARD.decode(&image.data).map_err(|e| e.to_string())?;
        let size = pixels::png_size(&png).filter(|_| image.format == "png").ok_or("its image is no PNG")?;
        if size.0.max(size.1) > MAX_IMAGE_SIDE || !self.images.is_empty() && size != self.size {
            return Err(format!("an image of {} x {} pixels", size.0, size.1));
        }
        (self.size, self.time_ns) = (size, time_ns);
        self.images.push(pixels::from_png(&png, size)?);
        Ok(())
    }

    /// The frame of the images since the last one; `None` when there were none.
    pub(super) fn take(&mut self) -> Option<Frame> {
        let (cameras, (width, height)) = (self.images.len(), self.size);
        let channels = u16::try_from(3 * cameras).ok().filter(|channels| *channels > 0)?;
        let shape = FrameShape { width, height, channels };
        let mut pixels = vec![0; shape.bytes()].into_boxed_slice();
        for (camera, plane) in self.images.drain(..).enumerate() {
            pixels::put_camera(cameras, camera, &plane, &mut pixels);
        }
        self.frames += 1;
        Some(Frame { shape, sequence: self.frames, capture_ns: self.time_ns, pixels })
    }
}
