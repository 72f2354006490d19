//! Weights of whole trajectories by how likely the policy finds their actions (ARB).

/// Range of `log pi(a|s) / |A|` that counts (published code).
const LOG_PROB: (f64, f64) = (-12.0, 7.0);

/// `exp((mean over the trajectory of c - max over all of c) / lambda)`, `c = clamp(log pi(a|s) / |A|, -12, 7)`: one weight
/// for every transition, the same along a trajectory, at most 1.
///
/// `log_prob` has all transitions in order, `starts` the places where trajectories begin, the first being 0. Source: ARB's
/// published code (`ReplayBufferAdaptiveTrajectory`).
pub fn weights(log_prob: &[f32], starts: &[usize], action_dim: usize, lambda: f64) -> Vec<f32> {
    let counted = |l: &f32| (f64::from(*l) / action_dim as f64).clamp(LOG_PROB.0, LOG_PROB.1);
    let most = log_prob.iter().map(counted).fold(f64::NEG_INFINITY, f64::max);
    let ends = starts.iter().copied().skip(1).chain([log_prob.len()]);
    let mut weights = Vec::with_capacity(log_prob.len());
    for (start, end) in starts.iter().zip(ends) {
        let mean = log_prob[*start..end].iter().map(counted).sum::<f64>() / (end - start).max(1) as f64;
        weights.resize(end, ((mean - most) / lambda).exp() as f32);
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_by_hand() {
        // |A| = 2: c = 1, -1 | -12 (from -50), 0, -3 | 7 (from 20); means 0, -5, 7; the largest is 7; lambda = 2.
        let log_prob = [2.0, -2.0, -100.0, 0.0, -6.0, 40.0];
        let found = weights(&log_prob, &[0, 2, 5], 2, 2.0);
        let expected = [-3.5f64, -3.5, -6.0, -6.0, -6.0, 0.0].map(|e| e.exp() as f32);
        assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-6), "{found:?} {expected:?}");
        assert!(weights(&[], &[], 2, 5.0).is_empty());
        // The larger lambda, the more alike.
        let wide = weights(&log_prob, &[0, 2, 5], 2, 1e6);
        assert!(wide.iter().all(|w| *w > 0.9999));
        assert!(weights(&[f32::NAN, 0.0], &[0], 1, 5.0)[0].is_nan());
    }
}
