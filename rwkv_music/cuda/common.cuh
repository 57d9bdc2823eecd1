// Definitions that the WKV7s, fused and optimizer kernels share. Neither this file nor any .cu file includes a torch
// header; only the *_bindings.cpp files and check.h do.

#pragma once

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace common {

using bf16 = __nv_bfloat16;

constexpr int WARP = 32;  // lanes
constexpr unsigned FULL_MASK = ~0u;
constexpr float LOG2_E = 1.44269504088896341f;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The current device's value of an attribute; `fallback` if it cannot be read.
inline int device_attribute(cudaDeviceAttr attribute, int fallback = 1) {
    int device = 0, value = fallback;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&value, attribute, device);
    return value;
}
inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

#ifdef __CUDACC__

// The two bf16 values of a 32-bit word, as fp32.
__device__ __forceinline__ float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// 2^x from the special function unit, accurate to the last bit or two. Subnormal inputs and results are flushed to 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The sum of x over each group of LANES neighboring lanes. Every lane of a group receives it. LANES is a power of two.
template <int LANES>
__device__ __forceinline__ float warp_sum(float x) {
    if constexpr (LANES == 1) return x;
    x = warp_sum<LANES / 2>(x);
    return x + __shfl_xor_sync(FULL_MASK, x, LANES / 2);
}

__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's committed groups of asynchronous copies are still in flight.
template <int PENDING>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}

// Launches `kernel` with `shared` bytes of dynamic shared memory. An empty grid launches nothing. Returns
// cudaErrorNotSupported if a block of this device cannot have that much shared memory.
template <class Kernel, class... Args>
cudaError_t launch(Kernel* kernel, dim3 grid, int threads, size_t shared, cudaStream_t stream, const Args&... args) {
    if (grid.x == 0 || grid.y == 0) return cudaSuccess;
    if (shared > 32 << 10) {  // together with static arrays, it may exceed 48 KB, the limit without this attribute
        const auto limit = cudaFuncAttributeMaxDynamicSharedMemorySize;
        const cudaError_t error = cudaFuncSetAttribute(kernel, limit, int(shared));
        if (error != cudaSuccess) {
            cudaGetLastError();  // clears the error, which is returned here, so that the next call does not report it
            return error == cudaErrorInvalidValue ? cudaErrorNotSupported : error;
        }
    }
    kernel<<<grid, unsigned(threads), shared, stream>>>(args...);
    return cudaGetLastError();
}

#endif

}  // namespace common
