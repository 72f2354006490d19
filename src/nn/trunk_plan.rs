//! Forward and backward pass of one convolutional encoder over plain slices, an image at a time.
//!
//! Maps are `(row, column, channel)` with a border of zeros, so that a convolution is one matrix product: beside each
//! other stand, for every place, its column of three rows (`triple`), and the window of a place is the three columns
//! from there on, nine times the channels in a row of memory. Rows are read two places too far; what comes out there
//! falls on the border and is cleared or never read. The backward pass uses the same product with the kernels turned
//! round. Poolings keep which of four entries was the largest, the first of equal ones.

use candle_core::{Result, bail};

use super::conv::ConvEncoderWeights;
use super::kernels::{self, Matrix, Real, add_product, product};
use crate::spaces::FrameShape;

/// One convolution: sizes of its input, and where its numbers are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Level {
    height: usize,
    width: usize,
    inputs: usize,
    outputs: usize,
    /// Where its weight `(outputs, inputs, 3, 3)` starts in the parameters; its bias follows.
    start: usize,
    /// Where its padded input starts in what an image keeps.
    kept: usize,
    /// Where the choices of the pooling in front of it start.
    which: usize,
}

impl Level {
    /// Places in a padded row.
    fn stride(&self) -> usize {
        self.width + 2
    }

    fn padded(&self, channels: usize) -> usize {
        (self.height + 2) * self.stride() * channels
    }

    fn tripled(&self, channels: usize) -> usize {
        3 * self.height * self.stride() * channels
    }

    /// Places that a convolution gives, those beyond the rows' ends included.
    fn places(&self) -> usize {
        self.height * self.stride() - 2
    }

    fn window(&self) -> usize {
        9 * self.inputs
    }

    fn bias(&self) -> usize {
        self.start + self.window() * self.outputs
    }
}

/// Shape of an encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    frame: FrameShape,
    levels: Vec<Level>,
    /// Input and output width of the dense layer.
    pub(super) dense: (usize, usize),
    dense_start: usize,
    kept: usize,
    which: usize,
}

/// How far an image is read from its place, rows and columns.
pub(super) type Shift = [i32; 2];

/// Kernels in the order of the products: for each convolution forward `(9 inputs, outputs)` and, behind the first one,
/// backward `(9 outputs, inputs)`.
pub(super) struct Kernels<T> {
    forward: Vec<Vec<T>>,
    backward: Vec<Vec<T>>,
}

impl Plan {
    /// The shape that `weights` have for images of `frame`.
    ///
    /// # Errors
    /// When lengths and widths do not fit together or the image is too small for the poolings.
    pub(super) fn new(weights: &ConvEncoderWeights, frame: FrameShape) -> Result<Self> {
        let (mut height, mut width) = (usize::from(frame.height), usize::from(frame.width));
        let (mut channels, mut start, mut kept, mut which) = (usize::from(frame.channels), 0, 0, 0);
        let mut levels: Vec<Level> = Vec::new();
        for (index, conv) in weights.convolutions.iter().enumerate() {
            if index > 0 {
                (height, width) = (height / 2, width / 2);
                which += height * width * channels;
            }
            let (inputs, outputs) = (conv.inputs, conv.outputs);
            let fits = conv.weight.len() == 9 * inputs * outputs && conv.bias.len() == outputs;
            if inputs != channels || outputs == 0 || height == 0 || width == 0 || !fits {
                bail!(
                    "convolution {index} of an encoder is {inputs} -> {outputs} on {height} x {width} x {channels} with {} \
                     and {} numbers",
                    conv.weight.len(),
                    conv.bias.len()
                );
            }
            let pooled = which - if index > 0 { height * width * channels } else { 0 };
            let level = Level { height, width, inputs, outputs, start, kept, which: pooled };
            start = level.bias() + outputs;
            kept += level.padded(inputs);
            channels = outputs;
            levels.push(level);
        }
        let (inputs, outputs) = weights.dense;
        let fits = weights.dense_weight.len() == inputs * outputs && weights.dense_bias.len() == outputs;
        if levels.is_empty() || inputs != height * width * channels || outputs == 0 || !fits {
            bail!("dense layer {inputs} -> {outputs} of an encoder behind maps of {height} x {width} x {channels}");
        }
        Ok(Self { frame, levels, dense: (inputs, outputs), dense_start: start, kept, which })
    }

    /// Parameters of one encoder: weight and bias of each convolution, then of the dense layer.
    pub(super) fn parameters(&self) -> usize {
        self.dense_start + (self.dense.0 + 1) * self.dense.1
    }

    /// Bytes of an image.
    pub(super) fn frame(&self) -> FrameShape {
        self.frame
    }

    /// Numbers that an image keeps for the backward pass, beside its flat maps.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    /// Choices of the poolings that an image keeps.
    pub(super) fn which(&self) -> usize {
        self.which
    }

    /// Parameters of the convolutions, in front of the dense layer's.
    pub(super) fn convolutions(&self) -> usize {
        self.dense_start
    }

    /// Weight `(inputs, outputs)` and bias of the dense layer.
    pub(super) fn dense_of<'a, T>(&self, parameters: &'a [T]) -> (&'a [T], &'a [T]) {
        parameters[self.dense_start..self.parameters()].split_at(self.dense.0 * self.dense.1)
    }

    /// Start and shape `(outputs, inputs)` of each convolution's weight; its bias follows.
    pub(super) fn layers(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        self.levels.iter().map(|level| (level.start, level.outputs, level.inputs))
    }

    /// Multiply-adds of a forward pass on one image.
    pub(super) fn multiply_adds(&self) -> usize {
        let convolutions = self.levels.iter().map(|l| l.height * l.width * l.window() * l.outputs);
        convolutions.sum::<usize>() + self.dense.0 * self.dense.1
    }

    /// Numbers that a pass needs as working space: triples, maps, gradient of an input, padded gradients.
    pub(super) fn scratch(&self) -> usize {
        let [triples, maps, gradient] = self.spaces();
        triples + maps + gradient + self.levels.iter().map(|l| l.padded(l.outputs)).sum::<usize>()
    }

    fn spaces(&self) -> [usize; 3] {
        let most = |of: fn(&Level) -> usize| self.levels.iter().map(of).max().unwrap_or(0);
        [
            most(|l| l.tripled(l.inputs.max(l.outputs))),
            most(|l| l.height * l.stride() * l.outputs),
            most(|l| l.height * l.stride() * l.inputs),
        ]
    }

    /// `flat` (channel, row, column) `= maps(image)`; fills `kept`, whose borders are 0, and `which`.
    pub(super) fn forward<T: Real>(
        &self,
        (parameters, kernels): (&[T], &Kernels<T>),
        (image, shift): (&[u8], Shift),
        (kept, which): (&mut [T], &mut [u8]),
        flat: &mut [T],
        scratch: &mut [T],
    ) {
        let [triples, ..] = self.spaces();
        let (triples, rest) = scratch.split_at_mut(triples);
        self.look(image, shift, kept);
        for (index, level) in self.levels.iter().enumerate() {
            let maps = &mut rest[..level.places() * level.outputs];
            let input = &kept[level.kept..][..level.padded(level.inputs)];
            triple(input, level, level.inputs, triples);
            let windows = Matrix::windows(triples, 3 * level.inputs);
            let shape = (level.places(), level.outputs, level.window());
            product(shape, maps, windows, Matrix::rows(&kernels.forward[index], level.outputs));
            let bias = &parameters[level.bias()..][..level.outputs];
            let Some(next) = self.levels.get(index + 1) else {
                kernels::add_bias_relu(maps, bias);
                flatten(maps, level, flat);
                return;
            };
            let row = level.stride() * level.outputs;
            for y in 0..next.height {
                let (top, bottom) = (&maps[2 * y * row..], &maps[(2 * y + 1) * row..]);
                let count = next.width * next.inputs;
                let out = &mut kept[next.kept + ((y + 1) * next.stride() + 1) * next.inputs..][..count];
                kernels::pool_relu(top, bottom, bias, out, &mut which[next.which + y * count..][..count]);
            }
        }
    }

    /// `byte / 255` with zeros around; outside the image its border repeats.
    fn look<T: Real>(&self, image: &[u8], [down, right]: Shift, kept: &mut [T]) {
        let Some(level) = self.levels.first() else { return };
        let values: [T; 256] = std::array::from_fn(|byte| T::from_f64(byte as f64 / 255.0));
        let (width, channels) = (level.width, level.inputs);
        let clamped = |at: usize, by: i32, most: usize| (at as i64 + i64::from(by)).clamp(0, most as i64 - 1) as usize;
        for y in 0..level.height {
            let from = &image[clamped(y, down, level.height) * width * channels..][..width * channels];
            let into = &mut kept[level.kept + ((y + 1) * level.stride() + 1) * channels..][..width * channels];
            for (x, pixel) in into.chunks_exact_mut(channels).enumerate() {
                let at = clamped(x, right, width) * channels;
                for (value, byte) in pixel.iter_mut().zip(&from[at..at + channels]) {
                    *value = values[usize::from(*byte)];
                }
            }
        }
    }

    /// Adds the gradient of the convolutions' parameters, kernels in the order of the products, for the gradient
    /// `g` of the flat maps.
    pub(super) fn backward<T: Real>(
        &self,
        kernels: &Kernels<T>,
        (kept, which, flat): (&[T], &[u8], &[T]),
        g: &[T],
        gradient: &mut [T],
        scratch: &mut [T],
    ) {
        let [triples, maps, deltas] = self.spaces();
        let (triples, rest) = scratch.split_at_mut(triples);
        let (delta, rest) = rest[maps..].split_at_mut(deltas);
        let starts: Vec<usize> = self
            .levels
            .iter()
            .scan(0, |at, l| {
                let start = *at;
                *at += l.padded(l.outputs);
                Some(start)
            })
            .collect();
        let Some(top) = self.levels.len().checked_sub(1) else { return };
        unflatten(g, flat, &self.levels[top], &mut rest[starts[top]..]);
        for index in (0..=top).rev() {
            let level = &self.levels[index];
            let (before, own) = rest.split_at_mut(starts[index]);
            let (inputs, outputs) = (level.inputs, level.outputs);
            let own = &own[..level.padded(outputs)];
            let places = &own[(level.stride() + 1) * outputs..][..level.places() * outputs];
            let (weight, bias) = gradient[level.start..level.bias() + outputs].split_at_mut(level.window() * outputs);
            triple(&kept[level.kept..][..level.padded(inputs)], level, inputs, triples);
            let shape = (level.window(), outputs, level.places());
            add_product(shape, weight, Matrix::windows_across(triples, 3 * inputs), Matrix::rows(places, outputs));
            kernels::add_column_sums(places, bias);
            let Some(below) = index.checked_sub(1).map(|below| &self.levels[below]) else { return };
            triple(own, level, outputs, triples);
            let delta = &mut delta[..level.places() * inputs];
            let shape = (level.places(), inputs, 9 * outputs);
            let turned = Matrix::rows(&kernels.backward[index], inputs);
            product(shape, delta, Matrix::windows(triples, 3 * outputs), turned);
            let into = &mut before[starts[index - 1]..];
            let (count, row) = (level.width * inputs, below.stride() * inputs);
            for y in 0..level.height {
                let seen = &kept[level.kept + ((y + 1) * level.stride() + 1) * inputs..][..count];
                let chosen = &which[level.which + y * count..][..count];
                let from = &delta[y * level.stride() * inputs..][..count];
                let (above, under) = into[(2 * y + 1) * row + inputs..].split_at_mut(row);
                kernels::unpool(from, seen, chosen, above, under, inputs);
            }
        }
    }

    /// The kernels of `parameters` in the order of the products.
    pub(super) fn kernels<T: Real>(&self, parameters: &[T], backward: bool) -> Kernels<T> {
        let order = |level: &Level, turned: bool| {
            let (inputs, outputs) = (level.inputs, level.outputs);
            let weight = &parameters[level.start..];
            let mut ordered = vec![T::zero(); level.window() * outputs];
            for ((o, c), (row, column)) in places(outputs, inputs).flat_map(|p| places(3, 3).map(move |k| (p, k))) {
                let at = if turned {
                    (((2 - column) * 3 + 2 - row) * outputs + o) * inputs + c
                } else {
                    ((column * 3 + row) * inputs + c) * outputs + o
                };
                ordered[at] = weight[((o * inputs + c) * 3 + row) * 3 + column];
            }
            ordered
        };
        let of = |turned| self.levels.iter().map(|level| order(level, turned)).collect();
        Kernels { forward: of(false), backward: if backward { of(true) } else { Vec::new() } }
    }

    /// Brings a gradient of the convolutions from the order of the products into that of the parameters.
    pub(super) fn reorder<T: Real>(&self, ordered: &[T], gradient: &mut [T]) {
        for level in &self.levels {
            let (inputs, outputs) = (level.inputs, level.outputs);
            for ((o, c), (row, column)) in places(outputs, inputs).flat_map(|p| places(3, 3).map(move |k| (p, k))) {
                gradient[level.start + ((o * inputs + c) * 3 + row) * 3 + column] =
                    ordered[level.start + ((column * 3 + row) * inputs + c) * outputs + o];
            }
            let bias = level.bias()..level.bias() + outputs;
            gradient[bias.clone()].copy_from_slice(&ordered[bias]);
        }
    }
}

fn places(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).flat_map(move |row| (0..columns).map(move |column| (row, column)))
}

/// For every place of a padded map, its column of three rows.
fn triple<T: Real>(padded: &[T], level: &Level, channels: usize, triples: &mut [T]) {
    let row = level.stride() * channels;
    for (y, out) in triples[..level.tripled(channels)].chunks_exact_mut(3 * row).enumerate() {
        let (first, second, third) = (&padded[y * row..], &padded[(y + 1) * row..], &padded[(y + 2) * row..]);
        kernels::interleave(&first[..row], &second[..row], &third[..row], out, channels);
    }
}

/// `(row, column, channel)` with places beyond the rows' ends to `(channel, row, column)`.
fn flatten<T: Real>(maps: &[T], level: &Level, flat: &mut [T]) {
    let channels = level.outputs;
    for (c, plane) in flat.chunks_exact_mut(level.height * level.width).enumerate() {
        for (y, row) in plane.chunks_exact_mut(level.width).enumerate() {
            for (x, v) in row.iter_mut().enumerate() {
                *v = maps[(y * level.stride() + x) * channels + c];
            }
        }
    }
}

/// The gradient behind the last ReLU, from flat to padded.
fn unflatten<T: Real>(g: &[T], flat: &[T], level: &Level, padded: &mut [T]) {
    let (channels, plane) = (level.outputs, level.height * level.width);
    for y in 0..level.height {
        for x in 0..level.width {
            let into = &mut padded[((y + 1) * level.stride() + x + 1) * channels..][..channels];
            for (c, v) in into.iter_mut().enumerate() {
                let at = c * plane + y * level.width + x;
                *v = if flat[at] <= T::zero() { T::zero() } else { g[at] };
            }
        }
    }
}
