// The optimizers' updates of fp32 master weights. Each kernel makes one pass over memory. AdamW reads gradients in
// their own dtype, updates the masters and both moments, and writes the bf16 weights that the model reads. Muon's
// update has two kernels, one before and one after the matrix products that orthogonalize the momentum. The operators
// are defined in rwkv_music/training/deepspeed_engine/: adamw_ in fast/adamw.py, the others in muon.py.

#pragma once

#include "common.cuh"

namespace optimizer {

using namespace common;

// All arrays have `elements` elements. step, divisor and bad are scalars in device memory, so that the host never waits
// for them.
struct AdamW {
    int64_t elements;
    float *masters, *exp_avg, *exp_avg_sq;
    const void* gradient;         // bf16, or fp32 if gradient_is_fp32
    bool gradient_is_fp32;
    bf16* weights;                // output: the masters rounded to bf16
    double lr, beta1, beta2, eps, weight_decay;
    const float *step;            // steps so far, this one included
    const float *divisor;         // the gradient is divided by it
    const float *bad;             // if not 0, the kernel changes nothing
};

// momentum = beta momentum + gradient / divisor; then gradient = gradient / divisor + beta momentum (Nesterov).
struct Momentum {
    int64_t elements;
    float* momentum;
    void* gradient;               // bf16, or fp32 if gradient_is_fp32; overwritten
    bool gradient_is_fp32;
    double beta;
    const float *divisor;         // the gradient is divided by it
    const float *bad;             // if not 0, the gradient counts as 0 and the momentum does not change
};

// masters = kept masters - rate direction; weights = masters rounded to bf16.
struct Step {
    int64_t elements;
    float* masters;
    const bf16* direction;
    bf16* weights;                // output; null if there is none
    double kept, rate;
    const float *bad;             // if not 0, the kernel changes nothing
};

cudaError_t update(const AdamW& args, cudaStream_t stream);
cudaError_t update(const Momentum& args, cudaStream_t stream);
cudaError_t update(const Step& args, cudaStream_t stream);

}  // namespace optimizer
