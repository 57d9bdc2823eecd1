// WKV7s token by token in fp32, for documents too short to fill a chunk. The main use is generation, with one token per
// row.
//
// Let G_t be the gradient of S_t, including the term of y_t (G_t += dy_t r_t^T), and let u_t = S_{t-1} a_t. Then:
//
//     dr_t = S_t^T dy_t    dv_t = G_t k_t     dk_t = G_t^T v_t
//     du_t = G_t b_t       db_t = G_t^T u_t   da_t = S_{t-1}^T du_t
//     dd_t = colsum(G_t * S_{t-1})            G_{t-1} = G_t diag(d_t) + du_t a_t^T
//
// Notable choices:
// - One block per document and head. Nothing is rounded between tokens. Here chunks with bf16 products would not be
//   faster, and would be less accurate, because rounding errors average out less over few tokens.
// - Forward: four lanes share a row of the state, so that the state is read and written in full cache lines. With one
//   token, these accesses take almost all of the time.
// - Backward: products along the key axis need G by rows, and products along the value axis need it by columns. A
//   thread keeps 64 elements of row i and 64 of column i, so N / 64 neighboring threads share an i. States are
//   recomputed forward from the start of the document. Recomputing them backward would divide by the decay and lose a
//   factor of 1.8 in accuracy with every token. STRIDE states fit in shared memory, so the document is recomputed once
//   for every STRIDE tokens.

#include "wkv7s.cuh"

namespace wkv7s {
namespace {

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float decay(float w) { return expf(LOG_DECAY_SCALE * sigmoid(w)); }

// dd/dw. sigmoid(-w) is used instead of 1 - sigmoid(w), which would lose all digits if w is large.
__device__ __forceinline__ float decay_gradient(float w, float d) {
    return d * LOG_DECAY_SCALE * sigmoid(w) * sigmoid(-w);
}

// The offset of the only checkpoint of a short document: its initial state, [key, value].
template <int N>
__device__ __forceinline__ int64_t checkpoint_at(const Inputs& in, int document, int head) {
    return ((in.cu_seqlens[document] / CHECKPOINT_EVERY + document) * int64_t(in.heads) + head) * (N * N);
}

// ---- Forward ------------------------------------------------------------------------------------------------------

constexpr int LANES = 4;  // lanes that share a row

template <int N>
struct alignas(16) Token {
    float r[N], d[N], k[N], v[N], a[N], b[N];
};

__device__ __forceinline__ float dot(float4 x, float4 y) { return x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w; }

template <int N>
__global__ __launch_bounds__(LANES * N) void forward_kernel(const Forward args, const int max_length) {
    constexpr int FOURS = N / LANES / 4;  // groups of four columns of its row that a lane holds
    extern __shared__ float shared_floats[];
    Token<N>* const tokens = reinterpret_cast<Token<N>*>(shared_floats);
    const int row = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const int head = blockIdx.x % args.in.heads, document = blockIdx.x / args.in.heads;
    const int begin = args.in.cu_seqlens[document];
    const int length = min(args.in.cu_seqlens[document + 1] - begin, max_length);  // the shared memory holds no more
    const int64_t state_at = (int64_t(document) * args.in.heads + head) * (N * N) + row * N + 4 * lane;
    const int64_t first = (int64_t(begin) * args.in.heads + head) * N;
    const int64_t step = int64_t(args.in.heads) * N;  // from one token to the next

    float4 S[FOURS];  // columns 16 i + 4 lane ..
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        S[i] = args.state ? *reinterpret_cast<const float4*>(args.state + state_at + 16 * i) : make_float4(0, 0, 0, 0);
    }
    for (int i = threadIdx.x; i < length * N; i += LANES * N) {
        const int64_t at = first + i / N * step + i % N;
        Token<N>& token = tokens[i / N];
        token.r[i % N] = __bfloat162float(args.in.r[at]);
        token.d[i % N] = decay(__bfloat162float(args.in.w[at]));
        token.k[i % N] = __bfloat162float(args.in.k[at]);
        token.v[i % N] = __bfloat162float(args.in.v[at]);
        token.a[i % N] = __bfloat162float(args.in.a[at]);
        token.b[i % N] = __bfloat162float(args.in.b[at]);
    }
    if (args.checkpoints) {
        bf16* const to = args.checkpoints + checkpoint_at<N>(args.in, document, head) + row;
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            const float x[4] = {S[i].x, S[i].y, S[i].z, S[i].w};
#pragma unroll
            for (int e = 0; e < 4; e++) to[(16 * i + 4 * lane + e) * N] = __float2bfloat16(x[e]);
        }
    }
    __syncthreads();

    for (int t = 0; t < length; t++) {
        const Token<N>& token = tokens[t];
        const auto four = [&](const float* x, int i) { return reinterpret_cast<const float4*>(x)[LANES * i + lane]; };
        float u = 0.0f;
#pragma unroll
        for (int i = 0; i < FOURS; i++) u += dot(S[i], four(token.a, i));
        u = warp_sum<LANES>(u);
        const float v = token.v[row];
        float y = 0.0f;
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            const float4 d = four(token.d, i), b = four(token.b, i), k = four(token.k, i);
            S[i].x = S[i].x * d.x + u * b.x + v * k.x;
            S[i].y = S[i].y * d.y + u * b.y + v * k.y;
            S[i].z = S[i].z * d.z + u * b.z + v * k.z;
            S[i].w = S[i].w * d.w + u * b.w + v * k.w;
            y += dot(S[i], four(token.r, i));
        }
        y = warp_sum<LANES>(y);
        if (lane == 0) args.y[first + t * step + row] = __float2bfloat16(y);
    }
#pragma unroll
    for (int i = 0; i < FOURS; i++) *reinterpret_cast<float4*>(args.final_state + state_at + 16 * i) = S[i];
}

// ---- Backward -----------------------------------------------------------------------------------------------------

constexpr int PER_THREAD = 64;  // elements of its row, and of its column, that a thread keeps

template <int N>
struct Shared {
    static constexpr int STRIDE = N == 64 ? 4 : 1;  // states in shared memory at once

    float S[STRIDE][N][N + 1];  // S_{t-1} of the current tokens; padded: written by rows, read by columns
    float u[STRIDE][N];
    float du[2][N];             // two buffers, so that one barrier per token is enough
    float r[MAX_RECURRENT][N], d[MAX_RECURRENT][N], k[MAX_RECURRENT][N], v[MAX_RECURRENT][N];
    float a[MAX_RECURRENT][N], b[MAX_RECURRENT][N], dy[MAX_RECURRENT][N];
};

template <int N>
__global__ __launch_bounds__(N * N / PER_THREAD) void backward_kernel(const Backward args) {
    constexpr int STRIDE = Shared<N>::STRIDE, LANES = N / PER_THREAD;
    extern __shared__ float shared_floats[];
    Shared<N>& shared = *reinterpret_cast<Shared<N>*>(shared_floats);
    const int i = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const int head = blockIdx.x % args.in.heads, document = blockIdx.x / args.in.heads;
    const int begin = args.in.cu_seqlens[document];
    const int length = min(args.in.cu_seqlens[document + 1] - begin, MAX_RECURRENT);
    const int64_t state_at = (int64_t(document) * args.in.heads + head) * (N * N);
    const int64_t first = (int64_t(begin) * args.in.heads + head) * N + i;
    const int64_t step = int64_t(args.in.heads) * N;
    const bf16* const checkpoint = args.checkpoints + checkpoint_at<N>(args.in, document, head) + i;

    float row[PER_THREAD], column[PER_THREAD];  // of G: elements LANES j + lane
#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) {
        row[j] = args.dfinal_state ? args.dfinal_state[state_at + i * N + LANES * j + lane] : 0;
        column[j] = args.dfinal_state ? args.dfinal_state[state_at + (LANES * j + lane) * N + i] : 0;
    }
    for (int t = lane; t < length; t += LANES) {
        shared.r[t][i] = __bfloat162float(args.in.r[first + t * step]);
        shared.d[t][i] = decay(__bfloat162float(args.in.w[first + t * step]));
        shared.k[t][i] = __bfloat162float(args.in.k[first + t * step]);
        shared.v[t][i] = __bfloat162float(args.in.v[first + t * step]);
        shared.a[t][i] = __bfloat162float(args.in.a[first + t * step]);
        shared.b[t][i] = __bfloat162float(args.in.b[first + t * step]);
        shared.dy[t][i] = __bfloat162float(args.dy[first + t * step]);
    }

    for (int low = (length - 1) / STRIDE * STRIDE; length > 0 && low >= 0; low -= STRIDE) {
        const int high = min(low + STRIDE, length);
        __syncthreads();
        {
            float S[PER_THREAD];
#pragma unroll
            for (int j = 0; j < PER_THREAD; j++) S[j] = __bfloat162float(checkpoint[(LANES * j + lane) * N]);
            for (int t = 0; t < high; t++) {
                float u = 0.0f;
#pragma unroll
                for (int j = 0; j < PER_THREAD; j++) u += S[j] * shared.a[t][LANES * j + lane];
                u = warp_sum<LANES>(u);
                if (t >= low) {
                    if (lane == 0) shared.u[t - low][i] = u;
#pragma unroll
                    for (int j = 0; j < PER_THREAD; j++) shared.S[t - low][i][LANES * j + lane] = S[j];
                }
                const float v = shared.v[t][i];
#pragma unroll
                for (int j = 0; j < PER_THREAD; j++) {
                    const int c = LANES * j + lane;
                    S[j] = S[j] * shared.d[t][c] + u * shared.b[t][c] + v * shared.k[t][c];
                }
            }
        }
        __syncthreads();

        for (int t = high - 1; t >= low; t--) {
            const float dy = shared.dy[t][i];
            float dv = 0.0f, du = 0.0f;
#pragma unroll
            for (int j = 0; j < PER_THREAD; j++) {
                const int c = LANES * j + lane;
                row[j] += dy * shared.r[t][c];
                dv += row[j] * shared.k[t][c];
                du += row[j] * shared.b[t][c];
            }
            dv = warp_sum<LANES>(dv);
            du = warp_sum<LANES>(du);
#pragma unroll
            for (int j = 0; j < PER_THREAD; j++) {
                const int c = LANES * j + lane;
                row[j] = row[j] * shared.d[t][c] + du * shared.a[t][c];
            }
            if (lane == 0) shared.du[t & 1][i] = du;
            __syncthreads();

            const float r = shared.r[t][i], d = shared.d[t][i], k = shared.k[t][i];
            const float a = shared.a[t][i], b = shared.b[t][i];
            float dr = 0.0f, dk = 0.0f, db = 0.0f, da = 0.0f, dd = 0.0f;
#pragma unroll
            for (int j = 0; j < PER_THREAD; j++) {
                const int c = LANES * j + lane;
                const float before = shared.S[t - low][c][i];
                const float u = shared.u[t - low][c], v = shared.v[t][c];
                const float dy_c = shared.dy[t][c], du_c = shared.du[t & 1][c];
                column[j] += dy_c * r;
                dr += dy_c * (before * d + u * b + v * k);
                dk += column[j] * v;
                db += column[j] * u;
                dd += column[j] * before;
                da += before * du_c;
                column[j] = column[j] * d + du_c * a;
            }
            dr = warp_sum<LANES>(dr);
            dk = warp_sum<LANES>(dk);
            db = warp_sum<LANES>(db);
            da = warp_sum<LANES>(da);
            dd = warp_sum<LANES>(dd);
            if (lane == 0) {
                const int64_t out = first + t * step;
                args.dr[out] = __float2bfloat16(dr);
                args.dw[out] = __float2bfloat16(dd * decay_gradient(__bfloat162float(args.in.w[out]), d));
                args.dk[out] = __float2bfloat16(dk);
                args.dv[out] = __float2bfloat16(dv);
                args.da[out] = __float2bfloat16(da);
                args.db[out] = __float2bfloat16(db);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) args.dstate[state_at + i * N + LANES * j + lane] = row[j];
}

template <int N>
cudaError_t launch_forward(const Forward& args, int max_length, cudaStream_t stream) {
    const dim3 blocks(unsigned(int64_t(args.in.documents) * args.in.heads));
    return launch(forward_kernel<N>, blocks, LANES * N, max_length * sizeof(Token<N>), stream, args, max_length);
}

template <int N>
cudaError_t launch_backward(const Backward& args, cudaStream_t stream) {
    const dim3 blocks(unsigned(int64_t(args.in.documents) * args.in.heads));
    return launch(backward_kernel<N>, blocks, N * N / PER_THREAD, sizeof(Shared<N>), stream, args);
}

}  // namespace

cudaError_t recurrent_forward(const Forward& args, int max_length, cudaStream_t stream) {
    return args.in.head_size == 64 ? launch_forward<64>(args, max_length, stream)
                                   : launch_forward<128>(args, max_length, stream);
}

cudaError_t recurrent_backward(const Backward& args, cudaStream_t stream) {
    return args.in.head_size == 64 ? launch_backward<64>(args, stream) : launch_backward<128>(args, stream);
}

}  // namespace wkv7s
