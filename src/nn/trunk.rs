//! Convolutional encoders of equal shape as one differentiable operation.
//!
//! A [`Trunk`] does what [`super::ConvEncoder`] does, which stays as its witness: same sizes, same numbers but for the
//! order of sums. On the processor it is an operation with own kernels ([`super::trunk_plan`]); images are bytes until
//! they are read, and a shift is where reading starts. Work is cut into blocks of images, a fixed number each, so
//! that results are the same to the bit for any number of threads.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, Var, bail};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::conv::{ConvEncoderWeights, ConvWeights, encode};
use super::kernels::{self, Matrix, Real, product, product_transposed};
use super::stack_op::{Buffers, cpu, in_shares, slice};
use super::trunk_plan::{Kernels, Plan, Shift};
use crate::kernels::{normalise_images, take};
use crate::spaces::FrameShape;

/// Images whose convolutions are one piece of work.
const BLOCK: usize = 16;
/// Images whose dense layers are: it is read once for all of them, and it is large.
const DENSE_BLOCK: usize = 64;

/// `members` encoders `(conv -> max-pool -> ReLU) ... conv -> ReLU -> flatten -> dense` for images of one size.
///
/// All parameters are one variable `(members, parameters of an encoder)`. As with [`super::Stack`], take every gradient
/// before the first step.
#[derive(Clone, Debug)]
pub struct Trunk {
    plan: Arc<Plan>,
    parameters: Var,
    members: usize,
    threads: usize,
    pools: Arc<Pools>,
}

/// Buffers that wait for their next use, by what they are: those of images and gradients keep borders of zeros.
#[derive(Debug, Default)]
struct Pools {
    images: Buffers,
    flat: Buffers,
    scratch: Buffers,
    which: Mutex<Vec<Vec<u8>>>,
}

impl Pools {
    fn which(&self, len: usize) -> Vec<u8> {
        let mut waiting = self.which.lock().unwrap_or_else(PoisonError::into_inner);
        let found = waiting.iter().position(|w| w.len() == len).map(|i| waiting.swap_remove(i));
        drop(waiting);
        found.unwrap_or_else(|| vec![0; len])
    }

    fn give_which(&self, buffer: Vec<u8>) {
        let mut waiting = self.which.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < 8 {
            waiting.push(buffer);
        }
    }
}

impl Trunk {
    /// Copies host weights to a device.
    ///
    /// # Errors
    /// When there is none, they differ in shape, or they do not fit images of `frame`.
    pub fn from_weights(weights: &[ConvEncoderWeights], frame: FrameShape, device: &Device) -> Result<Self> {
        let Some(first) = weights.first() else { bail!("a trunk needs an encoder") };
        let plan = Plan::new(first, frame)?;
        let mut parameters = Vec::with_capacity(weights.len() * plan.parameters());
        for encoder in weights {
            if Plan::new(encoder, frame)? != plan {
                bail!("the encoders of a trunk differ in shape");
            }
            for conv in &encoder.convolutions {
                parameters.extend_from_slice(&conv.weight);
                parameters.extend_from_slice(&conv.bias);
            }
            parameters.extend_from_slice(&encoder.dense_weight);
            parameters.extend_from_slice(&encoder.dense_bias);
        }
        let parameters = Var::from_vec(parameters, (weights.len(), plan.parameters()), device)?;
        Ok(Self { plan: Arc::new(plan), parameters, members: weights.len(), threads: 1, pools: Arc::default() })
    }

    /// Copies the parameters to the host.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn to_weights(&self) -> Result<Vec<ConvEncoderWeights>> {
        self.unpack(&self.parameters)
    }

    /// An array of the parameters' layout, one encoder for each member.
    fn unpack(&self, flat: &Tensor) -> Result<Vec<ConvEncoderWeights>> {
        let flat = flat.flatten_all()?.to_vec1::<f32>()?;
        let of_one = |block: &[f32]| {
            let convolution = |(start, outputs, inputs): (usize, usize, usize)| {
                let (weight, rest) = block[start..].split_at(9 * outputs * inputs);
                ConvWeights { inputs, outputs, weight: weight.to_vec(), bias: rest[..outputs].to_vec() }
            };
            let (weight, bias) = self.plan.dense_of(block);
            ConvEncoderWeights {
                convolutions: self.plan.layers().map(convolution).collect(),
                dense: self.plan.dense,
                dense_weight: weight.to_vec(),
                dense_bias: bias.to_vec(),
            }
        };
        Ok(flat.chunks_exact(self.plan.parameters()).map(of_one).collect())
    }

    /// Size of the images.
    pub fn frame(&self) -> FrameShape {
        self.plan.frame()
    }

    /// Width of an output.
    pub fn features(&self) -> usize {
        self.plan.dense.1
    }

    /// Number of encoders.
    pub fn members(&self) -> usize {
        self.members
    }

    /// What an optimiser steps.
    pub fn vars(&self) -> Vec<Var> {
        vec![self.parameters.clone()]
    }

    /// Multiply-adds of one encoder's forward pass on one image.
    pub fn multiply_adds(&self) -> usize {
        self.plan.multiply_adds()
    }

    /// Splits the work over up to `threads` threads in each pass; 1, the default, uses the caller's only.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// `(members, batch, features)` of images `(batch, height, width, channels)` of bytes. With `shifts`, one for each
    /// member and image, image `b` of member `m` is read `shifts[m batch + b]` rows and columns further, its border
    /// repeated. Gradients flow to the parameters.
    ///
    /// # Errors
    /// When images or shifts do not fit.
    pub fn forward(&self, images: &Tensor, shifts: Option<Vec<Shift>>) -> Result<Tensor> {
        self.apply(images, &self.parameters, shifts, true)
    }

    /// As [`Trunk::forward`], without gradients.
    ///
    /// # Errors
    /// As [`Trunk::forward`].
    pub fn forward_detached(&self, images: &Tensor, shifts: Option<Vec<Shift>>) -> Result<Tensor> {
        self.apply(images, &self.parameters.as_detached_tensor(), shifts, false)
    }

    fn apply(&self, images: &Tensor, parameters: &Tensor, shifts: Option<Vec<Shift>>, keep: bool) -> Result<Tensor> {
        let FrameShape { height, width, channels } = self.frame();
        let (batch, found) = (images.dim(0)?, images.dims());
        let wanted = [batch, usize::from(height), usize::from(width), usize::from(channels)];
        let shifted = shifts.as_ref().is_none_or(|shifts| shifts.len() == self.members * batch);
        if found != wanted || images.dtype() != DType::U8 || !shifted {
            bail!(
                "images {found:?} of {:?} with {:?} shifts, want bytes {wanted:?} for {} encoders",
                images.dtype(),
                shifts.map(|s| s.len()),
                self.members
            );
        }
        let images = images.contiguous()?;
        if take(parameters) {
            return self.algebra(&images, parameters, shifts.as_deref());
        }
        let op = TrunkOp { trunk: self.clone(), shifts, keep, saved: Mutex::new(None) };
        if keep { images.apply_op2(parameters, op) } else { images.apply_op2_no_bwd(parameters, &op) }
    }

    /// The same function in candle's own operations behind the kernel that reads the images.
    fn algebra(&self, images: &Tensor, parameters: &Tensor, shifts: Option<&[Shift]>) -> Result<Tensor> {
        let batch = images.dim(0)?;
        let one = |member: usize| {
            let shift = shifts.map(|shifts| {
                let own = shifts[member * batch..][..batch].as_flattened().to_vec();
                Tensor::from_vec(own, (batch, 2), images.device())
            });
            let image = normalise_images(images, shift.transpose()?.as_ref())?;
            let block = parameters.narrow(0, member, 1)?.squeeze(0)?;
            let part = |start: usize, dims: &[usize]| block.narrow(0, start, dims.iter().product())?.reshape(dims);
            let layers = self.plan.layers().map(|(start, outputs, inputs)| {
                let weight = part(start, &[outputs, inputs, 3, 3])?;
                Ok((weight, part(start + 9 * outputs * inputs, &[outputs])?))
            });
            let layers = layers.collect::<Result<Vec<_>>>()?;
            let (inputs, outputs) = self.plan.dense;
            let start = self.plan.convolutions();
            let dense = (part(start, &[inputs, outputs])?, part(start + inputs * outputs, &[outputs])?);
            Ok(encode(&image, &layers, &dense)?.features)
        };
        Tensor::stack(&(0..self.members).map(one).collect::<Result<Vec<_>>>()?, 0)
    }
}

/// New encoders: weights uniform with the variance of Glorot and Bengio (2010), biases 0, as COG's convolutions.
///
/// # Errors
/// When the image is too small for the poolings between so many convolutions, or a width is 0.
pub fn random_encoders(
    members: usize,
    channels: &[usize],
    features: usize,
    frame: FrameShape,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<ConvEncoderWeights>> {
    let one = |rng: &mut ChaCha8Rng| {
        let mut draw = |n: usize, fans: usize| {
            let bound = (6.0 / fans.max(1) as f32).sqrt();
            (0..n).map(|_| rng.random_range(-bound..=bound)).collect::<Vec<f32>>()
        };
        let mut inputs = usize::from(frame.channels);
        let mut convolutions = Vec::new();
        for outputs in channels.iter().copied() {
            let weight = draw(9 * inputs * outputs, 9 * (inputs + outputs));
            convolutions.push(ConvWeights { inputs, outputs, weight, bias: vec![0.0; outputs] });
            inputs = outputs;
        }
        let halvings = channels.len().saturating_sub(1) as u32;
        let side = |length: u16| usize::from(length.checked_shr(halvings).unwrap_or(0));
        let flat = inputs * side(frame.width) * side(frame.height);
        let dense_weight = draw(flat * features, flat + features);
        let dense_bias = vec![0.0; features];
        ConvEncoderWeights { convolutions, dense: (flat, features), dense_weight, dense_bias }
    };
    let all: Vec<_> = (0..members).map(|_| one(rng)).collect();
    all.iter().try_for_each(|encoder| Plan::new(encoder, frame).map(drop))?;
    Ok(all)
}

/// One application of a trunk to images.
struct TrunkOp {
    trunk: Trunk,
    shifts: Option<Vec<Shift>>,
    /// Whether a backward pass may follow.
    keep: bool,
    saved: Mutex<Option<Saved>>,
}

/// What a forward pass leaves for the backward pass.
struct Saved {
    images: CpuStorage,
    flat: CpuStorage,
    which: Vec<u8>,
    fingerprint: u64,
}

/// Images of one member that are one piece of work: which member, and the first image.
#[derive(Clone, Copy)]
struct Block {
    member: usize,
    first: usize,
    count: usize,
}

impl TrunkOp {
    fn blocks(&self, batch: usize, most: usize) -> Vec<Block> {
        let starts = (0..self.trunk.members).flat_map(|m| (0..batch).step_by(most).map(move |first| (m, first)));
        starts.map(|(member, first)| Block { member, first, count: most.min(batch - first) }).collect()
    }

    fn kernels<T: Real>(&self, parameters: &[T], backward: bool) -> Vec<Kernels<T>> {
        let plan = &self.trunk.plan;
        parameters.chunks_exact(plan.parameters()).map(|block| plan.kernels(block, backward)).collect()
    }

    fn forward<T: Real>(&self, images: &[u8], parameters: &[T]) -> Result<(CpuStorage, Shape)> {
        let Trunk { plan, members, threads, pools, .. } = &self.trunk;
        let (bytes, (inputs, outputs)) = (plan.frame().bytes(), plan.dense);
        let batch = images.len() / bytes;
        let kernels = self.kernels(parameters, false);
        let (keep, share) = if self.keep { (members * batch, 0) } else { (0, 1) };
        let shares = share * threads;
        let mut kept = pools.images.take::<T>(plan.kept() * (keep + shares));
        let mut which = pools.which(plan.which() * (keep + shares));
        let mut flat = pools.flat.take::<T>(members * batch * inputs);
        let mut scratch = pools.scratch.take::<T>(plan.scratch() * threads);
        let mut out = vec![T::zero(); members * batch * outputs];
        {
            let (mut kept, mut which) = (Parts(&mut kept), Parts(&mut which));
            let mut flat = Parts(&mut flat);
            let own = |block: &Block| if self.keep { block.count } else { 0 };
            let work = self.blocks(batch, BLOCK).into_iter().map(|block| {
                let kept = kept.next(own(&block) * plan.kept());
                let which = which.next(own(&block) * plan.which());
                (block, kept, which, flat.next(block.count * inputs))
            });
            let work: Vec<_> = work.collect();
            let places = scratch
                .chunks_exact_mut(plan.scratch().max(1))
                .map(|scratch| (scratch, kept.next(share * plan.kept()), which.next(share * plan.which())));
            in_shares(*threads, work, places.collect(), |(block, kept, which, flat), place| {
                let (scratch, shared_kept, shared_which) = place;
                let parameters = &parameters[block.member * plan.parameters()..][..plan.parameters()];
                for i in 0..block.count {
                    let image = &images[(block.first + i) * bytes..][..bytes];
                    let shift = self.shift(block.member * batch + block.first + i);
                    let kept = if self.keep { &mut kept[i * plan.kept()..] } else { &mut **shared_kept };
                    let which = if self.keep { &mut which[i * plan.which()..] } else { &mut **shared_which };
                    let flat = &mut flat[i * inputs..][..inputs];
                    plan.forward((parameters, &kernels[block.member]), (image, shift), (kept, which), flat, scratch);
                }
            })?;
        }
        self.dense(parameters, &flat, &mut out, batch)?;
        pools.scratch.give(scratch);
        if self.keep {
            let fingerprint = self.fingerprint(parameters);
            let (images, flat) = (T::to_cpu_storage_owned(kept), T::to_cpu_storage_owned(flat));
            *self.saved.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(Saved { images, flat, which, fingerprint });
        } else {
            pools.images.give(kept);
            pools.flat.give(flat);
            pools.give_which(which);
        }
        Ok((T::to_cpu_storage_owned(out), (*members, batch, outputs).into()))
    }

    /// `out = flat weight + bias` of every member.
    fn dense<T: Real>(&self, parameters: &[T], flat: &[T], out: &mut [T], batch: usize) -> Result<()> {
        let Trunk { plan, threads, .. } = &self.trunk;
        let (inputs, outputs) = plan.dense;
        let mut out = Parts(out);
        let work = self.blocks(batch, DENSE_BLOCK).into_iter().map(|block| (block, out.next(block.count * outputs)));
        in_shares(*threads, work.collect(), vec![(); *threads], |(block, out), ()| {
            let (weight, bias) = plan.dense_of(&parameters[block.member * plan.parameters()..]);
            let flat = Matrix::rows(&flat[(block.member * batch + block.first) * inputs..], inputs);
            product((block.count, outputs, inputs), out, flat, Matrix::rows(weight, outputs));
            kernels::add_bias(out, bias);
        })
    }

    fn shift(&self, image: usize) -> Shift {
        self.shifts.as_ref().map_or([0, 0], |shifts| shifts[image])
    }

    fn backward<T: Real>(&self, parameters: &Tensor, g: &Tensor) -> Result<Tensor> {
        let Trunk { plan, members, threads, pools, .. } = &self.trunk;
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(saved) = saved.as_ref() else { bail!("backward pass of a trunk without its forward pass") };
        let guards = [parameters, g].map(Tensor::storage_and_layout);
        let [parameter_data, g_data] = guards.each_ref().map(|(s, layout)| slice::<T>(cpu(s)?, layout));
        let (parameter_data, g) = (parameter_data?, g_data?);
        if saved.fingerprint != self.fingerprint(parameter_data) {
            bail!("the parameters of a trunk changed between its forward and its backward pass");
        }
        let kept = T::cpu_storage_as_slice(&saved.images)?;
        let flat = T::cpu_storage_as_slice(&saved.flat)?;
        let (batch, inputs) = (g.len() / (members * plan.dense.1), plan.dense.0);
        let kernels = self.kernels(parameter_data, true);
        let mut gradient = vec![T::zero(); members * plan.parameters()];
        let mut to_flat = pools.flat.take::<T>(members * batch * inputs);
        self.dense_backward(parameter_data, (flat, g), &mut gradient, &mut to_flat)?;
        let blocks = self.blocks(batch, BLOCK);
        let own = plan.convolutions();
        let mut partial = vec![T::zero(); blocks.len() * own];
        let mut scratch = pools.scratch.take::<T>(plan.scratch() * threads);
        let work = blocks.iter().copied().zip(partial.chunks_exact_mut(own.max(1))).collect();
        let places = scratch.chunks_exact_mut(plan.scratch().max(1)).collect();
        in_shares(*threads, work, places, |(block, gradient), scratch| {
            let first = block.member * batch + block.first;
            for image in first..first + block.count {
                let kept = &kept[image * plan.kept()..][..plan.kept()];
                let which = &saved.which[image * plan.which()..][..plan.which()];
                let [flat, g] = [flat, &*to_flat].map(|all| &all[image * inputs..][..inputs]);
                plan.backward(&kernels[block.member], (kept, which, flat), g, gradient, scratch);
            }
        })?;
        pools.scratch.give(scratch);
        pools.flat.give(to_flat);
        let mut sums = vec![T::zero(); own];
        for (member, gradient) in gradient.chunks_exact_mut(plan.parameters()).enumerate() {
            sums.fill(T::zero());
            let parts = blocks.iter().zip(partial.chunks_exact(own)).filter(|(block, _)| block.member == member);
            parts.for_each(|(_, part)| kernels::add_into(&mut sums, part));
            plan.reorder(&sums, gradient);
        }
        Tensor::from_vec(gradient, parameters.shape(), parameters.device())
    }

    /// Gradients of the dense layers' parameters and of the flat maps in front of them, for the outputs' gradient `g`.
    fn dense_backward<T: Real>(
        &self,
        parameters: &[T],
        (flat, g): (&[T], &[T]),
        gradient: &mut [T],
        to_flat: &mut [T],
    ) -> Result<()> {
        let Trunk { plan, members, threads, pools, .. } = &self.trunk;
        let (inputs, outputs) = plan.dense;
        let batch = g.len() / (members * outputs);
        let (rows, space) = (batch * inputs, batch * (inputs + outputs));
        let mut scratch = pools.scratch.take::<T>(space * threads);
        let (mut to_flat, mut scratches) = (Parts(to_flat), Parts(&mut scratch));
        let work = gradient.chunks_exact_mut(plan.parameters()).enumerate();
        let work = work.map(|(member, gradient)| (member, gradient, to_flat.next(rows))).collect();
        let places = (0..*threads).map(|_| scratches.next(space)).collect();
        in_shares(*threads, work, places, |(member, gradient, to_flat), scratch| {
            let (weight, _) = plan.dense_of(&parameters[member * plan.parameters()..]);
            let (flat, g) = (&flat[member * rows..][..rows], &g[member * batch * outputs..][..batch * outputs]);
            product_transposed((batch, inputs, outputs), to_flat, g, weight, scratch);
            let (weight, bias) = gradient[plan.convolutions()..].split_at_mut(inputs * outputs);
            product((inputs, outputs, batch), weight, Matrix::transposed(flat, inputs), Matrix::rows(g, outputs));
            kernels::add_column_sums(g, bias);
        })?;
        pools.scratch.give(scratch);
        Ok(())
    }

    /// Hash of the convolutions: changes with practically every step of an optimiser.
    fn fingerprint<T: Real>(&self, parameters: &[T]) -> u64 {
        let own = self.trunk.plan.convolutions();
        let convolutions = parameters.chunks_exact(self.trunk.plan.parameters()).flat_map(|block| &block[..own]);
        super::stack_op::hash(convolutions)
    }
}

/// A slice that is given away in parts.
struct Parts<'a, T>(&'a mut [T]);

impl<'a, T> Parts<'a, T> {
    fn next(&mut self, len: usize) -> &'a mut [T] {
        let (part, rest) = std::mem::take(&mut self.0).split_at_mut(len);
        self.0 = rest;
        part
    }
}

impl Drop for TrunkOp {
    fn drop(&mut self) {
        if let Some(saved) = self.saved.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            let pools = &self.trunk.pools;
            pools.images.give_storage(saved.images);
            pools.flat.give_storage(saved.flat);
            pools.give_which(saved.which);
        }
    }
}

impl CustomOp2 for TrunkOp {
    fn name(&self) -> &'static str {
        "convolutional-trunk"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, p: &CpuStorage, pl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (CpuStorage::U8(bytes), Some((start, end))) = (x, xl.contiguous_offsets()) else {
            bail!("a trunk sees contiguous bytes")
        };
        match p {
            CpuStorage::F32(_) => self.forward::<f32>(&bytes[start..end], slice(p, pl)?),
            CpuStorage::F64(_) => self.forward::<f64>(&bytes[start..end], slice(p, pl)?),
            _ => bail!("a trunk works in f32 or f64"),
        }
    }

    fn bwd(&self, _: &Tensor, p: &Tensor, _: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let gradient = match p.dtype() {
            DType::F32 => self.backward::<f32>(p, &g),
            DType::F64 => self.backward::<f64>(p, &g),
            other => bail!("a trunk works in f32 or f64, not {other:?}"),
        };
        Ok((None, Some(gradient?)))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::nn::ConvEncoder;

    const FRAME: FrameShape = FrameShape { width: 11, height: 9, channels: 2 };

    fn encoders(members: usize) -> Vec<ConvEncoderWeights> {
        let rng = &mut ChaCha8Rng::seed_from_u64(2);
        let mut all = random_encoders(members, &[5, 3, 4], 7, FRAME, rng).unwrap();
        for encoder in &mut all {
            let biases = encoder.convolutions.iter_mut().map(|conv| &mut conv.bias).chain([&mut encoder.dense_bias]);
            biases.flatten().for_each(|bias| *bias = rng.random_range(-0.3..0.3));
        }
        all
    }

    fn images(batch: usize) -> Tensor {
        let bytes: Vec<u8> = (0..batch * FRAME.bytes()).map(|i| (i * i * 31 % 253) as u8).collect();
        Tensor::from_vec(bytes, (batch, 9, 11, 2), &Device::Cpu).unwrap()
    }

    /// `images` read further, the border repeated.
    fn moved(images: &Tensor, shifts: &[Shift]) -> Tensor {
        let bytes = images.flatten_all().unwrap().to_vec1::<u8>().unwrap();
        let mut out = Vec::new();
        for (image, [down, right]) in bytes.chunks_exact(FRAME.bytes()).zip(shifts) {
            for (y, x) in (0..9).flat_map(|y| (0..11).map(move |x| (y, x))) {
                let (y, x) = ((y + down).clamp(0, 8) as usize, (x + right).clamp(0, 10) as usize);
                out.extend_from_slice(&image[(y * 11 + x) * 2..][..2]);
            }
        }
        Tensor::from_vec(out, images.shape(), &Device::Cpu).unwrap()
    }

    fn close(got: &Tensor, want: &Tensor) {
        assert_eq!(got.dims(), want.dims());
        let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (got, want) = (numbers(got), numbers(want));
        let scale = want.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() <= 1e-5 * scale + 1e-7), "{got:?} {want:?}");
    }

    #[test]
    fn features_and_gradients_are_those_of_the_reference() {
        // The gradient through a dense layer takes one of two ways: here many rows beside the weight's size, and few.
        [19, 3].into_iter().for_each(compare_with_the_reference);
    }

    fn compare_with_the_reference(batch: usize) {
        let weights = encoders(2);
        let images = images(batch);
        let shifts: Vec<Shift> = (0..2 * batch as i32).map(|i| [i % 9 - 4, (i * 5) % 9 - 4]).collect();
        let trunk = Trunk::from_weights(&weights, FRAME, &Device::Cpu).unwrap();
        assert_eq!(trunk.to_weights().unwrap(), weights);
        let probe = Tensor::rand(-1f32, 1f32, (2, batch, 7), &Device::Cpu).unwrap();
        let features = trunk.forward(&images, Some(shifts.clone())).unwrap();
        let detached = trunk.forward_detached(&images, Some(shifts.clone())).unwrap();
        close(&detached, &features);
        let gradients = (&features * &probe).unwrap().sum_all().unwrap().backward().unwrap();
        let gradients = trunk.unpack(gradients.get(&trunk.vars()[0]).unwrap()).unwrap();
        for (member, (weights, gradient)) in weights.iter().zip(gradients).enumerate() {
            let reference = ConvEncoder::from_weights(weights, &Device::Cpu).unwrap();
            let seen = moved(&images, &shifts[member * batch..][..batch]);
            let wanted = reference.forward(&seen).unwrap().features;
            close(&features.get(member).unwrap(), &wanted);
            let wanted = (wanted * probe.get(member).unwrap()).unwrap().sum_all().unwrap().backward().unwrap();
            let tensor = |v: &[f32], like: &Var| Tensor::from_slice(v, like.shape(), &Device::Cpu).unwrap();
            for ((weight, bias), got) in reference.convolutions().iter().zip(&gradient.convolutions) {
                close(&tensor(&got.weight, weight), wanted.get(weight).unwrap());
                close(&tensor(&got.bias, bias), wanted.get(bias).unwrap());
            }
            let (weight, bias) = reference.dense();
            close(&tensor(&gradient.dense_weight, weight), wanted.get(weight).unwrap());
            close(&tensor(&gradient.dense_bias, bias), wanted.get(bias).unwrap());
        }
    }

    #[test]
    fn threads_and_reused_buffers_change_no_bit() {
        let run = |threads: usize, trunk: &Trunk| {
            let trunk = trunk.clone().with_threads(threads);
            let out = trunk.forward(&images(70), None).unwrap();
            let gradients = out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (flat(&out), flat(gradients.get(&trunk.vars()[0]).unwrap()))
        };
        let trunk = Trunk::from_weights(&encoders(3), FRAME, &Device::Cpu).unwrap();
        let first = run(1, &trunk);
        assert_eq!(first, run(1, &trunk), "with used buffers");
        assert_eq!(first, run(3, &trunk));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let weights = encoders(1);
        let small = FrameShape { width: 3, ..FRAME };
        assert!(Trunk::from_weights(&weights, small, &Device::Cpu).is_err());
        assert!(Trunk::from_weights(&[], FRAME, &Device::Cpu).is_err());
        assert!(random_encoders(1, &[4, 4, 4], 3, small, &mut ChaCha8Rng::seed_from_u64(1)).is_err());
        let trunk = Trunk::from_weights(&weights, FRAME, &Device::Cpu).unwrap();
        assert!(trunk.forward(&images(2), Some(vec![[0, 0]])).is_err());
        assert!(trunk.forward(&images(2).to_dtype(DType::F32).unwrap(), None).is_err());
        let loss = trunk.forward(&images(2), None).unwrap().sum_all().unwrap();
        trunk.vars()[0].set(&trunk.vars()[0].affine(0.5, 0.0).unwrap()).unwrap();
        assert!(loss.backward().is_err(), "through changed parameters");
    }
}
