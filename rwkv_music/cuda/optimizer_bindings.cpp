// The torch operators of optimizer.cuh: adamw_, muon_momentum_ and muon_step_ in torch.ops.rwkv_music_cuda.

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "check.h"
#include "optimizer.cuh"

namespace {

using at::Tensor;
using optimizer::bf16;

void adamw_(
    Tensor& masters, Tensor& exp_avg, Tensor& exp_avg_sq, const Tensor& gradient, Tensor& weights, double lr,
    double beta1, double beta2, double eps, double weight_decay, const Tensor& step, const Tensor& divisor,
    const Tensor& bad
) {
    const c10::cuda::CUDAGuard guard(masters.device());
    const ArgumentChecker check("adamw_", masters.device());
    const int64_t n = masters.numel();
    const bool fp32 = gradient.scalar_type() == at::kFloat;
    const void* const grad = fp32 ? static_cast<const void*>(check.elements<const float>(gradient, "gradient", n))
                                  : check.elements<const bf16>(gradient, "gradient", n);
    C10_CUDA_CHECK(optimizer::update(
        optimizer::AdamW{
            n, check.elements<float>(masters, "masters", n), check.elements<float>(exp_avg, "exp_avg", n),
            check.elements<float>(exp_avg_sq, "exp_avg_sq", n), grad, fp32,
            check.elements<bf16>(weights, "weights", n), lr, beta1, beta2, eps, weight_decay,
            check.elements<const float>(step, "step", 1), check.elements<const float>(divisor, "divisor", 1),
            check.elements<const float>(bad, "bad", 1)
        },
        c10::cuda::getCurrentCUDAStream()
    ));
}

void muon_momentum_(Tensor& momentum, Tensor& gradient, double beta, const Tensor& divisor, const Tensor& bad) {
    const c10::cuda::CUDAGuard guard(momentum.device());
    const ArgumentChecker check("muon_momentum_", momentum.device());
    const int64_t n = momentum.numel();
    const bool fp32 = gradient.scalar_type() == at::kFloat;
    void* const grad = fp32 ? static_cast<void*>(check.elements<float>(gradient, "gradient", n))
                            : check.elements<bf16>(gradient, "gradient", n);
    C10_CUDA_CHECK(optimizer::update(
        optimizer::Momentum{
            n, check.elements<float>(momentum, "momentum", n), grad, fp32, beta,
            check.elements<const float>(divisor, "divisor", 1), check.elements<const float>(bad, "bad", 1)
        },
        c10::cuda::getCurrentCUDAStream()
    ));
}

void muon_step_(
    Tensor& masters, const Tensor& direction, const std::optional<Tensor>& weights, double kept, double rate,
    const Tensor& bad
) {
    const c10::cuda::CUDAGuard guard(masters.device());
    const ArgumentChecker check("muon_step_", masters.device());
    const int64_t n = masters.numel();
    C10_CUDA_CHECK(optimizer::update(
        optimizer::Step{
            n, check.elements<float>(masters, "masters", n), check.elements<const bf16>(direction, "direction", n),
            weights ? check.elements<bf16>(*weights, "weights", n) : nullptr, kept, rate,
            check.elements<const float>(bad, "bad", 1)
        },
        c10::cuda::getCurrentCUDAStream()
    ));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(rwkv_music_cuda, m) {
    m.def(
        "adamw_(Tensor(a!) masters, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor gradient, Tensor(d!) weights,"
        " float lr, float beta1, float beta2, float eps, float weight_decay, Tensor step, Tensor divisor, Tensor bad)"
        " -> ()"
    );
    m.def("muon_momentum_(Tensor(a!) momentum, Tensor(b!) gradient, float beta, Tensor divisor, Tensor bad) -> ()");
    m.def(
        "muon_step_(Tensor(a!) masters, Tensor direction, Tensor(b!)? weights, float kept, float rate, Tensor bad)"
        " -> ()"
    );
}

TORCH_LIBRARY_IMPL(rwkv_music_cuda, CUDA, m) {
    m.impl("adamw_", adamw_);
    m.impl("muon_momentum_", muon_momentum_);
    m.impl("muon_step_", muon_step_);
}
