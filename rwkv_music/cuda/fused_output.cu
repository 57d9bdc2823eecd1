// Group norm, bonus and output gate after the recurrence, and their backward.

#include "vec8.cuh"

namespace fused {
namespace {

struct Normed {
    Eight n;
    float rstd;
};

__device__ Normed norm_head(const Eight& y) {
    const Eight centred = y - head_sum(y) / HEAD;
    const float rstd = rsqrtf(head_sum(centred * centred) / HEAD + GROUP_NORM_EPS);
    return {centred * rstd, rstd};
}

// All rows of a token are asked for before the first is used; vectors come from L1 every time.

__global__ __launch_bounds__(WARPS * WARP) void norm_bonus_gate_kernel(const NormBonusGate args) {
    const Place place(args.C);
    const auto vector = [&](const bf16* from) { return read(from + place.channel); };
    for (int64_t token = place.token; token < args.tokens; token += place.step) {
        const int64_t at = token * args.C + place.channel;
        const Packed r = load(args.r + at), k = load(args.k + at), y = load(args.y + at);
        const Packed v = load(args.v + at), g = load(args.g + at);
        const float bonus = head_sum(unpack(r) * unpack(k) * vector(args.r_k));
        const Eight norm = norm_head(unpack(y)).n * vector(args.ln_weight) + vector(args.ln_bias);
        if (place.inside) write(args.out + at, (norm + unpack(v) * bonus) * unpack(g));
    }
}

__global__ __launch_bounds__(WARPS * WARP, BACKWARD_BLOCKS)
void norm_bonus_gate_backward_kernel(const NormBonusGateBackward args) {
    const Place place(args.C);
    const auto vector = [&](const bf16* from) { return read(from + place.channel); };
    Eight dr_k = eight(0), dweight = eight(0), dbias = eight(0);
    for (int64_t token = place.token; token < args.tokens; token += place.step) {
        const int64_t at = token * args.C + place.channel;
        const Packed packed_y = load(args.y + at), r = load(args.r + at), k = load(args.k + at);
        const Packed dout = load(args.dout + at), v = load(args.v + at), g = load(args.g + at);

        const Normed y = norm_head(unpack(packed_y));
        const Eight rk = unpack(r) * unpack(k);
        const float bonus = head_sum(rk * vector(args.r_k));
        const Eight z = y.n * vector(args.ln_weight) + vector(args.ln_bias) + unpack(v) * bonus;  // what g multiplies
        if (place.inside) {
            write(args.dg + at, unpack(dout) * z);
            write(args.out + at, unpack(g) * z);
        }

        const Eight dz = unpack(dout) * unpack(g), dn = dz * vector(args.ln_weight);
        const float mean = head_sum(dn) / HEAD, along = head_sum(dn * y.n) / HEAD;
        const float dbonus = head_sum(dz * unpack(v));
        const Eight to_r_and_k = vector(args.r_k) * dbonus;
        dr_k = dr_k + rk * dbonus;
        dweight = dweight + dz * y.n;
        dbias = dbias + dz;
        if (!place.inside) continue;
        write(args.dy + at, (dn - mean - y.n * along) * y.rstd);
        write(args.dr + at, to_r_and_k * unpack(k));
        write(args.dk + at, to_r_and_k * unpack(r));
        write(args.dv + at, dz * bonus);
    }
    write_parts<3>({dr_k, dweight, dbias}, args.parts, args.C);
}

}  // namespace

cudaError_t norm_bonus_gate(const NormBonusGate& args, cudaStream_t stream) {
    const dim3 grid = token_grid(args.tokens, args.C, FORWARD_BLOCKS);
    return launch(norm_bonus_gate_kernel, grid, WARPS * WARP, 0, stream, args);
}

cudaError_t norm_bonus_gate_backward(const NormBonusGateBackward& args, cudaStream_t stream) {
    const dim3 grid = token_grid(args.tokens, args.C, BACKWARD_BLOCKS);
    const cudaError_t launched = launch(norm_bonus_gate_backward_kernel, grid, WARPS * WARP, 0, stream, args);
    return launched ? launched : sum_parts(args.parts, int(grid.y), 3 * args.C, args.sums, stream);
}

}  // namespace fused
