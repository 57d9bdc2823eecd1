// The gates before the recurrence, their backward, and reduce_partials for all fused operators.

#include "vec8.cuh"

namespace fused {
namespace {

// All rows of a token are loaded before the first one is used. The [C] vectors are read from L1 again for every token.

template <bool RESIDUAL>
__global__ __launch_bounds__(WARPS * WARP) void gates_kernel(const Gates args) {
    const GridPosition position(args.C);
    const auto vector = [&](const bf16* from) { return read(from + position.channel); };
    for (int64_t token = position.token; token < args.tokens; token += position.step) {
        const int64_t offset = token * args.C + position.channel;
        const Packed packed_k = load(args.k + offset);
        const Packed a_low = load(args.a_low + offset), w_low = load(args.w_low + offset);
        Packed packed_v{}, v_first{}, v_low{};
        if constexpr (RESIDUAL) {
            packed_v = load(args.v + offset);
            v_first = load(args.v_first + offset);
            v_low = load(args.v_low + offset);
        }
        const Vec8 k = unpack(packed_k), a = sigmoid(vector(args.a0) + unpack(a_low));
        const Vec8 u = k * vector(args.k_k);
        const Vec8 kk = u * rsqrtf(fmaxf(head_sum(u * u), NORMALIZE_EPS * NORMALIZE_EPS));
        if (!position.inside) continue;
        write(args.w + offset, vector(args.w0) + unpack(w_low));
        write(args.new_k + offset, k + k * (a - 1) * vector(args.k_a));
        write(args.removal + offset, -kk);
        write(args.replacement + offset, kk * a);
        if constexpr (RESIDUAL) {
            const Vec8 v = unpack(packed_v), share = sigmoid(vector(args.v0) + unpack(v_low));
            write(args.new_v + offset, v + share * (unpack(v_first) - v));
        }
    }
}

template <bool RESIDUAL>
__global__ __launch_bounds__(WARPS * WARP, BACKWARD_BLOCKS) void gates_backward_kernel(const GatesBackward args) {
    const GridPosition position(args.C);
    const auto vector = [&](const bf16* from) { return read(from + position.channel); };
    Vec8 dw0 = broadcast(0), da0 = broadcast(0), dk_k = broadcast(0), dk_a = broadcast(0), dv0 = broadcast(0);
    for (int64_t token = position.token; token < args.tokens; token += position.step) {
        const int64_t offset = token * args.C + position.channel;
        const Packed packed_k = load(args.k + offset), a_low = load(args.a_low + offset), dw = load(args.dw + offset);
        const Packed packed_dnew_k = load(args.dnew_k + offset), dremoval = load(args.dremoval + offset);
        const Packed packed_dreplacement = load(args.dreplacement + offset);
        const Packed dk_extra = args.dk_extra ? load(args.dk_extra + offset) : Packed{};

        const Vec8 k = unpack(packed_k), a = sigmoid(vector(args.a0) + unpack(a_low));
        const Vec8 u = k * vector(args.k_k);
        const float square = head_sum(u * u);
        const float inverse = rsqrtf(fmaxf(square, NORMALIZE_EPS * NORMALIZE_EPS));
        const Vec8 kk = u * inverse;
        const Vec8 dreplacement = unpack(packed_dreplacement);
        const Vec8 dkk = dreplacement * a - unpack(dremoval);
        // If the norm is below its lower bound, u is divided by a constant, and the norm has no gradient.
        const float along = head_sum(kk * dkk) * (square > NORMALIZE_EPS * NORMALIZE_EPS ? 1.f : 0.f);
        const Vec8 du = (dkk - kk * along) * inverse;
        const Vec8 dnew_k = unpack(packed_dnew_k) + unpack(dk_extra);
        const Vec8 dk_of_a = dnew_k * k;  // the gradient of (a - 1) * k_a
        const Vec8 da_low = (dreplacement * kk + dk_of_a * vector(args.k_a)) * a * (broadcast(1) - a);
        dw0 = dw0 + unpack(dw);
        da0 = da0 + da_low;
        dk_k = dk_k + du * k;
        dk_a = dk_a + dk_of_a * (a - 1);
        if (position.inside) {
            write(args.dk + offset, dnew_k + dnew_k * (a - 1) * vector(args.k_a) + du * vector(args.k_k));
            write(args.da_low + offset, da_low);
        }

        if (!RESIDUAL && !args.dv_extra) continue;
        const Packed dnew_v = load(args.dnew_v + offset);
        const Packed dv_extra = args.dv_extra ? load(args.dv_extra + offset) : Packed{};
        Vec8 dv = unpack(dnew_v) + unpack(dv_extra);
        if constexpr (RESIDUAL) {
            const Packed v = load(args.v + offset);
            const Packed v_first = load(args.v_first + offset), v_low = load(args.v_low + offset);
            const Vec8 share = sigmoid(vector(args.v0) + unpack(v_low));
            const Vec8 dv_first = dv * share;
            const Vec8 dv_low = dv_first * (unpack(v_first) - unpack(v)) * (broadcast(1) - share);
            dv = dv - dv_first;
            dv0 = dv0 + dv_low;
            if (position.inside) {
                write(args.dv_first + offset, dv_first);
                write(args.dv_low + offset, dv_low);
            }
        }
        if (position.inside) write(args.dv + offset, dv);
    }
    write_partial_sums<5>({dw0, da0, dk_k, dk_a, dv0}, args.partials, args.C);
}

// A block sums 32 columns; its 32 warps share the partial sums.
__global__ __launch_bounds__(WARP * WARP)
void reduce_partials_kernel(const float* partials, int count, int columns, bf16* sums) {
    __shared__ float shared[WARP][WARP + 1];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64_t column = int64_t(blockIdx.x) * WARP + lane;
    float total = 0;
#pragma unroll 4
    for (int part = warp; part < count; part += WARP) total += partials[int64_t(part) * columns + column];
    shared[warp][lane] = total;
    __syncthreads();
    total = warp_sum<WARP>(shared[lane][warp]);
    if (lane == 0) sums[int64_t(blockIdx.x) * WARP + warp] = __float2bfloat16(total);
}

}  // namespace

int token_partials(int64_t tokens, int C) { return int(token_grid(tokens, C, BACKWARD_BLOCKS).y); }

cudaError_t reduce_partials(const float* partials, int count, int columns, bf16* sums, cudaStream_t stream) {
    const dim3 grid(unsigned(columns / WARP));
    return launch(reduce_partials_kernel, grid, WARP * WARP, 0, stream, partials, count, columns, sums);
}

cudaError_t gates(const Gates& args, cudaStream_t stream) {
    const auto kernel = args.v_first ? gates_kernel<true> : gates_kernel<false>;
    return launch(kernel, token_grid(args.tokens, args.C, FORWARD_BLOCKS), WARPS * WARP, 0, stream, args);
}

cudaError_t gates_backward(const GatesBackward& args, cudaStream_t stream) {
    const dim3 grid = token_grid(args.tokens, args.C, BACKWARD_BLOCKS);
    const auto kernel = args.v_first ? gates_backward_kernel<true> : gates_backward_kernel<false>;
    const cudaError_t launched = launch(kernel, grid, WARPS * WARP, 0, stream, args);
    return launched ? launched : reduce_partials(args.partials, int(grid.y), 5 * args.C, args.sums, stream);
}

}  // namespace fused
