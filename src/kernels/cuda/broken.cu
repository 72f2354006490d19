// Kernels with planted faults: the tests of the test. Never part of the module for GPUs.
#include "common.cuh"

// Sum of each block without the barrier between writing and reading the warps' parts.
KERNEL broken_without_barrier(const float* x, int n, float* out) {
    __shared__ float warps[THREADS / 32];
    float v = warp_sum((int)FIRST < n ? x[FIRST] : 0.0f);
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = v;
    float total = 0.0f;
    for (int w = 0; w < THREADS / 32; w++) total += warps[w];
    if (threadIdx.x == 0) out[blockIdx.x] = total;
}

// A second sum that overwrites the parts of the first while slow warps still read them.
KERNEL broken_reuse(const float* x, int n, float* out) {
    __shared__ float warps[THREADS / 32];
    for (int round = 0; round < 2; round++) {
        float v = warp_sum((int)FIRST < n ? x[FIRST] * (round + 1) : 0.0f);
        if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = v;
        __syncthreads();
        float total = 0.0f;
        for (int w = 0; w < THREADS / 32; w++) total += warps[w];
        if (threadIdx.x == THREADS - 1) out[2 * blockIdx.x + round] = total;
    }
}

// A barrier that some threads of a warp wait at while the others wait for the whole warp.
KERNEL broken_divergent(const float* x, int n, float* out) {
    float v = x[0];
    if ((int)FIRST < n) __syncthreads();
    else v = warp_sum(v);
    if (threadIdx.x == 0) out[blockIdx.x] = v;
}

// A shuffle of half a warp.
KERNEL broken_mask(const float* x, int n, float* out) {
    float v = (int)FIRST < n ? x[FIRST] : 0.0f;
    v += __shfl_xor_sync(0xffffu, v, 1);
    if (threadIdx.x == 0) out[blockIdx.x] = v;
}

// All blocks write the same place.
KERNEL broken_race(const float* x, int n, float* out) {
    for (int i = FIRST; i < n; i += STRIDE) out[0] = x[i];
}

// One element too many.
KERNEL broken_bounds(const float* x, int n, float* out) {
    for (int i = FIRST; i <= n; i += STRIDE) out[i] = x[0];
}
