// What the fused kernels are written with: eight channels as one value, and sums over heads, blocks and tokens.
//
// A thread works on eight neighbouring channels, 16 bytes of bf16; eight lanes make a head, a warp SLICE channels.

#pragma once

#include <cuda_pipeline_primitives.h>

#include "fused.cuh"

namespace fused {

constexpr int WARP = 32;
constexpr int SLICE = 8 * WARP;  // channels that a warp works on at a time
constexpr unsigned ALL_LANES = ~0u;

struct Eight {
    float at[8];
};

// Eight bf16 as they lie in memory: kept so while they are waited for or not needed yet.
using Packed = uint4;

__device__ inline Packed load(const bf16* from) { return *reinterpret_cast<const Packed*>(from); }

__device__ inline Eight unpack(Packed packed) {
    const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
    Eight out;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out.at[2 * i] = __uint_as_float(words[i] << 16);
        out.at[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
    return out;
}

__device__ inline Eight read(const bf16* from) { return unpack(load(from)); }

__device__ inline void write(bf16* to, const Eight& x) {
    __nv_bfloat162 pairs[4];
#pragma unroll
    for (int i = 0; i < 4; i++) pairs[i] = __floats2bfloat162_rn(x.at[2 * i], x.at[2 * i + 1]);
    *reinterpret_cast<Packed*>(to) = *reinterpret_cast<const Packed*>(pairs);
}

// Copies to shared memory that go on by themselves: a thread commits those that it has begun as one group, and waits
// until all but the last PENDING of its groups are there.
__device__ inline void copy_async(Packed* to, const bf16* from) { __pipeline_memcpy_async(to, from, sizeof(Packed)); }
__device__ inline void copy_async_commit() { __pipeline_commit(); }
template <int PENDING>
__device__ inline void copy_async_wait() {
    __pipeline_wait_prior(PENDING);
}

__device__ inline Eight read(const float* from) {
    const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
    return {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
}

__device__ inline void write(float* to, const Eight& x) {
    reinterpret_cast<float4*>(to)[0] = {x.at[0], x.at[1], x.at[2], x.at[3]};
    reinterpret_cast<float4*>(to)[1] = {x.at[4], x.at[5], x.at[6], x.at[7]};
}

template <class F>
__device__ inline Eight each(F f) {
    Eight out;
#pragma unroll
    for (int i = 0; i < 8; i++) out.at[i] = f(i);
    return out;
}

__device__ inline Eight eight(float x) { return each([&](int) { return x; }); }
__device__ inline Eight operator+(Eight a, Eight b) { return each([&](int i) { return a.at[i] + b.at[i]; }); }
__device__ inline Eight operator-(Eight a, Eight b) { return each([&](int i) { return a.at[i] - b.at[i]; }); }
__device__ inline Eight operator*(Eight a, Eight b) { return each([&](int i) { return a.at[i] * b.at[i]; }); }
__device__ inline Eight operator+(Eight a, float b) { return each([&](int i) { return a.at[i] + b; }); }
__device__ inline Eight operator-(Eight a, float b) { return each([&](int i) { return a.at[i] - b; }); }
__device__ inline Eight operator*(Eight a, float b) { return each([&](int i) { return a.at[i] * b; }); }
__device__ inline Eight operator-(Eight a) { return each([&](int i) { return -a.at[i]; }); }
__device__ inline Eight relu(const Eight& a) { return each([&](int i) { return fmaxf(a.at[i], 0); }); }

// 2^x by the unit that makes it; what would be subnormal is 0.
__device__ inline float exp2_fast(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}
constexpr float LOG2_E = 1.4426950408889634f;

__device__ inline Eight sigmoid(const Eight& a) {
    return each([&](int i) { return __fdividef(1, 1 + exp2_fast(-LOG2_E * a.at[i])); });
}

__device__ inline float sum(const Eight& a) {
    return ((a.at[0] + a.at[1]) + (a.at[2] + a.at[3])) + ((a.at[4] + a.at[5]) + (a.at[6] + a.at[7]));
}

// ---- Sums over lanes: every lane of the group gets the total --------------------------------------------------------

template <int LANES>
__device__ inline float lanes_sum(float x) {
#pragma unroll
    for (int other = 1; other < LANES; other *= 2) x += __shfl_xor_sync(ALL_LANES, x, other);
    return x;
}

__device__ inline float head_sum(const Eight& a) { return lanes_sum<HEAD / 8>(sum(a)); }

// K sums over the block, in every thread. Two buffers take turns, so that one barrier a call is enough; `turn` is the
// caller's, 0 at first.
template <int K>
__device__ inline void block_sum(float (&values)[K], int& turn) {
    struct alignas(4 * K) Sums {
        float of[K];
    };
    __shared__ Sums shared[2][WARP];
    const int warps = (blockDim.x + WARP - 1) / WARP;
    Sums sums;
#pragma unroll
    for (int k = 0; k < K; k++) sums.of[k] = lanes_sum<WARP>(values[k]);
    if (threadIdx.x % WARP == 0) shared[turn][threadIdx.x / WARP] = sums;
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; k++) values[k] = 0;
    for (int warp = 0; warp < warps; warp++) {
        sums = shared[turn][warp];
#pragma unroll
        for (int k = 0; k < K; k++) values[k] += sums.of[k];
    }
    turn ^= 1;
}

// ---- Kernels that look at one head at a time ------------------------------------------------------------------------

// A block of WARPS warps has one slice of the channels, blockIdx.x, and shares the tokens with gridDim.y others.
constexpr int WARPS = 8;

struct Place {
    int64_t token, step;  // the first token, and how far it is to the next
    int channel;
    bool inside;          // of the width; a lane that is not works on channel 0 and must not write

    __device__ explicit Place(int C) {
        token = int64_t(blockIdx.y) * WARPS + threadIdx.x / WARP;
        step = int64_t(gridDim.y) * WARPS;
        channel = int(blockIdx.x) * SLICE + threadIdx.x % WARP * 8;
        inside = channel < C;
        if (!inside) channel = 0;
    }
};

// Leaves the block's sums over its tokens in parts[blockIdx.y], [K, C].
template <int K>
__device__ inline void write_parts(const Eight (&sums)[K], float* parts, int C) {
    alignas(16) __shared__ float shared[WARPS][SLICE];
    const int channel = int(blockIdx.x) * SLICE + int(threadIdx.x);
#pragma unroll
    for (int k = 0; k < K; k++) {
        write(&shared[threadIdx.x / WARP][threadIdx.x % WARP * 8], sums[k]);
        __syncthreads();
        float total = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) total += shared[warp][threadIdx.x];
        if (channel < C) parts[(int64_t(blockIdx.y) * K + k) * C + channel] = total;
        __syncthreads();
    }
}

static_assert(WARPS * WARP == SLICE, "write_parts has a thread a channel");

// ---- Launching ------------------------------------------------------------------------------------------------------

inline int device_attribute(cudaDeviceAttr attribute) {
    int device = 0, value = 1;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&value, attribute, device);
    return value;
}
inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }
inline size_t shared_memory() { return size_t(device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)); }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The grid of a kernel that has a Place: `most` blocks at most to a multiprocessor, each with work for all its warps.
inline dim3 token_grid(int64_t tokens, int C, int most) {
    const int64_t slices = ceil_div(C, SLICE), shares = max(int64_t(1), int64_t(most) * multiprocessors() / slices);
    return dim3(unsigned(slices), unsigned(min(ceil_div(tokens, WARPS), shares)));
}
constexpr int FORWARD_BLOCKS = 16, BACKWARD_BLOCKS = 2;

template <class Kernel, class... Args>
cudaError_t launch(Kernel* kernel, dim3 grid, int threads, size_t shared, cudaStream_t stream, const Args&... args) {
    if (grid.x == 0 || grid.y == 0) return cudaSuccess;
    if (shared > 32 << 10) {  // with its own static arrays more, perhaps, than the 48 KB that it has without asking
        const auto most = cudaFuncAttributeMaxDynamicSharedMemorySize;
        const cudaError_t allowed = cudaFuncSetAttribute(kernel, most, int(shared));
        if (allowed != cudaSuccess) return allowed;
    }
    kernel<<<grid, unsigned(threads), shared, stream>>>(args...);
    return cudaGetLastError();
}

}  // namespace fused
