// The fused operators around the matrix products: their arguments and launchers. No torch header is read here.
//
// Each is defined by its plain form in rwkv_music/ops/fused.py, which says what the names mean. Notable choices:
// - Bound by memory: each input is read once and each output written once, 16 bytes a thread; all between is fp32.
// - A sum over tokens is made in two steps, both in a fixed order: every block leaves the sum over its own tokens in
//   `parts`, and sum_parts adds those. How many blocks there are depends on shapes and the GPU alone.
// - Shapes: tokens x C, C a multiple of 64; vectors are [C]; everything contiguous, bf16 where no type is given.

#pragma once

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace fused {

using bf16 = __nv_bfloat16;

constexpr int HEAD = 64;                  // channels of a head
constexpr int WIDEST_NORM = 4096;         // channels: norm_mix keeps a token in the registers of one block
constexpr float GROUP_NORM_EPS = 64e-5f;
constexpr float NORMALIZE_EPS = 1e-12f;

struct NormMix {
    int64_t tokens;
    int C, n;                                     // n mixes: 1 or 6
    float eps;
    const bf16 *x, *ln_weight, *ln_bias, *mixes;  // mixes [n, C]
    const int32_t* first;                         // [tokens]
    const bf16* previous;                         // [documents, C], or null for zeros
    bf16* mixed;                                  // [n, tokens, C]
    float* mean_rstd;                             // [tokens, 2]
};

struct NormMixBackward {
    int64_t tokens;
    int C, n;
    const bf16 *dmixed, *x;
    const float* mean_rstd;
    const bf16 *ln_weight, *ln_bias, *mixes;
    const int32_t* first;
    const bf16 *previous, *dresidual;  // or null
    bf16 *dx, *dprevious;              // dprevious null with previous; zeros beforehand, for documents without tokens
    float* parts;                      // [norm_mix_parts(...), n + 2, C]
    bf16* sums;                        // [n + 2, C]: dmixes, dln_weight, dln_bias
};

struct Gates {
    int64_t tokens;
    int C;
    const bf16 *k, *v, *v_first;       // v, v_first, v_low, v0 null in layer 0
    const bf16 *w_low, *a_low, *v_low;
    const bf16 *w0, *a0, *v0, *k_k, *k_a;
    bf16 *w, *new_k, *new_v, *removal, *replacement;  // new_v null in layer 0
};

struct GatesBackward {
    int64_t tokens;
    int C;
    const bf16 *dw, *dnew_k, *dnew_v, *dremoval, *dreplacement;
    const bf16 *dk_more, *dv_more;     // or null
    const bf16 *k, *v, *v_first, *a_low, *v_low;
    const bf16 *a0, *v0, *k_k, *k_a;
    bf16 *dk, *dv, *dv_first, *da_low, *dv_low;  // in layer 0 only dk and da_low, and dv where there is dv_more
    float* parts;                      // [token_parts(...), 5, C]
    bf16* sums;                        // [5, C]: dw0, da0, dk_k, dk_a, dv0 (of no meaning in layer 0)
};

struct NormBonusGate {
    int64_t tokens;
    int C;
    const bf16 *y, *r, *k, *v, *g, *r_k, *ln_weight, *ln_bias;
    bf16* out;
};

struct NormBonusGateBackward {
    int64_t tokens;
    int C;
    const bf16 *dout, *y, *r, *k, *v, *g, *r_k, *ln_weight, *ln_bias;
    bf16 *dy, *dr, *dk, *dv, *dg, *out;  // out: the forward's, once more
    float* parts;                      // [token_parts(...), 3, C]
    bf16* sums;                        // [3, C]: dr_k, dln_weight, dln_bias
};

struct EmbedGate {
    int64_t tokens;
    int C;
    const bf16 *x, *out, *enn;         // enn [V, C]
    const int64_t* ids;                // [tokens]
    bf16* result;
};

// Sums of rows over equal ids: of dx * out, and dx * enn[id] besides; or of dx alone, where out, enn and dout are null.
struct EmbedSums {
    int64_t tokens;
    int C;
    const int64_t *ids, *positions;    // [tokens], ids rising
    const bf16 *dx, *out, *enn;
    bf16 *dout, *dtable;               // dtable [V, C]: zeros beforehand, for ids that do not occur
    float* edges;                      // [embed_chunks(tokens), 2, C]
};

struct CrossEntropy {
    int64_t rows;
    int V;
    bf16* logits;                      // [rows, V]: becomes the gradient
    const int64_t* targets;            // [rows]; a negative one does not count
    const float* scale_at;             // or null for `scale`
    float scale;
    float* nats;                       // [rows]
};

constexpr int EMBED_CHUNK = 32;  // places in the order of ids that one warp works on
inline int64_t embed_chunks(int64_t tokens) { return (tokens + EMBED_CHUNK - 1) / EMBED_CHUNK; }

// How many blocks share the tokens on the current device, and so how many partial sums there are.
int norm_mix_parts(int64_t tokens, int C);
int token_parts(int64_t tokens, int C);

cudaError_t norm_mix(const NormMix& args, cudaStream_t stream);
cudaError_t norm_mix_backward(const NormMixBackward& args, cudaStream_t stream);
cudaError_t gates(const Gates& args, cudaStream_t stream);
cudaError_t gates_backward(const GatesBackward& args, cudaStream_t stream);
cudaError_t norm_bonus_gate(const NormBonusGate& args, cudaStream_t stream);
cudaError_t norm_bonus_gate_backward(const NormBonusGateBackward& args, cudaStream_t stream);
cudaError_t relu_squared(const bf16* k, bf16* out, int64_t elements, cudaStream_t stream);
cudaError_t relu_squared_backward(
    const bf16* dout, const bf16* k, bf16* out, bf16* dk, int64_t elements, cudaStream_t stream
);
cudaError_t embed_gate(const EmbedGate& args, cudaStream_t stream);
cudaError_t embed_sums(const EmbedSums& args, cudaStream_t stream);
cudaError_t cross_entropy(const CrossEntropy& args, cudaStream_t stream);

// sums [columns] = the sum of parts [count, columns] over its first axis; columns is a multiple of 32.
cudaError_t sum_parts(const float* parts, int count, int columns, bf16* sums, cudaStream_t stream);

}  // namespace fused
