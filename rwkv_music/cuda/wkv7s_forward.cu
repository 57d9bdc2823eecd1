// WKV7s forward, token by token: one block a document and head, one thread a row of the state.
//
// Notable choices:
// - Thread i keeps row i of the state (value axis i) in registers, in fp32; nothing is rounded between tokens.
// - The next token's inputs are loaded while this one is computed, into the other of two shared buffers, so that one
//   barrier a token is enough.

#include "wkv7s.cuh"

namespace wkv7s {
namespace {

// One token's vectors along the key axis, which every thread reads whole.
struct alignas(16) Token {
    float r[N], d[N], k[N], a[N], b[N];
};

__global__ __launch_bounds__(N) void forward_kernel(const Forward args) {
    const int i = threadIdx.x;
    const int head = blockIdx.x % args.in.heads;
    const int document = blockIdx.x / args.in.heads;
    const int32_t begin = args.in.cu_seqlens[document], end = args.in.cu_seqlens[document + 1];
    const int64_t state_at = (int64_t(document) * args.in.heads + head) * STATE + i * N;

    float S[N];
#pragma unroll
    for (int j = 0; j < N; j++) S[j] = args.state ? args.state[state_at + j] : 0.0f;

    __shared__ Token tokens[2];
    for (int32_t t = begin; t < end; t++) {
        const int64_t at = (int64_t(t) * args.in.heads + head) * N + i;
        Token& token = tokens[t & 1];
        token.r[i] = __bfloat162float(args.in.r[at]);
        token.d[i] = decay(__bfloat162float(args.in.w[at]));
        token.k[i] = __bfloat162float(args.in.k[at]);
        token.a[i] = __bfloat162float(args.in.a[at]);
        token.b[i] = __bfloat162float(args.in.b[at]);
        const float v = __bfloat162float(args.in.v[at]);

        if (args.checkpoints && (t - begin) % CHECKPOINT_EVERY == 0) {
            const int64_t slot = first_slot(document, begin) + (t - begin) / CHECKPOINT_EVERY;
            float* checkpoint = args.checkpoints + (slot * args.in.heads + head) * STATE;
#pragma unroll
            for (int j = 0; j < N; j++) checkpoint[j * N + i] = S[j];
        }
        __syncthreads();

        float Sa = 0.0f;
#pragma unroll
        for (int j = 0; j < N; j++) Sa += S[j] * token.a[j];
        float y = 0.0f;
#pragma unroll
        for (int j = 0; j < N; j++) {
            S[j] = S[j] * token.d[j] + Sa * token.b[j] + v * token.k[j];
            y += S[j] * token.r[j];
        }
        args.y[at] = __float2bfloat16(y);
    }

#pragma unroll
    for (int j = 0; j < N; j++) args.final_state[state_at + j] = S[j];
}

}  // namespace

cudaError_t forward(const Forward& args, cudaStream_t stream) {
    const unsigned blocks = unsigned(args.in.documents) * unsigned(args.in.heads);
    forward_kernel<<<blocks, N, 0, stream>>>(args);
    return cudaGetLastError();
}

}  // namespace wkv7s
