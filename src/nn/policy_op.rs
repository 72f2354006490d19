//! A draw from the moment-matched tanh-Gaussian of an ensemble as one differentiable operation on the processor.
//!
//! The same function as `tanh_gaussian::moments` followed by `sample`, which are its witness: there it is sixty passes of
//! candle over small tensors, here one forward and one backward.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};

use super::kernels::Real;
use super::stack_op::{cpu, slice};
use super::tanh_gaussian::ENSEMBLE_LOG_STD;
use super::weights::LogStdBounds;

/// `ln sqrt(2 pi)`.
const HALF_LN_TAU: f64 = 0.918_938_533_204_672_8;

/// Of outputs `(members, batch, 2 action)` and noise `(batch, action)`: rows of an action before its `tanh` and its
/// log-probability, `(batch, action + 1)`. Gradients flow to the outputs.
pub(super) struct PolicyOp(pub(super) LogStdBounds);

/// Sizes of the arrays.
#[derive(Clone, Copy)]
struct Sizes {
    members: usize,
    batch: usize,
    action: usize,
}

/// What the members say about one action entry of one row.
struct Matched<T> {
    mean: T,
    /// Before its bounds.
    raw_std: T,
    std: T,
}

impl PolicyOp {
    fn sizes(output: &[usize], noise: &[usize]) -> Result<Sizes> {
        match (output, noise) {
            (&[members, batch, double], &[rows, action]) if rows == batch && double == 2 * action && members > 0 => {
                Ok(Sizes { members, batch, action })
            }
            _ => bail!("noise {noise:?} for outputs {output:?} of an ensemble's actors"),
        }
    }

    /// A member's standard deviation, and whether its logarithm lies strictly inside the bounds.
    fn std_of<T: Real>(&self, log_std: T) -> (T, bool) {
        let (low, high) = (T::from_f64(f64::from(self.0.min)), T::from_f64(f64::from(self.0.max)));
        // NaN stays.
        let bounded = if log_std < low {
            low
        } else if log_std > high {
            high
        } else {
            log_std
        };
        (bounded.exp(), log_std > low && log_std < high)
    }

    /// Mean and standard deviation of the mixture from the members' outputs of row `row` and entry `entry`.
    fn matched<T: Real>(&self, output: &[T], sizes: Sizes, row: usize, entry: usize) -> Matched<T> {
        let count = T::from_f64(sizes.members as f64);
        let at = |member: usize| (member * sizes.batch + row) * 2 * sizes.action + entry;
        let mut mean = T::zero();
        for member in 0..sizes.members {
            mean += output[at(member)];
        }
        let mean = mean / count;
        let (mut squares, mut spread) = (T::zero(), T::zero());
        for member in 0..sizes.members {
            let (std, _) = self.std_of(output[at(member) + sizes.action]);
            let off = output[at(member)] - mean;
            squares += std * std;
            spread += off * off;
        }
        let raw_std = (squares / count + spread / count).sqrt();
        let (low, high) = (T::from_f64(ENSEMBLE_LOG_STD.0.exp()), T::from_f64(ENSEMBLE_LOG_STD.1.exp()));
        let std = if raw_std < low {
            low
        } else if raw_std > high {
            high
        } else {
            raw_std
        };
        Matched { mean, raw_std, std }
    }

    fn forward<T: Real>(&self, output: &[T], noise: &[T], sizes: Sizes) -> (CpuStorage, Shape) {
        let width = sizes.action + 1;
        let mut drawn = vec![T::zero(); sizes.batch * width];
        let (half, two) = (T::from_f64(0.5), T::from_f64(2.0));
        let (ln_tau, ln_two) = (T::from_f64(HALF_LN_TAU), T::from_f64(std::f64::consts::LN_2));
        for (row, drawn) in drawn.chunks_exact_mut(width).enumerate() {
            let mut log_prob = T::zero();
            for entry in 0..sizes.action {
                let Matched { mean, std, .. } = self.matched(output, sizes, row, entry);
                let noise = noise[row * sizes.action + entry];
                let z = mean + std * noise;
                let normal = T::zero() - half * noise * noise - ln_tau - std.ln();
                let doubled = z + z;
                let size = if doubled < T::zero() { T::zero() - doubled } else { doubled };
                let above = if doubled < T::zero() { size } else { T::zero() };
                let softplus = above + (T::zero() - size).exp().ln_1p();
                log_prob += normal - two * (ln_two - z - softplus);
                drawn[entry] = z;
            }
            drawn[sizes.action] = log_prob;
        }
        (T::to_cpu_storage_owned(drawn), (sizes.batch, width).into())
    }

    fn backward<T: Real>(&self, output: &Tensor, noise: &Tensor, drawn: &Tensor, g: &Tensor) -> Result<Tensor> {
        let sizes = Self::sizes(output.dims(), noise.dims())?;
        let guards = [output, noise, drawn, g].map(Tensor::storage_and_layout);
        let [out, noise, drawn, g] = guards.each_ref().map(|(s, layout)| slice::<T>(cpu(s)?, layout));
        let (out, noise, drawn, g) = (out?, noise?, drawn?, g?);
        let mut gradient = vec![T::zero(); out.len()];
        let (count, two) = (T::from_f64(sizes.members as f64), T::from_f64(2.0));
        let (low, high) = (T::from_f64(ENSEMBLE_LOG_STD.0.exp()), T::from_f64(ENSEMBLE_LOG_STD.1.exp()));
        for row in 0..sizes.batch {
            let at = row * (sizes.action + 1);
            let to_log_prob = g[at + sizes.action];
            for entry in 0..sizes.action {
                let Matched { mean, raw_std, std } = self.matched(out, sizes, row, entry);
                // The slope of -2 (ln 2 - z - softplus(-2 z)) is 2 tanh(z).
                let to_z = g[at + entry] + to_log_prob * two * drawn[at + entry].tanh();
                let to_std = to_z * noise[row * sizes.action + entry] - to_log_prob / std;
                let inside = raw_std > low && raw_std < high;
                let to_variance = if inside { to_std / (two * raw_std) } else { T::zero() };
                for member in 0..sizes.members {
                    let place = (member * sizes.batch + row) * 2 * sizes.action + entry;
                    let (std, free) = self.std_of(out[place + sizes.action]);
                    gradient[place] = (to_z + to_variance * two * (out[place] - mean)) / count;
                    if free {
                        gradient[place + sizes.action] = to_variance * two * std * std / count;
                    }
                }
            }
        }
        Tensor::from_vec(gradient, output.shape(), output.device())
    }
}

impl CustomOp2 for PolicyOp {
    fn name(&self) -> &'static str {
        "policy-draw"
    }

    fn cpu_fwd(&self, out: &CpuStorage, ol: &Layout, noise: &CpuStorage, nl: &Layout) -> Result<(CpuStorage, Shape)> {
        let sizes = Self::sizes(ol.dims(), nl.dims())?;
        match out {
            CpuStorage::F32(_) => Ok(self.forward::<f32>(slice(out, ol)?, slice(noise, nl)?, sizes)),
            CpuStorage::F64(_) => Ok(self.forward::<f64>(slice(out, ol)?, slice(noise, nl)?, sizes)),
            _ => bail!("a policy works in f32 or f64"),
        }
    }

    fn bwd(
        &self,
        out: &Tensor,
        noise: &Tensor,
        drawn: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = g.contiguous()?;
        let gradient = match out.dtype() {
            DType::F64 => self.backward::<f64>(out, noise, drawn, &g),
            _ => self.backward::<f32>(out, noise, drawn, &g),
        };
        Ok((Some(gradient?), None))
    }
}
