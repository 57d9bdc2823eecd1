// WKV7s by segments: where heads are few and documents long, segments of a document run at once.
//
// All that a segment does to a state S that enters it is S -> S T + E, and all that it does to a gradient G that comes
// back is G -> G T^T + E'. Three steps make the states between segments (the gradients, for the backward pass):
//
// 1. Each segment's T and E, all at once: T is what becomes of the identity, with no values coming in; E is what
//    becomes of a state of zeros. Both are carried through the chunks side by side, as chunk.cuh does one state.
// 2. A scan over the segments of a document, one product of [64, 64] matrices after another.
// 3. The forward or backward kernel proper, each segment from its own edge.
//
// Notable choices:
// - T goes out as the sum of two bf16, and the state that the scan multiplies is split likewise: rounding all of a
//   state at every edge would add up over the segments where the decay is slow.
// - The last segment of a document (the first, for the backward pass) hands nothing on and is not summed up.

#include <algorithm>

#include "chunk.cuh"

namespace wkv7s {
namespace {

constexpr int STAGES = 2;
constexpr int SHORTEST_SEGMENT = 4 * L;  // tokens

int64_t divide_up(int64_t x, int64_t y) { return (x + y - 1) / y; }

// The identity.
__device__ __forceinline__ void start(State& T) {
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            T[j].x[i / 4][i % 4] = row + i % 4 / 2 * 8 == 16 * j + i / 4 * 8 + column + i % 2 ? 1.0f : 0.0f;
        }
    }
}

// x as the sum of two in bf16.
__device__ __forceinline__ void split(StateOperand& high, StateOperand& low, const State& x) {
    to_bf16(high, x);
    State rest;
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            rest[j].x[i / 2][i % 2 * 2] = x[j].x[i / 2][i % 2 * 2] - bf16_low(high[j].x[i]);
            rest[j].x[i / 2][i % 2 * 2 + 1] = x[j].x[i / 2][i % 2 * 2 + 1] - bf16_high(high[j].x[i]);
        }
    }
    to_bf16(low, rest);
}

// Rows to a plain [N, N] matrix in global memory.
__device__ __forceinline__ void store_rows(__nv_bfloat16* to, const StateOperand& x) {
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            *reinterpret_cast<uint32_t*>(to + (row + i % 2 * 8) * N + 16 * j + i / 2 * 8 + column) = x[j].x[i];
        }
    }
}

__device__ __forceinline__ void finish(const Segments& segments, int64_t at, const State& E, const State& T) {
    store_state(segments.edges + at * STATE, E);
    StateOperand high, low;
    split(high, low, T);
    store_rows(segments.transitions + 2 * at * STATE, high);
    store_rows(segments.transitions + (2 * at + 1) * STATE, low);
}

// ---- 1. Each segment's T and E ------------------------------------------------------------------------------------

struct ForwardStage {
    Chunk w, k, v, a, b;
};

struct ForwardShared {
    ForwardStage stages[STAGES];
    Lower ab, ak;
    alignas(16) float decay[N];
};

__global__ __launch_bounds__(THREADS, 2) void summarize_forward_kernel(const Forward args) {
    extern __shared__ char shared_bytes[];
    ForwardShared& shared = *reinterpret_cast<ForwardShared*>(shared_bytes);
    const int warp = threadIdx.x / 32;
    const Work work(args.in, args.segments);
    if (!work.exists || work.last) return;
    const int chunks = work.length / L;
    const int64_t token_stride = int64_t(args.in.heads) * N;
    const int64_t first = work.begin * token_stride + work.head * N;

    const auto load = [&](int chunk) {
        if (chunk < chunks) {
            ForwardStage& stage = shared.stages[chunk % STAGES];
            const int64_t at = first + chunk * L * token_stride;
            load_chunk(stage.w, args.in.w + at, token_stride, L);
            load_chunk(stage.k, args.in.k + at, token_stride, L);
            load_chunk(stage.v, args.in.v + at, token_stride, L);
            load_chunk(stage.a, args.in.a + at, token_stride, L);
            load_chunk(stage.b, args.in.b + at, token_stride, L);
        }
        copy_async_commit();
    };
    load(0);

    State E, T;
    start(T);
    for (int chunk = 0; chunk < chunks; chunk++) {
        ForwardStage& stage = shared.stages[chunk % STAGES];
        copy_async_wait<0>();
        __syncthreads();
        load(chunk + 1);
        scale_by_decays(nullptr, stage.w, &stage.k, stage.a, stage.b, shared.decay, nullptr, L);
        __syncthreads();
        if (warp == 0) {
            make_score(shared.ab, stage.a, stage.b, false, false);
            __syncwarp();
            invert_unit_lower(shared.ab.diagonal);
        } else if (warp == 1) {
            make_score(shared.ak, stage.a, stage.k, false, false);
        }
        Rows U_E, U_T;
        const auto begin = [&](Rows& U, const State& x) {
            StateOperand S;
            to_bf16(S, x);
            multiply_add_transposed(U, S, stage.a);
        };
        begin(U_E, E);
        begin(U_T, T);
        Operand V[TILES];
        Operand32 V_tf32[TILES];
        load_columns(V, stage.v);
        to_tf32(V_tf32, V);
        __syncthreads();
        multiply_add_transposed(U_E, V_tf32, shared.ak);
        multiply_add(E, V, stage.k);
        const auto end = [&](State& x, Rows& U) {
            Operand32 U_tf32[TILES];
            Operand U_bf16[TILES];
            solve(U, U_tf32, shared.ab);
            to_bf16(U_bf16, U);
            multiply_add(x, U_bf16, stage.b);
            decay_columns(x, shared.decay);
        };
        end(E, U_E);
        end(T, U_T);
    }
    finish(args.segments, int64_t(work.slot) * args.in.heads + work.head, E, T);
}

struct BackwardStage {
    Chunk r, w, a, b, dy;
};

struct BackwardShared {
    BackwardStage stages[STAGES];
    Lower ab, rb;  // the blocks of rb transposed
    alignas(16) float decay[N];
};

// Here T is the transpose of the forward's.
__global__ __launch_bounds__(THREADS, 2) void summarize_backward_kernel(const Backward args) {
    extern __shared__ char shared_bytes[];
    BackwardShared& shared = *reinterpret_cast<BackwardShared*>(shared_bytes);
    const int warp = threadIdx.x / 32;
    const Work work(args.in, args.segments);
    if (!work.exists || work.first) return;
    const int chunks = (work.length + L - 1) / L;
    const int64_t token_stride = int64_t(args.in.heads) * N;
    const int64_t first = work.begin * token_stride + work.head * N;

    const auto load = [&](int chunk) {
        if (chunk >= 0) {
            BackwardStage& stage = shared.stages[chunk % STAGES];
            const int64_t at = first + chunk * L * token_stride;
            const int left = work.length - chunk * L;
            load_chunk(stage.r, args.in.r + at, token_stride, left);
            load_chunk(stage.w, args.in.w + at, token_stride, left);
            load_chunk(stage.a, args.in.a + at, token_stride, left);
            load_chunk(stage.b, args.in.b + at, token_stride, left);
            load_chunk(stage.dy, args.dy + at, token_stride, left);
        }
        copy_async_commit();
    };
    load(chunks - 1);

    State E, T;
    start(T);
    for (int chunk = chunks - 1; chunk >= 0; chunk--) {
        BackwardStage& stage = shared.stages[chunk % STAGES];
        copy_async_wait<0>();
        __syncthreads();
        load(chunk - 1);
        scale_by_decays(&stage.r, stage.w, nullptr, stage.a, stage.b, shared.decay, nullptr, work.length - chunk * L);
        __syncthreads();
        if (warp == 0) {
            make_score(shared.ab, stage.a, stage.b, false, false);
            __syncwarp();
            invert_unit_lower(shared.ab.diagonal);
        } else if (warp == 1) {
            make_score(shared.rb, stage.r, stage.b, true, true);
        }
        Rows dU_E, dU_T;
        const auto begin = [&](Rows& dU, State& x) {
            decay_columns(x, shared.decay);
            StateOperand G;
            to_bf16(G, x);
            multiply_add_transposed(dU, G, stage.b);
        };
        begin(dU_E, E);
        begin(dU_T, T);
        Operand dY[TILES];
        Operand32 dY_tf32[TILES];
        load_columns(dY, stage.dy);
        to_tf32(dY_tf32, dY);
        __syncthreads();
        multiply_add_blocks_transposed(dU_E, dY_tf32, shared.rb);
        multiply_add(E, dY, stage.r);
        const auto end = [&](State& x, Rows& dU) {
            Operand32 dZ_tf32[TILES];
            Operand dZ[TILES];
            solve_backward(dU, dZ_tf32, shared.ab);
            to_bf16(dZ, dU);
            multiply_add(x, dZ, stage.a);
        };
        end(E, dU_E);
        end(T, dU_T);
    }
    finish(args.segments, int64_t(work.slot) * args.in.heads + work.head, E, T);
}

// ---- 2. The scan --------------------------------------------------------------------------------------------------

struct ScanShared {
    Tile<N> transitions[2][2];  // [buffer][high or low]
};

// One block a document and head. `initial` is the state that enters the document, or the gradient that comes back to it
// (null for zero); `forward` says which, and so the direction. Edges are replaced by the sums up to them.
__global__ __launch_bounds__(THREADS) void scan_kernel(
    const Inputs in, const Segments segments, const float* initial, const bool forward
) {
    extern __shared__ char shared_bytes[];
    ScanShared& shared = *reinterpret_cast<ScanShared*>(shared_bytes);
    const int head = blockIdx.x % in.heads, document = blockIdx.x / in.heads;
    const int begin = in.cu_seqlens[document], length = in.cu_seqlens[document + 1] - begin;
    const int steps = (length + segments.tokens - 1) / segments.tokens - 1;
    if (steps <= 0) return;
    const int slot = begin / segments.tokens + document;
    const auto place = [&](int step) { return int64_t(forward ? slot + step : slot + steps - step) * in.heads + head; };

    const auto load = [&](int step) {
        if (step < steps) {
            const __nv_bfloat16* const from = segments.transitions + 2 * place(step) * STATE;
#pragma unroll
            for (int i = threadIdx.x; i < 2 * STATE / 8; i += THREADS) {
                Tile<N>& to = shared.transitions[step % 2][i / (STATE / 8)];
                copy_async(to.at(i % (STATE / 8) / 8, i % 8 * 8), from + 8 * i, true);
            }
        }
        copy_async_commit();
    };
    load(0);

    State S;
    if (initial) load_state(S, initial + (int64_t(document) * in.heads + head) * STATE);
    for (int step = 0; step < steps; step++) {
        float* const edge = segments.edges + place(step) * STATE;
        State next;
        load_state(next, edge);
        copy_async_wait<0>();
        __syncthreads();
        load(step + 1);
        StateOperand high, low;
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
        store_state(edge, S);
    }
}

}  // namespace

int choose_segment_tokens(int64_t tokens, int64_t documents, int64_t heads, int64_t max_length) {
    int device = 0, multiprocessors = 1;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    // Two blocks fit on a multiprocessor, and the best cut is the one that just fills them all: each document into as
    // many equal parts as that leaves it, or, where documents are many, each block its share of all tokens. Summing the
    // segments up adds six tenths to a forward pass and a quarter to a backward pass, and blocks that share a
    // multiprocessor are slower than lone ones, so that two parts gain nothing.
    const int64_t blocks = 2 * multiprocessors;
    const int64_t parts = blocks / (documents * heads);
    const int64_t wanted = parts ? divide_up(tokens, documents * parts) : divide_up(tokens * heads, blocks);
    const int64_t segment = std::max<int64_t>(divide_up(wanted, L) * L, SHORTEST_SEGMENT);
    return 2 * max_length >= 5 * segment ? int(segment) : 0;
}

cudaError_t make_edges(const Forward& args, cudaStream_t stream) {
    const int64_t heads = args.in.heads;
    const cudaError_t summed =
        launch(summarize_forward_kernel, args.segments.slots * heads, THREADS, sizeof(ForwardShared), stream, args);
    if (summed != cudaSuccess) return summed;
    return launch(
        scan_kernel, args.in.documents * heads, THREADS, sizeof(ScanShared), stream, args.in, args.segments, args.state,
        true
    );
}

cudaError_t make_edges(const Backward& args, cudaStream_t stream) {
    const int64_t heads = args.in.heads;
    const cudaError_t summed =
        launch(summarize_backward_kernel, args.segments.slots * heads, THREADS, sizeof(BackwardShared), stream, args);
    if (summed != cudaSuccess) return summed;
    return launch(
        scan_kernel, args.in.documents * heads, THREADS, sizeof(ScanShared), stream, args.in, args.segments,
        args.dfinal_state, false
    );
}

}  // namespace wkv7s
