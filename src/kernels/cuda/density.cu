// The density ratio and the priorities made from it (Off2OnRL, Eq. 4 and 6). Reference: src/rl/density_ratio.rs.
#include "common.cuh"

#define GUARD 1e-10f

enum Activation { RELU, SOFTPLUS, EXP };

// w = activation(u), (n).
KERNEL ratio(const float* u, int n, int activation, float* w) {
    for (int i = FIRST; i < n; i += STRIDE) {
        float v = u[i];
        w[i] = activation == RELU ? (v <= 0.0f ? 0.0f : v) : activation == SOFTPLUS ? softplus(v) : expf(v);
    }
}

KERNEL ratio_backward(const float* u, const float* g, int n, int activation, float* gu) {
    for (int i = FIRST; i < n; i += STRIDE) {
        float v = u[i];
        float slope = activation == RELU ? (v <= 0.0f ? 0.0f : 1.0f) : activation == SOFTPLUS ? sigmoid(v) : expf(v);
        gu[i] = slope * g[i];
    }
}

// mean_b [-ln(2/(w_off + 1) + guard) - ln(2 w_on/(w_on + 1) + guard)], a scalar. One block.
KERNEL density_loss(const float* online, const float* offline, int n, float* loss) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        sum += logf(2.0f / (offline[i] + 1.0f) + GUARD) + logf(2.0f * (online[i] / (online[i] + 1.0f)) + GUARD);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) *loss = -sum / n;
}

KERNEL density_loss_backward(const float* online, const float* offline, const float* g, int n, float* g_online,
                             float* g_offline) {
    float scale = *g / n;
    for (int i = FIRST; i < n; i += STRIDE) {
        float on = 1.0f / (online[i] + 1.0f), off = 1.0f / (offline[i] + 1.0f);
        g_online[i] = -scale * (2.0f * on * on) / (2.0f * online[i] * on + GUARD);
        g_offline[i] = scale * (2.0f * off * off) / (2.0f * off + GUARD);
    }
}

// clamp(w^(1/T) / (mean_b w_off^(1/T) + guard), low, high), (n), with `exponent` 1/T. A ratio that is not finite gives
// NaN, also through the normaliser. One block.
KERNEL priorities(const float* w, int n, const float* offline, int m, float exponent, float low, float high,
                  float* priority) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < m; i += blockDim.x) sum += powf(offline[i], exponent);
    float normaliser = block_sum(sum) / m + GUARD;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float p = powf(w[i], exponent) / normaliser;
        bool finite = isfinite(w[i]) && isfinite(normaliser);
        priority[i] = finite ? clamp(p, low, high) : NAN;
    }
}
