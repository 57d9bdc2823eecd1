// AdamW on fp32 master weights in one pass over memory: reads gradients in their own dtype, updates the masters and
// both moments, and writes the bf16 weights that the model reads. rwkv_music/training/deepspeed_engine/fast/adamw.py defines the operator.

#pragma once

#include "common.cuh"

namespace adamw {

using namespace common;

// All arrays have `elements` elements; step, divisor and bad are scalars in device memory, so that the host never waits
// for them.
struct Update {
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

cudaError_t update(const Update& args, cudaStream_t stream);

}  // namespace adamw
