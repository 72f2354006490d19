// What all kernels share. The same files are compiled for GPUs and, over host_shim.h, for the processor (tests).
//
// Conventions: matrices are row-major; single precision; a kernel whose result is a sum runs as one block or gives each
// block outputs of its own, and adds in a fixed order, so that results repeat to the bit. No kernel uses atomics.
#pragma once
#ifdef FIELDTUNE_HOST
#include "host_shim.h"
#endif

// Threads of every block; also what the launching side passes.
#define THREADS 256
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)
#define ALL_LANES 0xffffffffu

// Index of this thread in a one-dimensional grid, and how far to step to its next element.
#define FIRST (blockIdx.x * blockDim.x + threadIdx.x)
#define STRIDE (gridDim.x * blockDim.x)

// Sum over a warp, known to all its lanes. All lanes must call it.
__device__ inline float warp_sum(float v) {
    for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(ALL_LANES, v, offset);
    return v;
}

// Sum over a block, known to all its threads. All threads must call it.
__device__ inline float block_sum(float v) {
    __shared__ float warps[THREADS / 32];
    v = warp_sum(v);
    if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = v;
    __syncthreads();
    float total = 0.0f;
    for (int w = 0; w < THREADS / 32; w++) total += warps[w];
    __syncthreads();  // before the next call writes `warps`
    return total;
}

// ln(1 + exp(v)) without overflow.
__device__ inline float softplus(float v) { return fmaxf(v, 0.0f) + log1pf(expf(-fabsf(v))); }

__device__ inline float sigmoid(float v) { return 1.0f / (1.0f + expf(-v)); }

// The smaller one; the first of equal ones. Unlike fminf this keeps a NaN on the left.
__device__ inline float first_min(float a, float b) { return b < a ? b : a; }

// Unlike fminf(fmaxf()) this keeps a NaN.
__device__ inline float clamp(float v, float low, float high) { return v < low ? low : v > high ? high : v; }
