// torch operators of the WKV7s kernels, in torch.ops.rwkv_music_cuda.
//
// wkv7s_forward and wkv7s_backward check their arguments, allocate their outputs and launch on the current stream.
// wkv7s combines both in one autograd function in C++. The same function in Python would take the host longer than the
// kernels of a small model take the GPU. Fake kernels, the CPU backend and the choice between the backends are in
// rwkv_music/ops/wkv7s.py.
//
// The operators are registered with torch's dispatcher, not in a Python module. Calls take the same time as those of a
// Python module, but compilation needs no Python headers, and one build works with every Python version.

#include <tuple>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "check.h"
#include "wkv7s.cuh"

namespace {

using at::Tensor;
using wkv7s::bf16;

constexpr size_t STATE_ALIGNMENT = 16;  // bytes: the kernels read states as vectors

bf16* out_bf16(const Tensor& x) { return static_cast<bf16*>(x.mutable_data_ptr()); }
float* out_f32(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

ArgumentChecker checker(const Tensor& r) { return {"wkv7s", r.device()}; }

wkv7s::Inputs check_inputs(
    const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& a, const Tensor& b,
    const Tensor& cu_seqlens, int64_t max_length
) {
    TORCH_CHECK(
        r.dim() == 3 && (r.size(2) == 64 || r.size(2) == 128),
        "wkv7s: r must be [tokens, heads, 64 or 128], but it is ", text(r.sizes()), "."
    );
    TORCH_CHECK(
        cu_seqlens.dim() == 1 && cu_seqlens.size(0) >= 2,
        "wkv7s: cu_seqlens must be [documents + 1] with at least one document, but it is ", text(cu_seqlens.sizes()),
        "."
    );
    const int64_t tokens = r.size(0), heads = r.size(1), documents = cu_seqlens.size(0) - 1;
    const auto check = checker(r);
    const auto input = [&](const Tensor& x, const char* name) {
        return check.tensor<const bf16>(x, name, r.sizes());
    };
    const wkv7s::Inputs inputs = {
        input(r, "r"), input(w, "w"), input(k, "k"), input(v, "v"), input(a, "a"), input(b, "b"),
        check.tensor<const int32_t>(cu_seqlens, "cu_seqlens", cu_seqlens.sizes()), int(documents), int(heads),
        int(r.size(2))
    };
    TORCH_CHECK(
        tokens <= INT32_MAX && documents * heads <= INT32_MAX,
        "wkv7s: tokens and documents * heads must be at most 2^31 - 1, but r is ", text(r.sizes()), " in ",
        std::to_string(documents), " documents."
    );
    TORCH_CHECK(
        max_length >= 0 && max_length <= tokens,
        "wkv7s: max_length must be between 0 and ", std::to_string(tokens), ", the number of tokens, but it is ",
        std::to_string(max_length), "."
    );
    return inputs;
}

// The segments into which the documents are cut, and their memory. If segment_tokens is -1, the shapes determine the
// length of the segments.
struct SegmentPlan {
    wkv7s::Segments segments;
    Tensor transitions, boundaries;

    SegmentPlan(const wkv7s::Inputs& in, const Tensor& r, int64_t max_length, int64_t segment_tokens) {
        TORCH_CHECK(
            segment_tokens >= -1 && segment_tokens % wkv7s::CHECKPOINT_EVERY <= 0 && segment_tokens <= INT32_MAX,
            "wkv7s: segment_tokens must be a multiple of ", wkv7s::CHECKPOINT_EVERY,
            ", or 0 for no segments, or -1 to choose, but it is ", segment_tokens, "."
        );
        TORCH_CHECK(
            segment_tokens <= 0 || in.head_size == 64,
            "wkv7s: segment_tokens must be 0 or -1 for a head size of ", in.head_size, ", but it is ", segment_tokens,
            "; only a head size of 64 supports segments."
        );
        if (segment_tokens == -1 && in.head_size != 64) segment_tokens = 0;
        if (segment_tokens == -1) {
            segment_tokens = wkv7s::choose_segment_tokens(r.size(0), in.documents, in.heads, max_length);
        }
        const int64_t slots = wkv7s::segment_slots(r.size(0), in.documents, int(segment_tokens));
        TORCH_CHECK(
            slots * in.heads <= INT32_MAX,
            "wkv7s: segments * heads must be at most 2^31 - 1, but there are ", slots, " segments of ", in.heads,
            " heads."
        );
        const int64_t allocated = segment_tokens ? slots : 0, N = in.head_size;
        transitions = at::empty({allocated, in.heads, 2, N, N}, r.options());
        boundaries = at::empty({allocated, in.heads, N, N}, r.options().dtype(at::kFloat));
        segments = {int(segment_tokens), int(slots), out_bf16(transitions), out_f32(boundaries)};
    }
};

// Returns y [M, H, N], final_state [D, H, N, N] and checkpoints [slots, H, N, N], with no slots unless save.
std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& a, const Tensor& b,
    const std::optional<Tensor>& state, const Tensor& cu_seqlens, int64_t max_length, bool save,
    int64_t segment_tokens
) {
    const auto in = check_inputs(r, w, k, v, a, b, cu_seqlens, max_length);
    const c10::cuda::CUDAGuard guard(r.device());
    const auto options = r.options().dtype(at::kFloat);
    const int64_t slots = save ? wkv7s::checkpoint_slots(r.size(0), in.documents) : 0, N = in.head_size;
    Tensor y = at::empty_like(r);
    Tensor final_state = at::empty({in.documents, in.heads, N, N}, options);
    Tensor checkpoints = at::empty({slots, in.heads, N, N}, r.options());
    const float* const initial = checker(r).tensor<const float>(state, "state", final_state.sizes(), STATE_ALIGNMENT);
    if (in.heads == 0) return {y, final_state, checkpoints};
    const SegmentPlan plan(in, r, max_length, segment_tokens);
    C10_CUDA_CHECK(wkv7s::forward(
        {in, plan.segments, initial, out_bf16(y), out_f32(final_state), save ? out_bf16(checkpoints) : nullptr},
        int(max_length), c10::cuda::getCurrentCUDAStream()
    ));
    return {y, final_state, checkpoints};
}

// Returns dr, dw, dk, dv, da, db [M, H, N] and dstate [D, H, N, N].
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& a, const Tensor& b,
    const Tensor& cu_seqlens, int64_t max_length, const Tensor& checkpoints, const Tensor& dy,
    const std::optional<Tensor>& dfinal_state, int64_t segment_tokens
) {
    const auto in = check_inputs(r, w, k, v, a, b, cu_seqlens, max_length);
    const c10::cuda::CUDAGuard guard(r.device());
    const int64_t slots = wkv7s::checkpoint_slots(r.size(0), in.documents), N = in.head_size;
    const auto check = checker(r);
    const bf16* const states = check.tensor<const bf16>(checkpoints, "checkpoints", {slots, in.heads, N, N});
    const bf16* const grad_y = check.tensor<const bf16>(dy, "grad_y", r.sizes());
    Tensor dstate = at::empty({in.documents, in.heads, N, N}, r.options().dtype(at::kFloat));
    const float* const grad_final_state =
        check.tensor<const float>(dfinal_state, "grad_final_state", dstate.sizes(), STATE_ALIGNMENT);
    Tensor dr = at::empty_like(r), dw = at::empty_like(r), dk = at::empty_like(r);
    Tensor dv = at::empty_like(r), da = at::empty_like(r), db = at::empty_like(r);
    if (in.heads == 0) return {dr, dw, dk, dv, da, db, dstate};
    const SegmentPlan plan(in, r, max_length, segment_tokens);
    const cudaError_t error = wkv7s::backward(
        {in, plan.segments, states, grad_y, grad_final_state, out_bf16(dr), out_bf16(dw), out_bf16(dk), out_bf16(dv),
         out_bf16(da), out_bf16(db), out_f32(dstate)},
        int(max_length), c10::cuda::getCurrentCUDAStream()
    );
    TORCH_CHECK(
        error != cudaErrorNotSupported, "wkv7s: the backward pass with a head size of ", N,
        " needs more shared memory than this GPU has; train with a head size of 64."
    );
    C10_CUDA_CHECK(error);
    return {dr, dw, dk, dv, da, db, dstate};
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Autograd of r..b [B, T, H, N] and an optional state [D, H, N, N] -> y [B, T, H, N] and final_state.
struct Differentiable : torch::autograd::Function<Differentiable> {
    static variable_list forward(
        AutogradContext* ctx, const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& a,
        const Tensor& b, const std::optional<Tensor>& state, const Tensor& cu_seqlens, int64_t max_length
    ) {
        const at::AutoDispatchBelowADInplaceOrView guard;
        TORCH_CHECK(
            r.dim() == 4, "wkv7s: r must be [rows, tokens, heads, head size], but it is ", text(r.sizes()), "."
        );
        const auto packed = [](const Tensor& x) { return x.flatten(0, 1).contiguous(); };
        variable_list saved = {
            packed(r), packed(w), packed(k), packed(v), packed(a), packed(b), cu_seqlens.contiguous()
        };
        const auto initial = state ? std::optional<Tensor>(state->contiguous()) : std::nullopt;
        auto [y, final_state, checkpoints] = ::forward(
            saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], initial, saved[6], max_length, true, -1
        );
        saved.push_back(checkpoints);
        ctx->set_materialize_grads(false);  // most final states are not used
        ctx->save_for_backward(std::move(saved));
        ctx->saved_data["shape"] = r.sizes().vec();
        ctx->saved_data["has_state"] = state.has_value();
        ctx->saved_data["max_length"] = max_length;
        return {y.view(r.sizes()), final_state};
    }

    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        TORCH_CHECK(
            !c10::GradMode::is_enabled(),
            "wkv7s does not support gradients of gradients: call backward without create_graph."
        );
        const variable_list saved = ctx->get_saved_variables();
        const auto shape = ctx->saved_data["shape"].toIntVector();
        const Tensor dy = grads[0].defined() ? grads[0].flatten(0, 1).contiguous() : at::zeros_like(saved[0]);
        const auto dfinal_state = grads[1].defined() ? std::optional<Tensor>(grads[1].contiguous()) : std::nullopt;
        const auto [dr, dw, dk, dv, da, db, dstate] = ::backward(
            saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], saved[6],
            ctx->saved_data["max_length"].toInt(), saved[7], dy, dfinal_state, -1
        );
        return {
            dr.view(shape), dw.view(shape), dk.view(shape), dv.view(shape), da.view(shape), db.view(shape),
            ctx->saved_data["has_state"].toBool() ? dstate : Tensor(), Tensor(), Tensor()
        };
    }
};

std::tuple<Tensor, Tensor> differentiable(
    const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& a, const Tensor& b,
    const std::optional<Tensor>& state, const Tensor& cu_seqlens, int64_t max_length
) {
    const variable_list out = Differentiable::apply(r, w, k, v, a, b, state, cu_seqlens, max_length);
    return {out[0], out[1]};
}

}  // namespace

TORCH_LIBRARY(rwkv_music_cuda, m) {
    m.def(
        "wkv7s(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor? state, Tensor cu_seqlens,"
        " int max_length) -> (Tensor y, Tensor final_state)"
    );
    m.def(
        "wkv7s_forward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor? state, Tensor cu_seqlens,"
        " int max_length, bool save, int segment_tokens=-1) -> (Tensor y, Tensor final_state, Tensor checkpoints)"
    );
    m.def(
        "wkv7s_backward(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor cu_seqlens,"
        " int max_length, Tensor checkpoints, Tensor grad_y, Tensor? grad_final_state, int segment_tokens=-1)"
        " -> (Tensor dr, Tensor dw, Tensor dk, Tensor dv, Tensor da, Tensor db, Tensor dstate)"
    );
}

TORCH_LIBRARY_IMPL(rwkv_music_cuda, CUDA, m) {
    m.impl("wkv7s_forward", forward);
    m.impl("wkv7s_backward", backward);
}

TORCH_LIBRARY_IMPL(rwkv_music_cuda, AutogradCUDA, m) { m.impl("wkv7s", differentiable); }
