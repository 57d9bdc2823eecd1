// The gates before the recurrence, and their backward; and how all operators here add up their sums over tokens.

#include "vec8.cuh"

namespace fused {
namespace {

// A token's rows are asked for before the first of them is used; vectors come from L1 every time.

template <bool RESIDUAL>
__global__ __launch_bounds__(WARPS * WARP) void gates_kernel(const Gates args) {
    const Place place(args.C);
    const auto vector = [&](const bf16* from) { return read(from + place.channel); };
    for (int64_t token = place.token; token < args.tokens; token += place.step) {
        const int64_t at = token * args.C + place.channel;
        const Packed packed_k = load(args.k + at), a_low = load(args.a_low + at), w_low = load(args.w_low + at);
        Packed packed_v{}, v_first{}, v_low{};
        if constexpr (RESIDUAL) {
            packed_v = load(args.v + at);
            v_first = load(args.v_first + at);
            v_low = load(args.v_low + at);
        }
        const Eight k = unpack(packed_k), a = sigmoid(vector(args.a0) + unpack(a_low));
        const Eight u = k * vector(args.k_k);
        const Eight kk = u * rsqrtf(fmaxf(head_sum(u * u), NORMALIZE_EPS * NORMALIZE_EPS));
        if (!place.inside) continue;
        write(args.w + at, vector(args.w0) + unpack(w_low));
        write(args.new_k + at, k + k * (a - 1) * vector(args.k_a));
        write(args.removal + at, -kk);
        write(args.replacement + at, kk * a);
        if constexpr (RESIDUAL) {
            const Eight v = unpack(packed_v), share = sigmoid(vector(args.v0) + unpack(v_low));
            write(args.new_v + at, v + share * (unpack(v_first) - v));
        }
    }
}

template <bool RESIDUAL>
__global__ __launch_bounds__(WARPS * WARP, BACKWARD_BLOCKS) void gates_backward_kernel(const GatesBackward args) {
    const Place place(args.C);
    const auto vector = [&](const bf16* from) { return read(from + place.channel); };
    Eight dw0 = eight(0), da0 = eight(0), dk_k = eight(0), dk_a = eight(0), dv0 = eight(0);
    for (int64_t token = place.token; token < args.tokens; token += place.step) {
        const int64_t at = token * args.C + place.channel;
        const Packed packed_k = load(args.k + at), a_low = load(args.a_low + at), dw = load(args.dw + at);
        const Packed packed_dnew_k = load(args.dnew_k + at), dremoval = load(args.dremoval + at);
        const Packed packed_dreplacement = load(args.dreplacement + at);
        const Packed dk_more = args.dk_more ? load(args.dk_more + at) : Packed{};

        const Eight k = unpack(packed_k), a = sigmoid(vector(args.a0) + unpack(a_low));
        const Eight u = k * vector(args.k_k);
        const float square = head_sum(u * u);
        const float inverse = rsqrtf(fmaxf(square, NORMALIZE_EPS * NORMALIZE_EPS));
        const Eight kk = u * inverse;
        const Eight dreplacement = unpack(packed_dreplacement);
        const Eight dkk = dreplacement * a - unpack(dremoval);
        // Below the bound on its length u is divided by a constant, and the length has no gradient.
        const float along = head_sum(kk * dkk) * (square > NORMALIZE_EPS * NORMALIZE_EPS ? 1.f : 0.f);
        const Eight du = (dkk - kk * along) * inverse;
        const Eight dnew_k = unpack(packed_dnew_k) + unpack(dk_more);
        const Eight dk_of_a = dnew_k * k;  // the gradient of (a - 1) * k_a
        const Eight da_low = (dreplacement * kk + dk_of_a * vector(args.k_a)) * a * (eight(1) - a);
        dw0 = dw0 + unpack(dw);
        da0 = da0 + da_low;
        dk_k = dk_k + du * k;
        dk_a = dk_a + dk_of_a * (a - 1);
        if (place.inside) {
            write(args.dk + at, dnew_k + dnew_k * (a - 1) * vector(args.k_a) + du * vector(args.k_k));
            write(args.da_low + at, da_low);
        }

        if (!RESIDUAL && !args.dv_more) continue;
        const Packed dnew_v = load(args.dnew_v + at), dv_more = args.dv_more ? load(args.dv_more + at) : Packed{};
        Eight dv = unpack(dnew_v) + unpack(dv_more);
        if constexpr (RESIDUAL) {
            const Packed v = load(args.v + at), v_first = load(args.v_first + at), v_low = load(args.v_low + at);
            const Eight share = sigmoid(vector(args.v0) + unpack(v_low));
            const Eight dv_first = dv * share;
            const Eight dv_low = dv_first * (unpack(v_first) - unpack(v)) * (eight(1) - share);
            dv = dv - dv_first;
            dv0 = dv0 + dv_low;
            if (place.inside) {
                write(args.dv_first + at, dv_first);
                write(args.dv_low + at, dv_low);
            }
        }
        if (place.inside) write(args.dv + at, dv);
    }
    write_parts<5>({dw0, da0, dk_k, dk_a, dv0}, args.parts, args.C);
}

// A block has 32 columns; its 32 warps share the parts.
__global__ __launch_bounds__(WARP * WARP)
void sum_parts_kernel(const float* parts, int count, int columns, bf16* sums) {
    __shared__ float shared[WARP][WARP + 1];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int64_t column = int64_t(blockIdx.x) * WARP + lane;
    float total = 0;
#pragma unroll 4
    for (int part = warp; part < count; part += WARP) total += parts[int64_t(part) * columns + column];
    shared[warp][lane] = total;
    __syncthreads();
    total = lanes_sum<WARP>(shared[lane][warp]);
    if (lane == 0) sums[int64_t(blockIdx.x) * WARP + warp] = __float2bfloat16(total);
}

}  // namespace

int token_parts(int64_t tokens, int C) { return int(token_grid(tokens, C, BACKWARD_BLOCKS).y); }

cudaError_t sum_parts(const float* parts, int count, int columns, bf16* sums, cudaStream_t stream) {
    const dim3 grid(unsigned(columns / WARP));
    return launch(sum_parts_kernel, grid, WARP * WARP, 0, stream, parts, count, columns, sums);
}

cudaError_t gates(const Gates& args, cudaStream_t stream) {
    const auto kernel = args.v_first ? gates_kernel<true> : gates_kernel<false>;
    return launch(kernel, token_grid(args.tokens, args.C, FORWARD_BLOCKS), WARPS * WARP, 0, stream, args);
}

cudaError_t gates_backward(const GatesBackward& args, cudaStream_t stream) {
    const dim3 grid = token_grid(args.tokens, args.C, BACKWARD_BLOCKS);
    const auto kernel = args.v_first ? gates_backward_kernel<true> : gates_backward_kernel<false>;
    const cudaError_t launched = launch(kernel, grid, WARPS * WARP, 0, stream, args);
    return launched ? launched : sum_parts(args.parts, int(grid.y), 5 * args.C, args.sums, stream);
}

}  // namespace fused
