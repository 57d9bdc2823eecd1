// Group norm, bonus and output gate after the recurrence, and their backward.

#include "vec8.cuh"

namespace fused {
namespace {

struct Normed {
    Vec8 n;
    float rstd;
};

__device__ Normed norm_head(const Vec8& y) {
    const Vec8 centred = y - head_sum(y) / HEAD;
    const float rstd = rsqrtf(head_sum(centred * centred) / HEAD + GROUP_NORM_EPS);
    return {centred * rstd, rstd};
}

// All rows of a token are loaded before the first one is used. The [C] vectors are read from L1 again for every token.

__global__ __launch_bounds__(WARPS * WARP) void norm_bonus_gate_kernel(const NormBonusGate args) {
    const GridPosition position(args.C);
    const auto vector = [&](const bf16* from) { return read(from + position.channel); };
    for (int64_t token = position.token; token < args.tokens; token += position.step) {
        const int64_t offset = token * args.C + position.channel;
        const Packed r = load(args.r + offset), k = load(args.k + offset), y = load(args.y + offset);
        const Packed v = load(args.v + offset), g = load(args.g + offset);
        const float bonus = head_sum(unpack(r) * unpack(k) * vector(args.r_k));
        const Vec8 norm = norm_head(unpack(y)).n * vector(args.ln_weight) + vector(args.ln_bias);
        if (position.inside) write(args.out + offset, (norm + unpack(v) * bonus) * unpack(g));
    }
}

__global__ __launch_bounds__(WARPS * WARP, BACKWARD_BLOCKS)
void norm_bonus_gate_backward_kernel(const NormBonusGateBackward args) {
    const GridPosition position(args.C);
    const auto vector = [&](const bf16* from) { return read(from + position.channel); };
    Vec8 dr_k = broadcast(0), dweight = broadcast(0), dbias = broadcast(0);
    for (int64_t token = position.token; token < args.tokens; token += position.step) {
        const int64_t offset = token * args.C + position.channel;
        const Packed packed_y = load(args.y + offset), r = load(args.r + offset), k = load(args.k + offset);
        const Packed dout = load(args.dout + offset), v = load(args.v + offset), g = load(args.g + offset);

        const Normed y = norm_head(unpack(packed_y));
        const Vec8 rk = unpack(r) * unpack(k);
        const float bonus = head_sum(rk * vector(args.r_k));
        const Vec8 z = y.n * vector(args.ln_weight) + vector(args.ln_bias) + unpack(v) * bonus;  // gated by g
        if (position.inside) {
            write(args.dg + offset, unpack(dout) * z);
            write(args.out + offset, unpack(g) * z);
        }

        const Vec8 dz = unpack(dout) * unpack(g), dn = dz * vector(args.ln_weight);
        const float mean = head_sum(dn) / HEAD, along = head_sum(dn * y.n) / HEAD;
        const float dbonus = head_sum(dz * unpack(v));
        const Vec8 to_r_and_k = vector(args.r_k) * dbonus;
        dr_k = dr_k + rk * dbonus;
        dweight = dweight + dz * y.n;
        dbias = dbias + dz;
        if (!position.inside) continue;
        write(args.dy + offset, (dn - mean - y.n * along) * y.rstd);
        write(args.dr + offset, to_r_and_k * unpack(k));
        write(args.dk + offset, to_r_and_k * unpack(r));
        write(args.dv + offset, dz * bonus);
    }
    write_partial_sums<3>({dr_k, dweight, dbias}, args.partials, args.C);
}

}  // namespace

cudaError_t norm_bonus_gate(const NormBonusGate& args, cudaStream_t stream) {
    const dim3 grid = token_grid(args.tokens, args.C, FORWARD_BLOCKS);
    return launch(norm_bonus_gate_kernel, grid, WARPS * WARP, 0, stream, args);
}

cudaError_t norm_bonus_gate_backward(const NormBonusGateBackward& args, cudaStream_t stream) {
    const dim3 grid = token_grid(args.tokens, args.C, BACKWARD_BLOCKS);
    const cudaError_t launched = launch(norm_bonus_gate_backward_kernel, grid, WARPS * WARP, 0, stream, args);
    return launched ? launched : reduce_partials(args.partials, int(grid.y), 3 * args.C, args.sums, stream);
}

}  // namespace fused
