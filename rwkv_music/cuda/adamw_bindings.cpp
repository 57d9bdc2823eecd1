// The bridge from torch to adamw.cu: torch.ops.rwkv_music_cuda.adamw_, as rwkv_music/training/learning_rate.py calls it.

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "adamw.cuh"
#include "text.cuh"

namespace {

using at::Tensor;

template <class T>
T* data(const Tensor& x, const char* name, at::ScalarType dtype, const Tensor& like, int64_t elements) {
    TORCH_CHECK(
        x.scalar_type() == dtype && x.numel() == elements && x.is_contiguous() && x.device() == like.device(),
        "adamw_: ", name, " must be ", std::to_string(elements), " contiguous elements of ", dtype, " on ",
        like.device(), ", but it is ", text(x.sizes()), " of ", x.scalar_type(), " on ", x.device(), "."
    );
    return static_cast<T*>(x.mutable_data_ptr());
}

void adamw_(
    Tensor& masters, Tensor& exp_avg, Tensor& exp_avg_sq, const Tensor& gradient, Tensor& weights, double lr,
    double beta1, double beta2, double eps, double weight_decay, const Tensor& step, const Tensor& divisor,
    const Tensor& bad
) {
    const c10::cuda::CUDAGuard guard(masters.device());
    const int64_t n = masters.numel();
    const bool wide = gradient.scalar_type() == at::kFloat;
    const auto gradient_dtype = wide ? at::kFloat : at::kBFloat16;
    C10_CUDA_CHECK(adamw::update(
        {n, data<float>(masters, "masters", at::kFloat, masters, n), data<float>(exp_avg, "exp_avg", at::kFloat, masters, n),
         data<float>(exp_avg_sq, "exp_avg_sq", at::kFloat, masters, n),
         data<void>(gradient, "gradient", gradient_dtype, masters, n), wide,
         data<__nv_bfloat16>(weights, "weights", at::kBFloat16, masters, n), lr, beta1, beta2, eps, weight_decay,
         data<float>(step, "step", at::kFloat, masters, 1), data<float>(divisor, "divisor", at::kFloat, masters, 1),
         data<float>(bad, "bad", at::kFloat, masters, 1)},
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
}

TORCH_LIBRARY_IMPL(rwkv_music_cuda, CUDA, m) { m.impl("adamw_", adamw_); }
