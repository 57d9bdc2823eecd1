// The fused operators between the matrix products: arguments and launchers.
//
// rwkv_music/ops/fused.py defines each operator in PyTorch and explains the names. Notable choices:
// - Memory bandwidth limits the speed of these operators. A thread moves 16 bytes at a time. Each input is read once,
//   and each output is written once. Intermediate values are fp32.
// - A sum over tokens takes two steps, both in a fixed order. First, every block writes the sum over its own tokens to
//   `partials`. Then reduce_partials adds these sums. The number of blocks depends only on the shapes and the GPU.
// - Shapes: [tokens, C], C a multiple of 64; vectors are [C]. Arrays are contiguous, and bf16 unless typed otherwise.

#pragma once

#include "common.cuh"

namespace fused {

using namespace common;

constexpr int HEAD = 64;                  // channels per head
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
    bf16 *dx, *dprevious;              // dprevious: null if previous is; zeroed by the caller for empty documents
    float* partials;                      // [norm_mix_partials(...), n + 2, C]
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
    const bf16 *dk_extra, *dv_extra;     // or null
    const bf16 *k, *v, *v_first, *a_low, *v_low;
    const bf16 *a0, *v0, *k_k, *k_a;
    bf16 *dk, *dv, *dv_first, *da_low, *dv_low;  // layer 0: only dk and da_low, and dv if dv_extra is given
    float* partials;                      // [token_partials(...), 5, C]
    bf16* sums;                        // [5, C]: dw0, da0, dk_k, dk_a, dv0 (undefined in layer 0)
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
    bf16 *dy, *dr, *dk, *dv, *dg, *out;  // out: the output of the forward, recomputed
    float* partials;                      // [token_partials(...), 3, C]
    bf16* sums;                        // [3, C]: dr_k, dln_weight, dln_bias
};

struct EmbedGate {
    int64_t tokens;
    int C;
    const bf16 *x, *out, *enn;         // enn [V, C]
    const int64_t* ids;                // [tokens]
    bf16* result;
};

// Computes dtable, for each id the sum of dx * out over its tokens, and dout = dx * enn[id]. If out, enn and dout are
// null, dtable is the sum of dx, and nothing else is computed.
struct EmbedSums {
    int64_t tokens;
    int C;
    const int64_t *ids, *positions;    // [tokens]; ids ascending
    const bf16 *dx, *out, *enn;
    bf16 *dout, *dtable;               // dtable [V, C]: zeroed by the caller for ids that do not occur
    float* partials;                      // [embed_chunks(tokens), 2, C]
};

constexpr int64_t IGNORE_INDEX = -100;  // as in config.py

struct CrossEntropy {
    int64_t rows;
    int V;
    bf16* logits;                      // [rows, V]; overwritten by their gradient
    const int64_t* targets;            // [rows]; 0 to V - 1, or IGNORE_INDEX
    const float* scale_tensor;             // a scalar, or null to use `scale`
    float scale;
    float* nats;                       // [rows]
};

constexpr int EMBED_CHUNK = 32;  // sorted tokens that one warp processes
inline int64_t embed_chunks(int64_t tokens) { return ceil_div(tokens, EMBED_CHUNK); }

// The number of blocks among which the tokens are divided on the current device. There is one partial sum per block.
int norm_mix_partials(int64_t tokens, int C);
int token_partials(int64_t tokens, int C);

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

// sums [columns] = the sum of partials [count, columns] over its first axis; columns is a multiple of 32.
cudaError_t reduce_partials(const float* partials, int count, int columns, bf16* sums, cudaStream_t stream);

}  // namespace fused
