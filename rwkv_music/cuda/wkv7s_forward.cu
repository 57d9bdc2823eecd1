// WKV7s forward, chunk by chunk: one block of four warps a document (or segment of one) and head. See chunk.cuh for the
// algebra.
//
// Notable choices:
// - The state stays in registers, in fp32, from the first token to the last.
// - The next two chunks are copied while this one is worked on. r, a, k, b are scaled where they land; y leaves by way
//   of v.

#include "chunk.cuh"

namespace wkv7s {
namespace {

constexpr int STAGES = 3;

struct Stage {
    Chunk r, w, k, v, a, b;
};

struct Shared {
    Stage stages[STAGES];
    Scores scores;
    alignas(16) float decay[N];  // P_L
};

__global__ __launch_bounds__(THREADS, 2) void forward_kernel(const Forward args) {
    extern __shared__ char shared_bytes[];
    Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
    const int warp = threadIdx.x / 32;

    const Work work(args.in, args.segments);
    if (!work.exists) return;
    const int chunks = (work.length + L - 1) / L;
    const int64_t token_stride = int64_t(args.in.heads) * N;
    const int64_t first = work.begin * token_stride + work.head * N;  // the head's elements of the first token
    const int64_t state_at = (int64_t(work.document) * args.in.heads + work.head) * STATE;

    const auto load = [&](int chunk) {
        if (chunk < chunks) {
            Stage& stage = shared.stages[chunk % STAGES];
            const int64_t at = first + chunk * L * token_stride;
            const int left = work.length - chunk * L;
            load_chunk(stage.r, args.in.r + at, token_stride, left);
            load_chunk(stage.w, args.in.w + at, token_stride, left);
            load_chunk(stage.k, args.in.k + at, token_stride, left);
            load_chunk(stage.v, args.in.v + at, token_stride, left);
            load_chunk(stage.a, args.in.a + at, token_stride, left);
            load_chunk(stage.b, args.in.b + at, token_stride, left);
        }
        copy_async_commit();
    };
#pragma unroll
    for (int chunk = 0; chunk < STAGES - 1; chunk++) load(chunk);

    State S;
    if (!work.first) {
        load_state(S, args.segments.edges + (int64_t(work.slot - 1) * args.in.heads + work.head) * STATE);
    } else if (args.state) {
        load_state(S, args.state + state_at);
    }

    for (int chunk = 0; chunk < chunks; chunk++) {
        const int left = work.length - chunk * L;
        Stage& stage = shared.stages[chunk % STAGES];
        copy_async_wait<STAGES - 2>();
        __syncthreads();  // this chunk is here, and nobody is at the last one any more
        load(chunk + STAGES - 1);
        scale_by_decays(&stage.r, stage.w, &stage.k, stage.a, stage.b, shared.decay, nullptr, left);
        __syncthreads();
        make_scores<false>(shared.scores, stage.r, stage.k, stage.a, stage.b);

        Rows U, Y;
        {
            StateOperand S_bf16;
            to_bf16(S_bf16, S);
            if (args.checkpoints) {
                const int64_t slot = work.checkpoint + chunk;
                store_checkpoint(args.checkpoints + (slot * args.in.heads + work.head) * STATE, S_bf16);
            }
            multiply_add_transposed(U, S_bf16, stage.a);
            multiply_add_transposed(Y, S_bf16, stage.r);
        }
        Operand V[TILES], U_bf16[TILES];
        Operand32 V_tf32[TILES], U_tf32[TILES];
        load_columns(V, stage.v);
        to_tf32(V_tf32, V);
        __syncthreads();  // the scores are here
        multiply_add_transposed(U, V_tf32, shared.scores.ak);
        solve(U, U_tf32, shared.scores.ab);
        multiply_add_transposed(Y, V_tf32, shared.scores.rk);
        multiply_add_transposed(Y, U_tf32, shared.scores.rb);

        to_bf16(U_bf16, U);
        multiply_add(S, U_bf16, stage.b);
        multiply_add(S, V, stage.k);
        decay_columns(S, shared.decay);

        // This warp alone reads its 16 columns of v, and has.
        Operand Y_bf16[TILES];
        to_bf16(Y_bf16, Y);
        __syncwarp();
        store_columns(stage.v, Y_bf16);
        __syncwarp();
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            const int lane = threadIdx.x % 32, token = TILE * t + lane / 2, column = 16 * warp + lane % 2 * 8;
            if (token < left) {
                *reinterpret_cast<uint4*>(args.y + first + (chunk * L + token) * token_stride + column) =
                    *reinterpret_cast<const uint4*>(stage.v.at(token, column));
            }
        }
    }
    if (work.last) store_state(args.final_state + state_at, S);
}

}  // namespace

cudaError_t forward(const Forward& args, int max_length, cudaStream_t stream) {
    if (max_length <= SHORT) return recurrent_forward(args, max_length, stream);
    if (args.segments.tokens) {
        const cudaError_t made = make_edges(args, stream);
        if (made != cudaSuccess) return made;
    }
    return launch(forward_kernel, int64_t(args.segments.slots) * args.in.heads, THREADS, sizeof(Shared), stream, args);
}

}  // namespace wkv7s
