// Eight neighboring bf16 channels as one value, sums over heads, blocks and tokens, and the grids of the fused kernels.
// A thread processes eight neighboring channels (16 bytes of bf16), eight lanes process one head, and a warp processes
// SLICE channels.

#pragma once

#include <cuda_pipeline_primitives.h>

#include "fused.cuh"

namespace fused {

constexpr int SLICE = 8 * WARP;  // channels that a warp processes at a time

struct Vec8 {
    float x[8];
};

// Eight bf16 values in their memory format, for loads in flight and for values that are needed later.
using Packed = uint4;

__device__ inline Packed load(const bf16* from) { return *reinterpret_cast<const Packed*>(from); }

__device__ inline Vec8 unpack(Packed packed) {
    const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
    Vec8 out;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out.x[2 * i] = bf16_low(words[i]);
        out.x[2 * i + 1] = bf16_high(words[i]);
    }
    return out;
}

__device__ inline Vec8 read(const bf16* from) { return unpack(load(from)); }

__device__ inline void write(bf16* to, const Vec8& x) {
    __nv_bfloat162 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = __floats2bfloat162_rn(x.x[2 * i], x.x[2 * i + 1]);
    *reinterpret_cast<Packed*>(to) = *reinterpret_cast<const Packed*>(pairs);
}

// An asynchronous copy of 16 bytes to shared memory; see copy_async_commit and copy_async_wait.
__device__ inline void copy_async(Packed* to, const bf16* from) { __pipeline_memcpy_async(to, from, sizeof(Packed)); }

__device__ inline Vec8 read(const float* from) {
    const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
    return {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
}

__device__ inline void write(float* to, const Vec8& x) {
    reinterpret_cast<float4*>(to)[0] = {x.x[0], x.x[1], x.x[2], x.x[3]};
    reinterpret_cast<float4*>(to)[1] = {x.x[4], x.x[5], x.x[6], x.x[7]};
}

template <class F>
__device__ inline Vec8 make_vec8(F f) {
    Vec8 out;
#pragma unroll
    for (int i = 0; i < 8; i++) out.x[i] = f(i);
    return out;
}

__device__ inline Vec8 broadcast(float x) { return make_vec8([&](int) { return x; }); }
__device__ inline Vec8 operator+(Vec8 a, Vec8 b) { return make_vec8([&](int i) { return a.x[i] + b.x[i]; }); }
__device__ inline Vec8 operator-(Vec8 a, Vec8 b) { return make_vec8([&](int i) { return a.x[i] - b.x[i]; }); }
__device__ inline Vec8 operator*(Vec8 a, Vec8 b) { return make_vec8([&](int i) { return a.x[i] * b.x[i]; }); }
__device__ inline Vec8 operator+(Vec8 a, float b) { return make_vec8([&](int i) { return a.x[i] + b; }); }
__device__ inline Vec8 operator-(Vec8 a, float b) { return make_vec8([&](int i) { return a.x[i] - b; }); }
__device__ inline Vec8 operator*(Vec8 a, float b) { return make_vec8([&](int i) { return a.x[i] * b; }); }
__device__ inline Vec8 operator-(Vec8 a) { return make_vec8([&](int i) { return -a.x[i]; }); }
__device__ inline Vec8 relu(const Vec8& a) { return make_vec8([&](int i) { return fmaxf(a.x[i], 0); }); }

__device__ inline Vec8 sigmoid(const Vec8& a) {
    return make_vec8([&](int i) { return __fdividef(1, 1 + exp2_fast(-LOG2_E * a.x[i])); });
}

__device__ inline float sum(const Vec8& a) {
    return ((a.x[0] + a.x[1]) + (a.x[2] + a.x[3])) + ((a.x[4] + a.x[5]) + (a.x[6] + a.x[7]));
}

// ---- Sums over heads and blocks: every thread receives the total ----------------------------------------------------

__device__ inline float head_sum(const Vec8& a) { return warp_sum<HEAD / 8>(sum(a)); }

// Replaces the K `values` by their sums over the block. Successive calls alternate between two buffers, so that one
// barrier per call is enough. The caller keeps `buffer`, which is 0 at first.
template <int K>
__device__ inline void block_sum(float (&values)[K], int& buffer) {
    struct alignas(4 * K) Sums {
        float values[K];
    };
    __shared__ Sums shared[2][WARP];
    const int warps = (blockDim.x + WARP - 1) / WARP;
    Sums sums;
#pragma unroll
    for (int k = 0; k < K; k++) sums.values[k] = warp_sum<WARP>(values[k]);
    if (threadIdx.x % WARP == 0) shared[buffer][threadIdx.x / WARP] = sums;
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; k++) values[k] = 0;
    for (int warp = 0; warp < warps; warp++) {
        sums = shared[buffer][warp];
#pragma unroll
        for (int k = 0; k < K; k++) values[k] += sums.values[k];
    }
    buffer ^= 1;
}

// ---- Kernels that process each head on its own ----------------------------------------------------------------------

// A block of WARPS warps processes one slice of the channels, blockIdx.x. The tokens are divided among the gridDim.y
// blocks of a slice.
constexpr int WARPS = 8;

// The tokens and channels of this thread.
struct GridPosition {
    int64_t token, step;  // the first token, and the distance to the next one
    int channel;          // the first of eight
    bool inside;          // false if the lane lies beyond the width: it computes on channel 0 and must not write

    __device__ explicit GridPosition(int C) {
        token = int64_t(blockIdx.y) * WARPS + threadIdx.x / WARP;
        step = int64_t(gridDim.y) * WARPS;
        channel = int(blockIdx.x) * SLICE + threadIdx.x % WARP * 8;
        inside = channel < C;
        if (!inside) channel = 0;
    }
};

// Writes the block's sums over its tokens to partials[blockIdx.y], [K, C].
template <int K>
__device__ inline void write_partial_sums(const Vec8 (&sums)[K], float* partials, int C) {
    alignas(16) __shared__ float shared[WARPS][SLICE];
    const int channel = int(blockIdx.x) * SLICE + int(threadIdx.x);
#pragma unroll
    for (int k = 0; k < K; k++) {
        write(&shared[threadIdx.x / WARP][threadIdx.x % WARP * 8], sums[k]);
        __syncthreads();
        float total = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) total += shared[warp][threadIdx.x];
        if (channel < C) partials[(int64_t(blockIdx.y) * K + k) * C + channel] = total;
        __syncthreads();
    }
}

static_assert(WARPS * WARP == SLICE, "write_partial_sums uses one thread per channel");

// ---- Launching ------------------------------------------------------------------------------------------------------

inline size_t shared_memory() { return size_t(device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)); }

// The grid of a kernel that uses GridPosition. It has at most `most` blocks per multiprocessor, and no more
// blocks than it takes to give each token a warp.
inline dim3 token_grid(int64_t tokens, int C, int most) {
    const int64_t slices = ceil_div(C, SLICE), shares = max(int64_t(1), int64_t(most) * multiprocessors() / slices);
    return dim3(unsigned(slices), unsigned(min(ceil_div(tokens, WARPS), shares)));
}
constexpr int FORWARD_BLOCKS = 16, BACKWARD_BLOCKS = 2;

}  // namespace fused
