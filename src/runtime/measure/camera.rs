//! What an image of a camera costs: decode, crop, reduce.

use firmware_bridge::ImageFormat;
use serde::Serialize;

use crate::camera::{Image, ImageFault, View, pattern};
use crate::clock::thread_cpu;
use crate::config::CameraConfig;

/// Sizes of the images, and sides of the frames made of them.
const SIZES: [(u16, u16); 2] = [(640, 480), (1280, 720)];
const SIDES: [u16; 2] = [48, 128];

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CameraRow {
    /// `rgb8`, `yuyv` or `jpeg`.
    pub format: &'static str,
    /// Size of the image; of a JPEG its number in the order given.
    pub image: String,
    /// Side of the frame.
    pub side: u16,
    /// Milliseconds of processor time for one image, median.
    pub ms: f64,
}

/// Times every format and size `repeat` times, on one thread; JPEGs are the caller's.
///
/// # Errors
/// When a JPEG is none, or smaller than a frame.
pub fn measure_camera(jpegs: &[Vec<u8>], repeat: u32) -> Result<Vec<CameraRow>, ImageFault> {
    let mut rows = Vec::new();
    let mut pixels = Vec::new();
    for side in SIDES {
        for (number, bytes) in jpegs.iter().enumerate() {
            let image = Image { format: ImageFormat::Jpeg, size: None, bytes };
            let ms = median_ms(&image, side, repeat)?;
            rows.push(CameraRow { format: "jpeg", image: format!("file {}", number + 1), side, ms });
        }
        for size in SIZES {
            pattern(1, size, &mut pixels);
            for (name, format) in [("yuyv", ImageFormat::Yuyv), ("rgb8", ImageFormat::Rgb8)] {
                // What the bytes show does not matter here.
                let bytes = &pixels[..format.payload(size.0, size.1) as usize];
                let ms = median_ms(&Image { format, size: Some(size), bytes }, side, repeat)?;
                rows.push(CameraRow { format: name, image: format!("{}x{}", size.0, size.1), side, ms });
            }
        }
    }
    Ok(rows)
}

fn median_ms(image: &Image<'_>, side: u16, repeat: u32) -> Result<f64, ImageFault> {
    let mut view = View::new(&CameraConfig { width: side, height: side, ..CameraConfig::default() });
    let mut into = vec![0; view.bytes()];
    view.take(image, &mut into)?;
    let mut times = Vec::new();
    for _ in 0..repeat.max(1) {
        let begin = thread_cpu();
        view.take(image, &mut into)?;
        times.push(thread_cpu().saturating_sub(begin).as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_its_row_and_what_is_no_jpeg_is_refused() {
        let rows = measure_camera(&[], 1).unwrap();
        assert_eq!(rows.len(), 8);
        assert!(rows.iter().all(|row| row.ms > 0.0));
        assert!(measure_camera(&[vec![1, 2, 3]], 1).is_err());
    }
}
