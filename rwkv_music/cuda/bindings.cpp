// The bridge from torch to the WKV7s kernels, and the only file here that reads torch's headers.
//
// It defines torch.ops.rwkv_music_cuda.wkv7s_forward and .wkv7s_backward: checks on what they are given, memory for
// what they return, and a launch on the current stream. And .wkv7s, both as one step of autograd: in Python that step
// would take the host longer than a small model's kernels take the GPU. Fakes, the other backend and the choice between
// them are in rwkv_music/ops/wkv7s.py.
//
// Registered with torch's dispatcher rather than as a Python module: a call costs the same, no Python header is needed
// to compile, and one build serves every Python version.

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

#include "text.cuh"
#include "wkv7s.cuh"

namespace {

using at::Tensor;

const __nv_bfloat16* bf16(const Tensor& x) { return static_cast<const __nv_bfloat16*>(x.const_data_ptr()); }
__nv_bfloat16* bf16_out(const Tensor& x) { return static_cast<__nv_bfloat16*>(x.mutable_data_ptr()); }
const float* f32(const std::optional<Tensor>& x) {
    return x ? static_cast<const float*>(x->const_data_ptr()) : nullptr;
}
float* f32_out(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

void check(const Tensor& x, const char* name, at::ScalarType dtype, at::IntArrayRef shape, const at::Device& device) {
    TORCH_CHECK(x.scalar_type() == dtype, "wkv7s: ", name, " must be ", dtype, ", but it is ", x.scalar_type(), ".");
    TORCH_CHECK(x.sizes() == shape, "wkv7s: ", name, " must have the shape ", text(shape), ", but it has ", text(x.sizes()), ".");
    TORCH_CHECK(x.device() == device, "wkv7s: ", name, " must be on ", device, ", but it is on ", x.device(), ".");
    TORCH_CHECK(x.is_contiguous(), "wkv7s: ", name, " must be contiguous.");
    // The kernels read 16 bytes at a time.
    TORCH_CHECK(
        reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 || x.scalar_type() == at::kInt,
        "wkv7s: ", name, " must begin at a multiple of 16 bytes; pass a copy of it."
    );
}

wkv7s::Inputs check_inputs(
    const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& a, const Tensor& b,
    const Tensor& cu_seqlens
) {
    TORCH_CHECK(
        r.dim() == 3 && (r.size(2) == 64 || r.size(2) == 128),
        "wkv7s: r must be [tokens, heads, 64 or 128], but it is ", text(r.sizes()), "."
    );
    TORCH_CHECK(
        cu_seqlens.dim() == 1 && cu_seqlens.size(0) >= 2,
        "wkv7s: cu_seqlens must hold the bounds of at least one document."
    );
    check(r, "r", at::kBFloat16, r.sizes(), r.device());
    check(w, "w", at::kBFloat16, r.sizes(), r.device());
    check(k, "k", at::kBFloat16, r.sizes(), r.device());
    check(v, "v", at::kBFloat16, r.sizes(), r.device());
    check(a, "a", at::kBFloat16, r.sizes(), r.device());
    check(b, "b", at::kBFloat16, r.sizes(), r.device());
    check(cu_seqlens, "cu_seqlens", at::kInt, cu_seqlens.sizes(), r.device());
    const int64_t documents = cu_seqlens.size(0) - 1, heads = r.size(1);
    TORCH_CHECK(
        r.size(0) <= INT32_MAX && documents * heads <= INT32_MAX,
        "wkv7s: too many tokens or documents for one call: r is ", text(r.sizes()), " in ", std::to_string(documents), " documents."
    );
    return {
        bf16(r), bf16(w), bf16(k), bf16(v), bf16(a), bf16(b),
        static_cast<const int32_t*>(cu_seqlens.const_data_ptr()), int(documents), int(heads),
        int(r.size(2))
    };
}

// The cut into segments that these shapes want, or that the caller does, and memory for what it needs.
struct Cut {
    wkv7s::Segments segments;
    Tensor transitions, edges;

    Cut(const wkv7s::Inputs& in, const Tensor& r, int64_t max_length, int64_t segment_tokens) {
        TORCH_CHECK(
            segment_tokens >= -1 && segment_tokens % wkv7s::CHECKPOINT_EVERY <= 0 && segment_tokens <= INT32_MAX,
            "wkv7s: segment_tokens must be a multiple of ", wkv7s::CHECKPOINT_EVERY,
            ", or 0 for none, or -1 to choose, but it is ", segment_tokens, "."
        );
        TORCH_CHECK(
            segment_tokens <= 0 || in.head_size == 64,
            "wkv7s: documents are cut into segments for a head size of 64 alone, not ", in.head_size, "."
        );
        if (segment_tokens == -1 && in.head_size != 64) segment_tokens = 0;
        if (segment_tokens == -1) {
            segment_tokens = wkv7s::choose_segment_tokens(r.size(0), in.documents, in.heads, max_length);
        }
        const int64_t slots = wkv7s::segment_slots(r.size(0), in.documents, int(segment_tokens));
        TORCH_CHECK(
            slots * in.heads <= INT32_MAX,
            "wkv7s: too many segments for one call: ", slots, " of ", in.heads, " heads."
        );
        const int64_t kept = segment_tokens ? slots : 0, N = in.head_size;
        transitions = at::empty({kept, in.heads, 2, N, N}, r.options());
        edges = at::empty({kept, in.heads, N, N}, r.options().dtype(at::kFloat));
        segments = {int(segment_tokens), int(slots), bf16_out(transitions), f32_out(edges)};
    }
};

// y [M, H, N], final_state [D, H, N, N], checkpoints [slots, H, N, N] (no slot unless save).
std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& a, const Tensor& b,
    const std::optional<Tensor>& state, const Tensor& cu_seqlens, int64_t max_length, bool save,
    int64_t segment_tokens
) {
    const auto in = check_inputs(r, w, k, v, a, b, cu_seqlens);
    TORCH_CHECK(
        max_length >= 0 && max_length <= r.size(0),
        "wkv7s: max_length must be between 0 and the number of tokens, but it is ", max_length, "."
    );
    const c10::cuda::CUDAGuard guard(r.device());
    const auto options = r.options().dtype(at::kFloat);
    const int64_t slots = save ? wkv7s::checkpoint_slots(r.size(0), in.documents) : 0, N = in.head_size;
    Tensor y = at::empty_like(r);
    Tensor final_state = at::empty({in.documents, in.heads, N, N}, options);
    Tensor checkpoints = at::empty({slots, in.heads, N, N}, r.options());
    if (state) check(*state, "state", at::kFloat, final_state.sizes(), r.device());
    if (in.heads == 0) return {y, final_state, checkpoints};
    const Cut cut(in, r, max_length, segment_tokens);
    C10_CUDA_CHECK(wkv7s::forward(
        {in, cut.segments, f32(state), bf16_out(y), f32_out(final_state),
         save ? bf16_out(checkpoints) : nullptr},
        int(max_length), c10::cuda::getCurrentCUDAStream()
    ));
    return {y, final_state, checkpoints};
}

// dr, dw, dk, dv, da, db [M, H, N] and dstate [D, H, N, N].
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& a, const Tensor& b,
    const Tensor& cu_seqlens, int64_t max_length, const Tensor& checkpoints, const Tensor& dy,
    const std::optional<Tensor>& dfinal_state, int64_t segment_tokens
) {
    const auto in = check_inputs(r, w, k, v, a, b, cu_seqlens);
    TORCH_CHECK(
        max_length >= 0 && max_length <= r.size(0),
        "wkv7s: max_length must be between 0 and the number of tokens, but it is ", max_length, "."
    );
    const c10::cuda::CUDAGuard guard(r.device());
    const int64_t slots = wkv7s::checkpoint_slots(r.size(0), in.documents), N = in.head_size;
    check(checkpoints, "checkpoints", at::kBFloat16, {slots, in.heads, N, N}, r.device());
    check(dy, "grad_y", at::kBFloat16, r.sizes(), r.device());
    Tensor dstate = at::empty({in.documents, in.heads, N, N}, r.options().dtype(at::kFloat));
    if (dfinal_state) check(*dfinal_state, "grad_final_state", at::kFloat, dstate.sizes(), r.device());
    Tensor dr = at::empty_like(r), dw = at::empty_like(r), dk = at::empty_like(r);
    Tensor dv = at::empty_like(r), da = at::empty_like(r), db = at::empty_like(r);
    if (in.heads == 0) return {dr, dw, dk, dv, da, db, dstate};
    const Cut cut(in, r, max_length, segment_tokens);
    const cudaError_t error = wkv7s::backward(
        {in, cut.segments, bf16(checkpoints), bf16(dy), f32(dfinal_state),
         bf16_out(dr), bf16_out(dw), bf16_out(dk), bf16_out(dv), bf16_out(da), bf16_out(db), f32_out(dstate)},
        int(max_length), c10::cuda::getCurrentCUDAStream()
    );
    TORCH_CHECK(
        error != cudaErrorNotSupported, "wkv7s: gradients with a head size of ", N,
        " take more shared memory than this GPU has; train with a head size of 64."
    );
    C10_CUDA_CHECK(error);
    return {dr, dw, dk, dv, da, db, dstate};
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// r..b [B, T, H, N], state [D, H, N, N] or none -> y [B, T, H, N], final_state; gradients for all seven.
struct Differentiable : torch::autograd::Function<Differentiable> {
    static variable_list forward(
        AutogradContext* ctx, const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& a,
        const Tensor& b, const std::optional<Tensor>& state, const Tensor& cu_seqlens, int64_t max_length
    ) {
        const at::AutoDispatchBelowADInplaceOrView guard;
        TORCH_CHECK(r.dim() == 4, "wkv7s: r must be [rows, tokens, heads, head size], but it is ", text(r.sizes()), ".");
        const auto packed = [](const Tensor& x) { return x.flatten(0, 1).contiguous(); };
        variable_list kept = {packed(r), packed(w), packed(k), packed(v), packed(a), packed(b), cu_seqlens.contiguous()};
        const auto initial = state ? std::optional<Tensor>(state->contiguous()) : std::nullopt;
        auto [y, final_state, checkpoints] = ::forward(
            kept[0], kept[1], kept[2], kept[3], kept[4], kept[5], initial, kept[6], max_length, true, -1
        );
        kept.push_back(checkpoints);
        ctx->set_materialize_grads(false);  // most final states go nowhere
        ctx->save_for_backward(std::move(kept));
        ctx->saved_data["shape"] = r.sizes().vec();
        ctx->saved_data["has_state"] = state.has_value();
        ctx->saved_data["max_length"] = max_length;
        return {y.view(r.sizes()), final_state};
    }

    static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
        TORCH_CHECK(!c10::GradMode::is_enabled(), "wkv7s has no gradients of gradients: leave create_graph out.");
        const variable_list kept = ctx->get_saved_variables();
        const auto shape = ctx->saved_data["shape"].toIntVector();
        const Tensor dy = grads[0].defined() ? grads[0].flatten(0, 1).contiguous() : at::zeros_like(kept[0]);
        const auto dfinal_state = grads[1].defined() ? std::optional<Tensor>(grads[1].contiguous()) : std::nullopt;
        const auto [dr, dw, dk, dv, da, db, dstate] = ::backward(
            kept[0], kept[1], kept[2], kept[3], kept[4], kept[5], kept[6], ctx->saved_data["max_length"].toInt(), kept[7],
            dy, dfinal_state, -1
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
