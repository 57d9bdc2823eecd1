// The WKV7s operator: arguments and launchers.
//
// For each head, with the decay d_t in (0.545, 1), which is computed from w_t:
//
//     S_t = S_{t-1} diag(d_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T          y_t = S_t r_t
//
// Notable choices:
// - A launcher takes plain pointers and a stream, and returns the launch's cudaError_t.
// - Documents are packed: document i has the tokens cu_seqlens[i] <= t < cu_seqlens[i + 1] and may be empty.
// - For the backward pass, the state before every CHECKPOINT_EVERY-th token of a document is saved in a slot. Such a
//   checkpoint is bf16, because the matrix products read bf16. The first slot of document i depends only on
//   cu_seqlens[i]. The number of slots depends only on the shapes, so that the host never waits for a size from the
//   device.

#pragma once

#include "common.cuh"

namespace wkv7s {

using namespace common;

constexpr int CHECKPOINT_EVERY = 32;  // tokens
constexpr int MAX_RECURRENT = 16;     // tokens; batches of documents up to this length are processed token by token

// log d = LOG_DECAY_SCALE sigmoid(w), from d = exp(-exp(-1/2) sigmoid(w)).
constexpr float LOG_DECAY_SCALE = -0.60653065971263342f;

// A number of checkpoints that is sufficient for any division of `tokens` into `documents`. rwkv_music/ops/wkv7s.py has
// the same rule.
inline int64_t checkpoint_slots(int64_t tokens, int64_t documents) { return tokens / CHECKPOINT_EVERY + documents; }

// Inputs of both passes. Shapes: r..b [tokens, heads, N] with head size N of 64 or 128; cu_seqlens [documents + 1].
struct Inputs {
    const bf16 *r, *w, *k, *v, *a, *b;
    const int32_t* cu_seqlens;
    int documents;
    int heads;
    int head_size;
};

// If there are few heads and long documents, a document is cut into segments of `tokens` tokens that run in parallel
// (see wkv7s_segments.cu). The last segment may be shorter. Segments are numbered like checkpoints: segment j of
// document i has the slot cu_seqlens[i] / tokens + i + j.
struct Segments {
    int tokens;                  // a multiple of CHECKPOINT_EVERY; 0 leaves documents whole and other fields unused
    int slots;
    bf16* transitions;  // [slots, heads, 2, N, N]: the transition matrix of a segment, as a sum of two
    float* boundaries;           // [slots, heads, N, N]: the state after each segment; backward, the gradient before
};

inline int64_t segment_slots(int64_t tokens, int64_t documents, int segment_tokens) {
    return segment_tokens ? tokens / segment_tokens + documents : documents;
}

// The best segment length on the current device, or 0 if documents should not be cut. Only for a head size of 64. No
// document may be longer than `max_length`.
int choose_segment_tokens(int64_t tokens, int64_t documents, int64_t heads, int64_t max_length);

struct Forward {
    Inputs in;
    Segments segments;
    const float* state;          // [documents, heads, N value, N key], or null for zero
    bf16* y;            // [tokens, heads, N]
    float* final_state;          // same shape as state
    bf16* checkpoints;  // [slots, heads, N, N], in the register layout of the kernels; null to save none
};

struct Backward {
    Inputs in;
    Segments segments;
    const bf16* checkpoints;
    const bf16* dy;     // [tokens, heads, N]
    const float* dfinal_state;   // [documents, heads, N value, N key], or null for zero
    bf16 *dr, *dw, *dk, *dv, *da, *db;  // [tokens, heads, N]
    float* dstate;               // [documents, heads, N value, N key]
};

// No document may be longer than `max_length`, and both passes of one call must receive the same value. Returns
// cudaErrorNotSupported if a block has too little shared memory, as in the backward pass for a head size of 128 on some
// devices.
cudaError_t forward(const Forward& args, int max_length, cudaStream_t stream);
cudaError_t backward(const Backward& args, int max_length, cudaStream_t stream);

// Parts of the two passes. The boundary states (gradients) of the segments, before the segments themselves:
cudaError_t compute_boundaries(const Forward& args, cudaStream_t stream);
cudaError_t compute_boundaries(const Backward& args, cudaStream_t stream);
// The whole pass for documents of at most MAX_RECURRENT tokens, which have no segments:
cudaError_t recurrent_forward(const Forward& args, int max_length, cudaStream_t stream);
cudaError_t recurrent_backward(const Backward& args, cudaStream_t stream);

// Sizes of the current device's shared memory, in bytes.
struct SharedMemory {
    int block, multiprocessor, reserved;  // at most for one block; in total; reserved by the system per block

    bool holds(size_t bytes) const { return int(bytes) <= block; }
    bool holds_two(size_t bytes) const { return holds(bytes) && 2 * (int(bytes) + reserved) <= multiprocessor; }
};

inline cudaError_t read_shared_memory(SharedMemory& memory) {
    int device;
    cudaError_t error = cudaGetDevice(&device);
    const auto read = [&](int& value, cudaDeviceAttr attribute) {
        if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, device);
    };
    read(memory.block, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    read(memory.multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    read(memory.reserved, cudaDevAttrReservedSharedMemoryPerBlock);
    return error;
}

}  // namespace wkv7s
