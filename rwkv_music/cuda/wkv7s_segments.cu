// WKV7s by segments: with few heads and long documents, the segments of a document run in parallel.
//
// A segment maps the incoming state S to S T + E, and the incoming gradient G to G T^T + E'. Three steps compute the
// states at the segment boundaries (in the backward pass, the gradients):
// 1. T and E of every segment, in parallel. E is the final state of the segment if its initial state is zero. T is the
//    final state if the initial state is the identity and all values are zero. Both are computed in the same pass over
//    the chunks, each in the way that chunk.cuh describes for one state.
// 2. A scan over the segments of a document, one product of [64, 64] matrices after another.
// 3. The forward or backward kernel itself, with each segment starting from its own boundary.
//
// Notable choices:
// - One template serves both passes. In the forward pass, a state is multiplied by a~, the result is added along b-,
//   and v k-^T is added. In the backward pass, a gradient is multiplied by b-, the result is added along a~, and dy
//   r~^T is added.
// - The head size is 64: with 128, T and E together would not fit in the registers.
// - T and the state that the scan multiplies are each stored as the sum of two bf16 values. If the state were rounded
//   to one bf16 value at every boundary, the errors would add up over the segments when the decay is slow.
// - The last segment of a document (in the backward pass, the first) has no successor. Steps 1 and 2 skip it.

#include <algorithm>
#include <type_traits>

#include "chunk.cuh"

namespace wkv7s {
namespace {

constexpr int N = 64;
constexpr int STAGES = 2;
constexpr int SHORTEST_SEGMENT = 4 * L;  // tokens

// T = the identity.
__device__ __forceinline__ void start(State<N>& T) {
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            T[j].x[i / 4][i % 4] = row + i % 4 / 2 * 8 == 16 * j + i / 4 * 8 + column + i % 2 ? 1.0f : 0.0f;
        }
    }
}

// x as the sum of two bf16 operands.
__device__ __forceinline__ void split(StateOperand<N>& high, StateOperand<N>& low, const State<N>& x) {
    to_bf16(high, x);
    State<N> residual;
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            residual[j].x[i / 2][i % 2 * 2] = x[j].x[i / 2][i % 2 * 2] - bf16_low(high[j].x[i]);
            residual[j].x[i / 2][i % 2 * 2 + 1] = x[j].x[i / 2][i % 2 * 2 + 1] - bf16_high(high[j].x[i]);
        }
    }
    to_bf16(low, residual);
}

// Stores value rows to a row-major [N, N] matrix in global memory.
__device__ __forceinline__ void store_rows(bf16* to, const StateOperand<N>& x) {
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            *reinterpret_cast<uint32_t*>(to + (row + i % 2 * 8) * N + 16 * j + i / 2 * 8 + column) = x[j].x[i];
        }
    }
}

// ---- 1. Each segment's T and E ------------------------------------------------------------------------------------

struct Stage {
    Chunk<N> w, a, b, key, value;  // key and value: k and v, backward r and dy
};

struct Shared {
    Stage stages[STAGES];
    Triangular ab, score;  // score: A_ak; backward A_rb with transposed blocks
    alignas(16) float decay[N];
};

// `Pass` is Forward or Backward. The backward T is the transpose of the forward T.
template <class Pass>
__global__ __launch_bounds__(THREADS<N>, 2) void summarize_kernel(const Pass args) {
    constexpr bool forward = std::is_same_v<Pass, Forward>;
    extern __shared__ char shared_bytes[];
    Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
    const int warp = threadIdx.x / 32;
    const Work<N> work(args.in, args.segments);
    if (!work.exists || (forward ? work.last : work.first)) return;

    const auto chunk_of = [&](int step) { return forward ? step : work.chunks - 1 - step; };
    const auto load = [&](int step) {
        if (step < work.chunks) {
            const int chunk = chunk_of(step);
            Stage& stage = shared.stages[step % STAGES];
            load_chunk(stage.w, args.in.w, work, chunk);
            load_chunk(stage.a, args.in.a, work, chunk);
            load_chunk(stage.b, args.in.b, work, chunk);
            if constexpr (forward) {
                load_chunk(stage.key, args.in.k, work, chunk);
                load_chunk(stage.value, args.in.v, work, chunk);
            } else {
                load_chunk(stage.key, args.in.r, work, chunk);
                load_chunk(stage.value, args.dy, work, chunk);
            }
        }
        copy_async_commit();
    };
    load(0);

    State<N> E, T;
    start(T);
    for (int step = 0; step < work.chunks; step++) {
        Stage& stage = shared.stages[step % STAGES];
        Chunk<N>& residual = stage.w;  // of k-; backward, of b-
        copy_async_wait<0>();
        __syncthreads();  // this chunk has arrived, and all warps are done with the last one
        load(step + 1);
        const Scaling<N> scaling = {
            .r = forward ? nullptr : &stage.key, .w = &stage.w, .k = forward ? &stage.key : nullptr,
            .a = &stage.a, .b = &stage.b,
            .k_residual = forward ? &residual : nullptr, .b_residual = forward ? nullptr : &residual,
        };
        const bool slow = __syncthreads_or(scale_by_decays(scaling, shared.decay, work.left(chunk_of(step))));
        if (warp == 0) {
            make_inverse(shared.ab, stage.a, stage.b);
        } else if (warp == 1) {
            make_score(shared.score, forward ? stage.a : stage.key, forward ? stage.key : stage.b, !forward, !forward);
        }

        Rows U_E, U_T;  // backward: dU, then dZ
        const auto read = [&](Rows& U, State<N>& x) {
            if (!forward) decay_columns(x, shared.decay);
            StateOperand<N> x_bf16;
            to_bf16(x_bf16, x);
            multiply_add_transposed(U, x_bf16, forward ? stage.a : stage.b);
            if (!forward && slow) multiply_add_transposed(U, x_bf16, residual);
        };
        read(U_E, E);
        read(U_T, T);
        Operand value[TILES];
        Operand32 value_tf32[TILES];
        load_columns(value, stage.value);
        to_tf32(value_tf32, value);
        __syncthreads();  // the scores are ready
        if (forward) {
            multiply_add_transposed(U_E, value_tf32, shared.score);
        } else {
            multiply_add_blocks_transposed(U_E, value_tf32, shared.score);
        }
        multiply_add(E, value, stage.key);
        if (forward && slow) multiply_add(E, value, residual);
        const auto write = [&](State<N>& x, Rows& U) {
            Operand32 U_tf32[TILES];
            Operand U_bf16[TILES];
            if (forward) {
                solve(U, U_tf32, shared.ab);
            } else {
                solve_backward(U, U_tf32, shared.ab);
            }
            to_bf16(U_bf16, U);
            multiply_add(x, U_bf16, forward ? stage.b : stage.a);
            if (forward) decay_columns(x, shared.decay);
        };
        write(E, U_E);
        write(T, U_T);
    }
    store_state(args.segments.boundaries + work.boundary_at(work.slot), E);
    StateOperand<N> high, low;
    split(high, low, T);
    bf16* const transition = args.segments.transitions + 2 * work.boundary_at(work.slot);
    store_rows(transition, high);
    store_rows(transition + N * N, low);
}

// ---- 2. The scan --------------------------------------------------------------------------------------------------

struct ScanShared {
    Tile<N, N> transitions[2][2];  // [buffer][high or low]
};

// One block per document and head. `initial` is the state before the document or, unless `forward`, the gradient after
// it (null for zero). Replaces the E in `boundaries` by the states (gradients) at the boundaries.
__global__ __launch_bounds__(THREADS<N>) void scan_kernel(
    const Inputs in, const Segments segments, const float* initial, const bool forward
) {
    extern __shared__ char shared_bytes[];
    ScanShared& shared = *reinterpret_cast<ScanShared*>(shared_bytes);
    const int head = blockIdx.x % in.heads, document = blockIdx.x / in.heads;
    const int begin = in.cu_seqlens[document], length = in.cu_seqlens[document + 1] - begin;
    const int steps = (length + segments.tokens - 1) / segments.tokens - 1;
    if (steps <= 0) return;
    const int slot = begin / segments.tokens + document;
    const auto place = [&](int step) {
        return (int64_t(forward ? slot + step : slot + steps - step) * in.heads + head) * (N * N);
    };

    const auto load = [&](int step) {
        if (step < steps) {
            const bf16* const from = segments.transitions + 2 * place(step);
#pragma unroll
            for (int i = threadIdx.x; i < 2 * N * N / 8; i += THREADS<N>) {
                Tile<N, N>& to = shared.transitions[step % 2][i / (N * N / 8)];
                copy_async(to.at(i % (N * N / 8) / 8, i % 8 * 8), from + 8 * i, true);
            }
        }
        copy_async_commit();
    };
    load(0);

    State<N> S;
    if (initial) load_state(S, initial + (int64_t(document) * in.heads + head) * (N * N));
    for (int step = 0; step < steps; step++) {
        float* const boundary = segments.boundaries + place(step);
        State<N> next;
        load_state(next, boundary);
        copy_async_wait<0>();
        __syncthreads();
        load(step + 1);
        StateOperand<N> high, low;
        split(high, low, S);
#pragma unroll
        for (int i = 0; i < N / 16; i++) {
#pragma unroll
            for (int j = 0; j < N / 16; j++) {
                const Operand T_high = load_b(shared.transitions[step % 2][0].from(16 * i, 16 * j));
                const Operand T_low = load_b(shared.transitions[step % 2][1].from(16 * i, 16 * j));
                multiply_add(next[j], high[i], T_high);
                multiply_add(next[j], high[i], T_low);
                multiply_add(next[j], low[i], T_high);
            }
        }
#pragma unroll
        for (int j = 0; j < N / 16; j++) S[j] = next[j];
        store_state(boundary, S);
    }
}

template <class Pass>
cudaError_t compute_boundaries(const Pass& args, const float* initial, bool forward, cudaStream_t stream) {
    const Inputs& in = args.in;
    const dim3 segments(unsigned(int64_t(args.segments.slots) * in.heads));
    const dim3 documents(unsigned(int64_t(in.documents) * in.heads));
    const cudaError_t error = launch(summarize_kernel<Pass>, segments, THREADS<N>, sizeof(Shared), stream, args);
    if (error != cudaSuccess) return error;
    return launch(
        scan_kernel, documents, THREADS<N>, sizeof(ScanShared), stream, in, args.segments, initial, forward
    );
}

}  // namespace

int choose_segment_tokens(int64_t tokens, int64_t documents, int64_t heads, int64_t max_length) {
    // Two blocks fit on a multiprocessor, and segments are fastest if they just fill all these block slots. If there
    // are more slots than pairs of a document and a head, each document is cut into equal parts, one per slot.
    // Otherwise the length of a segment is the number of tokens per slot. Steps 1 and 2 take as long as 0.6 of a
    // forward pass and 0.25 of a backward pass, and two blocks on one multiprocessor slow each other down. Cutting a
    // document into only two segments therefore gains nothing.
    const int64_t blocks = 2 * multiprocessors();
    const int64_t parts = blocks / (documents * heads);
    const int64_t tokens_per_block = parts ? ceil_div(tokens, documents * parts) : ceil_div(tokens * heads, blocks);
    const int64_t segment = std::max<int64_t>(ceil_div(tokens_per_block, L) * L, SHORTEST_SEGMENT);
    return 2 * max_length >= 5 * segment ? int(segment) : 0;
}

cudaError_t compute_boundaries(const Forward& args, cudaStream_t stream) {
    return compute_boundaries(args, args.state, true, stream);
}

cudaError_t compute_boundaries(const Backward& args, cudaStream_t stream) {
    return compute_boundaries(args, args.dfinal_state, false, stream);
}

}  // namespace wkv7s
