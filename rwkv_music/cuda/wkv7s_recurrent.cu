// WKV7s token by token in fp32, for documents too short to fill a chunk: above all generation, one token for many rows.
//
// With G_t the gradient of S_t, y_t's own share included (G_t += dy_t r_t^T), and u_t = S_{t-1} a_t:
//
//     dr_t = S_t^T dy_t    dv_t = G_t k_t     dk_t = G_t^T v_t
//     du_t = G_t b_t       db_t = G_t^T u_t   da_t = S_{t-1}^T du_t
//     dd_t = colsum(G_t * S_{t-1})            G_{t-1} = G_t diag(d_t) + du_t a_t^T
//
// Notable choices:
// - One block a document and head. Nothing is rounded between tokens; a chunk's products in bf16 would be no faster
//   here, and few numbers average their errors out less.
// - Forward: four lanes share a row of the state, so that it is read and written in whole lines: for one token that
//   traffic is all there is.
// - Backward: products along the key axis want G by rows, those along the value axis by columns: a thread keeps 64
//   elements of row i and 64 of column i, and N / 64 neighbours share an i. States are rebuilt forward from the
//   document's head and never by dividing a decay back out, which would lose 1.8 times more accuracy with every token.
//   STRIDE of them fit in shared memory, so the document is rebuilt once for each STRIDE tokens.

#include "wkv7s.cuh"

namespace wkv7s {
namespace {

// d = exp(-exp(-1/2) sigmoid(w))
constexpr float LOG_DECAY_SCALE = -0.60653065971263342f;

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float decay(float w) { return expf(LOG_DECAY_SCALE * sigmoid(w)); }

// dd/dw. sigmoid(-w) rather than 1 - sigmoid(w): no cancellation where w is large.
__device__ __forceinline__ float decay_gradient(float w, float d) {
    return d * LOG_DECAY_SCALE * sigmoid(w) * sigmoid(-w);
}

// The only checkpoint of a short document: its initial state, [key, value].
template <int N>
__device__ __forceinline__ int64_t checkpoint_at(const Inputs& in, int document, int head) {
    return ((in.cu_seqlens[document] / CHECKPOINT_EVERY + document) * int64_t(in.heads) + head) * (N * N);
}

// ---- Forward ------------------------------------------------------------------------------------------------------

constexpr int PARTS = 4;  // lanes to a row

template <int N>
struct alignas(16) Token {
    float r[N], d[N], k[N], v[N], a[N], b[N];
};

__device__ __forceinline__ float dot(float4 x, float4 y) { return x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w; }

__device__ __forceinline__ float sum_of_parts(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}

template <int N>
__global__ __launch_bounds__(PARTS * N) void forward_kernel(const Forward args, const int max_length) {
    constexpr int FOURS = N / PARTS / 4;  // groups of four columns that a lane has of its row
    extern __shared__ float shared_floats[];
    Token<N>* const tokens = reinterpret_cast<Token<N>*>(shared_floats);
    const int row = threadIdx.x / PARTS, part = threadIdx.x % PARTS;
    const int head = blockIdx.x % args.in.heads, document = blockIdx.x / args.in.heads;
    const int begin = args.in.cu_seqlens[document];
    const int length = min(args.in.cu_seqlens[document + 1] - begin, max_length);  // what there is memory for
    const int64_t state_at = (int64_t(document) * args.in.heads + head) * (N * N) + row * N + 4 * part;
    const int64_t first = (int64_t(begin) * args.in.heads + head) * N;
    const int64_t step = int64_t(args.in.heads) * N;  // from a token to the next

    float4 S[FOURS];  // columns 16 i + 4 part ..
#pragma unroll
    for (int i = 0; i < FOURS; i++) {
        S[i] = args.state ? *reinterpret_cast<const float4*>(args.state + state_at + 16 * i) : make_float4(0, 0, 0, 0);
    }
    for (int i = threadIdx.x; i < length * N; i += PARTS * N) {
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
        __nv_bfloat16* const to = args.checkpoints + checkpoint_at<N>(args.in, document, head) + row;
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            const float x[4] = {S[i].x, S[i].y, S[i].z, S[i].w};
#pragma unroll
            for (int e = 0; e < 4; e++) to[(16 * i + 4 * part + e) * N] = __float2bfloat16(x[e]);
        }
    }
    __syncthreads();

    for (int t = 0; t < length; t++) {
        const Token<N>& token = tokens[t];
        const auto four = [&](const float* x, int i) { return reinterpret_cast<const float4*>(x)[PARTS * i + part]; };
        float u = 0.0f;
#pragma unroll
        for (int i = 0; i < FOURS; i++) u += dot(S[i], four(token.a, i));
        u = sum_of_parts(u);
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
        y = sum_of_parts(y);
        if (part == 0) args.y[first + t * step + row] = __float2bfloat16(y);
    }
#pragma unroll
    for (int i = 0; i < FOURS; i++) *reinterpret_cast<float4*>(args.final_state + state_at + 16 * i) = S[i];
}

// ---- Backward -----------------------------------------------------------------------------------------------------

constexpr int HELD = 64;  // elements that a thread keeps of its row, and of its column

template <int N>
struct Shared {
    static constexpr int STRIDE = N == 64 ? 4 : 1;  // states held at once

    float S[STRIDE][N][N + 1];  // S_{t-1} for the tokens at hand; padded: written by rows and read by columns
    float u[STRIDE][N];
    float du[2][N];             // two, so that one barrier a token is enough
    float r[SHORT][N], d[SHORT][N], k[SHORT][N], v[SHORT][N], a[SHORT][N], b[SHORT][N], dy[SHORT][N];
};

// The sum over the PARTS neighbours that share a row or column.
template <int PARTS>
__device__ __forceinline__ float sum_over(float x) {
    if constexpr (PARTS == 2) x += __shfl_xor_sync(0xffffffff, x, 1);
    return x;
}

template <int N>
__global__ __launch_bounds__(N * N / HELD) void backward_kernel(const Backward args) {
    constexpr int STRIDE = Shared<N>::STRIDE, PARTS = N / HELD;
    extern __shared__ float shared_floats[];
    Shared<N>& shared = *reinterpret_cast<Shared<N>*>(shared_floats);
    const int i = threadIdx.x / PARTS, part = threadIdx.x % PARTS;
    const int head = blockIdx.x % args.in.heads, document = blockIdx.x / args.in.heads;
    const int begin = args.in.cu_seqlens[document], length = min(args.in.cu_seqlens[document + 1] - begin, SHORT);
    const int64_t state_at = (int64_t(document) * args.in.heads + head) * (N * N);
    const int64_t first = (int64_t(begin) * args.in.heads + head) * N + i;
    const int64_t step = int64_t(args.in.heads) * N;
    const __nv_bfloat16* const checkpoint = args.checkpoints + checkpoint_at<N>(args.in, document, head) + i;

    float row[HELD], column[HELD];  // of G: elements PARTS j + part
#pragma unroll
    for (int j = 0; j < HELD; j++) {
        row[j] = args.dfinal_state ? args.dfinal_state[state_at + i * N + PARTS * j + part] : 0;
        column[j] = args.dfinal_state ? args.dfinal_state[state_at + (PARTS * j + part) * N + i] : 0;
    }
    for (int t = part; t < length; t += PARTS) {
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
            float S[HELD];
#pragma unroll
            for (int j = 0; j < HELD; j++) S[j] = __bfloat162float(checkpoint[(PARTS * j + part) * N]);
            for (int t = 0; t < high; t++) {
                float u = 0.0f;
#pragma unroll
                for (int j = 0; j < HELD; j++) u += S[j] * shared.a[t][PARTS * j + part];
                u = sum_over<PARTS>(u);
                if (t >= low) {
                    if (part == 0) shared.u[t - low][i] = u;
#pragma unroll
                    for (int j = 0; j < HELD; j++) shared.S[t - low][i][PARTS * j + part] = S[j];
                }
                const float v = shared.v[t][i];
#pragma unroll
                for (int j = 0; j < HELD; j++) {
                    const int c = PARTS * j + part;
                    S[j] = S[j] * shared.d[t][c] + u * shared.b[t][c] + v * shared.k[t][c];
                }
            }
        }
        __syncthreads();

        for (int t = high - 1; t >= low; t--) {
            const float dy = shared.dy[t][i];
            float dv = 0.0f, du = 0.0f;
#pragma unroll
            for (int j = 0; j < HELD; j++) {
                const int c = PARTS * j + part;
                row[j] += dy * shared.r[t][c];
                dv += row[j] * shared.k[t][c];
                du += row[j] * shared.b[t][c];
            }
            dv = sum_over<PARTS>(dv);
            du = sum_over<PARTS>(du);
#pragma unroll
            for (int j = 0; j < HELD; j++) {
                const int c = PARTS * j + part;
                row[j] = row[j] * shared.d[t][c] + du * shared.a[t][c];
            }
            if (part == 0) shared.du[t & 1][i] = du;
            __syncthreads();

            const float r = shared.r[t][i], d = shared.d[t][i], k = shared.k[t][i];
            const float a = shared.a[t][i], b = shared.b[t][i];
            float dr = 0.0f, dk = 0.0f, db = 0.0f, da = 0.0f, dd = 0.0f;
#pragma unroll
            for (int j = 0; j < HELD; j++) {
                const int c = PARTS * j + part;
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
            dr = sum_over<PARTS>(dr);
            dk = sum_over<PARTS>(dk);
            db = sum_over<PARTS>(db);
            da = sum_over<PARTS>(da);
            dd = sum_over<PARTS>(dd);
            if (part == 0) {
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
    for (int j = 0; j < HELD; j++) args.dstate[state_at + i * N + PARTS * j + part] = row[j];
}

template <int N>
cudaError_t launch_forward(const Forward& args, int max_length, cudaStream_t stream) {
    const int64_t blocks = int64_t(args.in.documents) * args.in.heads;
    return launch(forward_kernel<N>, blocks, PARTS * N, max_length * sizeof(Token<N>), stream, args, max_length);
}

template <int N>
cudaError_t launch_backward(const Backward& args, cudaStream_t stream) {
    const int64_t blocks = int64_t(args.in.documents) * args.in.heads;
    return launch(backward_kernel<N>, blocks, N * N / HELD, sizeof(Shared<N>), stream, args);
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
