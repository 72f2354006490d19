//! Loops over rows of matrices, and the matrix product.
//!
//! Every kernel is compiled three times on x86-64: for the baseline, for AVX2 with FMA and for AVX-512, chosen at run
//! time, because the default build of the program is for any x86-64. Other processors get the plain loop, which the
//! compiler vectorises for their own baseline. No copy fuses a product with a sum, so all give the same bits. Matrices
//! are row-major.
#![allow(unsafe_code, reason = "the matrix product takes pointers; the wide copy of a kernel needs a processor check")]
#![allow(clippy::inline_always, reason = "a loop must be compiled inside the function that enables its instructions")]

use std::sync::Once;

use candle_core::WithDType;

use crate::kernels::AdamStep;

/// `f32` or `f64`: the learner computes in the first, tests of formulas in the second.
pub(super) trait Real: WithDType {
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn ln_1p(self) -> Self;
    fn sqrt(self) -> Self;
    fn tanh(self) -> Self;
}

macro_rules! real {
    ($type:ty: $($function:ident)*) => {
        impl Real for $type {
            $(fn $function(self) -> Self {
                <$type>::$function(self)
            })*
        }
    };
}
real!(f32: exp ln ln_1p sqrt tanh);
real!(f64: exp ln ln_1p sqrt tanh);

/// `eps` under the root of a layer norm (flax's default, which the published checkpoints use).
pub(super) const LAYER_NORM_EPS: f64 = 1e-6;

/// Partial sums that a reduction keeps; a constant, so that results do not depend on the processor's width.
const LANES: usize = 32;

/// Calls the widest of a function's copies that the processor can run.
macro_rules! dispatch {
    ([$($generic:ident: $bound:path)?] $plain:ident($($arg:ident : $type:ty),*)) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw")]
            fn widest$(<$generic: $bound>)?($($arg: $type),*) {
                $plain($($arg),*);
            }
            #[target_feature(enable = "avx2,fma")]
            fn wide$(<$generic: $bound>)?($($arg: $type),*) {
                $plain($($arg),*);
            }
            if is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
            {
                // SAFETY: the processor has the features, as just checked; avx512vl implies avx512f.
                return unsafe { widest($($arg),*) };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                // SAFETY: the processor has both features, as just checked.
                return unsafe { wide($($arg),*) };
            }
        }
        $plain($($arg),*);
    }};
}

/// Declares kernels over `f32` or `f64`.
macro_rules! kernels {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident : $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$doc])*
        pub(super) fn $name<T: Real>($($arg: $type),*) {
            #[inline(always)]
            fn plain<T: Real>($($arg: $type),*) $body
            dispatch!([T: Real] plain($($arg: $type),*));
        }
    )*};
}

/// Sum of `f` over two rows of equal length, in `LANES` partial sums that are added in pairs.
#[inline(always)]
fn reduce<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::zero(); LANES];
    let (blocks_a, blocks_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let mut tail = T::zero();
    for (x, y) in blocks_a.remainder().iter().zip(blocks_b.remainder()) {
        tail += f(*x, *y);
    }
    for (x, y) in blocks_a.zip(blocks_b) {
        for i in 0..LANES {
            lanes[i] += f(x[i], y[i]);
        }
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    lanes[0] + tail
}

/// `relu` that keeps NaN visible.
#[inline(always)]
fn relu<T: Real>(v: T) -> T {
    if v <= T::zero() { T::zero() } else { v }
}

kernels! {
    /// `y[r] += bias`.
    fn add_bias(y: &mut [T], bias: &[T]) {
        for row in y.chunks_exact_mut(bias.len()) {
            for (v, b) in row.iter_mut().zip(bias) {
                *v += *b;
            }
        }
    }

    /// `y[r] = relu(y[r] + bias)`.
    fn add_bias_relu(y: &mut [T], bias: &[T]) {
        for row in y.chunks_exact_mut(bias.len()) {
            for (v, b) in row.iter_mut().zip(bias) {
                *v = relu(*v + *b);
            }
        }
    }

    /// `out = relu(layer_norm(x + bias))`; leaves the normalised rows in `x` and `1/std` of each row in `inv_std`.
    fn layer_norm_relu(x: &mut [T], bias: &[T], scale: &[T], shift: &[T], inv_std: &mut [T], out: &mut [T]) {
        let width = bias.len();
        let count = T::from_f64(width as f64);
        for ((row, inv), out) in x.chunks_exact_mut(width).zip(inv_std).zip(out.chunks_exact_mut(width)) {
            for (v, b) in row.iter_mut().zip(bias) {
                *v += *b;
            }
            let mean = reduce(row, row, |v, _| v) / count;
            let variance = reduce(row, row, |v, _| (v - mean) * (v - mean)) / count;
            *inv = T::from_f64(1.0 / (variance.to_f64() + LAYER_NORM_EPS).sqrt());
            for (((v, y), s), b) in row.iter_mut().zip(out).zip(scale).zip(shift) {
                *v = (*v - mean) * *inv;
                *y = relu(*v * *s + *b);
            }
        }
    }

    /// `out[r] = x[r] . weight + bias`: a product with one column.
    fn dot_rows(x: &[T], weight: &[T], bias: T, out: &mut [T]) {
        for (row, y) in x.chunks_exact(weight.len()).zip(out) {
            *y = reduce(row, weight, |a, b| a * b) + bias;
        }
    }

    /// `out += sum_r g[r] x[r]`: the weight gradient of a product with one column.
    fn add_weighted_rows(x: &[T], g: &[T], out: &mut [T]) {
        for (row, g) in x.chunks_exact(out.len()).zip(g) {
            for (y, v) in out.iter_mut().zip(row) {
                *y += *g * *v;
            }
        }
    }

    /// `delta[i] = g[rows[i]] weight`: the input gradient of a product with one column.
    fn outer_rows(g: &[T], rows: &[usize], weight: &[T], delta: &mut [T]) {
        for (row, r) in delta.chunks_exact_mut(weight.len()).zip(rows) {
            for (d, w) in row.iter_mut().zip(weight) {
                *d = g[*r] * *w;
            }
        }
    }

    /// `delta[i] = 0` where the ReLU output `h[rows[i]]` is 0.
    fn relu_backward(delta: &mut [T], h: &[T], rows: &[usize], width: usize) {
        for (row, r) in delta.chunks_exact_mut(width).zip(rows) {
            for (d, h) in row.iter_mut().zip(&h[r * width..][..width]) {
                *d = if *h <= T::zero() { T::zero() } else { *d };
            }
        }
    }

    /// Gradient through a layer norm, in place; `x` holds the normalised rows.
    fn layer_norm_backward(delta: &mut [T], x: &[T], inv_std: &[T], rows: &[usize], scale: &[T]) {
        let width = scale.len();
        let count = T::from_f64(width as f64);
        for (row, r) in delta.chunks_exact_mut(width).zip(rows) {
            let x = &x[r * width..][..width];
            for (d, s) in row.iter_mut().zip(scale) {
                *d *= *s;
            }
            let mean = reduce(row, row, |d, _| d) / count;
            let along = reduce(row, x, |d, x| d * x) / count;
            for (d, x) in row.iter_mut().zip(x) {
                *d = inv_std[*r] * (*d - mean - *x * along);
            }
        }
    }

    /// `scale[c] += sum_r delta[r][c] x[r][c]`: the gradient of a layer norm's scale.
    fn add_column_dots(delta: &[T], x: &[T], scale: &mut [T]) {
        let width = scale.len();
        for (row, x) in delta.chunks_exact(width).zip(x.chunks_exact(width)) {
            for ((s, d), x) in scale.iter_mut().zip(row).zip(x) {
                *s += *d * *x;
            }
        }
    }

    /// `out[c] += sum_r delta[r][c]`: the gradient of a bias.
    fn add_column_sums(delta: &[T], out: &mut [T]) {
        for row in delta.chunks_exact(out.len()) {
            for (y, d) in out.iter_mut().zip(row) {
                *y += *d;
            }
        }
    }

    /// `out[x] = (first[x], second[x], third[x])` with so many channels each.
    fn interleave(first: &[T], second: &[T], third: &[T], out: &mut [T], channels: usize) {
        let rows = first.chunks_exact(channels).zip(second.chunks_exact(channels)).zip(third.chunks_exact(channels));
        for (out, ((first, second), third)) in out.chunks_exact_mut(3 * channels).zip(rows) {
            let (a, rest) = out.split_at_mut(channels);
            let (b, c) = rest.split_at_mut(channels);
            for (out, from) in [(a, first), (b, second), (c, third)] {
                for (o, v) in out.iter_mut().zip(from) {
                    *o = *v;
                }
            }
        }
    }

    /// `out[c][r] = x[r][c]` for `x` with so many columns, in square tiles: a walk along either side would leave the
    /// cache at every step.
    fn transpose(x: &[T], columns: usize, out: &mut [T]) {
        const TILE: usize = 8;
        let rows = x.len() / columns.max(1);
        for r in (0..rows).step_by(TILE) {
            for c in (0..columns).step_by(TILE) {
                let (height, width) = (TILE.min(rows - r), TILE.min(columns - c));
                let mut tile = [[T::zero(); TILE]; TILE];
                for i in 0..height {
                    for (turned, v) in tile.iter_mut().zip(&x[(r + i) * columns + c..][..width]) {
                        turned[i] = *v;
                    }
                }
                for (j, turned) in tile[..width].iter().enumerate() {
                    out[(c + j) * rows + r..][..height].copy_from_slice(&turned[..height]);
                }
            }
        }
    }

    /// `out = relu(max + bias)` over windows of two entries of both rows; `which` of the four it was, the first of
    /// equal ones.
    fn pool_relu(top: &[T], bottom: &[T], bias: &[T], out: &mut [T], which: &mut [u8]) {
        let channels = bias.len();
        let windows = top.chunks_exact(2 * channels).zip(bottom.chunks_exact(2 * channels));
        let results = out.chunks_exact_mut(channels).zip(which.chunks_exact_mut(channels));
        for ((out, which), (top, bottom)) in results.zip(windows) {
            let (a, b) = top.split_at(channels);
            let (c, d) = bottom.split_at(channels);
            for i in 0..channels {
                let (mut best, mut chosen) = (a[i], 0);
                for (v, place) in [(b[i], 1), (c[i], 2), (d[i], 3)] {
                    chosen = if v > best { place } else { chosen };
                    best = if v > best { v } else { best };
                }
                out[i] = relu(best + bias[i]);
                which[i] = chosen;
            }
        }
    }

    /// Backward of [`pool_relu`] with the output `seen`: each gradient goes to the chosen entry, 0 to the others.
    fn unpool(g: &[T], seen: &[T], which: &[u8], top: &mut [T], bottom: &mut [T], channels: usize) {
        let windows = top.chunks_exact_mut(2 * channels).zip(bottom.chunks_exact_mut(2 * channels));
        let rows = g.chunks_exact(channels).zip(seen.chunks_exact(channels)).zip(which.chunks_exact(channels));
        for (((g, seen), which), (top, bottom)) in rows.zip(windows) {
            let (a, b) = top.split_at_mut(channels);
            let (c, d) = bottom.split_at_mut(channels);
            for i in 0..channels {
                let g = if seen[i] <= T::zero() { T::zero() } else { g[i] };
                a[i] = if which[i] == 0 { g } else { T::zero() };
                b[i] = if which[i] == 1 { g } else { T::zero() };
                c[i] = if which[i] == 2 { g } else { T::zero() };
                d[i] = if which[i] == 3 { g } else { T::zero() };
            }
        }
    }

    /// `total += part`.
    fn add_into(total: &mut [T], part: &[T]) {
        for (t, p) in total.iter_mut().zip(part) {
            *t += *p;
        }
    }

    /// `target += tau (online - target)`, computed as the weighted mean of the papers.
    fn blend(target: &mut [T], online: &[T], tau: f64) {
        let (keep, take) = (T::from_f64(1.0 - tau), T::from_f64(tau));
        for (t, o) in target.iter_mut().zip(online) {
            *t = *t * keep + *o * take;
        }
    }
}

/// `m`, `v` and the parameters after one step along `gradient`.
pub(super) fn adam(parameters: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32], step: AdamStep) {
    #[inline(always)]
    fn plain(parameters: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32], s: AdamStep) {
        for (((p, m), v), g) in parameters.iter_mut().zip(m).zip(v).zip(gradient) {
            *m = s.beta1 * *m + s.take1 * g;
            *v = s.beta2 * *v + s.take2 * (g * g);
            *p -= s.rate * *m / (v.sqrt() * s.root_scale + s.eps);
        }
    }
    dispatch!([] plain(parameters: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32], step: AdamStep));
}

/// A matrix in a slice, read with strides; a transposed view swaps them.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    data: &'a [T],
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Row-major with `columns` columns.
    pub(super) fn rows(data: &'a [T], columns: usize) -> Self {
        Self { data, row_stride: columns, column_stride: 1 }
    }

    /// The transpose of a row-major matrix with `columns` columns.
    pub(super) fn transposed(data: &'a [T], columns: usize) -> Self {
        Self { data, row_stride: 1, column_stride: columns }
    }

    /// Overlapping rows that begin every `step` numbers.
    pub(super) fn windows(data: &'a [T], step: usize) -> Self {
        Self { data, row_stride: step, column_stride: 1 }
    }

    /// The transpose of [`Matrix::windows`].
    pub(super) fn windows_across(data: &'a [T], step: usize) -> Self {
        Self { data, row_stride: 1, column_stride: step }
    }

    /// Whether every entry of an `(m, n)` view lies in the slice.
    fn holds(&self, m: usize, n: usize) -> bool {
        m == 0 || n == 0 || (m - 1) * self.row_stride + (n - 1) * self.column_stride < self.data.len()
    }
}

/// Operands whose rows are contiguous are multiplied where they lie: at the sizes of these networks a packed copy costs
/// more than it saves, about a tenth of an update. It changes no bits.
static READ_IN_PLACE: Once = Once::new();

/// `out = a b` with `a` `(m, k)`, `b` `(k, n)` and `out` row-major `(m, n)`, on the calling thread.
///
/// # Panics
/// When a slice is too short for its shape; callers derive both from one plan.
pub(super) fn product<T: Real>(shape: (usize, usize, usize), out: &mut [T], a: Matrix<T>, b: Matrix<T>) {
    multiply(shape, out, a, b, false);
}

/// `out += a b`, as [`product`].
///
/// # Panics
/// As [`product`].
pub(super) fn add_product<T: Real>(shape: (usize, usize, usize), out: &mut [T], a: Matrix<T>, b: Matrix<T>) {
    multiply(shape, out, a, b, true);
}

/// `out = a b^T` for row-major `a` `(m, k)` and `b` `(n, k)`, with working space for `m (n + k)` numbers. A `b` much larger
/// than that is read where it lies, and `a` and the result are turned: the product would copy `b` column by column.
///
/// # Panics
/// As [`product`].
pub(super) fn product_transposed<T: Real>(
    (m, n, k): (usize, usize, usize),
    out: &mut [T],
    a: &[T],
    b: &[T],
    space: &mut [T],
) {
    if m * (n + k) >= n * k {
        return product((m, n, k), out, Matrix::rows(a, k), Matrix::transposed(b, k));
    }
    let (turned, rest) = space.split_at_mut(m * k);
    let result = &mut rest[..m * n];
    transpose(&a[..m * k], k, turned);
    product((n, m, k), result, Matrix::rows(b, k), Matrix::rows(turned, m));
    transpose(result, m, out);
}

fn multiply<T: Real>((m, n, k): (usize, usize, usize), out: &mut [T], a: Matrix<T>, b: Matrix<T>, add: bool) {
    assert!(out.len() >= m * n && a.holds(m, k) && b.holds(k, n), "matrix product out of bounds");
    READ_IN_PLACE.call_once(|| {
        gemm::set_rhs_packing_threshold(usize::MAX);
        gemm::set_lhs_packing_threshold_single_thread(usize::MAX);
    });
    // SAFETY: the assertion keeps every access inside the three slices, `out` is borrowed mutably and so cannot
    // overlap the others, and `T` is `f32` or `f64`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            if add { T::one() } else { T::zero() },
            T::one(),
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
