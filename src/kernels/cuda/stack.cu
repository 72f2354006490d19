// What stands between the matrix products of a stack of networks. Reference: src/nn/kernels.rs.
//
// `parameters` are (members, stride): a network is one block. `at` is where a row of biases, scales or shifts starts
// in each block. Activations are (members, rows, width).
#include "common.cuh"

#define LAYER_NORM_EPS 1e-6f

// y += bias, and the ReLU where asked for. A NaN stays.
KERNEL bias_relu(float* y, const float* parameters, int at, int stride, int members, int rows, int width, int relu) {
    int n = members * rows * width;
    for (int i = FIRST; i < n; i += STRIDE) {
        float v = y[i] + parameters[i / (rows * width) * stride + at + i % width];
        y[i] = relu && v <= 0.0f ? 0.0f : v;
    }
}

// out = relu(layer_norm(x + bias) scale + shift); leaves the normalised rows in `x` and 1/std of each. Scale and shift
// lie behind the bias. One warp per row.
KERNEL layer_norm_relu(float* x, const float* parameters, int at, int stride, int members, int rows, int width,
                       float* inv_std, float* out) {
    int lane = threadIdx.x & 31;
    for (int row = FIRST >> 5; row < members * rows; row += STRIDE >> 5) {
        const float* bias = parameters + row / rows * stride + at;
        float* of_row = x + row * width;
        float sum = 0.0f, squares = 0.0f;
        for (int c = lane; c < width; c += 32) sum += of_row[c] += bias[c];
        float mean = warp_sum(sum) / width;
        for (int c = lane; c < width; c += 32) squares += (of_row[c] - mean) * (of_row[c] - mean);
        float inv = 1.0f / sqrtf(warp_sum(squares) / width + LAYER_NORM_EPS);
        for (int c = lane; c < width; c += 32) {
            float normalised = (of_row[c] - mean) * inv;
            float v = normalised * bias[width + c] + bias[2 * width + c];
            of_row[c] = normalised;
            out[row * width + c] = v <= 0.0f ? 0.0f : v;
        }
        if (lane == 0) inv_std[row] = inv;
    }
}

// delta = 0 where the ReLU's output h is 0.
KERNEL relu_backward(float* delta, const float* h, int n) {
    for (int i = FIRST; i < n; i += STRIDE) delta[i] = h[i] <= 0.0f ? 0.0f : delta[i];
}

// Gradient through a layer norm, in place; `x` holds the normalised rows, `at` is where the scales start.
KERNEL layer_norm_backward(float* delta, const float* x, const float* inv_std, const float* parameters, int at,
                           int stride, int members, int rows, int width) {
    int lane = threadIdx.x & 31;
    for (int row = FIRST >> 5; row < members * rows; row += STRIDE >> 5) {
        const float *scale = parameters + row / rows * stride + at, *normalised = x + row * width;
        float *of_row = delta + row * width, sum = 0.0f, along = 0.0f;
        for (int c = lane; c < width; c += 32) {
            float d = of_row[c] * scale[c];
            of_row[c] = d;
            sum += d;
            along += d * normalised[c];
        }
        float mean = warp_sum(sum) / width;
        along = warp_sum(along) / width;
        for (int c = lane; c < width; c += 32) of_row[c] = inv_std[row] * (of_row[c] - mean - normalised[c] * along);
    }
}

// grad[member][at + c] = sum_r delta[member][r][c] x[member][r][c], or without x: gradients of biases, scales, shifts.
// One block per 32 columns (grid x) and member (grid y); its 8 warps share the rows.
KERNEL column_sums(const float* delta, const float* x, int at, int stride, int rows, int width, float* grad) {
    __shared__ float part[THREADS / 32][32];
    int lane = threadIdx.x & 31, group = threadIdx.x >> 5, column = blockIdx.x * 32 + lane, member = blockIdx.y;
    float sum = 0.0f;
    for (int r = group; r < rows && column < width; r += THREADS / 32) {
        int i = (member * rows + r) * width + column;
        sum += x ? delta[i] * x[i] : delta[i];
    }
    part[group][lane] = sum;
    __syncthreads();
    if (group != 0 || column >= width) return;
    float total = 0.0f;
    for (int k = 0; k < THREADS / 32; k++) total += part[k][lane];
    grad[member * stride + at + column] = total;
}

// out[i] = sum_m x[m][i]: the gradient of an input that all members share.
KERNEL sum_members(const float* x, int members, int n, float* out) {
    for (int i = FIRST; i < n; i += STRIDE) {
        float total = 0.0f;
        for (int m = 0; m < members; m++) total += x[m * n + i];
        out[i] = total;
    }
}
