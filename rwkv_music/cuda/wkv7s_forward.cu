// WKV7s forward, chunk by chunk: one block per head and document (or segment). See chunk.cuh for the algebra.
//
// Notable choices:
// - The state stays in registers, in fp32, from the first token to the last.
// - While a chunk is processed, the next chunks are copied to shared memory: at most two of them, and fewer if the
//   shared memory of a multiprocessor could not hold two blocks (one block with a head size of 128). In shared memory,
//   r, a, k and b are scaled in place, the rounding residual of k- overwrites w, and y overwrites v before y is stored.

#include "chunk.cuh"

namespace wkv7s {
namespace {

template <int N>
struct Stage {
    Chunk<N> r, w, k, v, a, b;
};

template <int N, int STAGES>
struct Shared {
    Stage<N> stages[STAGES];
    Scores scores;
    alignas(16) float decay[N];  // P_L
};

template <int N, int STAGES>
__global__ __launch_bounds__(THREADS<N>, N == 64 ? 2 : 1) void forward_kernel(const Forward args) {
    extern __shared__ char shared_bytes[];
    auto& shared = *reinterpret_cast<Shared<N, STAGES>*>(shared_bytes);
    const Work<N> work(args.in, args.segments);
    if (!work.exists) return;

    const auto load = [&](int chunk) {
        if (chunk < work.chunks) {
            Stage<N>& stage = shared.stages[chunk % STAGES];
            load_chunk(stage.r, args.in.r, work, chunk);
            load_chunk(stage.w, args.in.w, work, chunk);
            load_chunk(stage.k, args.in.k, work, chunk);
            load_chunk(stage.v, args.in.v, work, chunk);
            load_chunk(stage.a, args.in.a, work, chunk);
            load_chunk(stage.b, args.in.b, work, chunk);
        }
        copy_async_commit();
    };
    // With one stage, a chunk is copied after the previous one has been processed.
    constexpr int AHEAD = STAGES > 1 ? STAGES - 1 : 1;
#pragma unroll
    for (int chunk = 0; chunk < AHEAD; chunk++) load(chunk);

    State<N> S;
    if (!work.first) {
        load_state(S, args.segments.boundaries + work.boundary_at(work.slot - 1));
    } else if (args.state) {
        load_state(S, args.state + work.state_at());
    }

    for (int chunk = 0; chunk < work.chunks; chunk++) {
        Stage<N>& stage = shared.stages[chunk % STAGES];
        Chunk<N>& k_residual = stage.w;
        copy_async_wait<AHEAD - 1>();
        __syncthreads();  // this chunk has arrived, and all warps are done with the last one
        if (STAGES > 1) load(chunk + AHEAD);
        const Scaling<N> scaling = {
            .r = &stage.r, .w = &stage.w, .k = &stage.k, .a = &stage.a, .b = &stage.b, .k_residual = &k_residual,
        };
        const bool slow = __syncthreads_or(scale_by_decays(scaling, shared.decay, work.left(chunk)));
        make_scores<false>(shared.scores, stage.r, stage.k, stage.a, stage.b);

        Rows U, Y;
        {
            StateOperand<N> S_bf16;
            to_bf16(S_bf16, S);
            if (args.checkpoints) store_checkpoint(args.checkpoints + work.checkpoint_at(chunk), S_bf16);
            multiply_add_transposed(U, S_bf16, stage.a);
            multiply_add_transposed(Y, S_bf16, stage.r);
        }
        Operand V[TILES], U_bf16[TILES];
        Operand32 V_tf32[TILES], U_tf32[TILES];
        load_columns(V, stage.v);
        to_tf32(V_tf32, V);
        __syncthreads();  // the scores are ready
        multiply_add_transposed(U, V_tf32, shared.scores.ak);
        solve(U, U_tf32, shared.scores.ab);
        multiply_add_transposed(Y, V_tf32, shared.scores.rk);
        multiply_add_transposed(Y, U_tf32, shared.scores.rb);

        to_bf16(U_bf16, U);
        multiply_add(S, U_bf16, stage.b);
        multiply_add(S, V, stage.k);
        if (slow) multiply_add(S, V, k_residual);
        decay_columns(S, shared.decay);

        // Only this warp reads these 16 columns of v, and it is done with them.
        Operand Y_bf16[TILES];
        to_bf16(Y_bf16, Y);
        __syncwarp();
        store_columns(stage.v, Y_bf16);
        __syncwarp();
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            const int lane = threadIdx.x % 32, token = TILE * t + lane / 2;
            const int column = threadIdx.x / 32 * 16 + lane % 2 * 8;
            if (token < work.left(chunk)) {
                *reinterpret_cast<uint4*>(args.y + work.at(chunk) + token * work.token_stride() + column) =
                    *reinterpret_cast<const uint4*>(stage.v.at(token, column));
            }
        }
        if (STAGES == 1) {
            __syncthreads();
            load(chunk + 1);
        }
    }
    if (work.last) store_state(args.final_state + work.state_at(), S);
}

template <int N, int STAGES>
cudaError_t launch_forward(const Forward& args, cudaStream_t stream) {
    const dim3 blocks(unsigned(int64_t(args.segments.slots) * args.in.heads));
    return launch(forward_kernel<N, STAGES>, blocks, THREADS<N>, sizeof(Shared<N, STAGES>), stream, args);
}

}  // namespace

cudaError_t forward(const Forward& args, int max_length, cudaStream_t stream) {
    if (max_length <= MAX_RECURRENT) return recurrent_forward(args, max_length, stream);
    if (args.segments.tokens) {
        const cudaError_t made = compute_boundaries(args, stream);
        if (made != cudaSuccess) return made;
    }
    SharedMemory memory;
    const cudaError_t read = read_shared_memory(memory);
    if (read != cudaSuccess) return read;
    if (args.in.head_size == 64) {
        return memory.holds_two(sizeof(Shared<64, 3>)) ? launch_forward<64, 3>(args, stream)
                                                       : launch_forward<64, 2>(args, stream);
    }
    return memory.holds(sizeof(Shared<128, 2>)) ? launch_forward<128, 2>(args, stream)
                                                : launch_forward<128, 1>(args, stream);
}

}  // namespace wkv7s
