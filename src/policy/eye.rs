//! The built-in pass of a convolutional encoder, for one image at a time.
//!
//! Activations lie as `(row, column, channel)` with a frame of zeros one pixel wide, so that the patch of a 3x3
//! convolution is three runs of consecutive numbers, and a convolution is the dense kernel on every patch. All memory
//! is there from the beginning.

use super::native::{lines, relu};
use super::panel::{Kernel, LINE, Line, ROWS, pack};
use crate::nn::{ConvEncoderWeights, ConvWeights};
use crate::spaces::FrameShape;

/// Width and height of a kernel.
const KERNEL: usize = 3;

/// One encoder and its memory. The weights were checked (`structure::check_actor`).
pub(super) struct Eye {
    convolutions: Vec<Convolution>,
    dense: Vec<Line>,
    dense_bias: Vec<Line>,
    /// Output of the last convolution, `(row, column, channel)`, filled up to a multiple of [`ROWS`].
    flat: Vec<f32>,
    out: Vec<[f32; LINE]>,
    features: usize,
}

struct Convolution {
    inputs: usize,
    outputs: usize,
    width: usize,
    height: usize,
    /// Whether a maximum over 2x2 follows.
    pooled: bool,
    weight: Vec<Line>,
    bias: Vec<Line>,
    /// Input, `(height + 2, width + 2, inputs)`.
    map: Vec<f32>,
    patch: Vec<f32>,
    /// Two rows of the output, as many as a pooling takes.
    rows: [Vec<[f32; LINE]>; 2],
}

impl Eye {
    /// Packs an encoder of images of this size.
    pub(super) fn new(weights: &ConvEncoderWeights, shape: FrameShape) -> Self {
        let (mut width, mut height) = (usize::from(shape.width), usize::from(shape.height));
        let last = weights.convolutions.len() - 1;
        let mut convolutions = Vec::new();
        for (index, convolution) in weights.convolutions.iter().enumerate() {
            let pooled = index < last;
            convolutions.push(Convolution::new(convolution, width, height, pooled));
            (width, height) = if pooled { (width / 2, height / 2) } else { (width, height) };
        }
        let (inputs, features) = weights.dense;
        let channels = inputs / (width * height).max(1);
        // The encoder's order is channel, row, column; here the channels of a pixel lie together.
        let rows = (0..width * height).flat_map(|pixel| (0..channels).map(move |c| c * width * height + pixel));
        let matrix: Vec<f32> =
            rows.flat_map(|row| &weights.dense_weight[row * features..(row + 1) * features]).copied().collect();
        let mut dense = Vec::new();
        pack(&matrix, inputs, features, &mut dense);
        Self {
            convolutions,
            dense,
            dense_bias: lines(&weights.dense_bias, features),
            flat: vec![0.0; inputs.next_multiple_of(ROWS)],
            out: vec![[0.0; LINE]; features.div_ceil(LINE)],
            features,
        }
    }

    /// The features of an image `(height, width, channels)` of the encoder's size.
    pub(super) fn look(&mut self, kernel: Kernel, image: &[u8]) -> &[f32] {
        let first = &mut self.convolutions[0];
        let row = first.width * first.inputs;
        for (y, bytes) in image.chunks_exact(row).enumerate() {
            for (to, byte) in first.inner_row(y).iter_mut().zip(bytes) {
                *to = f32::from(*byte) / 255.0;
            }
        }
        for index in 0..self.convolutions.len() {
            let (before, behind) = self.convolutions.split_at_mut(index + 1);
            let convolution = &mut before[index];
            if let Some(next) = behind.first_mut() {
                (0..next.height).for_each(|y| convolution.pooled_row(kernel, y, next.inner_row(y)));
            } else {
                let row = convolution.width * convolution.outputs;
                let rows = self.flat.chunks_exact_mut(row).take(convolution.height);
                rows.enumerate().for_each(|(y, out)| convolution.last_row(kernel, y, out));
            }
        }
        kernel.dense(&self.flat, &self.dense, &self.dense_bias, &mut self.out);
        &self.out.as_flattened()[..self.features]
    }
}

impl Convolution {
    fn new(weights: &ConvWeights, width: usize, height: usize, pooled: bool) -> Self {
        let ConvWeights { inputs, outputs, ref weight, ref bias } = *weights;
        let (taps, groups) = (KERNEL * KERNEL, outputs.div_ceil(LINE));
        // From (output, input, tap) to (tap, input, output).
        let places = (0..taps).flat_map(|tap| (0..inputs).flat_map(move |i| (0..outputs).map(move |o| (tap, i, o))));
        let matrix: Vec<f32> = places.map(|(tap, i, o)| weight[(o * inputs + i) * taps + tap]).collect();
        let mut packed = Vec::new();
        pack(&matrix, taps * inputs, outputs, &mut packed);
        Self {
            inputs,
            outputs,
            width,
            height,
            pooled,
            weight: packed,
            bias: lines(bias, outputs),
            map: vec![0.0; (width + 2) * (height + 2) * inputs],
            patch: vec![0.0; (taps * inputs).next_multiple_of(ROWS)],
            rows: std::array::from_fn(|_| vec![[0.0; LINE]; width * groups]),
        }
    }

    /// Row `y` of the input, without the frame of zeros.
    fn inner_row(&mut self, y: usize) -> &mut [f32] {
        let start = ((y + 1) * (self.width + 2) + 1) * self.inputs;
        &mut self.map[start..start + self.width * self.inputs]
    }

    /// Row `y` of the output into `rows[which]`, every pixel on lines of its own.
    fn row(&mut self, kernel: Kernel, y: usize, which: usize) {
        let (taken, stride) = (KERNEL * self.inputs, (self.width + 2) * self.inputs);
        for (x, out) in self.rows[which].chunks_exact_mut(self.bias.len()).enumerate() {
            for (dy, part) in self.patch.chunks_exact_mut(taken).take(KERNEL).enumerate() {
                part.copy_from_slice(&self.map[(y + dy) * stride + x * self.inputs..][..taken]);
            }
            kernel.dense(&self.patch, &self.weight, &self.bias, out);
        }
    }

    /// Row `y` behind the pooling and the ReLU; an odd column at the end is dropped.
    fn pooled_row(&mut self, kernel: Kernel, y: usize, out: &mut [f32]) {
        debug_assert!(self.pooled, "the last convolution has no pooling");
        self.row(kernel, 2 * y, 0);
        self.row(kernel, 2 * y + 1, 1);
        let [top, bottom] = self.rows.each_ref().map(|row| row.as_flattened());
        let padded = self.bias.len() * LINE;
        for (x, out) in out.chunks_exact_mut(self.outputs).enumerate() {
            let entry = |row: &'_ [f32], dx: usize, c: usize| row[(2 * x + dx) * padded + c];
            for (c, out) in out.iter_mut().enumerate() {
                let upper = larger(entry(top, 0, c), entry(top, 1, c));
                *out = larger(upper, larger(entry(bottom, 0, c), entry(bottom, 1, c)));
            }
        }
        relu(out);
    }

    /// Row `y` behind the ReLU.
    fn last_row(&mut self, kernel: Kernel, y: usize, out: &mut [f32]) {
        self.row(kernel, y, 0);
        let padded = self.bias.len() * LINE;
        let pixels = self.rows[0].as_flattened().chunks_exact(padded);
        for (out, pixel) in out.chunks_exact_mut(self.outputs).zip(pixels) {
            out.copy_from_slice(&pixel[..self.outputs]);
        }
        relu(out);
    }
}

/// Not `max`: a NaN must stay one.
fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::checks::Inputs;
    use crate::policy::sample::{encode, encoder};

    #[test]
    fn agrees_with_the_learners_encoder_for_every_shape() {
        for (width, height, cameras, channels, features) in [
            (48, 48, 1, &[16, 16, 16][..], 64),
            (11, 7, 2, &[5, 17, 3], 9),
            (9, 5, 1, &[20], 70),
            (8, 8, 1, &[1, 1], 1),
        ] {
            let shape = FrameShape { width, height, channels: 3 * cameras };
            let weights = encoder(shape, channels, features, 7);
            for kernel in [Kernel::detect(), Kernel::plain()] {
                let mut eye = Eye::new(&weights, shape);
                for (_, image) in Inputs::new(1, Some(shape), 3).iter() {
                    let expected = encode(&weights, shape, image);
                    for (got, expected) in eye.look(kernel, image).iter().zip(&expected) {
                        assert!((got - expected).abs() < 1e-5, "{shape:?} {channels:?}: {got} instead of {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_nan_reaches_the_features() {
        let shape = FrameShape { width: 8, height: 8, channels: 3 };
        let mut weights = encoder(shape, &[4, 4], 5, 1);
        weights.convolutions[0].bias[2] = f32::NAN;
        let image = vec![0; shape.bytes()];
        assert!(Eye::new(&weights, shape).look(Kernel::detect(), &image).iter().any(|v| v.is_nan()));
    }
}
