// Runs kernels on the processor, so that their logic is tested where there is no GPU.
//
// One block at a time, with one fiber per CUDA thread. Every warp runs as far as it can before the next one, so that a
// barrier that is missing is noticed; `reversed` turns the order of blocks, warps and lanes around, so that a result
// that depends on it is, too. A barrier that not every living thread reaches ends the launch with a message.
//
// It cannot see: races between blocks on global memory that both orders hide, the weak ordering of a GPU's memory,
// alignment faults, fused multiply-adds, launch limits. Those are for compute-sanitizer on a GPU (tools/gpu-check).
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>

#define __global__
#define __device__
// Not cleared between blocks, as on a GPU.
#define __shared__ static thread_local
#define __launch_bounds__(n)

using std::isfinite;
using std::max;
using std::min;

struct Index {
    unsigned x, y, z;
};
inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

enum State { READY, AT_WARP, AT_BLOCK, DONE };
const unsigned MOST = 256, STACK = 64 * 1024;

struct Fiber {
    ucontext_t context;
    State state;
    float lane;
};
// Tests run on several threads, so everything belongs to one of them.
inline thread_local std::unique_ptr<Fiber[]> fibers;
inline thread_local std::unique_ptr<char[]> stacks;
inline thread_local ucontext_t scheduler;
inline thread_local unsigned current;
inline thread_local std::function<void()> body;
inline thread_local const char* failure;

inline void wait(State state) {
    fibers[current].state = state;
    swapcontext(&fibers[current].context, &scheduler);
}

inline void enter() {
    body();
    fibers[current].state = DONE;
}

// Lets the threads of [low, high) go on when all that live wait at `state`.
inline bool release(unsigned low, unsigned high, State state) {
    bool any = false;
    for (unsigned t = low; t < high; t++) {
        if (fibers[t].state == DONE) continue;
        if (fibers[t].state != state) return false;
        any = true;
    }
    for (unsigned t = low; any && t < high; t++) {
        if (fibers[t].state == state) fibers[t].state = READY;
    }
    return any;
}

inline void resume(unsigned thread) {
    current = thread;
    threadIdx = {thread, 0, 0};
    swapcontext(&scheduler, &fibers[thread].context);
}

// The threads of a warp until none of them can go on; whether one lives.
inline bool run_warp(unsigned low, unsigned high, bool reversed) {
    bool live = false;
    do {
        for (unsigned k = 0; k < high - low; k++) {
            unsigned thread = reversed ? high - 1 - k : low + k;
            if (fibers[thread].state == READY) resume(thread);
        }
    } while (!failure && release(low, high, AT_WARP));
    for (unsigned t = low; t < high; t++) live |= fibers[t].state != DONE;
    return live;
}

inline void run_block(unsigned threads, bool reversed) {
    for (unsigned t = 0; t < threads; t++) {
        Fiber& fiber = fibers[t];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stacks.get() + t * STACK;
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = &scheduler;
        fiber.state = READY;
        fiber.lane = NAN;
        makecontext(&fiber.context, enter, 0);
    }
    unsigned warps = (threads + 31) / 32;
    while (!failure) {
        bool live = false;
        for (unsigned k = 0; k < warps && !failure; k++) {
            unsigned low = 32 * (reversed ? warps - 1 - k : k);
            live |= run_warp(low, min(low + 32, threads), reversed);
        }
        if (!live) return;
        if (!failure && !release(0, threads, AT_BLOCK)) failure = "a barrier that not all threads reach";
    }
}

// Runs `kernel` on a grid; why not, or null.
inline const char* launch(std::function<void()> kernel, unsigned x, unsigned y, unsigned threads, bool reversed) {
    if (threads > MOST) return "more threads than a block may have";
    if (!fibers) {
        fibers.reset(new Fiber[MOST]);
        stacks.reset(new char[size_t(MOST) * STACK]);
    }
    body = std::move(kernel);
    failure = nullptr;
    gridDim = {x, y, 1};
    blockDim = {threads, 1, 1};
    for (unsigned k = 0; k < x * y && !failure; k++) {
        unsigned block = reversed ? x * y - 1 - k : k;
        blockIdx = {block % x, block / x, 0};
        run_block(threads, reversed);
    }
    return failure;
}

}  // namespace shim

inline void __syncthreads() { shim::wait(shim::AT_BLOCK); }

inline float __shfl_xor_sync(unsigned mask, float v, int with) {
    unsigned thread = shim::current, other = (thread & ~31u) + ((thread & 31) ^ with);
    if (mask != 0xffffffffu) shim::failure = "a shuffle whose mask leaves lanes out";
    shim::fibers[thread].lane = v;
    shim::wait(shim::AT_WARP);
    float got = other < blockDim.x ? shim::fibers[other].lane : NAN;
    shim::wait(shim::AT_WARP);
    return got;
}
