// What the WKV7s kernels share: their arguments.
//
// The operator, for each head (d_t in (0.545, 1) is the decay of w_t):
//
//     S_t = S_{t-1} diag(d_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T          y_t = S_t r_t
//
// Notable choices:
// - No torch header is read here or in any .cu file; bindings.cpp alone knows torch. A launcher takes plain pointers
//   and a stream, and returns the launch's cudaError_t.
// - Documents are packed: document i holds the tokens cu_seqlens[i] <= t < cu_seqlens[i + 1]; it may hold none.
// - The state before every CHECKPOINT_EVERY-th token of a document is kept for the backward pass, in bf16, as the
//   products take it. Where document i begins among the slots depends on cu_seqlens[i] alone, and how many slots are
//   enough on the shapes alone, so that the host never waits for the device to learn a size.

#pragma once

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace wkv7s {

constexpr int CHECKPOINT_EVERY = 32;  // tokens
constexpr int SHORT = 16;             // tokens of the longest document that is worked on token by token

// How many checkpoints hold any split of `tokens` into `documents`. The same rule stands in rwkv_music/ops/wkv7s.py.
inline int64_t checkpoint_slots(int64_t tokens, int64_t documents) { return tokens / CHECKPOINT_EVERY + documents; }

// Inputs of both passes. Shapes: r..b [tokens, heads, N], N the head size, 64 or 128; cu_seqlens [documents + 1].
struct Inputs {
    const __nv_bfloat16 *r, *w, *k, *v, *a, *b;
    const int32_t* cu_seqlens;
    int documents;
    int heads;
    int head_size;
};

// Where heads are few and documents long, a document is cut into segments of `tokens` tokens (the last may be shorter),
// which run at once: see wkv7s_segments.cu. They are counted as checkpoints are: segment j of document i has the slot
// cu_seqlens[i] / tokens + i + j.
struct Segments {
    int tokens;                  // a multiple of CHECKPOINT_EVERY; 0 leaves documents whole, and the rest unused
    int slots;
    __nv_bfloat16* transitions;  // [slots, heads, 2, N, N]: what a segment multiplies a state with, as a sum of two
    float* edges;                // [slots, heads, N, N]: the states after each segment; backward, the gradients before
};

inline int64_t segment_slots(int64_t tokens, int64_t documents, int segment_tokens) {
    return segment_tokens ? tokens / segment_tokens + documents : documents;
}

// How long the segments should be on the current device, 0 for none; no document is longer than `max_length`. There are
// segments for a head size of 64 alone.
int choose_segment_tokens(int64_t tokens, int64_t documents, int64_t heads, int64_t max_length);

struct Forward {
    Inputs in;
    Segments segments;
    const float* state;          // [documents, heads, N value, N key], or null for zero
    __nv_bfloat16* y;            // [tokens, heads, N]
    float* final_state;          // as state
    __nv_bfloat16* checkpoints;  // [slots, heads, N, N], the elements in the kernels' own order; null to keep none
};

struct Backward {
    Inputs in;
    Segments segments;
    const __nv_bfloat16* checkpoints;
    const __nv_bfloat16* dy;     // [tokens, heads, N]
    const float* dfinal_state;   // [documents, heads, N value, N key], or null for zero
    __nv_bfloat16 *dr, *dw, *dk, *dv, *da, *db;  // [tokens, heads, N]
    float* dstate;               // [documents, heads, N value, N key]
};

// No document is longer than `max_length`. Both passes of one call must be told the same. cudaErrorNotSupported: the
// device's blocks have too little shared memory, which happens to the backward pass for a head size of 128.
cudaError_t forward(const Forward& args, int max_length, cudaStream_t stream);
cudaError_t backward(const Backward& args, int max_length, cudaStream_t stream);

// Parts of the two. The segments' edges, before the segments themselves:
cudaError_t make_edges(const Forward& args, cudaStream_t stream);
cudaError_t make_edges(const Backward& args, cudaStream_t stream);
// And all of it, where documents are SHORT at most, so that no segment is shorter:
cudaError_t recurrent_forward(const Forward& args, int max_length, cudaStream_t stream);
cudaError_t recurrent_backward(const Backward& args, cudaStream_t stream);

// What the current device has of shared memory, in bytes.
struct SharedMemory {
    int block, multiprocessor, reserved;  // at most for one block; in all; of that, by the system for each block

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

#ifdef __CUDACC__

// cudaErrorNotSupported where a block cannot have so much shared memory.
template <class Kernel, class... Args>
cudaError_t launch(Kernel* kernel, int64_t blocks, int threads, size_t shared, cudaStream_t stream, Args... args) {
    const cudaError_t allowed = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    if (allowed != cudaSuccess) {
        cudaGetLastError();  // it is told, and need not trouble the next call
        return allowed == cudaErrorInvalidValue ? cudaErrorNotSupported : allowed;
    }
    kernel<<<unsigned(blocks), unsigned(threads), shared, stream>>>(args...);
    return cudaGetLastError();
}

#endif

}  // namespace wkv7s
