//! Reduction by the mean over the area of a pixel, and the same for YUYV without an RGB image in between.

use firmware_bridge::ImageFormat;

/// Parts of a source pixel that are told apart.
const PARTS: u32 = 256;

/// Source pixels under one pixel of the result: `first..=last`, those at the ends by their share, in [`PARTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: u32,
    last: u32,
    head: u32,
    tail: u32,
}

impl Span {
    /// Share of pixel `at`.
    fn share(&self, at: u32) -> u32 {
        match at {
            _ if at == self.first => self.head,
            _ if at == self.last => self.tail,
            _ => PARTS,
        }
    }

    fn pixels(&self) -> std::ops::RangeInclusive<u32> {
        self.first..=self.last
    }

    /// All shares together.
    fn total(&self) -> u32 {
        self.pixels().map(|at| self.share(at)).sum()
    }
}

/// Cuts `length` pixels behind `from` into `count` spans; `count <= length`.
fn spans(from: u32, length: u32, count: u32) -> Vec<Span> {
    let edge = |i: u32| u64::from(i) * u64::from(length) * u64::from(PARTS) / u64::from(count.max(1));
    let span = |i| {
        let (begin, end) = (edge(i) as u32, edge(i + 1) as u32);
        let (first, last) = (begin / PARTS, end.saturating_sub(1) / PARTS);
        let head = if first == last { end - begin } else { PARTS - begin % PARTS };
        Span { first: from + first, last: from + last, head, tail: end - last * PARTS }
    };
    (0..count).map(span).collect()
}

/// A reduction of images of one size; made anew when format, size or crop change.
#[derive(Debug, Default)]
pub(super) struct Area {
    made_for: Option<(ImageFormat, [u16; 4], (u16, u16))>,
    columns: Vec<Span>,
    rows: Vec<Span>,
    /// Sums of one row of the result over its source rows, one for each byte of a source row.
    sums: Vec<u32>,
}

impl Area {
    /// The mean colours of the crop `[x, y, width, height]` of raw pixels (RGB8 or YUYV, `row_bytes` in a row) into
    /// `into`, `(to.1, to.0, 3)`. The crop lies inside the image and is not smaller than `to`.
    pub(super) fn reduce(
        &mut self,
        format: ImageFormat,
        pixels: &[u8],
        row_bytes: usize,
        crop: [u16; 4],
        to: (u16, u16),
        into: &mut [u8],
    ) {
        let [x, y, width, height] = crop.map(u32::from);
        // YUYV shares its colour between two pixels: whole pairs are summed.
        let (bytes, left) = if format == ImageFormat::Yuyv { (2, x & !1) } else { (3, x) };
        let right = if format == ImageFormat::Yuyv { (x + width).next_multiple_of(2) } else { x + width };
        if self.made_for != Some((format, crop, to)) {
            self.columns = spans(x - left, width, to.0.into());
            self.rows = spans(y, height, to.1.into());
            self.made_for = Some((format, crop, to));
        }
        let used = (left * bytes) as usize..(right * bytes) as usize;
        self.sums.resize(used.len(), 0);
        for (row, out) in self.rows.iter().zip(into.chunks_exact_mut(3 * usize::from(to.0))) {
            self.sums.fill(0);
            for at in row.pixels() {
                let start = at as usize * row_bytes;
                add(&mut self.sums, &pixels[start + used.start..start + used.end], row.share(at) as u16);
            }
            let (sums, height) = (&self.sums[..], u64::from(row.total()));
            for (span, out) in self.columns.iter().zip(out.chunks_exact_mut(3)) {
                let colour = if format == ImageFormat::Yuyv {
                    rgb(across(span, |p| [sums[2 * p], sums[4 * (p / 2) + 1], sums[4 * (p / 2) + 3]]), span, height)
                } else {
                    let area = height * u64::from(span.total());
                    across(span, |p| [sums[3 * p], sums[3 * p + 1], sums[3 * p + 2]])
                        .map(|sum| ((sum + area / 2) / area) as u8)
                };
                out.copy_from_slice(&colour);
            }
        }
    }
}

/// `sums += share * row`.
fn add(sums: &mut [u32], row: &[u8], share: u16) {
    // share * 255 fits 16 bits, which lets the compiler use its narrow multiplication.
    for (sum, byte) in sums.iter_mut().zip(row) {
        *sum += u32::from(share.wrapping_mul(u16::from(*byte)));
    }
}

/// Weighted sums of three values over the pixels of a span.
#[inline]
fn across(span: &Span, pixel: impl Fn(usize) -> [u32; 3]) -> [u64; 3] {
    let mut sums = [0; 3];
    for at in span.pixels() {
        let share = u64::from(span.share(at));
        for (sum, value) in sums.iter_mut().zip(pixel(at as usize)) {
            *sum += share * u64::from(value);
        }
    }
    sums
}

/// BT.601 with the limited range of video, as V4L2 and OpenCV take YUYV; mean and conversion commute.
fn rgb(sums: [u64; 3], span: &Span, height: u64) -> [u8; 3] {
    let area = (height * u64::from(span.total())) as f32;
    let [y, u, v] = sums.map(|sum| sum as f32 / area);
    to_rgb(y, u, v)
}

pub(super) fn to_rgb(y: f32, u: f32, v: f32) -> [u8; 3] {
    let (y, u, v) = (1.164 * (y - 16.0), u - 128.0, v - 128.0);
    [y + 1.596 * v, y - 0.813 * v - 0.391 * u, y + 2.018 * u].map(|value| value.round().clamp(0.0, 255.0) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What numpy would do: every source pixel by its overlap, in double precision.
    fn naive(pixels: &[u8], width: u32, crop: [u16; 4], to: (u16, u16)) -> Vec<f64> {
        let [x, y, w, h] = crop.map(f64::from);
        let overlap = |i: u32, a: f64, b: f64| (f64::from(i + 1).min(b) - f64::from(i).max(a)).max(0.0);
        let mut out = Vec::new();
        for row in 0..to.1 {
            let (top, bottom) =
                (y + f64::from(row) * h / f64::from(to.1), y + f64::from(row + 1) * h / f64::from(to.1));
            for column in 0..to.0 {
                let (left, right) =
                    (x + f64::from(column) * w / f64::from(to.0), x + f64::from(column + 1) * w / f64::from(to.0));
                for channel in 0..3 {
                    let mut sum = 0.0;
                    for r in top as u32..bottom.ceil() as u32 {
                        for c in left as u32..right.ceil() as u32 {
                            let byte = pixels[((r * width + c) * 3) as usize + channel];
                            sum += f64::from(byte) * overlap(r, top, bottom) * overlap(c, left, right);
                        }
                    }
                    out.push(sum / (right - left) / (bottom - top));
                }
            }
        }
        out
    }

    fn noise(len: usize, seed: u32) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_mean_is_that_of_the_naive_version(width in 8u16..60, height in 8u16..60, cut in 0u16..4,
                                                 to_w in 1u16..9, to_h in 1u16..5, seed: u32) {
            let pixels = noise(usize::from(width) * usize::from(height) * 3, seed);
            let crop = [cut, cut / 2, (width - cut).max(to_w).min(width - cut), height - cut];
            prop_assume!(crop[2] >= to_w && crop[3] >= to_h);
            let mut out = vec![0; usize::from(to_w) * usize::from(to_h) * 3];
            Area::default().reduce(ImageFormat::Rgb8, &pixels, usize::from(width) * 3, crop, (to_w, to_h), &mut out);
            let wanted = naive(&pixels, width.into(), crop, (to_w, to_h));
            for (found, wanted) in out.iter().zip(&wanted) {
                // Half a level of rounding, and edges that are known to 1/256 of a pixel.
                prop_assert!((f64::from(*found) - wanted).abs() < 2.0, "{found} {wanted}");
            }
        }

        /// YUYV of a picture without contrast inside the areas gives what its colours say, whatever the crop.
        #[test]
        fn yuyv_gives_the_mean_colour(x in 0u16..9, w in 4u16..20, y: u8, u: u8, v: u8) {
            let row: Vec<u8> = (0..20).flat_map(|_| [y, u, y, v]).collect();
            let pixels = row.repeat(6);
            let mut out = [0; 12];
            Area::default().reduce(ImageFormat::Yuyv, &pixels, 80, [x, 1, w, 5], (2, 2), &mut out);
            let wanted = to_rgb(y.into(), u.into(), v.into());
            prop_assert!(out.chunks(3).all(|pixel| pixel == wanted), "{out:?} {wanted:?}");
        }
    }

    #[test]
    fn whole_ratios_are_exact_and_equal_sizes_a_copy() {
        let pixels = noise(64 * 48 * 3, 3);
        let mut out = vec![0; 16 * 12 * 3];
        let mut area = Area::default();
        area.reduce(ImageFormat::Rgb8, &pixels, 64 * 3, [0, 0, 64, 48], (16, 12), &mut out);
        let wanted = naive(&pixels, 64, [0, 0, 64, 48], (16, 12));
        assert!(out.iter().zip(wanted).all(|(found, wanted)| f64::from(*found) == (wanted + 0.5).floor()));
        let mut copy = vec![0; pixels.len()];
        area.reduce(ImageFormat::Rgb8, &pixels, 64 * 3, [0, 0, 64, 48], (64, 48), &mut copy);
        assert_eq!(copy, pixels);
    }

    /// `cv2.cvtColor(COLOR_YUV2RGB_YUYV)` of one pixel pair each.
    #[test]
    fn colours_are_those_of_opencv() {
        assert_eq!(to_rgb(16.0, 128.0, 128.0), [0, 0, 0]);
        assert_eq!(to_rgb(235.0, 128.0, 128.0), [255, 255, 255]);
        assert_eq!(to_rgb(81.0, 90.0, 240.0), [254, 0, 0]);
        assert_eq!(to_rgb(0.0, 0.0, 0.0), [0, 135, 0]);
    }
}
