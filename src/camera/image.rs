//! From an image to a frame: check, decode, crop, reduce.

use fast_image_resize::images::{Image as Pixels, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use firmware_bridge::{ImageFormat, MAX_IMAGE_SIDE};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::ImageFault;
use super::area::{Area, to_rgb};
use crate::config::{CameraConfig, Filter};

/// An image of a camera.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// How its bytes are to be read.
    pub format: ImageFormat,
    /// Its width and height; of a JPEG whatever the JPEG says where this is `None`.
    pub size: Option<(u16, u16)>,
    /// Rows from top to bottom without gaps, or a JPEG.
    pub bytes: &'a [u8],
}

/// How a policy sees the images of one camera. Keeps its memory from image to image.
pub struct View {
    expected: Option<(u16, u16)>,
    crop: [u16; 4],
    to: (u16, u16),
    filter: Filter,
    area: Area,
    resizer: Resizer,
    /// The decoded image.
    rgb: Vec<u8>,
}

impl View {
    /// As `config` says.
    pub fn new(config: &CameraConfig) -> Self {
        let [width, height] = config.source_size;
        Self {
            expected: (width > 0).then_some((width, height)),
            crop: config.crop,
            to: (config.width, config.height),
            filter: config.filter,
            area: Area::default(),
            resizer: Resizer::new(),
            rgb: Vec::new(),
        }
    }

    /// Bytes of what [`View::take`] makes: rows from top to bottom, three a pixel.
    pub fn bytes(&self) -> usize {
        usize::from(self.to.0) * usize::from(self.to.1) * 3
    }

    /// Makes `into`, of [`View::bytes`] bytes, out of an image.
    ///
    /// # Errors
    /// When the image is cut off, damaged, or not of the right size or format. `into` is undefined afterwards.
    pub fn take(&mut self, image: &Image<'_>, into: &mut [u8]) -> Result<(), ImageFault> {
        if image.format == ImageFormat::Jpeg {
            let size = self.decode(image)?;
            self.expected = Some(size);
            let rgb = std::mem::take(&mut self.rgb);
            let outcome = self.reduce(ImageFormat::Rgb8, &rgb, size, into);
            self.rgb = rgb;
            return outcome;
        }
        let size = image.size.ok_or(ImageFault::Truncated)?;
        self.expect(size)?;
        if image.bytes.len() != image.format.payload(size.0, size.1) as usize {
            return Err(ImageFault::Truncated);
        }
        self.expected = Some(size);
        if image.format == ImageFormat::Yuyv && self.filter != Filter::Area {
            let mut rgb = std::mem::take(&mut self.rgb);
            rgb.clear();
            rgb.extend(image.bytes.as_chunks().0.iter().flat_map(|pair| both_pixels(*pair)));
            let outcome = self.reduce(ImageFormat::Rgb8, &rgb, size, into);
            self.rgb = rgb;
            return outcome;
        }
        self.reduce(image.format, image.bytes, size, into)
    }

    fn expect(&self, found: (u16, u16)) -> Result<(), ImageFault> {
        match self.expected {
            Some(wanted) if wanted != found => Err(ImageFault::Size { found, wanted }),
            _ => Ok(()),
        }
    }

    /// Decodes into `self.rgb`. Memory is taken only once the size is known to be right.
    fn decode(&mut self, image: &Image<'_>) -> Result<(u16, u16), ImageFault> {
        let bytes = trimmed(image.bytes);
        if !bytes.starts_with(&[0xff, 0xd8]) {
            return Err(ImageFault::Format("JPEG"));
        }
        if !bytes.ends_with(&[0xff, 0xd9]) {
            return Err(ImageFault::Truncated);
        }
        let side = usize::from(MAX_IMAGE_SIDE);
        let options = DecoderOptions::new_fast()
            .set_strict_mode(true)
            .set_max_width(side)
            .set_max_height(side)
            .jpeg_set_out_colorspace(ColorSpace::RGB);
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
        let damaged = |error: zune_jpeg::errors::DecodeErrors| ImageFault::Damaged(error.to_string());
        decoder.decode_headers().map_err(damaged)?;
        let info = decoder.info().ok_or(ImageFault::Format("JPEG"))?;
        let found = (info.width, info.height);
        if let Some(wanted) = image.size.filter(|wanted| *wanted != found) {
            return Err(ImageFault::Size { found, wanted });
        }
        self.expect(found)?;
        self.rgb.resize(usize::from(found.0) * usize::from(found.1) * 3, 0);
        decoder.decode_into(&mut self.rgb).map_err(damaged)?;
        Ok(found)
    }

    fn reduce(
        &mut self,
        format: ImageFormat,
        pixels: &[u8],
        size: (u16, u16),
        into: &mut [u8],
    ) -> Result<(), ImageFault> {
        let crop = if self.crop == [0; 4] { [0, 0, size.0, size.1] } else { self.crop };
        let [x, y, width, height] = crop;
        let inside = |at: u16, length: u16, most: u16| u32::from(at) + u32::from(length) <= u32::from(most);
        let fits = inside(x, width, size.0) && inside(y, height, size.1) && width >= self.to.0 && height >= self.to.1;
        if !fits {
            return Err(ImageFault::Small { found: size, crop, wanted: self.to });
        }
        let row_bytes = pixels.len() / usize::from(size.1);
        match self.filter {
            Filter::Area => self.area.reduce(format, pixels, row_bytes, crop, self.to, into),
            Filter::Bilinear => bilinear(&mut self.resizer, pixels, size, crop, self.to, into)?,
        }
        Ok(())
    }
}

fn bilinear(
    resizer: &mut Resizer,
    rgb: &[u8],
    size: (u16, u16),
    crop: [u16; 4],
    to: (u16, u16),
    into: &mut [u8],
) -> Result<(), ImageFault> {
    let damaged = |error: &dyn std::fmt::Display| ImageFault::Damaged(error.to_string());
    let from = ImageRef::new(size.0.into(), size.1.into(), rgb, PixelType::U8x3).map_err(|e| damaged(&e))?;
    let mut to = Pixels::from_slice_u8(to.0.into(), to.1.into(), into, PixelType::U8x3).map_err(|e| damaged(&e))?;
    let [x, y, width, height] = crop.map(f64::from);
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).crop(x, y, width, height);
    resizer.resize(&from, &mut to, &options).map_err(|e| damaged(&e))
}

fn both_pixels(pair: [u8; 4]) -> [u8; 6] {
    let [y0, u, y1, v] = pair.map(f32::from);
    let (left, right) = (to_rgb(y0, u, v), to_rgb(y1, u, v));
    [left[0], left[1], left[2], right[0], right[1], right[2]]
}

/// Without the zeros that some cameras put behind a JPEG.
fn trimmed(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}
