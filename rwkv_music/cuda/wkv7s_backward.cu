// WKV7s backward, token by token from the last: one block a document and head, one thread a row and a column of the
// state.
//
// With G_t the gradient of S_t, y_t's own share included (G_t += dy_t r_t^T), and u_t = S_{t-1} a_t:
//
//     dr_t = S_t^T dy_t    dv_t = G_t k_t     dk_t = G_t^T v_t
//     du_t = G_t b_t       db_t = G_t^T u_t   da_t = S_{t-1}^T du_t
//     dd_t = colsum(G_t * S_{t-1})            G_{t-1} = G_t diag(d_t) + du_t a_t^T
//
// Notable choices:
// - Products along the key axis want G by rows, those along the value axis by columns: thread i keeps row i and
//   column i.
// - States are rebuilt forward from the nearest checkpoint and never by dividing a decay back out, which would lose
//   1.8 times more accuracy with every token. STRIDE states at a time fit in shared memory, so a chunk of
//   CHECKPOINT_EVERY tokens is rebuilt once for each STRIDE tokens.
// - Every sum has one fixed order: the same input gives the same bits.

#include "wkv7s.cuh"

namespace wkv7s {
namespace {

constexpr int CHUNK = CHECKPOINT_EVERY;
constexpr int STRIDE = 4;      // states held at once
constexpr int ROW = N + 1;     // a state's row in shared memory, padded: written by rows and read by columns

static_assert(CHUNK % STRIDE == 0);

struct Shared {
    float S[STRIDE][N][ROW];  // S_{t-1} for the tokens at hand
    float u[STRIDE][N];
    float du[2][N];           // two, so that one barrier a token is enough
    float r[CHUNK][N], d[CHUNK][N], k[CHUNK][N], v[CHUNK][N], a[CHUNK][N], b[CHUNK][N], dy[CHUNK][N];
};

__global__ __launch_bounds__(N) void backward_kernel(const Backward args) {
    extern __shared__ float shared_floats[];
    Shared& shared = *reinterpret_cast<Shared*>(shared_floats);

    const int i = threadIdx.x;
    const int head = blockIdx.x % args.in.heads;
    const int document = blockIdx.x / args.in.heads;
    const int32_t begin = args.in.cu_seqlens[document], end = args.in.cu_seqlens[document + 1];
    const int64_t state_at = (int64_t(document) * args.in.heads + head) * STATE;

    float row[N], column[N];  // of G
#pragma unroll
    for (int j = 0; j < N; j++) {
        row[j] = args.dfinal_state[state_at + i * N + j];
        column[j] = args.dfinal_state[state_at + j * N + i];
    }

    for (int chunk = (end - begin + CHUNK - 1) / CHUNK - 1; chunk >= 0; chunk--) {
        const int32_t first = begin + chunk * CHUNK;
        const int length = min(CHUNK, end - first);
        const int64_t at = (int64_t(first) * args.in.heads + head) * N + i;
        const int64_t step = int64_t(args.in.heads) * N;  // from a token to the next

        __syncthreads();
        for (int t = 0; t < length; t++) {
            shared.r[t][i] = __bfloat162float(args.in.r[at + t * step]);
            shared.d[t][i] = decay(__bfloat162float(args.in.w[at + t * step]));
            shared.k[t][i] = __bfloat162float(args.in.k[at + t * step]);
            shared.v[t][i] = __bfloat162float(args.in.v[at + t * step]);
            shared.a[t][i] = __bfloat162float(args.in.a[at + t * step]);
            shared.b[t][i] = __bfloat162float(args.in.b[at + t * step]);
            shared.dy[t][i] = __bfloat162float(args.dy[at + t * step]);
        }
        const int64_t slot = first_slot(document, begin) + chunk;
        const float* checkpoint = args.checkpoints + (slot * args.in.heads + head) * STATE;

        for (int low = (length - 1) / STRIDE * STRIDE; low >= 0; low -= STRIDE) {
            const int high = min(low + STRIDE, length);
            __syncthreads();
            {
                float S[N];
#pragma unroll
                for (int j = 0; j < N; j++) S[j] = checkpoint[j * N + i];
                for (int t = 0; t < high; t++) {
                    float u = 0.0f;
#pragma unroll
                    for (int j = 0; j < N; j++) u += S[j] * shared.a[t][j];
                    if (t >= low) {
                        shared.u[t - low][i] = u;
#pragma unroll
                        for (int j = 0; j < N; j++) shared.S[t - low][i][j] = S[j];
                    }
                    const float v = shared.v[t][i];
#pragma unroll
                    for (int j = 0; j < N; j++) {
                        S[j] = S[j] * shared.d[t][j] + u * shared.b[t][j] + v * shared.k[t][j];
                    }
                }
            }
            __syncthreads();

            for (int t = high - 1; t >= low; t--) {
                const float dy = shared.dy[t][i];
                float dv = 0.0f, du = 0.0f;
#pragma unroll
                for (int j = 0; j < N; j++) {
                    row[j] += dy * shared.r[t][j];
                    dv += row[j] * shared.k[t][j];
                    du += row[j] * shared.b[t][j];
                }
#pragma unroll
                for (int j = 0; j < N; j++) row[j] = row[j] * shared.d[t][j] + du * shared.a[t][j];
                shared.du[t & 1][i] = du;
                __syncthreads();

                const float r = shared.r[t][i], d = shared.d[t][i], k = shared.k[t][i];
                const float a = shared.a[t][i], b = shared.b[t][i];
                float dr = 0.0f, dk = 0.0f, db = 0.0f, da = 0.0f, dd = 0.0f;
#pragma unroll
                for (int j = 0; j < N; j++) {
                    const float before = shared.S[t - low][j][i];
                    const float u = shared.u[t - low][j], v = shared.v[t][j];
                    const float dy_j = shared.dy[t][j], du_j = shared.du[t & 1][j];
                    column[j] += dy_j * r;
                    dr += dy_j * (before * d + u * b + v * k);
                    dk += column[j] * v;
                    db += column[j] * u;
                    dd += column[j] * before;
                    da += before * du_j;
                    column[j] = column[j] * d + du_j * a;
                }
                const int64_t out = at + t * step;
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
    for (int j = 0; j < N; j++) args.dstate[state_at + i * N + j] = row[j];
}

}  // namespace

cudaError_t backward(const Backward& args, cudaStream_t stream) {
    const cudaError_t allowed =
        cudaFuncSetAttribute(backward_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(Shared)));
    if (allowed != cudaSuccess) return allowed;
    const unsigned blocks = unsigned(args.in.documents) * unsigned(args.in.heads);
    backward_kernel<<<blocks, N, sizeof(Shared), stream>>>(args);
    return cudaGetLastError();
}

}  // namespace wkv7s
