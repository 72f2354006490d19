//! The convolutional encoder of the pixel agents (COG): three 3x3 convolutions, two poolings, one dense layer.
//!
//! Convolutions are matrix products over patches, and pooling is a chain of maxima of which the first of equal entries
//! gets the gradient; candle's own pooling gives every equal entry a share. This is the definition, in candle's own
//! operations; the learner runs [`super::Trunk`], which is measured against it.

use candle_core::{Device, Result, Tensor, Var, bail};

use super::pointwise;

/// Width and height of a kernel.
const KERNEL: usize = 3;

/// One convolution, 3x3, padded with zeros to keep its size.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConvWeights {
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// `(outputs, inputs, 3, 3)`, cross-correlation.
    pub weight: Vec<f32>,
    /// `(outputs)`.
    pub bias: Vec<f32>,
}

/// Host copy of an encoder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConvEncoderWeights {
    /// From the image on.
    pub convolutions: Vec<ConvWeights>,
    /// Input and output width of the dense layer.
    pub dense: (usize, usize),
    /// `(input, output)`, input in the order channel, row, column.
    pub dense_weight: Vec<f32>,
    /// `(output)`.
    pub dense_bias: Vec<f32>,
}

/// `(conv -> max-pool 2x2 -> ReLU) ... conv -> ReLU -> flatten -> dense`.
#[derive(Clone, Debug)]
pub struct ConvEncoder {
    convolutions: Vec<(Var, Var)>,
    dense: (Var, Var),
}

/// What a pass gives.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Behind the last convolution, `(batch, channels, height, width)`.
    pub maps: Tensor,
    /// `(batch, features)`.
    pub features: Tensor,
}

impl ConvEncoder {
    /// Copies host weights to a device.
    ///
    /// # Errors
    /// When lengths and widths do not fit together or there is no convolution.
    pub fn from_weights(weights: &ConvEncoderWeights, device: &Device) -> Result<Self> {
        let var = |numbers: &[f32], dims: &[usize]| Var::from_slice(numbers, dims, device);
        let convolution = |c: &ConvWeights| {
            Ok((var(&c.weight, &[c.outputs, c.inputs, KERNEL, KERNEL])?, var(&c.bias, &[c.outputs])?))
        };
        if weights.convolutions.is_empty() {
            bail!("an encoder needs a convolution");
        }
        let (inputs, outputs) = weights.dense;
        Ok(Self {
            convolutions: weights.convolutions.iter().map(convolution).collect::<Result<_>>()?,
            dense: (var(&weights.dense_weight, &[inputs, outputs])?, var(&weights.dense_bias, &[outputs])?),
        })
    }

    /// Weight and bias of each convolution.
    pub fn convolutions(&self) -> &[(Var, Var)] {
        &self.convolutions
    }

    /// Weight and bias of the dense layer.
    pub fn dense(&self) -> &(Var, Var) {
        &self.dense
    }

    /// Encodes images `(batch, height, width, channels)` of bytes: the encoder sees `byte / 255`. Gradients flow to
    /// all weights. Every pooling halves height and width; an odd row or column at the end is dropped.
    ///
    /// # Errors
    /// When the image's shape does not fit the weights.
    pub fn forward(&self, image: &Tensor) -> Result<Encoded> {
        let dtype = self.dense.0.dtype();
        let x = (image.to_dtype(dtype)? / 255.0)?.permute((0, 3, 1, 2))?.contiguous()?;
        let tensors = |(weight, bias): &(Var, Var)| (weight.as_tensor().clone(), bias.as_tensor().clone());
        encode(&x, &self.convolutions.iter().map(tensors).collect::<Vec<_>>(), &tensors(&self.dense))
    }
}

/// What an encoder makes of normalised images `(batch, channels, height, width)`; weights and biases as in the fields
/// of [`ConvEncoder`].
pub(super) fn encode(image: &Tensor, convolutions: &[(Tensor, Tensor)], dense: &(Tensor, Tensor)) -> Result<Encoded> {
    let mut x = image.clone();
    for (index, (weight, bias)) in convolutions.iter().enumerate() {
        x = convolve(&x, weight, bias)?;
        if index + 1 < convolutions.len() {
            x = max_pool(&x)?;
        }
        x = pointwise::relu(&x)?;
    }
    let features = x.flatten_from(1)?.matmul(&dense.0)?.broadcast_add(&dense.1)?;
    Ok(Encoded { maps: x, features })
}

/// `(batch, inputs, height, width)` to `(batch, outputs, height, width)`.
fn convolve(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, inputs, height, width) = x.dims4()?;
    let outputs = weight.dim(0)?;
    let padded = x.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
    let shifts = (0..KERNEL).flat_map(|row| (0..KERNEL).map(move |column| (row, column)));
    let shifted = shifts.map(|(row, column)| padded.narrow(2, row, height)?.narrow(3, column, width));
    let patches = Tensor::stack(&shifted.collect::<Result<Vec<_>>>()?, 2)?;
    let patches = patches.reshape((batch, inputs * KERNEL * KERNEL, height * width))?.transpose(1, 2)?.contiguous()?;
    let rows = patches.reshape((batch * height * width, inputs * KERNEL * KERNEL))?;
    let kernel = weight.reshape((outputs, inputs * KERNEL * KERNEL))?.t()?.contiguous()?;
    let y = rows.matmul(&kernel)?.broadcast_add(bias)?;
    y.reshape((batch, height, width, outputs))?.permute((0, 3, 1, 2))?.contiguous()
}

/// Maximum of each 2x2 window with stride 2; the first of equal entries, row by row, gets the gradient.
fn max_pool(x: &Tensor) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let (rows, columns) = (height / 2, width / 2);
    let even = x.narrow(2, 0, 2 * rows)?.narrow(3, 0, 2 * columns)?.contiguous()?;
    let windows = even.reshape((batch * channels, rows, 2, columns, 2))?;
    let entry = |row: usize, column: usize| {
        windows.narrow(2, row, 1)?.narrow(4, column, 1)?.contiguous()?.reshape((batch, channels, rows, columns))
    };
    let top = pointwise::maximum(&entry(0, 0)?, &entry(0, 1)?)?;
    let bottom = pointwise::maximum(&entry(1, 0)?, &entry(1, 1)?)?;
    pointwise::maximum(&top, &bottom)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn draw(rng: &mut ChaCha8Rng, dims: &[usize]) -> Tensor {
        let numbers: Vec<f64> = (0..dims.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
        Tensor::from_vec(numbers, dims, &Device::Cpu).unwrap()
    }

    #[test]
    fn backward_is_the_slope_of_forward() {
        let rng = &mut ChaCha8Rng::seed_from_u64(5);
        let mut var = |dims: &[usize]| Var::from_tensor(&draw(rng, dims)).unwrap();
        let convolutions = vec![(var(&[3, 2, 3, 3]), var(&[3])), (var(&[2, 3, 3, 3]), var(&[2]))];
        let encoder = ConvEncoder { convolutions, dense: (var(&[2 * 2 * 3, 4]), var(&[4])) };
        let probe = var(&[2, 4]);
        let bytes: Vec<u8> = (0..2 * 5 * 7 * 2).map(|i| (i * 37 % 251) as u8).collect();
        let image = Tensor::from_vec(bytes, (2, 5, 7, 2), &Device::Cpu).unwrap();
        let loss = || {
            let out = encoder.forward(&image).unwrap();
            assert_eq!(out.maps.dims(), [2, 2, 2, 3]);
            (out.features * probe.as_tensor()).unwrap().sum_all().unwrap()
        };
        let gradients = loss().backward().unwrap();
        let vars = encoder.convolutions.iter().flat_map(|(w, b)| [w, b]).chain([&encoder.dense.0, &encoder.dense.1]);
        for var in vars {
            let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let (gradient, start) = (numbers(gradients.get(var).unwrap()), numbers(var));
            for index in 0..start.len() {
                let at = |offset: f64| {
                    let mut moved = start.clone();
                    moved[index] += offset;
                    var.set(&Tensor::from_vec(moved, var.dims(), &Device::Cpu).unwrap()).unwrap();
                    loss().to_scalar::<f64>().unwrap()
                };
                let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
                assert!((slope - gradient[index]).abs() < 1e-6, "{slope} instead of {}", gradient[index]);
            }
            var.set(&Tensor::from_vec(start, var.dims(), &Device::Cpu).unwrap()).unwrap();
        }
    }

    #[test]
    fn the_first_of_equal_entries_gets_the_gradient() {
        let x =
            Var::from_vec(vec![2.0f64, 2.0, 9.0, 2.0, 1.0, 9.0, 7.0, 7.0, 7.0], (1, 1, 3, 3), &Device::Cpu).unwrap();
        let y = max_pool(&x).unwrap();
        let gradient = y.sum_all().unwrap().backward().unwrap().get(&x).unwrap().flatten_all().unwrap();
        assert_eq!(y.flatten_all().unwrap().to_vec1::<f64>().unwrap(), [2.0]);
        assert_eq!(gradient.to_vec1::<f64>().unwrap(), [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn weights_that_do_not_fit_are_refused() {
        assert!(ConvEncoder::from_weights(&ConvEncoderWeights::default(), &Device::Cpu).is_err());
        let short = ConvWeights { inputs: 1, outputs: 2, weight: vec![0.0; 17], bias: vec![0.0; 2] };
        let weights = ConvEncoderWeights { convolutions: vec![short], ..ConvEncoderWeights::default() };
        assert!(ConvEncoder::from_weights(&weights, &Device::Cpu).is_err());
    }
}
