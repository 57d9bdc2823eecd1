// Tensor core instructions, and the layout of their operands in a warp and in shared memory. Requires compute
// capability 8.0.
//
// A warp computes D[16, 8] += A[16, K] B[K, 8]. Lane 4 g + q (g < 8, q < 4) has the elements [g][2q], [g][2q + 1],
// [g + 8][2q], [g + 8][2q + 1] of D. bf16 products have K = 16, and tf32 products have K = 8.
//
// Notable choices:
// - Two neighboring accumulators, D[16, 16], have the layout of an A operand when they are packed to bf16. Chains of
//   products therefore stay in registers.
// - The columns of A may be permuted if the rows of B are permuted in the same way. For tf32, such a permutation gives
//   an accumulator the layout of an A operand: lane 4 g + q supplies columns 2q and 2q + 1, which the instruction
//   interprets as columns q and q + 4.
// - A tf32 product truncates fp32 inputs: it drops the last 13 bits. Truncation always rounds towards zero, so the
//   errors add up. A value that many products read is therefore rounded when it is stored. A value that only one
//   product reads is not rounded.

#pragma once

#include "common.cuh"

namespace wkv7s {

using namespace common;

// ---- Arithmetic ---------------------------------------------------------------------------------------------------

// c += a b, a [16, 16] and b [16, 8] in bf16.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += a b, a [16, 8] and b [8, 8] in tf32.
__device__ __forceinline__ void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    uint32_t y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// x adjusted so that a tf32 product, which drops the last 13 bits, reads it rounded to nearest.
__device__ __forceinline__ float rounded_tf32(float x) { return __uint_as_float(__float_as_uint(x) + 0x1000u); }

// 1 / x, accurate to the last bit or two.
__device__ __forceinline__ float reciprocal_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- Copies -------------------------------------------------------------------------------------------------------

// Loads four 8 x 8 matrices of bf16 from shared memory; lane l passes the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix(uint32_t (&x)[4], const bf16* row) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address));
}

__device__ __forceinline__ void ldmatrix_transposed(uint32_t (&x)[4], const bf16* row) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address));
}

// The reverse of ldmatrix, and of ldmatrix_transposed.
__device__ __forceinline__ void stmatrix(bf16* row, const uint32_t (&x)[4]) {
#if __CUDA_ARCH__ >= 900
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
                 :: "r"(address), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]) : "memory");
#else
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint64_t to = __shfl_sync(FULL_MASK, reinterpret_cast<uint64_t>(row), 8 * i + lane / 4);
        reinterpret_cast<uint32_t*>(to)[lane % 4] = x[i];
    }
#endif
}

__device__ __forceinline__ void stmatrix_transposed(bf16* row, const uint32_t (&x)[4]) {
#if __CUDA_ARCH__ >= 900
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};"
                 :: "r"(address), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]) : "memory");
#else
    uint32_t y[4];
#pragma unroll
    for (int i = 0; i < 4; i++) asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y[i]) : "r"(x[i]));
    stmatrix(row, y);
#endif
}

// Copies 16 bytes from global to shared memory asynchronously; writes zeros unless `valid`. See copy_async_commit.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(address), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

// ---- Operands -----------------------------------------------------------------------------------------------------

// A [16, 16] operand of bf16: one A, or two B side by side (columns 0..7 in x[0], x[1], columns 8..15 in x[2], x[3]).
struct Operand {
    uint32_t x[4];
};

// A [16, 16] operand A of tf32: columns 0..7, then 8..15.
struct Operand32 {
    uint32_t x[2][4];
};

// D [16, 16] in fp32: columns 0..7, then 8..15. Initialized to zero, except in an array of arrays, which nvcc 13.0
// leaves uninitialized with or without braces.
struct Accumulator {
    float x[2][4] = {};
};

// A matrix in shared memory is described by the addresses of its rows, so that any layout works: `row(i, j)` is the
// address of elements [i][j .. j + 7], j a multiple of 8.

// A = M[0..15][0..15].
template <class Row>
__device__ __forceinline__ Operand load_a(Row row) {
    const int lane = threadIdx.x % 32;
    Operand a;
    ldmatrix(a.x, row(lane % 16, lane / 16 * 8));
    return a;
}

// A = M[0..15][0..15]^T.
template <class Row>
__device__ __forceinline__ Operand load_a_transposed(Row row) {
    const int lane = threadIdx.x % 32;
    Operand a;
    ldmatrix_transposed(a.x, row(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8));
    return a;
}

// B = M[0..15][0..15].
template <class Row>
__device__ __forceinline__ Operand load_b(Row row) {
    const int lane = threadIdx.x % 32;
    Operand b;
    ldmatrix_transposed(b.x, row(lane % 16, lane / 16 * 8));
    return b;
}

// B = M[0..15][0..15]^T.
template <class Row>
__device__ __forceinline__ Operand load_b_transposed(Row row) {
    const int lane = threadIdx.x % 32;
    Operand b;
    ldmatrix(b.x, row(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8));
    return b;
}

// M[0..15][0..15] = x, an accumulator packed by to_bf16.
template <class Row>
__device__ __forceinline__ void store(Row row, const Operand& x) {
    const int lane = threadIdx.x % 32;
    stmatrix(row(lane % 16, lane / 16 * 8), x.x);
}

// M[0..15][0..15] = x^T.
template <class Row>
__device__ __forceinline__ void store_transposed(Row row, const Operand& x) {
    const int lane = threadIdx.x % 32;
    stmatrix_transposed(row(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8), x.x);
}

__device__ __forceinline__ Operand to_bf16(const Accumulator& c) {
    return {{pack_bf16(c.x[0][0], c.x[0][1]), pack_bf16(c.x[0][2], c.x[0][3]),
             pack_bf16(c.x[1][0], c.x[1][1]), pack_bf16(c.x[1][2], c.x[1][3])}};
}

__device__ __forceinline__ Operand32 to_tf32(const Accumulator& c) {
    Operand32 a;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        a.x[j][0] = __float_as_uint(c.x[j][0]);
        a.x[j][1] = __float_as_uint(c.x[j][2]);
        a.x[j][2] = __float_as_uint(c.x[j][1]);
        a.x[j][3] = __float_as_uint(c.x[j][3]);
    }
    return a;
}

__device__ __forceinline__ Accumulator rounded_tf32(const Accumulator& c) {
    Accumulator y;
#pragma unroll
    for (int j = 0; j < 2; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) y.x[j][i] = rounded_tf32(c.x[j][i]);
    }
    return y;
}

// Exact: every bf16 value is a tf32 value.
__device__ __forceinline__ Operand32 to_tf32(const Operand& a) {
    Operand32 y;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        y.x[j][0] = a.x[2 * j] << 16;
        y.x[j][1] = a.x[2 * j + 1] << 16;
        y.x[j][2] = a.x[2 * j] & 0xffff0000u;
        y.x[j][3] = a.x[2 * j + 1] & 0xffff0000u;
    }
    return y;
}

__device__ __forceinline__ void multiply_add(Accumulator& c, const Operand& a, const Operand& b) {
    mma_bf16(c.x[0], a.x, b.x[0], b.x[1]);
    mma_bf16(c.x[1], a.x, b.x[2], b.x[3]);
}

}  // namespace wkv7s
