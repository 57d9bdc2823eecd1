// What the WKV7s kernels share: their arguments, and the few device functions that every kernel needs.
//
// The operator, for each head (d_t in (0.545, 1) is the decay of w_t):
//
//     S_t = S_{t-1} diag(d_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T          y_t = S_t r_t
//
// Notable choices:
// - No torch header is read here or in any .cu file; bindings.cpp alone knows torch. A launcher takes plain pointers
//   and a stream, and returns the launch's cudaError_t.
// - Documents are packed: document i holds the tokens cu_seqlens[i] <= t < cu_seqlens[i + 1]; it may hold none.
// - The state before every CHECKPOINT_EVERY-th token of a document is kept for the backward pass. Where document i
//   begins among the slots depends on cu_seqlens[i] alone, and how many slots are enough on the shapes alone, so that
//   the host never waits for the device to learn a size.

#pragma once

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace wkv7s {

constexpr int N = 64;                 // head size
constexpr int STATE = N * N;          // elements of one head's state
constexpr int CHECKPOINT_EVERY = 16;  // tokens

// How many checkpoints hold any split of `tokens` into `documents`. The same rule stands in rwkv_music/wkv7s.py.
inline int64_t checkpoint_slots(int64_t tokens, int64_t documents) { return tokens / CHECKPOINT_EVERY + documents; }

// Inputs of both passes. Shapes: r..b [tokens, heads, N]; cu_seqlens [documents + 1].
struct Inputs {
    const __nv_bfloat16 *r, *w, *k, *v, *a, *b;
    const int32_t* cu_seqlens;
    int documents;
    int heads;
};

struct Forward {
    Inputs in;
    const float* state;  // [documents, heads, N value, N key], or null for zero
    __nv_bfloat16* y;    // [tokens, heads, N]
    float* final_state;  // as state
    float* checkpoints;  // [slots, heads, N key, N value], transposed so that warps write whole lines; null for none
};

struct Backward {
    Inputs in;
    const float* checkpoints;
    const __nv_bfloat16* dy;     // [tokens, heads, N]
    const float* dfinal_state;   // [documents, heads, N value, N key]
    __nv_bfloat16 *dr, *dw, *dk, *dv, *da, *db;  // [tokens, heads, N]
    float* dstate;               // as dfinal_state
};

cudaError_t forward(const Forward& args, cudaStream_t stream);
cudaError_t backward(const Backward& args, cudaStream_t stream);

#ifdef __CUDACC__

// The slot of the first checkpoint of a document; the others follow it.
__device__ __forceinline__ int64_t first_slot(int document, int32_t begin) {
    return begin / CHECKPOINT_EVERY + document;
}

// d = exp(-exp(-1/2) sigmoid(w))
constexpr float LOG_DECAY_SCALE = -0.60653065971263342f;

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float decay(float w) { return expf(LOG_DECAY_SCALE * sigmoid(w)); }

// dd/dw. sigmoid(-w) rather than 1 - sigmoid(w): no cancellation where w is large.
__device__ __forceinline__ float decay_gradient(float w, float d) {
    return d * LOG_DECAY_SCALE * sigmoid(w) * sigmoid(-w);
}

#endif

}  // namespace wkv7s
