// The moment-matched tanh-Gaussian policy of an ensemble (Off2OnRL, Eq. 5). Reference: src/nn/tanh_gaussian.rs.
#include "common.cuh"

// Bounds of the ensemble's standard deviation: exp(-20), exp(2).
#define LEAST_STD 2.0611536e-9f
#define MOST_STD 7.389056f
#define HALF_LN_2PI 0.9189385332f
#define LN_2 0.6931471806f

struct Moments {
    float mean, std;
    bool inside;  // whether the standard deviation was not clamped
};

// Of one action entry. `out` points to the first member's mean of it; its log standard deviation lies `width` further,
// the next member `member` numbers further.
__device__ inline Moments moments(const float* out, int members, int member, int width, float low, float high) {
    float mean = 0.0f;
    for (int i = 0; i < members; i++) mean += out[i * member];
    mean /= members;
    float variance = 0.0f;
    for (int i = 0; i < members; i++) {
        float sigma = expf(clamp(out[i * member + width], low, high)), off = out[i * member] - mean;
        variance += sigma * sigma + off * off;
    }
    float std = sqrtf(variance / members);
    bool inside = std > LEAST_STD && std < MOST_STD;
    return {mean, clamp(std, LEAST_STD, MOST_STD), inside};
}

// One warp per row of `draw`, (samples x batch, 2 width + 1): the action tanh(z), then z = mean + std noise, then the
// log-probability. `out`: (members, batch, 2 width); `noise`: (samples x batch, width).
KERNEL policy_sample(const float* out, const float* noise, int members, int batch, int width, int samples, float low,
                     float high, float* draw) {
    int lane = threadIdx.x & 31, rows = samples * batch;
    for (int row = FIRST >> 5; row < rows; row += STRIDE >> 5) {
        const float* of_row = out + (row % batch) * 2 * width;
        float* to = draw + row * (2 * width + 1);
        float sum = 0.0f;
        for (int a = lane; a < width; a += 32) {
            Moments m = moments(of_row + a, members, batch * 2 * width, width, low, high);
            float e = noise[row * width + a], z = m.mean + m.std * e;
            to[a] = tanhf(z);
            to[width + a] = z;
            sum += -0.5f * e * e - HALF_LN_2PI - logf(m.std) - 2.0f * (LN_2 - z - softplus(-2.0f * z));
        }
        sum = warp_sum(sum);
        if (lane == 0) to[2 * width] = sum;
    }
}

// Gradient of the actors' output, (members, batch, 2 width), from that of the draws. One thread per row and action
// entry. A clamped standard deviation, the ensemble's or a member's, gets none.
KERNEL policy_sample_backward(const float* out, const float* noise, const float* draw, const float* g_draw, int members,
                              int batch, int width, int samples, float low, float high, float* g_out) {
    for (int i = FIRST; i < batch * width; i += STRIDE) {
        int row = i / width, a = i % width, member = batch * 2 * width;
        const float* of_row = out + row * 2 * width + a;
        Moments m = moments(of_row, members, member, width, low, high);
        float g_mean = 0.0f, g_std = 0.0f;
        for (int s = 0; s < samples; s++) {
            int at = s * batch + row;
            const float* g = g_draw + at * (2 * width + 1);
            float e = noise[at * width + a], y = draw[at * (2 * width + 1) + a], g_log = g[2 * width];
            float g_z = g[a] * (1.0f - y * y) + g[width + a] + g_log * 2.0f * y;
            g_mean += g_z;
            g_std += g_z * e - g_log / m.std;
        }
        if (!m.inside) g_std = 0.0f;
        for (int k = 0; k < members; k++) {
            float mean = of_row[k * member], log_std = of_row[k * member + width];
            float* to = g_out + k * member + row * 2 * width + a;
            float sigma = expf(clamp(log_std, low, high));
            to[0] = (g_mean + g_std * (mean - m.mean) / m.std) / members;
            to[width] = log_std > low && log_std < high ? g_std * sigma * sigma / (m.std * members) : 0.0f;
        }
    }
}
