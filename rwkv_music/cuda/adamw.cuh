// AdamW on fp32 master weights, from gradients as they are to weights as the model reads them, in one pass over memory.
// Defined by its plain form in rwkv_music/training/learning_rate.py. No torch header is read here.

#pragma once

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace adamw {

struct Update {
    int64_t elements;
    float *masters, *exp_avg, *exp_avg_sq;
    const void* gradient;         // bf16, or fp32 where gradient_is_fp32
    bool gradient_is_fp32;
    __nv_bfloat16* weights;       // what the model reads: the masters, rounded
    double lr, beta1, beta2, eps, weight_decay;
    const float *step;            // how many there have been, this one included
    const float *divisor;         // of the gradient
    const float *bad;             // not 0: leave everything as it is
};

cudaError_t update(const Update& args, cudaStream_t stream);

}  // namespace adamw
