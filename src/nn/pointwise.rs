//! Element-wise selections whose gradients candle defines differently, and softplus.
//!
//! candle passes half the gradient on a clamp's bound and to both sides of a tie; here a clamped entry gets none and
//! the first of equal entries gets all, as in the published implementations.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};

use super::kernels::Real;
use super::stack_op::slice;

/// `clamp(x, min, max)`; gradient only strictly inside.
///
/// # Errors
/// When candle cannot run the operation.
pub fn clamp(x: &Tensor, min: f64, max: f64) -> Result<Tensor> {
    let inside = (x.gt(min)? * x.lt(max)?)?;
    inside.where_cond(x, &x.detach().clamp(min, max)?)
}

/// `max(x, 0)` with gradient 0 at 0.
///
/// # Errors
/// When candle cannot run the operation.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    x.le(0.0)?.where_cond(&x.zeros_like()?, x)
}

/// The smaller of two tensors of equal shape; a tie goes to `a`.
///
/// # Errors
/// When the shapes differ.
pub fn minimum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    b.lt(a)?.where_cond(b, a)
}

/// The larger of two tensors of equal shape; a tie goes to `a`.
///
/// # Errors
/// When the shapes differ.
pub fn maximum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    b.gt(a)?.where_cond(b, a)
}

/// Smallest entry along the first dimension, which is removed; a tie goes to the first.
///
/// # Errors
/// When `x` is a scalar.
pub fn min_over_first(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    x.gather(&x.argmin_keepdim(0)?, 0)?.squeeze(0)
}

/// `ln sum exp(x)` along `dim`, which is removed.
///
/// Entries so small that all of them together are lost in the rounding of the sum count as 0, and their gradient is
/// exactly 0: the networks behind them have nothing to do for them.
///
/// # Errors
/// When `x` has no such dimension.
pub fn log_sum_exp(x: &Tensor, dim: usize) -> Result<Tensor> {
    let shift = x.detach().max_keepdim(dim)?;
    let rounding = if x.dtype() == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
    let least = (0.5 * rounding / x.dim(dim)?.max(1) as f64).ln();
    let x = x.broadcast_sub(&shift)?;
    let nothing = Tensor::full(f32::NEG_INFINITY, x.shape(), x.device())?.to_dtype(x.dtype())?;
    let x = x.lt(least)?.where_cond(&nothing, &x)?;
    (x.exp()?.sum_keepdim(dim)?.log()? + shift)?.squeeze(dim)
}

/// `ln(1 + exp(x))`; gradient `sigmoid(x)`. Exact in its tails on the processor, elsewhere to absolute precision.
///
/// # Errors
/// When candle cannot run the operation.
pub fn softplus(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        x.contiguous()?.apply_op1(Map(softplus_of, Some(sigmoid_of)))
    } else {
        softplus_algebra(x)
    }
}

fn softplus_algebra(x: &Tensor) -> Result<Tensor> {
    let size = x.abs()?;
    ((x + &size)? * 0.5)? + (size.neg()?.exp()? + 1.0)?.log()?
}

fn softplus_of(v: f64) -> f64 {
    v.max(0.0) + (-v.abs()).exp().ln_1p()
}

fn sigmoid_of(v: f64) -> f64 {
    1.0 / (1.0 + (-v).exp())
}

/// A function of each number and, where it has one, its derivative.
struct Map(fn(f64) -> f64, Option<fn(f64) -> f64>);

impl Map {
    fn over<T: Real>(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = slice::<T>(storage, layout)?.iter().map(|v| T::from_f64((self.0)(v.to_f64()))).collect();
        Ok((T::to_cpu_storage_owned(out), layout.shape().clone()))
    }
}

impl CustomOp1 for Map {
    fn name(&self) -> &'static str {
        "map"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        match storage {
            CpuStorage::F32(_) => self.over::<f32>(storage, layout),
            CpuStorage::F64(_) => self.over::<f64>(storage, layout),
            _ => bail!("want a tensor in f32 or f64"),
        }
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let derivative = self.1.map(|f| x.contiguous()?.apply_op1_no_bwd(&Map(f, None)));
        derivative.transpose()?.map(|d| g * d).transpose()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn var(numbers: &[f64]) -> Var {
        Var::new(numbers, &Device::Cpu).unwrap()
    }

    /// Values and the gradient of their sum with respect to `x`.
    fn run(x: &Var, y: &Tensor) -> (Vec<f64>, Vec<f64>) {
        let gradients = y.sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(x).map_or(vec![0.0; x.elem_count()], |g| g.to_vec1().unwrap());
        (y.to_vec1().unwrap(), gradient)
    }

    #[test]
    fn a_clamp_passes_gradient_strictly_inside() {
        let x = var(&[-2.0, -1.0, 0.5, 1.0, 3.0]);
        let (y, g) = run(&x, &clamp(&x, -1.0, 1.0).unwrap());
        assert_eq!(y, [-1.0, -1.0, 0.5, 1.0, 1.0]);
        assert_eq!(g, [0.0, 0.0, 1.0, 0.0, 0.0]);
        let (y, g) = run(&x, &relu(&clamp(&x, -5.0, 5.0).unwrap()).unwrap());
        assert_eq!(y, [0.0, 0.0, 0.5, 1.0, 3.0]);
        assert_eq!(g, [0.0, 0.0, 1.0, 1.0, 1.0]);
        assert_eq!(run(&var(&[0.0]), &relu(&var(&[0.0])).unwrap()).1, [0.0]);
    }

    #[test]
    fn a_tie_goes_to_the_first() {
        let (a, b) = (var(&[1.0, 2.0, 3.0]), var(&[1.0, 5.0, 0.0]));
        let small = minimum(&a, &b).unwrap();
        assert_eq!(run(&a, &small), (vec![1.0, 2.0, 0.0], vec![1.0, 1.0, 0.0]));
        assert_eq!(run(&b, &small).1, [0.0, 0.0, 1.0]);
        let large = maximum(&a, &b).unwrap();
        assert_eq!(run(&a, &large), (vec![1.0, 5.0, 3.0], vec![1.0, 0.0, 1.0]));
        let rows = Tensor::stack(&[a.as_tensor(), b.as_tensor(), a.as_tensor()], 0).unwrap();
        assert_eq!(run(&b, &min_over_first(&rows).unwrap()), (vec![1.0, 2.0, 0.0], vec![0.0, 0.0, 1.0]));
    }

    #[test]
    fn softplus_is_exact_in_its_tails() {
        let x = var(&[-40.0, -1.0, 0.0, 1.0, 800.0]);
        let (y, g) = run(&x, &softplus(&x).unwrap());
        let want = [4.248_354_255_291_589e-18, 0.313_261_687_518_222_8, 2f64.ln(), 1.313_261_687_518_222_8, 800.0];
        assert!(y.iter().zip(want).all(|(y, w)| (y - w).abs() <= 1e-15 * w));
        assert!(g[0] > 0.0 && g[2] == 0.5 && g[4] == 1.0);
        let (other, slope) = run(&x, &softplus_algebra(&x).unwrap());
        assert!(y.iter().zip(other).chain(g.iter().zip(slope)).all(|(a, b)| (a - b).abs() < 1e-12));
    }

    #[test]
    fn log_sum_exp_keeps_large_entries_and_its_gradient_sums_to_one() {
        let x = var(&[1000.0, 1000.0, -1000.0, 999.0]);
        let y = log_sum_exp(&x, 0).unwrap().reshape(1).unwrap();
        let (y, g) = run(&x, &y);
        assert!((y[0] - 1000.0 - (2.0 + (-1f64).exp()).ln()).abs() < 1e-12);
        assert!((g.iter().sum::<f64>() - 1.0).abs() < 1e-12 && g[0] == g[1]);
        // The entry at -1000 is lost in rounding: no gradient at all. One that rounding keeps has a gradient.
        assert!(g[2] == 0.0 && g[3] > 0.0);
        let near = var(&[0.0, -30.0]);
        let (_, g) = run(&near, &log_sum_exp(&near, 0).unwrap().reshape(1).unwrap());
        assert!((g[1] - (-30f64).exp()).abs() < 1e-20, "{g:?}");
    }
}
