// WKV7s backward, from the last chunk to the first: one block per head and document (or segment). See chunk.cuh for the
// algebra and names of the forward.
//
// Let G be the gradient of the state after a chunk, and G' = G diag(P_L). The gradients of the chunk are
//
//     dU = A_rb^T dY + b- G'^T    dZ = (I - A_ab)^-T dU    dV = A_rk^T dY + A_ak^T dZ + k- G'^T
//     dA_ab = tril(dZ U^T, -1)    dA_ak = tril(dZ V^T, -1)    dA_rb = tril(dY U^T)    dA_rk = tril(dY V^T)
//     da~ = dZ S + dA_ab b- + dA_ak k-            dr~ = dY S + dA_rb b- + dA_rk k-
//     db- = dA_ab^T a~ + dA_rb^T r~ + U G'        dk- = dA_ak^T a~ + dA_rk^T r~ + V G'
// and G' + dY^T r~ + dZ^T a~ is the gradient of the state before the chunk. The gradient of the decay follows from the
// others. Let H_t be the column sums of S_t * dS_t. Token by token from the end of the chunk:
//
//     d(log d_t) = H_t + r~ dr~ - b- db- - k- dk-      H_{t-1} = d(log d_t) + a~ da~
//
// Notable choices:
// - The forward saves the state before every chunk, so only U is recomputed, not the states.
// - H is recomputed from the state after every chunk. If H were passed from chunk to chunk, it would decay, but its
//   rounding errors would not.
// - The formulas use the rounded values, such as r~ instead of r. The result is then the gradient of what the forward
//   pass has computed, and the rounding errors cancel.
// - A warp first computes 16 value rows of G, S, U, dU, dZ and dV. Then it computes 32 key columns of da~, dr~, db- and
//   dk- for 16 tokens. Gradients overwrite the inputs in shared memory and are stored from there in full cache lines.

#include "chunk.cuh"

namespace wkv7s {
namespace {

template <int N>
struct Stage {
    Chunk<N> r, w, k, v, a, b, dy;
};

// A [16, 16] matrix as the sum of two bf16 matrices.
struct Block {
    alignas(128) bf16 x[2][TILE * TILE];

    __device__ auto part(int which) {
        return [=, this](int i, int j) { return x[which] + i * TILE + (j ^ (i / 4 % 2 * 8)); };
    }
};

struct LowerGradient {
    Block diagonal[TILES];
    Block below;

    __device__ Block& block(int row, int column) { return row == column ? diagonal[row] : below; }
};

struct ScoreGradients {
    LowerGradient ab, ak, rb, rk;
};

// The working memory of one chunk.
template <int N>
struct Shared {
    // S, the state before the chunk, and G'. With a head size of 128 they share the memory: G' follows S.
    static constexpr bool BOTH = N == 64;
    Tile<N, N> S_and_G[BOTH ? 2 : 1];
    Chunk<N> U, dZ;  // before they are computed: the rounding residuals of k- and b-
    union {
        Scores scores;      // rb and rk with transposed blocks
        ScoreGradients dA;  // once the scores are no longer needed
    };
    Decays<N> decays;
    alignas(16) float decay[N];     // P_L
    float H_of_warp[WARPS<N>][N];   // each warp's part of H after the chunk
    float H_of_tile[N];             // the contribution of tile 1

    __device__ Tile<N, N>& S() { return S_and_G[0]; }
    __device__ Tile<N, N>& G() { return S_and_G[BOTH]; }
};

// This warp's part of H: the column sums of S * G over its rows.
template <int K>
__device__ __forceinline__ void sum_columns(float (&H)[16 * K], const Operand (&S)[K], const Accumulator (&G)[K]) {
    const int lane = threadIdx.x % 32, q = lane % 4;
    float sums[4 * K];  // over two rows; columns 8 i + 2 q and 8 i + 2 q + 1 at 2 i and 2 i + 1
#pragma unroll
    for (int i = 0; i < 2 * K; i++) {
        const auto& x = G[i / 2].x[i % 2];
        const uint32_t upper = S[i / 2].x[i % 2 * 2], lower = S[i / 2].x[i % 2 * 2 + 1];
        sums[2 * i] = bf16_low(upper) * x[0] + bf16_low(lower) * x[2];
        sums[2 * i + 1] = bf16_high(upper) * x[1] + bf16_high(lower) * x[3];
    }
    // Eight lanes have the same columns. In each step, two lanes exchange halves of their sums, and each adds one half.
    int column = 2 * q;
    const auto halve = [&]<int half>(int bit) {
        const bool upper = lane & bit;
        column += upper ? 4 * half : 0;
#pragma unroll
        for (int i = 0; i < half; i++) {
            const float given = upper ? sums[i] : sums[i + half], kept = upper ? sums[i + half] : sums[i];
            sums[i] = kept + __shfl_xor_sync(FULL_MASK, given, bit);
        }
    };
    halve.template operator()<2 * K>(4);
    halve.template operator()<K>(8);
    halve.template operator()<K / 2>(16);
#pragma unroll
    for (int i = 0; i < K / 4; i++) {
        *reinterpret_cast<float2*>(&H[column + 8 * i]) = make_float2(sums[2 * i], sums[2 * i + 1]);
    }
}

// Computes the state after a chunk from the state before the chunk.
template <int N>
__device__ __forceinline__ void advance(
    StateOperand<N>& S_bf16, const Operand (&U)[TILES], const Operand (&V)[TILES], Stage<N>& stage,
    const float (&decay)[N]
) {
    State<N> S;
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            S[j].x[i / 2][i % 2 * 2] = bf16_low(S_bf16[j].x[i]);
            S[j].x[i / 2][i % 2 * 2 + 1] = bf16_high(S_bf16[j].x[i]);
        }
    }
    multiply_add(S, U, stage.b);
    multiply_add(S, V, stage.k);
    decay_columns(S, decay);
    to_bf16(S_bf16, S);
}

// Gradients of the four score matrices, one per warp.
template <int N>
__device__ __forceinline__ void gradients_of_scores(
    ScoreGradients& dA, Chunk<N>& dY, Chunk<N>& V, Chunk<N>& U, Chunk<N>& dZ
) {
    const int which = threadIdx.x / 32;  // ab, ak, rb, rk
    if (which >= 4) return;
    LowerGradient& out = which == 0 ? dA.ab : which == 1 ? dA.ak : which == 2 ? dA.rb : dA.rk;
    Accumulator c[3];
    multiply_lower(c, which < 2 ? dZ : dY, which % 2 == 0 ? U : V, which >= 2);
    const auto keep = [](Block& to, const Accumulator& x) {
        const Operand high = to_bf16(x);
        Accumulator residual;
#pragma unroll
        for (int j = 0; j < 2; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                residual.x[j][2 * i] = x.x[j][2 * i] - bf16_low(high.x[2 * j + i]);
                residual.x[j][2 * i + 1] = x.x[j][2 * i + 1] - bf16_high(high.x[2 * j + i]);
            }
        }
        store(to.part(0), high);
        store(to.part(1), to_bf16(residual));
    };
#pragma unroll
    for (int t = 0; t < TILES; t++) keep(out.diagonal[t], c[t]);
    keep(out.below, c[2]);
}

// Two sums of x over a group of four neighboring lanes: over all four, and over the lanes after this one.
struct QuadSums {
    float all, after;
};

__device__ __forceinline__ QuadSums quad_sums(float x) {
    const int q = threadIdx.x % 4;
    const float neighbor = __shfl_xor_sync(FULL_MASK, x, 1);
    const float pair = __shfl_xor_sync(FULL_MASK, x + neighbor, 2);
    return {x + neighbor + pair, (q & 1 ? 0.0f : neighbor) + (q & 2 ? 0.0f : pair)};
}

// d(log d) / dw.
__device__ __forceinline__ float decay_slope(float w) {
    const float e = exp2_fast(-LOG2_E * fabsf(w)), s = reciprocal_fast(1.0f + e);
    return LOG_DECAY_SCALE * e * s * s;
}

// Computes a chunk's gradients by key columns. dr, dw, dk, da, db overwrite r~, w, k-, a~, b-, and dV overwrites v. A
// warp computes 32 key columns (rows of the transposed matrices) for one of the two tiles of tokens.
template <int N>
__device__ __forceinline__ void gradients_by_column(
    Shared<N>& shared, Stage<N>& stage, const Operand (&dV)[TILES], const StateOperand<N>& G_bf16
) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const int tile = warp % TILES, token = TILE * tile, keys = warp / TILES * 32;
    // x^T [16 key columns, 16 tokens] as an A operand, which is also the layout of a gradient's accumulator.
    const auto columns = [&](Chunk<N>& x, int t, int m) { return load_a_transposed(x.from(TILE * t, keys + 16 * m)); };

    Accumulator da[2], dr[2], db[2], dk[2];
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
        const Operand dZ = load_b_transposed(shared.dZ.from(token, 16 * j));
        const Operand dY = load_b_transposed(stage.dy.from(token, 16 * j));
#pragma unroll
        for (int m = 0; m < 2; m++) {
            const Operand S = load_a_transposed(shared.S().from(16 * j, keys + 16 * m));
            multiply_add(da[m], S, dZ);
            multiply_add(dr[m], S, dY);
        }
    }
    if constexpr (!Shared<N>::BOTH) {
        __syncthreads();
        store_rows(shared.G(), G_bf16);
        __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
        const Operand U = load_b_transposed(shared.U.from(token, 16 * j));
        const Operand V = load_b_transposed(stage.v.from(token, 16 * j));
#pragma unroll
        for (int m = 0; m < 2; m++) {
            const Operand G = load_a_transposed(shared.G().from(16 * j, keys + 16 * m));
            multiply_add(db[m], G, U);
            multiply_add(dk[m], G, V);
        }
    }
    for (int t = 0; t < TILES; t++) {
        if (t <= tile) {  // the tokens of this tile read those of tile t
            const Operand b[2] = {columns(stage.b, t, 0), columns(stage.b, t, 1)};
            const Operand k[2] = {columns(stage.k, t, 0), columns(stage.k, t, 1)};
#pragma unroll
            for (int part = 0; part < 2; part++) {
                const Operand ab = load_b_transposed(shared.dA.ab.block(tile, t).part(part));
                const Operand ak = load_b_transposed(shared.dA.ak.block(tile, t).part(part));
                const Operand rb = load_b_transposed(shared.dA.rb.block(tile, t).part(part));
                const Operand rk = load_b_transposed(shared.dA.rk.block(tile, t).part(part));
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    multiply_add(da[m], b[m], ab);
                    multiply_add(da[m], k[m], ak);
                    multiply_add(dr[m], b[m], rb);
                    multiply_add(dr[m], k[m], rk);
                }
            }
        }
        if (t >= tile) {  // and are read by those of tile t
            const Operand a[2] = {columns(stage.a, t, 0), columns(stage.a, t, 1)};
            const Operand r[2] = {columns(stage.r, t, 0), columns(stage.r, t, 1)};
#pragma unroll
            for (int part = 0; part < 2; part++) {
                const Operand ab = load_b(shared.dA.ab.block(t, tile).part(part));
                const Operand ak = load_b(shared.dA.ak.block(t, tile).part(part));
                const Operand rb = load_b(shared.dA.rb.block(t, tile).part(part));
                const Operand rk = load_b(shared.dA.rk.block(t, tile).part(part));
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    multiply_add(db[m], a[m], ab);
                    multiply_add(dk[m], a[m], ak);
                    multiply_add(db[m], r[m], rb);
                    multiply_add(dk[m], r[m], rk);
                }
            }
        }
    }

    // A lane holds two key columns (i) of each tile for the tokens 8 j + 2 q and 8 j + 2 q + 1. For token t, add is
    // d(log d_t) - H_t, and H is H_t minus the value of H at the end of the tile.
    float add[2][2][2][2], H[2][2][2][2], total[2][2];  // [m][i][j][first or second token]
#pragma unroll
    for (int m = 0; m < 2; m++) {
        const Operand r = columns(stage.r, tile, m), k = columns(stage.k, tile, m);
        const Operand a = columns(stage.a, tile, m), b = columns(stage.b, tile, m);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            total[m][i] = 0.0f;
#pragma unroll
            for (int j = 1; j >= 0; j--) {
                const int x = 2 * j + i;
                float(&add_x)[2] = add[m][i][j];
                const auto& dr_x = dr[m].x[j];
                const auto& dk_x = dk[m].x[j];
                const auto& da_x = da[m].x[j];
                const auto& db_x = db[m].x[j];
                add_x[0] = bf16_low(r.x[x]) * dr_x[2 * i] - bf16_low(b.x[x]) * db_x[2 * i] -
                           bf16_low(k.x[x]) * dk_x[2 * i];
                add_x[1] = bf16_high(r.x[x]) * dr_x[2 * i + 1] - bf16_high(b.x[x]) * db_x[2 * i + 1] -
                           bf16_high(k.x[x]) * dk_x[2 * i + 1];
                const float past_first = add_x[0] + bf16_low(a.x[x]) * da_x[2 * i];
                const float past_second = add_x[1] + bf16_high(a.x[x]) * da_x[2 * i + 1];
                const QuadSums past = quad_sums(past_first + past_second);
                H[m][i][j][1] = total[m][i] + past.after;
                H[m][i][j][0] = H[m][i][j][1] + past_second;
                total[m][i] += past.all;
            }
            if (tile == 1 && q == 0) shared.H_of_tile[keys + 16 * m + 8 * i + g] = total[m][i];
        }
    }
    __syncthreads();  // all warps have read the inputs, which may now be overwritten

    store_columns(stage.v, dV);
#pragma unroll
    for (int m = 0; m < 2; m++) {
        Operand w = columns(stage.w, tile, m), r, k, a, b;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int column = keys + 16 * m + 8 * i + g;
            float H_end = tile == 0 ? shared.H_of_tile[column] : 0.0f;
#pragma unroll
            for (int of = 0; of < WARPS<N>; of++) H_end += shared.H_of_warp[of][column];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int x = 2 * j + i, first = token + 8 * j + 2 * q;
                const float2 P = *reinterpret_cast<const float2*>(shared.decays.at(column, first));
                const float P_before = first == 0 ? 1.0f : *shared.decays.at(column, first - 1);
                const float2 inverse = make_float2(reciprocal_fast(P.x), reciprocal_fast(P.y));
                w.x[x] = pack_bf16((H_end + H[m][i][j][0] + add[m][i][j][0]) * decay_slope(bf16_low(w.x[x])),
                                   (H_end + H[m][i][j][1] + add[m][i][j][1]) * decay_slope(bf16_high(w.x[x])));
                r.x[x] = pack_bf16(dr[m].x[j][2 * i] * P.x, dr[m].x[j][2 * i + 1] * P.y);
                k.x[x] = pack_bf16(dk[m].x[j][2 * i] * inverse.x, dk[m].x[j][2 * i + 1] * inverse.y);
                a.x[x] = pack_bf16(da[m].x[j][2 * i] * P_before, da[m].x[j][2 * i + 1] * P.x);
                b.x[x] = pack_bf16(db[m].x[j][2 * i] * inverse.x, db[m].x[j][2 * i + 1] * inverse.y);
            }
        }
        store_transposed(stage.r.from(token, keys + 16 * m), r);
        store_transposed(stage.w.from(token, keys + 16 * m), w);
        store_transposed(stage.k.from(token, keys + 16 * m), k);
        store_transposed(stage.a.from(token, keys + 16 * m), a);
        store_transposed(stage.b.from(token, keys + 16 * m), b);
    }
}

template <int N, int STAGES>
struct Staged {
    Shared<N> shared;
    Stage<N> stages[STAGES];
};

// With two stages, the next chunk is copied while this one is processed. With one stage, for devices with little shared
// memory, it is copied afterwards.
template <int N, int STAGES>
__global__ __launch_bounds__(THREADS<N>, N == 64 ? 2 : 1) void backward_kernel(const Backward args) {
    extern __shared__ char shared_bytes[];
    auto& staged = *reinterpret_cast<Staged<N, STAGES>*>(shared_bytes);
    Shared<N>& shared = staged.shared;
    const int warp = threadIdx.x / 32;
    const Work<N> work(args.in, args.segments);
    if (!work.exists) return;

    const auto load = [&](int chunk) {
        if (chunk >= 0) {
            Stage<N>& stage = staged.stages[chunk % STAGES];
            load_chunk(stage.r, args.in.r, work, chunk);
            load_chunk(stage.w, args.in.w, work, chunk);
            load_chunk(stage.k, args.in.k, work, chunk);
            load_chunk(stage.v, args.in.v, work, chunk);
            load_chunk(stage.a, args.in.a, work, chunk);
            load_chunk(stage.b, args.in.b, work, chunk);
            load_chunk(stage.dy, args.dy, work, chunk);
        }
        copy_async_commit();
    };
    load(work.chunks - 1);

    State<N> G;
    if (!work.last) {
        load_state(G, args.segments.boundaries + work.boundary_at(work.slot + 1));
    } else if (args.dfinal_state) {
        load_state(G, args.dfinal_state + work.state_at());
    }

    for (int chunk = work.chunks - 1; chunk >= 0; chunk--) {
        const bool last = work.last && chunk == work.chunks - 1;
        Stage<N>& stage = staged.stages[chunk % STAGES];
        Chunk<N>&k_residual = shared.U, &b_residual = shared.dZ;
        StateOperand<N> S;  // before the chunk
        load_checkpoint(S, args.checkpoints + work.checkpoint_at(chunk));
        copy_async_wait<0>();
        __syncthreads();  // this chunk has arrived, and all warps are done with the last one
        if (STAGES > 1) load(chunk - 1);
        const Scaling<N> scaling = {
            .r = &stage.r, .w = &stage.w, .k = &stage.k, .a = &stage.a, .b = &stage.b,
            .k_residual = &k_residual, .b_residual = &b_residual, .decays = &shared.decays,
        };
        const bool slow = __syncthreads_or(scale_by_decays(scaling, shared.decay, work.left(chunk)));
        make_scores<true>(shared.scores, stage.r, stage.k, stage.a, stage.b);

        if (!last) {  // the state after this chunk is the state before the next one, which was just processed
            StateOperand<N> S_after;
            if (chunk == work.chunks - 1 || !Shared<N>::BOTH) {
                load_checkpoint(S_after, args.checkpoints + work.checkpoint_at(chunk + 1));
            } else {
                load_rows(S_after, shared.S());
            }
            sum_columns(shared.H_of_warp[warp], S_after, G);
        }
        store_rows(shared.S(), S);
        Rows U, dU, dV;
        multiply_add_transposed(U, S, stage.a);
        decay_columns(G, shared.decay);
        StateOperand<N> G_bf16;
        to_bf16(G_bf16, G);
        if (Shared<N>::BOTH) store_rows(shared.G(), G_bf16);
        multiply_add_transposed(dU, G_bf16, stage.b);
        multiply_add_transposed(dV, G_bf16, stage.k);
        if (slow) {
            multiply_add_transposed(dU, G_bf16, b_residual);
            multiply_add_transposed(dV, G_bf16, k_residual);
        }
        __syncthreads();  // the scores are ready, and the residuals are no longer needed

        {
            Operand V[TILES], U_bf16[TILES];
            Operand32 V_tf32[TILES], U_tf32[TILES];
            load_columns(V, stage.v);
            to_tf32(V_tf32, V);
            multiply_add_transposed(U, V_tf32, shared.scores.ak);
            solve(U, U_tf32, shared.scores.ab);
            to_bf16(U_bf16, U);
            store_columns(shared.U, U_bf16);
            if (last) {
                advance(S, U_bf16, V, stage, shared.decay);
                State<N> dfinal_state;
                if (args.dfinal_state) load_state(dfinal_state, args.dfinal_state + work.state_at());
                sum_columns(shared.H_of_warp[warp], S, dfinal_state);
            }
        }
        Operand dV_bf16[TILES];
        {
            Operand dY[TILES], dZ[TILES];
            Operand32 dY_tf32[TILES], dZ_tf32[TILES];
            load_columns(dY, stage.dy);
            to_tf32(dY_tf32, dY);
            multiply_add_blocks_transposed(dU, dY_tf32, shared.scores.rb);
            multiply_add_blocks_transposed(dV, dY_tf32, shared.scores.rk);
            solve_backward(dU, dZ_tf32, shared.scores.ab);
            multiply_add(dV, dZ_tf32, shared.scores.ak);
            to_bf16(dV_bf16, dV);
            to_bf16(dZ, dU);
            store_columns(shared.dZ, dZ);
            multiply_add(G, dY, stage.r);
            multiply_add(G, dZ, stage.a);
        }
        __syncthreads();  // U, dZ, S and G' are ready, and the scores are no longer needed
        gradients_of_scores(shared.dA, stage.dy, stage.v, shared.U, shared.dZ);
        __syncthreads();
        gradients_by_column(shared, stage, dV_bf16, G_bf16);
        __syncthreads();
        store_chunk(args.dr, stage.r, work, chunk);
        store_chunk(args.dw, stage.w, work, chunk);
        store_chunk(args.dk, stage.k, work, chunk);
        store_chunk(args.dv, stage.v, work, chunk);
        store_chunk(args.da, stage.a, work, chunk);
        store_chunk(args.db, stage.b, work, chunk);
        if (STAGES == 1) load(chunk - 1);  // each thread overwrites what it has just stored
    }
    if (work.first) store_state(args.dstate + work.state_at(), G);
}

template <int N, int STAGES>
cudaError_t launch_backward(const Backward& args, cudaStream_t stream) {
    const dim3 blocks(unsigned(int64_t(args.segments.slots) * args.in.heads));
    return launch(backward_kernel<N, STAGES>, blocks, THREADS<N>, sizeof(Staged<N, STAGES>), stream, args);
}

}  // namespace

cudaError_t backward(const Backward& args, int max_length, cudaStream_t stream) {
    if (max_length <= MAX_RECURRENT) return recurrent_backward(args, stream);
    if (args.segments.tokens) {
        const cudaError_t made = compute_boundaries(args, stream);
        if (made != cudaSuccess) return made;
    }
    if (args.in.head_size == 128) return launch_backward<128, 1>(args, stream);
    SharedMemory memory;
    const cudaError_t read = read_shared_memory(memory);
    if (read != cudaSuccess) return read;
    return memory.holds(sizeof(Staged<64, 2>)) ? launch_backward<64, 2>(args, stream)
                                               : launch_backward<64, 1>(args, stream);
}

}  // namespace wkv7s
