//! Images of single cameras out of frames and back, as PNG (layer 0): how data sets and logs keep them, without loss.

use std::io::Cursor;

use png::{BitDepth, ColorType, Compression, Decoder, Encoder, Limits, Transformations};

/// Bytes of a pixel of one camera.
const RGB: usize = 3;

/// Cameras whose images lie behind each other in pixels of so many bytes; `None` where these are none of cameras.
pub fn cameras(channels: u16) -> Option<usize> {
    let channels = usize::from(channels);
    (channels > 0 && channels.is_multiple_of(RGB)).then_some(channels / RGB)
}

/// The RGB image of one of several cameras, `(height, width, 3)`, out of a frame `(height, width, 3 * cameras)`.
pub fn of_camera(cameras: usize, camera: usize, frame: &[u8]) -> Vec<u8> {
    let pixels = frame.chunks_exact(RGB * cameras.max(1));
    pixels.flat_map(|pixel| &pixel[RGB * camera..RGB * (camera + 1)]).copied().collect()
}

/// Puts the RGB image of one of several cameras into its place in a frame.
pub fn put_camera(cameras: usize, camera: usize, rgb: &[u8], frame: &mut [u8]) {
    for (pixel, colour) in frame.chunks_exact_mut(RGB * cameras.max(1)).zip(rgb.chunks_exact(RGB)) {
        pixel[RGB * camera..RGB * (camera + 1)].copy_from_slice(colour);
    }
}

/// An RGB image, `(height, width, 3)`, as PNG.
///
/// # Errors
/// When `rgb` does not have this size.
pub fn to_png(width: u16, height: u16, rgb: &[u8]) -> Result<Vec<u8>, String> {
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, width.into(), height.into());
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Fast);
    let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(rgb));
    written.map(|()| file).map_err(|error| error.to_string())
}

/// Width and height that a PNG states; `None` when it is none, or has no pixels or too many.
pub(crate) fn png_size(file: &[u8]) -> Option<(u16, u16)> {
    let side = |at: usize| {
        let bytes = file.get(at..at + 4)?.try_into().ok()?;
        u16::try_from(u32::from_be_bytes(bytes)).ok().filter(|side| *side > 0)
    };
    file.starts_with(b"\x89PNG").then_some((side(16)?, side(20)?))
}

/// Decodes a PNG into an RGB image, `(height, width, 3)`; grey becomes three equal channels. No more memory is taken than
/// an image of the `wanted` width and height needs.
///
/// # Errors
/// When it is damaged, of another size, or has transparency or more than 8 bits, which would be lost.
pub fn from_png(file: &[u8], wanted: (u16, u16)) -> Result<Vec<u8>, String> {
    let bytes = usize::from(wanted.0) * usize::from(wanted.1) * RGB;
    let mut decoder = Decoder::new_with_limits(Cursor::new(file), Limits { bytes: bytes + (1 << 20) });
    decoder.set_transformations(Transformations::EXPAND);
    let broken = |error: png::DecodingError| format!("is a damaged PNG: {error}");
    let mut reader = decoder.read_info().map_err(broken)?;
    let found = (reader.info().width, reader.info().height);
    if found != (wanted.0.into(), wanted.1.into()) {
        return Err(format!("has {} x {} pixels instead of {} x {}", found.0, found.1, wanted.0, wanted.1));
    }
    let grey = match reader.output_color_type() {
        (ColorType::Rgb, BitDepth::Eight) => false,
        (ColorType::Grayscale, BitDepth::Eight) => true,
        (colour, depth) => {
            return Err(format!("is a PNG of {colour:?} with {} bits; read are RGB and grey of 8", depth as u8));
        }
    };
    let mut pixels = vec![0; if grey { bytes / RGB } else { bytes }];
    reader.next_frame(&mut pixels).map_err(broken)?;
    Ok(if grey { pixels.into_iter().flat_map(|value| [value; RGB]).collect() } else { pixels })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cameras_come_out_of_a_frame_and_back_through_png() {
        let frame: Vec<u8> = (0..5 * 4 * 6).map(|i| (i * 37 % 251) as u8).collect();
        let mut again = vec![0; frame.len()];
        for camera in 0..2 {
            let file = to_png(5, 4, &of_camera(2, camera, &frame)).unwrap();
            put_camera(2, camera, &from_png(&file, (5, 4)).unwrap(), &mut again);
        }
        assert_eq!(again, frame);
        assert_eq!([0, 1, 3, 4, 9].map(cameras), [None, None, Some(1), None, Some(3)]);
    }

    #[test]
    fn what_would_be_lost_is_refused() {
        let encode = |colour, depth, data: &[u8]| {
            let mut file = Vec::new();
            let mut encoder = Encoder::new(&mut file, 2, 1);
            encoder.set_color(colour);
            encoder.set_depth(depth);
            encoder.write_header().unwrap().write_image_data(data).unwrap();
            file
        };
        let grey = encode(ColorType::Grayscale, BitDepth::Eight, &[7, 200]);
        assert_eq!((png_size(&grey), png_size(&grey[1..]), png_size(&grey[..20])), (Some((2, 1)), None, None));
        assert_eq!(from_png(&grey, (2, 1)).unwrap(), [7, 7, 7, 200, 200, 200]);
        let depth = encode(ColorType::Grayscale, BitDepth::Sixteen, &[1, 2, 3, 4]);
        assert!(from_png(&depth, (2, 1)).unwrap_err().contains("16"));
        let clear = encode(ColorType::Rgba, BitDepth::Eight, &[0; 8]);
        assert!(from_png(&clear, (2, 1)).unwrap_err().contains("Rgba"));
        assert!(from_png(&grey, (1, 2)).unwrap_err().contains("2 x 1 pixels instead of 1 x 2"));
        assert!(from_png(&grey[..grey.len() / 2], (2, 1)).unwrap_err().contains("damaged"));
        assert!(to_png(2, 1, &[0; 5]).is_err());
    }
}
