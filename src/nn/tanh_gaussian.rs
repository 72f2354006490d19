//! Gaussian policies behind a tanh.
//!
//! An action is `tanh(z)` with `z ~ N(mean, std)`; the tanh comes once, after the moments of an ensemble were matched.
//! All functions work on any leading dimensions: `(batch, action)`, `(members, batch, action)`,
//! `(members, samples, batch, action)`; noise and moments broadcast against each other.

use std::f64::consts::{LN_2, PI};

use candle_core::{D, Result, Tensor, bail};

use super::pointwise;
use super::policy_op::PolicyOp;
use super::weights::LogStdBounds;
use crate::kernels;

/// Bounds of the logarithm of an ensemble's standard deviation (Off2OnRL code).
pub(super) const ENSEMBLE_LOG_STD: (f64, f64) = (-20.0, 2.0);

/// A draw from a policy.
#[derive(Clone, Debug)]
pub struct Sample {
    /// `z = mean + std noise`.
    pub pre_tanh: Tensor,
    /// `tanh(z)`.
    pub action: Tensor,
    /// `log pi(action)`, without the action dimension.
    pub log_prob: Tensor,
}

/// Mean and standard deviation of each member, `(members, batch, action)`, from the actors' output.
///
/// The output holds means, then log standard deviations. A clamped log standard deviation has gradient 0.
///
/// # Errors
/// When the width of the output is odd.
pub fn member_moments(actor_out: &Tensor, bounds: LogStdBounds) -> Result<(Tensor, Tensor)> {
    let width = actor_out.dim(D::Minus1)?;
    if width % 2 != 0 {
        bail!("actor output has width {width}, want two numbers per action entry");
    }
    let mean = actor_out.narrow(D::Minus1, 0, width / 2)?;
    let log_std = actor_out.narrow(D::Minus1, width / 2, width / 2)?;
    let log_std = pointwise::clamp(&log_std, f64::from(bounds.min), f64::from(bounds.max))?;
    Ok((mean, log_std.exp()?))
}

/// Mean and standard deviation `(batch, action)` of the Gaussian with the moments of the mixture (Off2OnRL, Eq. 5).
///
/// Uses `mean sigma_i^2 + mean (m_i - m)^2`, which is the paper's `mean(m_i^2 + sigma_i^2) - m^2` without its
/// cancellation. Gradients flow to all members.
///
/// # Errors
/// When the width of the output is odd.
pub fn moments(actor_out: &Tensor, bounds: LogStdBounds) -> Result<(Tensor, Tensor)> {
    let (means, stds) = member_moments(actor_out, bounds)?;
    let mean = means.mean(0)?;
    let spread = means.broadcast_sub(&mean)?.sqr()?.mean(0)?;
    let std = (stds.sqr()?.mean(0)? + spread)?.sqrt()?;
    let (low, high) = ENSEMBLE_LOG_STD;
    Ok((mean, pointwise::clamp(&std, low.exp(), high.exp())?))
}

/// Action and its log-probability for given standard normal noise, differentiable in the moments.
///
/// # Errors
/// When the shapes do not broadcast.
pub fn sample(mean: &Tensor, std: &Tensor, noise: &Tensor) -> Result<Sample> {
    let pre_tanh = noise.broadcast_mul(std)?.broadcast_add(mean)?;
    let log_prob = log_prob(&pre_tanh, std, noise)?;
    Ok(Sample { action: pre_tanh.tanh()?, pre_tanh, log_prob })
}

/// [`sample`] of the [`moments`] of `actor_out`, `(members, batch, 2 action)`, differentiable in it: one kernel on a GPU and,
/// for noise `(batch, action)`, one operation on the processor.
///
/// # Errors
/// When the shapes do not fit.
pub fn draw(actor_out: &Tensor, noise: &Tensor, bounds: LogStdBounds) -> Result<Sample> {
    if kernels::take(actor_out) {
        let [action, pre_tanh, log_prob] = kernels::policy_sample(actor_out, noise, (bounds.min, bounds.max))?;
        return Ok(Sample { pre_tanh, action, log_prob });
    }
    if !actor_out.device().is_cpu() || noise.rank() != 2 {
        let (mean, std) = moments(actor_out, bounds)?;
        return sample(&mean, &std, noise);
    }
    let drawn = actor_out.contiguous()?.apply_op2(&noise.contiguous()?, PolicyOp(bounds))?;
    let width = noise.dim(1)?;
    let pre_tanh = drawn.narrow(1, 0, width)?;
    Ok(Sample { action: pre_tanh.tanh()?, pre_tanh, log_prob: drawn.narrow(1, width, 1)?.squeeze(1)? })
}

/// `log pi(tanh(z))` of a given `z`, differentiable in `z` and the moments.
///
/// # Errors
/// When the shapes do not broadcast.
pub fn log_prob_at(mean: &Tensor, std: &Tensor, pre_tanh: &Tensor) -> Result<Tensor> {
    log_prob(pre_tanh, std, &pre_tanh.broadcast_sub(mean)?.broadcast_div(std)?)
}

/// `log pi(action)` of a given action, which is clipped to `±clip` first so that its `atanh` is finite.
///
/// # Errors
/// When the shapes do not broadcast.
pub fn log_prob_of(mean: &Tensor, std: &Tensor, action: &Tensor, clip: f64) -> Result<Tensor> {
    let a = pointwise::clamp(action, -clip, clip)?;
    let pre_tanh = (((&a + 1.0)? / a.affine(-1.0, 1.0)?)?.log()? * 0.5)?;
    log_prob_at(mean, std, &pre_tanh)
}

/// `sum_d [log N(z_d; m_d, sigma_d) - 2 (ln 2 - z_d - softplus(-2 z_d))]`: exact, without an epsilon.
fn log_prob(pre_tanh: &Tensor, std: &Tensor, noise: &Tensor) -> Result<Tensor> {
    let normal = ((noise.sqr()? * -0.5)? - 0.5 * (2.0 * PI).ln())?.broadcast_sub(&std.log()?)?;
    let softplus = pointwise::softplus(&pre_tanh.affine(-2.0, 0.0)?)?;
    let tanh_slope = ((pre_tanh + softplus)? * -2.0)?.affine(1.0, 2.0 * LN_2)?;
    normal.broadcast_sub(&tanh_slope)?.sum(D::Minus1)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn tensor(numbers: &[f64], dims: &[usize]) -> Tensor {
        Tensor::from_slice(numbers, dims, &Device::Cpu).unwrap()
    }

    #[test]
    fn log_prob_is_the_density_of_the_action() {
        // The density of a = tanh(z), integrated over a fine grid of actions, is 1.
        let (mean, std) = (tensor(&[0.3], &[1]), tensor(&[0.7], &[1]));
        let cells = 20_000;
        let grid: Vec<f64> = (0..cells).map(|i| (f64::from(i) + 0.5) / f64::from(cells) * 2.0 - 1.0).collect();
        let log_prob = log_prob_of(&mean, &std, &tensor(&grid, &[grid.len(), 1]), 0.999_999).unwrap();
        let mass = log_prob.exp().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap() * 2.0 / f64::from(cells);
        assert!((mass - 1.0).abs() < 1e-6, "{mass}");
    }

    #[test]
    fn a_sample_and_its_action_have_the_same_log_prob() {
        let (mean, std) = (tensor(&[0.1, -0.4], &[1, 2]), tensor(&[0.5, 0.2], &[1, 2]));
        let noise = tensor(&[0.3, -1.0, 2.0, 0.0], &[2, 2]);
        let drawn = sample(&mean, &std, &noise).unwrap();
        let again = log_prob_of(&mean, &std, &drawn.action, 0.999_999).unwrap();
        let difference = (again - drawn.log_prob).unwrap().abs().unwrap().max(0).unwrap();
        assert!(difference.to_scalar::<f64>().unwrap() < 1e-10);
    }

    #[test]
    fn moments_of_equal_members_are_the_members_own_even_far_out() {
        // In f32 the textbook variance of mean 1000 and std 0.01 is 0 or worse.
        let out = Tensor::new(&[[[1000f32, 0.01f32.ln()]], [[1000.0, 0.01f32.ln()]]], &Device::Cpu).unwrap();
        let (mean, std) = moments(&out, LogStdBounds::default()).unwrap();
        assert_eq!(mean.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [1000.0]);
        assert!((std.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0] - 0.01).abs() < 1e-8);
    }

    /// The fused draw against the algebra: values and gradients, members inside and outside of their bounds.
    #[test]
    fn a_draw_is_a_sample_of_the_moments() {
        let rng = &mut <rand_chacha::ChaCha8Rng as rand::SeedableRng>::seed_from_u64(7);
        let mut numbers = |count: usize, scale: f64| -> Vec<f64> {
            (0..count).map(|_| rand::Rng::random_range(rng, -scale..scale)).collect()
        };
        for (members, batch, action, bounds) in [
            (3, 5, 2, LogStdBounds::default()),
            (1, 4, 3, LogStdBounds { min: -1.0, max: 1.0 }),
            (2, 1, 1, LogStdBounds { min: -40.0, max: 9.0 }),
        ] {
            let dims = [members, batch, 2 * action];
            let out = candle_core::Var::from_tensor(&tensor(&numbers(dims.iter().product(), 3.0), &dims)).unwrap();
            let noise = tensor(&numbers(batch * action, 2.0), &[batch, action]);
            let probe =
                [tensor(&numbers(batch * action, 1.0), &[batch, action]), tensor(&numbers(batch, 1.0), &[batch])];
            let judge = |action: &Tensor, log_prob: &Tensor| {
                let loss = ((action * &probe[0]).unwrap().sum_all().unwrap()
                    + (log_prob * &probe[1]).unwrap().sum_all().unwrap())
                .unwrap();
                let gradient = loss.backward().unwrap().get(&out).unwrap().flatten_all().unwrap();
                (loss.to_scalar::<f64>().unwrap(), gradient.to_vec1::<f64>().unwrap())
            };
            let (mean, std) = moments(&out, bounds).unwrap();
            let want = sample(&mean, &std, &noise).unwrap();
            let want = judge(&want.action, &want.log_prob);
            let got = draw(&out, &noise, bounds).unwrap();
            let got = judge(&got.action, &got.log_prob);
            assert!((got.0 - want.0).abs() < 1e-12 * want.0.abs().max(1.0), "{got:?} {want:?}");
            assert!(
                got.1.iter().zip(&want.1).all(|(g, w)| (g - w).abs() < 1e-10 * w.abs().max(1.0)),
                "{got:?} {want:?}"
            );
        }
        let out = tensor(&[0.0; 8], &[1, 2, 4]);
        assert!(draw(&out, &tensor(&[0.0; 3], &[1, 3]), LogStdBounds::default()).is_err());
    }

    #[test]
    fn odd_outputs_are_refused() {
        let out = Tensor::zeros((1, 2, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(moments(&out, LogStdBounds::default()).is_err());
    }
}
