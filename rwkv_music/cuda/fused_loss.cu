// Cross-entropy that overwrites the logits with their gradient. One block processes one row. It keeps the row in
// registers, unless the vocabulary is too large.
//
// If the vocabulary size is not a multiple of 8, a row shares its first and last 16-byte vectors with the neighboring
// rows. These two vectors are read and written element by element.

#include <cassert>

#include "vec8.cuh"

namespace fused {
namespace {

constexpr int THREADS = 512;
constexpr unsigned short MINUS_INFINITY = 0xff80;  // in bf16; stands for elements outside the row

struct Row {
    bf16* begin;    // the row's first vector, aligned to 16 bytes
    int lead, V;    // the row's elements are begin[lead .. lead + V - 1]
    int vectors;

    __device__ Row(bf16* row, int V) : V(V) {
        lead = int(reinterpret_cast<uintptr_t>(row) % sizeof(Packed) / sizeof(bf16));
        begin = row - lead;
        vectors = (lead + V + 7) / 8;
    }

    __device__ bool has(int element) const { return element >= lead && element < lead + V; }
    __device__ bool whole(int vector) const { return has(8 * vector) && has(8 * vector + 7); }

    __device__ Packed load_vector(int vector) const {
        if (whole(vector)) return load(begin + 8 * vector);
        alignas(16) unsigned short elements[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int element = 8 * vector + i;
            elements[i] = has(element) ? reinterpret_cast<const unsigned short*>(begin)[element] : MINUS_INFINITY;
        }
        return *reinterpret_cast<const Packed*>(elements);
    }

    __device__ void write_vector(int vector, const Vec8& x) const {
        if (whole(vector)) return write(begin + 8 * vector, x);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (has(8 * vector + i)) begin[8 * vector + i] = __float2bfloat16(x.x[i]);
        }
    }
};

__device__ float maximum(const Vec8& a) {
    float out = a.x[0];
#pragma unroll
    for (int i = 1; i < 8; i++) out = fmaxf(out, a.x[i]);
    return out;
}

__device__ float block_maximum(float x) {
    __shared__ float shared[THREADS / WARP];
#pragma unroll
    for (int other = 1; other < WARP; other *= 2) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, other));
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    for (int warp = 0; warp < THREADS / WARP; warp++) x = fmaxf(x, shared[warp]);
    return x;
}

// Each thread keeps KEPT vectors of the row in registers. If KEPT is 0, the row may have any length, and each pass
// reads it again.
template <int KEPT>
__global__ __launch_bounds__(THREADS, KEPT > 5 ? 1 : 2) void cross_entropy_kernel(const CrossEntropy args) {
    const Row row(args.logits + int64_t(blockIdx.x) * args.V, args.V);
    const int64_t target = args.targets[blockIdx.x];
    assert(target == IGNORE_INDEX || (target >= 0 && target < args.V));
    const float scale = args.scale_tensor ? *args.scale_tensor : args.scale;
    const float target_logit = target < 0 ? 0 : __bfloat162float(row.begin[row.lead + target]);

    Packed kept[KEPT ? KEPT : 1];
    const auto each_vector = [&](auto&& work) {
        if constexpr (KEPT > 0) {
#pragma unroll
            for (int i = 0; i < KEPT; i++) {
                const int vector = i * THREADS + int(threadIdx.x);
                if (vector < row.vectors) work(vector, kept[i]);
            }
        } else {
            for (int vector = int(threadIdx.x); vector < row.vectors; vector += THREADS) {
                work(vector, kept[0] = row.load_vector(vector));
            }
        }
    };
    if constexpr (KEPT > 0) each_vector([&](int vector, Packed& x) { x = row.load_vector(vector); });

    float top = -INFINITY;
    each_vector([&](int, const Packed& x) { top = fmaxf(top, maximum(unpack(x))); });
    top = block_maximum(top);
    const auto exponentials = [&](const Packed& x) {
        const Vec8 logits = unpack(x);
        return make_vec8([&](int i) { return exp2_fast(fmaf(logits.x[i], LOG2_E, -top * LOG2_E)); });
    };
    float total[1] = {0};
    each_vector([&](int, const Packed& x) { total[0] += sum(exponentials(x)); });
    int buffer = 0;
    block_sum(total, buffer);

    if (threadIdx.x == 0) args.nats[blockIdx.x] = target < 0 ? 0 : logf(total[0]) + (top - target_logit);
    const float factor = target < 0 ? 0 : scale / total[0];
    const int target_element = target < 0 ? -8 : row.lead + int(target);
    each_vector([&](int vector, const Packed& x) {
        Vec8 gradient = exponentials(x) * factor;
        if (target_element / 8 == vector) {
            gradient = make_vec8([&](int i) { return gradient.x[i] - (8 * vector + i == target_element ? scale : 0); });
        }
        row.write_vector(vector, gradient);
    });
}

}  // namespace

cudaError_t cross_entropy(const CrossEntropy& args, cudaStream_t stream) {
    const int64_t vectors_each = ceil_div(ceil_div(args.V + 7, 8), THREADS);
    const auto kernel = vectors_each <= 1 ? cross_entropy_kernel<1>
                      : vectors_each <= 5 ? cross_entropy_kernel<5>
                      : vectors_each <= 16 ? cross_entropy_kernel<16>
                                           : cross_entropy_kernel<0>;
    return launch(kernel, dim3(unsigned(args.rows)), THREADS, 0, stream, args);
}

}  // namespace fused
