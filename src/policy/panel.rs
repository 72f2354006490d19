//! Dense layers for one vector: plain Rust that the compiler turns into fused multiply-adds.
//!
//! Weights are packed in panels of 64 (then 16) outputs: for each input row one run of consecutive numbers, so that
//! a layer reads its memory once, in order. On x86-64 the AVX2 copy is chosen at run time; on aarch64 fused
//! multiply-add is part of the base instruction set; elsewhere multiply and add stay apart, because an emulated
//! fused multiply-add is a library call. The last bits therefore depend on the processor.

#![allow(unsafe_code, reason = "calling the AVX2 copy of the kernel after the processor was asked for it")]

/// 16 numbers on one cache line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
pub(super) struct Line(pub(super) [f32; LINE]);

/// Numbers per line.
pub(super) const LINE: usize = 16;
/// Lines of a wide panel: as many accumulators as hide the latency of a multiply-add.
const WIDE: usize = 4;
/// Rows are padded to this: narrow panels take so many rows at once, for the same reason.
pub(super) const ROWS: usize = 4;

/// The copy of the kernel that this processor runs. Made by [`Kernel::detect`] alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    #[cfg(target_arch = "x86_64")]
    avx2: bool,
}

impl Kernel {
    /// Asks the processor.
    pub(super) fn detect() -> Self {
        Self {
            #[cfg(target_arch = "x86_64")]
            avx2: std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma"),
        }
    }

    /// The plain copy, for comparison.
    #[cfg(test)]
    pub(super) fn plain() -> Self {
        Self {
            #[cfg(target_arch = "x86_64")]
            avx2: false,
        }
    }

    /// Name for people.
    pub(super) fn name(self) -> &'static str {
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            return "built-in (avx2, fma)";
        }
        if FUSED { "built-in (neon)" } else { "built-in" }
    }

    /// `out = input W + bias` with `W` as [`pack`] made it.
    ///
    /// `input`: padded rows; `bias` and `out`: one line per 16 outputs.
    pub(super) fn dense(self, input: &[f32], weight: &[Line], bias: &[Line], out: &mut [[f32; LINE]]) {
        #[cfg(target_arch = "x86_64")]
        if self.avx2 {
            // SAFETY: `avx2` is true only when `detect` saw AVX2 and FMA on this processor.
            unsafe { dense_avx2(input, weight, bias, out) };
            return;
        }
        dense::<FUSED>(input, weight, bias, out);
    }
}

/// Whether the base instruction set has a fused multiply-add.
const FUSED: bool = cfg!(target_arch = "aarch64") || cfg!(target_feature = "fma");

/// Packs a row-major `(inputs, outputs)` matrix; padding is zero.
pub(super) fn pack(matrix: &[f32], inputs: usize, outputs: usize, packed: &mut Vec<Line>) {
    let rows = inputs.next_multiple_of(ROWS);
    let groups = outputs.div_ceil(LINE);
    let wide = groups - groups % WIDE;
    let panels = (0..wide).step_by(WIDE).map(|g| (g, WIDE)).chain((wide..groups).map(|g| (g, 1)));
    for (first, lines) in panels {
        for (row, group) in (0..rows).flat_map(|row| (first..first + lines).map(move |group| (row, group))) {
            let mut line = Line::default();
            if row < inputs {
                let values = &matrix[row * outputs..][..outputs];
                let part = &values[group * LINE..(group * LINE + LINE).min(outputs)];
                line.0[..part.len()].copy_from_slice(part);
            }
            packed.push(line);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dense_avx2(input: &[f32], weight: &[Line], bias: &[Line], out: &mut [[f32; LINE]]) {
    dense::<true>(input, weight, bias, out);
}

#[inline(always)]
#[allow(clippy::inline_always, reason = "the loops must be compiled with the caller's instruction set")]
fn dense<const FMA: bool>(input: &[f32], weight: &[Line], bias: &[Line], out: &mut [[f32; LINE]]) {
    let wide = out.len() - out.len() % WIDE;
    let (wide_out, narrow_out) = out.split_at_mut(wide);
    let (wide_bias, narrow_bias) = bias.split_at(wide);
    let (wide_weight, narrow_weight) = weight.split_at(wide * input.len());
    let wide_panels = wide_weight.chunks_exact(WIDE * input.len());
    for ((out, bias), weight) in wide_out.chunks_exact_mut(WIDE).zip(wide_bias.chunks_exact(WIDE)).zip(wide_panels) {
        panel::<FMA, WIDE, 1>(input, weight, bias, out);
    }
    let narrow_panels = narrow_weight.chunks_exact(input.len());
    for ((out, bias), weight) in narrow_out.chunks_exact_mut(1).zip(narrow_bias.chunks_exact(1)).zip(narrow_panels) {
        panel::<FMA, 1, ROWS>(input, weight, bias, out);
    }
}

/// One panel of `L` lines, `U` rows at once.
#[inline(always)]
#[allow(clippy::inline_always, reason = "the loops must be compiled with the caller's instruction set")]
fn panel<const FMA: bool, const L: usize, const U: usize>(
    input: &[f32],
    weight: &[Line],
    bias: &[Line],
    out: &mut [[f32; LINE]],
) {
    let mut sums = [[[0.0_f32; LINE]; L]; U];
    let rows = weight.as_chunks::<L>().0.as_chunks::<U>().0;
    for (inputs, rows) in input.as_chunks::<U>().0.iter().zip(rows) {
        for ((sums, row), &x) in sums.iter_mut().zip(rows).zip(inputs) {
            for (sums, line) in sums.iter_mut().zip(row) {
                for (sum, &w) in sums.iter_mut().zip(&line.0) {
                    *sum = if FMA { x.mul_add(w, *sum) } else { x * w + *sum };
                }
            }
        }
    }
    for (index, (out, bias)) in out.iter_mut().zip(bias).enumerate() {
        *out = bias.0;
        for sums in &sums {
            for (out, sum) in out.iter_mut().zip(&sums[index]) {
                *out += sum;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_shape_agrees_with_the_plain_sum(inputs in 1_usize..70, outputs in 1_usize..150, seed in any::<u32>()) {
            let mut state = seed | 1;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 8_388_608.0 - 1.0
            };
            let matrix: Vec<f32> = (0..inputs * outputs).map(|_| next()).collect();
            let vector: Vec<f32> = (0..inputs).map(|_| next()).collect();
            let groups = outputs.div_ceil(LINE);
            let bias: Vec<Line> = (0..groups).map(|_| Line(std::array::from_fn(|_| next()))).collect();
            let mut packed = Vec::new();
            pack(&matrix, inputs, outputs, &mut packed);
            let mut padded = vector.clone();
            padded.resize(inputs.next_multiple_of(ROWS), 0.0);
            for kernel in [Kernel::detect(), Kernel::plain()] {
                let mut out = vec![[f32::NAN; LINE]; groups];
                kernel.dense(&padded, &packed, &bias, &mut out);
                for column in 0..outputs {
                    let naive: f64 = (0..inputs).map(|row| f64::from(vector[row]) * f64::from(matrix[row * outputs + column])).sum();
                    let expected = naive + f64::from(bias[column / LINE].0[column % LINE]);
                    let got = f64::from(out[column / LINE][column % LINE]);
                    prop_assert!((got - expected).abs() < 1e-5, "column {column}: {got} against {expected}");
                }
            }
        }
    }
}
