// The processing of one chunk of 32 tokens, which the forward, backward and segment kernels share.
//
// Let P_t be the product of the decays up to token t of the chunk (P_{-1} = 1). Element by element along the key axis:
//
//     a~_t = P_{t-1} a_t    r~_t = P_t r_t    k-_t = k_t / P_t    b-_t = b_t / P_t
//     A_ab = tril(a~ b-^T, -1)    A_ak = tril(a~ k-^T, -1)    A_rb = tril(r~ b-^T)    A_rk = tril(r~ k-^T)
//
// and, if S is the state at the start of the chunk and P_L is the last row of P:
//
//     U = (I - A_ab)^-1 (a~ S^T + A_ak V)    Y = r~ S^T + A_rb U + A_rk V    S' = (S + U^T b- + V^T k-) diag(P_L)
//
// Notable choices:
// - Because d > 0.545, P_t > 3e-9 over 32 tokens. P and 1 / P are therefore well within the range of bf16, and a chunk
//   need not be divided further.
// - A chunk is two tiles of 16 tokens, the size of a tensor core operand. A score matrix is three blocks of [16, 16].
//   (I - A_ab)^-1 is applied tile by tile, so only the two diagonal blocks are inverted.
// - The head size N is 64 or 128, and a block has N / 16 warps. A warp keeps 16 value rows of the state in registers,
//   and computes their chain of products independently of the other warps. In steps without the state, a warp processes
//   16 key columns.
// - U, Y and S' are computed transposed, as [value rows, tokens], so that each product has the layout that the next
//   product requires for its operand.
// - r~, a~, k-, b- are rounded to bf16 for the tensor cores. The score matrices are rounded to tf32, which is eight
//   times finer. Errors of the scores would add up over a chunk, and avoiding them costs little.
// - If decays are slow, k- and b- are each represented by two bf16 values: the rounded value and its rounding residual.
//   The update of the state uses both values of k-, and the products with the state's gradient use both values of k-
//   and b-. This matters if all keys have nearly the same direction. The recurrence then removes earlier values only
//   along this direction, and rounding errors perpendicular to it would remain and add up. Fast decays soon erase such
//   errors.

#pragma once

#include "tensor_core.cuh"
#include "wkv7s.cuh"

namespace wkv7s {

constexpr int TILE = 16;
constexpr int TILES = 2;
constexpr int L = TILES * TILE;  // tokens in a chunk
static_assert(L == CHECKPOINT_EVERY);

template <int N>
constexpr int WARPS = N / 16;
template <int N>
constexpr int THREADS = 32 * WARPS<N>;

// log2 d = LOG2_DECAY_SCALE sigmoid(w), from d = exp(-exp(-1/2) sigmoid(w)).
constexpr float LOG2_DECAY_SCALE = LOG_DECAY_SCALE * LOG2_E;

__device__ __forceinline__ float sigmoid(float x) { return reciprocal_fast(1.0f + exp2_fast(-LOG2_E * x)); }

// ---- Shared memory ------------------------------------------------------------------------------------------------

// ROWS rows of N bf16. The 16-byte pieces of a row are permuted by the row number, so that neither matrix loads nor
// loops over the tokens have bank conflicts.
template <int ROWS, int N>
struct Tile {
    alignas(128) bf16 x[ROWS * N];

    static __device__ int place(int row, int column) { return row * N + (column ^ ((row ^ (row / 4 & 2)) % 8 * 8)); }
    __device__ bf16* at(int row, int column) { return x + place(row, column); }

    // The [16, 16] submatrix that begins here, for load_a and the like; row and column are multiples of 16.
    __device__ auto from(int row, int column) {
        return [=, this](int i, int j) { return x + row * N + (place(i, j) ^ column); };
    }
};

template <int N>
using Chunk = Tile<L, N>;

// A [16, 16] block of a score matrix, in tf32. Stride and permutation avoid bank conflicts by rows and by columns.
struct ScoreTile {
    alignas(16) float x[TILE * (TILE + 8)];

    __device__ float* at(int row, int column) { return x + row * (TILE + 8) + (column ^ (row / 4 % 2 * 8)); }
    __device__ const float* at(int row, int column) const { return const_cast<ScoreTile*>(this)->at(row, column); }
};

// A lower triangular [32, 32] score matrix, by blocks.
struct Triangular {
    ScoreTile diagonal[TILES];
    ScoreTile below;
};

// c += a m^T.
__device__ __forceinline__ void multiply_add_transposed(Accumulator& c, const Operand32& a, const ScoreTile& m) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const float2 pair = *reinterpret_cast<const float2*>(m.at(8 * j + g, 8 * i + 2 * q));
            mma_tf32(c.x[j], a.x[i], __float_as_uint(pair.x), __float_as_uint(pair.y));
        }
    }
}

// c += a m.
__device__ __forceinline__ void multiply_add(Accumulator& c, const Operand32& a, const ScoreTile& m) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            mma_tf32(c.x[j], a.x[i], __float_as_uint(*m.at(8 * i + 2 * q, 8 * j + g)),
                     __float_as_uint(*m.at(8 * i + 2 * q + 1, 8 * j + g)));
        }
    }
}

// ---- Work ---------------------------------------------------------------------------------------------------------

// The work of a thread block: one head of one segment. Without segments, a segment is a whole document.
template <int N>
struct Work {
    int head, heads, document, slot;
    int begin, length, chunks;  // first token, number of tokens and of chunks
    int checkpoint;             // the slot of its first checkpoint
    bool first, last;           // of its document
    bool exists;                // false for unused slots

    __device__ Work(const Inputs& in, const Segments& segments) {
        heads = in.heads;
        head = blockIdx.x % heads;
        slot = blockIdx.x / heads;
        document = slot;
        int skipped = 0;
        if (segments.tokens) {
            // The document is the last one whose first slot is not past this one.
            document = -1;
            for (int i = 0; i < in.documents; i += THREADS<N>) {
                const int candidate = i + threadIdx.x;
                document += __syncthreads_count(
                    candidate < in.documents && in.cu_seqlens[candidate] / segments.tokens + candidate <= slot
                );
            }
            skipped = (slot - document - in.cu_seqlens[document] / segments.tokens) * segments.tokens;
        }
        begin = in.cu_seqlens[document];
        length = in.cu_seqlens[document + 1] - begin - skipped;
        checkpoint = begin / CHECKPOINT_EVERY + document + skipped / CHECKPOINT_EVERY;
        begin += skipped;
        first = skipped == 0;
        exists = first || length > 0;
        last = segments.tokens == 0 || length <= segments.tokens;
        if (!last) length = segments.tokens;
        chunks = (length + L - 1) / L;
    }

    __device__ int left(int chunk) const { return length - chunk * L; }  // tokens from the start of the chunk

    // Offsets in global memory, in elements: of a chunk in [tokens, heads, N], and of this head's matrix in
    // [documents, heads, N, N] and [slots, heads, N, N].
    __device__ int64_t token_stride() const { return int64_t(heads) * N; }
    __device__ int64_t at(int chunk) const { return (begin + int64_t(chunk) * L) * token_stride() + head * N; }
    __device__ int64_t state_at() const { return matrix(document); }
    __device__ int64_t boundary_at(int segment) const { return matrix(segment); }
    __device__ int64_t checkpoint_at(int chunk) const { return matrix(checkpoint + chunk); }

private:
    __device__ int64_t matrix(int i) const { return (int64_t(i) * heads + head) * (N * N); }
};

// ---- Inputs -------------------------------------------------------------------------------------------------------

// Starts to copy one chunk of one input [tokens, heads, N]; tokens past the end become zeros.
template <int N>
__device__ __forceinline__ void load_chunk(Chunk<N>& to, const bf16* from, const Work<N>& work, int chunk) {
    const int row = threadIdx.x / (N / 8), column = threadIdx.x % (N / 8) * 8, left = work.left(chunk);
    from += work.at(chunk);
#pragma unroll
    for (int t = 0; t < L; t += TILE) {
        const bool valid = row + t < left;
        copy_async(to.at(row, column) + t * N, from + (valid ? (row + t) * work.token_stride() : 0) + column, valid);
    }
}

// Each lane stores the elements that it loaded in load_chunk.
template <int N>
__device__ __forceinline__ void store_chunk(bf16* to, Chunk<N>& from, const Work<N>& work, int chunk) {
    const int row = threadIdx.x / (N / 8), column = threadIdx.x % (N / 8) * 8, left = work.left(chunk);
    to += work.at(chunk);
#pragma unroll
    for (int t = 0; t < L; t += TILE) {
        if (row + t < left) {
            *reinterpret_cast<uint4*>(to + (row + t) * work.token_stride() + column) =
                *reinterpret_cast<const uint4*>(from.at(row, column) + t * N);
        }
    }
}

// Multiplies four columns of one token, at `place`, by `factors`. Writes the rounding residuals to `residual` unless it
// is null.
template <int N>
__device__ __forceinline__ void scale(
    Chunk<N>& chunk, int place, const float (&factors)[4], Chunk<N>* residual = nullptr
) {
    uint2* const at = reinterpret_cast<uint2*>(chunk.x + place);
    const uint2 x = *at;
    const float y[4] = {bf16_low(x.x) * factors[0], bf16_high(x.x) * factors[1], bf16_low(x.y) * factors[2],
                        bf16_high(x.y) * factors[3]};
    const uint2 rounded = make_uint2(pack_bf16(y[0], y[1]), pack_bf16(y[2], y[3]));
    *at = rounded;
    if (residual) {
        *reinterpret_cast<uint2*>(residual->x + place) =
            make_uint2(pack_bf16(y[0] - bf16_low(rounded.x), y[1] - bf16_high(rounded.x)),
                       pack_bf16(y[2] - bf16_low(rounded.y), y[3] - bf16_high(rounded.y)));
    }
}

// P by key columns: [N, 32] in fp32, permuted so that neither writes nor reads have bank conflicts.
template <int N>
struct Decays {
    alignas(128) float x[N * L];

    __device__ float* at(int column, int token) {
        return x + column * L + (token ^ ((column / 4 ^ column) % 4 * 8));
    }
};

// The arguments of scale_by_decays. All but w, a, b may be null.
template <int N>
struct Scaling {
    Chunk<N> *r = nullptr, *w, *k = nullptr, *a, *b;
    Chunk<N> *k_residual = nullptr, *b_residual = nullptr;  // rounding residuals of bf16; may share the memory of w
    Decays<N>* decays = nullptr;                    // P
};

// Decays count as slow if P_L exceeds this in any key column.
constexpr float SLOW_DECAY = 0.125f;

// Scales r, a, k, b to r~, a~, k-, b- in place, and writes P_L to `whole`. Tokens past `length` get w = -infinity,
// which means no decay. A lane processes four tokens and four columns, and a warp processes 16 columns. Returns whether
// decays are slow in any of the lane's columns. Only lanes that process the last tokens can determine this. All other
// lanes return false.
template <int N>
__device__ __forceinline__ bool scale_by_decays(const Scaling<N>& x, float (&whole)[N], int length) {
    const int lane = threadIdx.x % 32, first = lane / 4 * 4, column = threadIdx.x / 32 * 16 + lane % 4 * 4;
    int place[4];  // of this lane's tokens: Chunk<N>::place(first + t, column), first being a multiple of 4
#pragma unroll
    for (int t = 0; t < 4; t++) place[t] = (Chunk<N>::place(first, column) ^ (8 * t)) + N * t;

    if (length < L) {
        const uint2 minus_infinity = make_uint2(0xff80ff80u, 0xff80ff80u);
#pragma unroll
        for (int t = 0; t < 4; t++) {
            if (first + t >= length) *reinterpret_cast<uint2*>(x.w->x + place[t]) = minus_infinity;
        }
    }

    float log2_P[4][4];  // [token][column]; summed over this lane's tokens, then over the chunk
#pragma unroll
    for (int t = 0; t < 4; t++) {
        const uint2 w = *reinterpret_cast<const uint2*>(x.w->x + place[t]);
        const float w_t[4] = {bf16_low(w.x), bf16_high(w.x), bf16_low(w.y), bf16_high(w.y)};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            log2_P[t][i] = LOG2_DECAY_SCALE * sigmoid(w_t[i]) + (t == 0 ? 0.0f : log2_P[t - 1][i]);
        }
    }
    float P_before[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float sum = log2_P[3][i];
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
            const float other = __shfl_up_sync(FULL_MASK, sum, step);
            if (lane >= step) sum += other;
        }
        const float before = sum - log2_P[3][i];
#pragma unroll
        for (int t = 0; t < 4; t++) log2_P[t][i] += before;
        P_before[i] = exp2_fast(before);
    }
    float P[4][4];
#pragma unroll
    for (int t = 0; t < 4; t++) {
        float inverse[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            P[t][i] = exp2_fast(log2_P[t][i]);
            inverse[i] = exp2_fast(-log2_P[t][i]);
        }
        scale(*x.a, place[t], t == 0 ? P_before : P[t - 1]);
        if (x.r) scale(*x.r, place[t], P[t]);
        if (x.k) scale(*x.k, place[t], inverse, x.k_residual);
        scale(*x.b, place[t], inverse, x.b_residual);
    }
    if (x.decays) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            *reinterpret_cast<float4*>(x.decays->at(column + i, first)) =
                make_float4(P[0][i], P[1][i], P[2][i], P[3][i]);
        }
    }
    if (first + 4 < L) return false;
    *reinterpret_cast<float4*>(&whole[column]) = make_float4(P[3][0], P[3][1], P[3][2], P[3][3]);
    return fmaxf(fmaxf(P[3][0], P[3][1]), fmaxf(P[3][2], P[3][3])) > SLOW_DECAY;
}

// ---- Scores -------------------------------------------------------------------------------------------------------

// The lower triangle of x y^T by blocks: [0][0], [1][1], [1][0]. The diagonal itself is zero unless `with_diagonal`.
template <int N>
__device__ __forceinline__ void multiply_lower(Accumulator (&c)[3], Chunk<N>& x, Chunk<N>& y, bool with_diagonal) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < N; j += 16) {
        const Operand x0 = load_a(x.from(0, j)), y0 = load_b_transposed(y.from(0, j));
        const Operand x1 = load_a(x.from(TILE, j)), y1 = load_b_transposed(y.from(TILE, j));
        multiply_add(c[0], x0, y0);
        multiply_add(c[1], x1, y1);
        multiply_add(c[2], x1, y0);
    }
#pragma unroll
    for (int j = 0; j < 2; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = g + i / 2 * 8, column = 8 * j + 2 * q + i % 2;
            if (column > row || (column == row && !with_diagonal)) c[0].x[j][i] = c[1].x[j][i] = 0.0f;
        }
    }
}

__device__ __forceinline__ void store(ScoreTile& to, const Accumulator& c) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 2; j++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            *reinterpret_cast<float2*>(to.at(g + 8 * i, 8 * j + 2 * q)) = make_float2(c.x[j][2 * i], c.x[j][2 * i + 1]);
        }
    }
}

__device__ __forceinline__ void store_transposed(ScoreTile& to, const Accumulator& c) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 2; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) *to.at(8 * j + 2 * q + i % 2, g + i / 2 * 8) = c.x[j][i];
    }
}

// Replaces x by (I - x)^-1, rounded to tf32, for two strictly lower triangular matrices at once, in one warp. Each lane
// computes one column.
__device__ __forceinline__ void invert_unit_lower(ScoreTile (&matrices)[2]) {
    const int column = threadIdx.x % 16;
    ScoreTile& matrix = matrices[threadIdx.x % 32 / 16];
    float inverse[TILE];
#pragma unroll
    for (int t = 0; t < TILE; t++) {
        float sum[4] = {t == column ? 1.0f : 0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int s = 0; s < t; s += 4) {
            const float4 x = *reinterpret_cast<const float4*>(matrix.at(t, s));
            sum[0] += x.x * inverse[s];
            if (s + 1 < t) sum[1] += x.y * inverse[s + 1];
            if (s + 2 < t) sum[2] += x.z * inverse[s + 2];
            if (s + 3 < t) sum[3] += x.w * inverse[s + 3];
        }
        inverse[t] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
    __syncwarp();
#pragma unroll
    for (int t = 0; t < TILE; t++) *matrix.at(t, column) = rounded_tf32(inverse[t]);
}

struct Scores {
    Triangular ab, ak, rb, rk;  // the diagonal blocks of ab are those of (I - A_ab)^-1
};

// Computes one score matrix in one warp, each block transposed if `transposed`.
template <int N>
__device__ __forceinline__ void make_score(
    Triangular& out, Chunk<N>& rows, Chunk<N>& columns, bool with_diagonal, bool transposed
) {
    Accumulator c[3];
    multiply_lower(c, rows, columns, with_diagonal);
    if (transposed) {
        store_transposed(out.diagonal[0], rounded_tf32(c[0]));
        store_transposed(out.diagonal[1], rounded_tf32(c[1]));
        store_transposed(out.below, rounded_tf32(c[2]));
    } else {
        store(out.diagonal[0], rounded_tf32(c[0]));
        store(out.diagonal[1], rounded_tf32(c[1]));
        store(out.below, rounded_tf32(c[2]));
    }
}

// Computes A_ab in one warp, with the blocks of (I - A_ab)^-1 on the diagonal.
template <int N>
__device__ __forceinline__ void make_inverse(Triangular& out, Chunk<N>& a, Chunk<N>& b) {
    Accumulator c[3];
    multiply_lower(c, a, b, false);
    store(out.diagonal[0], c[0]);
    store(out.diagonal[1], c[1]);
    store(out.below, rounded_tf32(c[2]));
    __syncwarp();
    invert_unit_lower(out.diagonal);
}

// Computes all four score matrices, one per warp, the blocks of rb and rk transposed if `r_transposed`.
template <bool r_transposed, int N>
__device__ __forceinline__ void make_scores(Scores& scores, Chunk<N>& r, Chunk<N>& k, Chunk<N>& a, Chunk<N>& b) {
    const int which = threadIdx.x / 32;
    if (which == 0) {
        make_inverse(scores.ab, a, b);
    } else if (which == 1) {
        make_score(scores.ak, a, k, false, false);
    } else if (which < 4) {
        make_score(which == 2 ? scores.rb : scores.rk, r, which == 2 ? b : k, true, r_transposed);
    }
}

// ---- The state ----------------------------------------------------------------------------------------------------

// A warp's 16 value rows of a state, or of the gradient of a state. Element j has the key columns 16 j .. 16 j + 15.
// Functions deduce the head size from the number of elements, K = N / 16.
template <int N>
using State = Accumulator[N / 16];
template <int N>
using StateOperand = Operand[N / 16];

// A warp's value rows of a [tokens, N] matrix, transposed: element t has tokens 16 t .. 16 t + 15.
using Rows = Accumulator[TILES];

template <int K>
__device__ __forceinline__ void load_state(Accumulator (&S)[K], const float* from) {
    constexpr int N = 16 * K;
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    from += (threadIdx.x / 32 * 16 + g) * N + 2 * q;
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        const float2 upper = *reinterpret_cast<const float2*>(from + 8 * j);
        const float2 lower = *reinterpret_cast<const float2*>(from + 8 * j + 8 * N);
        S[j / 2].x[j % 2][0] = upper.x, S[j / 2].x[j % 2][1] = upper.y;
        S[j / 2].x[j % 2][2] = lower.x, S[j / 2].x[j % 2][3] = lower.y;
    }
}

template <int K>
__device__ __forceinline__ void store_state(float* to, const Accumulator (&S)[K]) {
    constexpr int N = 16 * K;
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    to += (threadIdx.x / 32 * 16 + g) * N + 2 * q;
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        const auto& x = S[j / 2].x[j % 2];
        *reinterpret_cast<float2*>(to + 8 * j) = make_float2(x[0], x[1]);
        *reinterpret_cast<float2*>(to + 8 * j + 8 * N) = make_float2(x[2], x[3]);
    }
}

template <int K>
__device__ __forceinline__ void to_bf16(Operand (&to)[K], const Accumulator (&from)[K]) {
#pragma unroll
    for (int j = 0; j < K; j++) to[j] = to_bf16(from[j]);
}

// Checkpoints store a state in the register layout of the lanes.
template <int K>
__device__ __forceinline__ void store_checkpoint(bf16* to, const Operand (&S)[K]) {
#pragma unroll
    for (int j = 0; j < K; j++) {
        reinterpret_cast<uint4*>(to)[j * THREADS<16 * K> + threadIdx.x] =
            make_uint4(S[j].x[0], S[j].x[1], S[j].x[2], S[j].x[3]);
    }
}

template <int K>
__device__ __forceinline__ void load_checkpoint(Operand (&S)[K], const bf16* from) {
#pragma unroll
    for (int j = 0; j < K; j++) {
        const uint4 x = reinterpret_cast<const uint4*>(from)[j * THREADS<16 * K> + threadIdx.x];
        S[j] = {{x.x, x.y, x.z, x.w}};
    }
}

// c = c diag(decay).
template <int K>
__device__ __forceinline__ void decay_columns(Accumulator (&c)[K], const float (&decay)[16 * K]) {
    const int q = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < K; j++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float2 d = *reinterpret_cast<const float2*>(&decay[16 * j + 8 * i + 2 * q]);
            c[j].x[i][0] *= d.x, c[j].x[i][1] *= d.y;
            c[j].x[i][2] *= d.x, c[j].x[i][3] *= d.y;
        }
    }
}

// Store value rows to a [value rows, key columns] matrix in shared memory, and load them from it.
template <int K>
__device__ __forceinline__ void store_rows(Tile<16 * K, 16 * K>& to, const Operand (&from)[K]) {
#pragma unroll
    for (int j = 0; j < K; j++) store(to.from(threadIdx.x / 32 * 16, 16 * j), from[j]);
}

template <int K>
__device__ __forceinline__ void load_rows(Operand (&to)[K], Tile<16 * K, 16 * K>& from) {
#pragma unroll
    for (int j = 0; j < K; j++) to[j] = load_a(from.from(threadIdx.x / 32 * 16, 16 * j));
}

// Store transposed rows to a [tokens, value columns] matrix in shared memory, and load them from it.
template <int N>
__device__ __forceinline__ void store_columns(Chunk<N>& to, const Operand (&from)[TILES]) {
#pragma unroll
    for (int t = 0; t < TILES; t++) store_transposed(to.from(TILE * t, threadIdx.x / 32 * 16), from[t]);
}

template <int N>
__device__ __forceinline__ void load_columns(Operand (&to)[TILES], Chunk<N>& from) {
#pragma unroll
    for (int t = 0; t < TILES; t++) to[t] = load_a_transposed(from.from(TILE * t, threadIdx.x / 32 * 16));
}

__device__ __forceinline__ void to_tf32(Operand32 (&to)[TILES], const Operand (&from)[TILES]) {
#pragma unroll
    for (int t = 0; t < TILES; t++) to[t] = to_tf32(from[t]);
}

// c += S x^T, x [32, N].
template <int K>
__device__ __forceinline__ void multiply_add_transposed(Rows& c, const Operand (&S)[K], Chunk<16 * K>& x) {
#pragma unroll
    for (int j = 0; j < K; j++) {
#pragma unroll
        for (int t = 0; t < TILES; t++) multiply_add(c[t], S[j], load_b_transposed(x.from(TILE * t, 16 * j)));
    }
}

// S += c x, c the transposed rows in bf16, x [32, N].
template <int K>
__device__ __forceinline__ void multiply_add(Accumulator (&S)[K], const Operand (&c)[TILES], Chunk<16 * K>& x) {
#pragma unroll
    for (int j = 0; j < K; j++) {
#pragma unroll
        for (int t = 0; t < TILES; t++) multiply_add(S[j], c[t], load_b(x.from(TILE * t, 16 * j)));
    }
}

// y += x A^T for a lower triangular A: token by token, y_t += sum of A[t][s] x_s.
__device__ __forceinline__ void multiply_add_transposed(Rows& y, const Operand32 (&x)[TILES], const Triangular& A) {
    multiply_add_transposed(y[0], x[0], A.diagonal[0]);
    multiply_add_transposed(y[1], x[0], A.below);
    multiply_add_transposed(y[1], x[1], A.diagonal[1]);
}

// y += x A.
__device__ __forceinline__ void multiply_add(Rows& y, const Operand32 (&x)[TILES], const Triangular& A) {
    multiply_add(y[0], x[0], A.diagonal[0]);
    multiply_add(y[0], x[1], A.below);
    multiply_add(y[1], x[1], A.diagonal[1]);
}

// y += x A, with each block of A stored transposed.
__device__ __forceinline__ void multiply_add_blocks_transposed(
    Rows& y, const Operand32 (&x)[TILES], const Triangular& A
) {
    multiply_add_transposed(y[0], x[0], A.diagonal[0]);
    multiply_add_transposed(y[0], x[1], A.below);
    multiply_add_transposed(y[1], x[1], A.diagonal[1]);
}

// Z -> U = Z (I - A_ab)^-T in place, and U as tf32. Tile 1 depends on the U of tile 0.
__device__ __forceinline__ void solve(Rows& U, Operand32 (&U_tf32)[TILES], const Triangular& ab) {
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        if (t == 1) multiply_add_transposed(U[1], U_tf32[0], ab.below);
        const Operand32 Z = to_tf32(U[t]);
        U[t] = Accumulator();
        multiply_add_transposed(U[t], Z, ab.diagonal[t]);
        U_tf32[t] = to_tf32(U[t]);
    }
}

// dU -> dZ = dU (I - A_ab)^-1 in place, and dZ as tf32. Tile 0 depends on the dZ of tile 1.
__device__ __forceinline__ void solve_backward(Rows& dU, Operand32 (&dZ_tf32)[TILES], const Triangular& ab) {
#pragma unroll
    for (int t = TILES - 1; t >= 0; t--) {
        if (t == 0) multiply_add(dU[0], dZ_tf32[1], ab.below);
        const Operand32 x = to_tf32(dU[t]);
        dU[t] = Accumulator();
        multiply_add(dU[t], x, ab.diagonal[t]);
        dZ_tf32[t] = to_tf32(dU[t]);
    }
}

}  // namespace wkv7s
