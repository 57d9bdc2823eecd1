// The bridge from torch to the fused kernels: torch.ops.rwkv_music_cuda.norm_mix and its like, each as
// rwkv_music/ops/fused.py calls it. Checks on what they are given, memory for what they return, a launch on the current
// stream. bindings.cpp does the same for WKV7s.

#include <tuple>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "fused.cuh"
#include "text.cuh"

namespace {

using at::Tensor;
using fused::bf16;
using Maybe = std::optional<Tensor>;

// Checks an operator's tensors as it takes their addresses, against the device and the shape of its main one.
class Arguments {
public:
    Arguments(const char* op, const Tensor& main) : op(op), device(main.device()) {
        TORCH_CHECK(main.dim() == 2, op, ": ", text(main.sizes()), " is not [tokens, width].");
        tokens = main.size(0);
        C = int(main.size(1));
    }

    void check_width() const {
        const bool heads = C > 0 && C % fused::HEAD == 0;
        TORCH_CHECK(heads, op, ": the width must be a multiple of 64, not ", std::to_string(C), ".");
    }

    const bf16* matrix(const Tensor& x, const char* name) const {
        return in<bf16>(x, name, at::kBFloat16, {tokens, C});
    }
    const bf16* vector(const Tensor& x, const char* name) const { return in<bf16>(x, name, at::kBFloat16, {C}); }
    const bf16* matrix(const Maybe& x, const char* name) const { return x ? matrix(*x, name) : nullptr; }
    const bf16* vector(const Maybe& x, const char* name) const { return x ? vector(*x, name) : nullptr; }

    template <class T>
    const T* in(const Tensor& x, const char* name, at::ScalarType dtype, at::IntArrayRef shape) const {
        TORCH_CHECK(x.scalar_type() == dtype, op, ": ", name, " must be ", dtype, ", but it is ", x.scalar_type(), ".");
        TORCH_CHECK(
            x.sizes() == shape,
            op, ": ", name, " must have the shape ", text(shape), ", but it has ", text(x.sizes()), "."
        );
        TORCH_CHECK(x.device() == device, op, ": ", name, " must be on ", device, ", but it is on ", x.device(), ".");
        TORCH_CHECK(x.is_contiguous(), op, ": ", name, " must be contiguous.");
        // The kernels read 16 bytes at a time.
        TORCH_CHECK(
            dtype != at::kBFloat16 || reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0,
            op, ": ", name, " must begin at a multiple of 16 bytes; pass a copy of it."
        );
        return static_cast<const T*>(x.const_data_ptr());
    }

    const char* op;
    at::Device device;
    int64_t tokens;
    int C;
};

bf16* out(const Tensor& x) { return static_cast<bf16*>(x.mutable_data_ptr()); }
bf16* out(const Maybe& x) { return x ? out(*x) : nullptr; }
float* out32(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

Tensor empty32(const Tensor& like, at::IntArrayRef shape) {
    return at::empty(shape, like.options().dtype(at::kFloat));
}

int mixes_count(const Arguments& args, const Tensor& mixes) {
    TORCH_CHECK(
        mixes.dim() == 2 && (mixes.size(0) == 1 || mixes.size(0) == 6),
        args.op, ": mixes must be [1, C] or [6, C], but it is ", text(mixes.sizes()), "."
    );
    const std::string most = std::to_string(fused::WIDEST_NORM);
    TORCH_CHECK(args.C <= fused::WIDEST_NORM, args.op, ": the width must be at most ", most, ".");
    return int(mixes.size(0));
}

const bf16* rows(const Arguments& args, const Maybe& x, const char* name) {
    return x ? args.in<bf16>(*x, name, at::kBFloat16, {x->size(0), args.C}) : nullptr;
}

std::tuple<Tensor, Tensor> norm_mix(
    const Tensor& x, const Tensor& ln_weight, const Tensor& ln_bias, const Tensor& mixes, const Tensor& first,
    const Maybe& previous, double eps
) {
    const Arguments args("norm_mix", x);
    args.check_width();
    const int n = mixes_count(args, mixes);
    const c10::cuda::CUDAGuard guard(x.device());
    Tensor mixed = at::empty({n, args.tokens, args.C}, x.options()), mean_rstd = empty32(x, {args.tokens, 2});
    C10_CUDA_CHECK(fused::norm_mix(
        {args.tokens, args.C, n, float(eps), args.matrix(x, "x"), args.vector(ln_weight, "ln_weight"),
         args.vector(ln_bias, "ln_bias"), args.in<bf16>(mixes, "mixes", at::kBFloat16, {n, args.C}),
         args.in<int32_t>(first, "first", at::kInt, {args.tokens}), rows(args, previous, "previous"), out(mixed),
         out32(mean_rstd)},
        c10::cuda::getCurrentCUDAStream()
    ));
    return {mixed, mean_rstd};
}

// dx, dln_weight, dln_bias, dmixes, dprevious
std::tuple<Tensor, Tensor, Tensor, Tensor, Maybe> norm_mix_backward(
    const Tensor& dmixed, const Tensor& x, const Tensor& mean_rstd, const Tensor& ln_weight, const Tensor& ln_bias,
    const Tensor& mixes, const Tensor& first, const Maybe& previous, const Maybe& dresidual
) {
    const Arguments args("norm_mix_backward", x);
    args.check_width();
    const int n = mixes_count(args, mixes);
    const c10::cuda::CUDAGuard guard(x.device());
    Tensor dx = at::empty_like(x), sums = at::empty({n + 2, args.C}, x.options());
    Maybe dprevious;
    if (previous) dprevious = at::zeros_like(*previous);
    const Tensor parts = empty32(x, {fused::norm_mix_parts(args.tokens, args.C), n + 2, args.C});
    C10_CUDA_CHECK(fused::norm_mix_backward(
        {args.tokens, args.C, n, args.in<bf16>(dmixed, "dmixed", at::kBFloat16, {n, args.tokens, args.C}),
         args.matrix(x, "x"), args.in<float>(mean_rstd, "mean_rstd", at::kFloat, {args.tokens, 2}),
         args.vector(ln_weight, "ln_weight"), args.vector(ln_bias, "ln_bias"),
         args.in<bf16>(mixes, "mixes", at::kBFloat16, {n, args.C}),
         args.in<int32_t>(first, "first", at::kInt, {args.tokens}), rows(args, previous, "previous"),
         args.matrix(dresidual, "dresidual"), out(dx), out(dprevious), out32(parts), out(sums)},
        c10::cuda::getCurrentCUDAStream()
    ));
    return {dx, sums[n], sums[n + 1], sums.narrow(0, 0, n), dprevious};
}

// w, new_k, new_v (none in layer 0), removal, replacement
std::tuple<Tensor, Tensor, Maybe, Tensor, Tensor> gates(
    const Tensor& k, const Maybe& v, const Maybe& v_first, const Tensor& w_low, const Tensor& a_low, const Maybe& v_low,
    const Tensor& w0, const Tensor& a0, const Maybe& v0, const Tensor& k_k, const Tensor& k_a
) {
    const Arguments args("gates", k);
    args.check_width();
    TORCH_CHECK(
        bool(v) == bool(v_first) && bool(v_low) == bool(v_first) && bool(v0) == bool(v_first),
        "gates: v_first, v_low and v0 come together."
    );
    const c10::cuda::CUDAGuard guard(k.device());
    Tensor w = at::empty_like(k), new_k = at::empty_like(k);
    Tensor removal = at::empty_like(k), replacement = at::empty_like(k);
    Maybe new_v;
    if (v_first) new_v = at::empty_like(k);
    C10_CUDA_CHECK(fused::gates(
        {args.tokens, args.C, args.matrix(k, "k"), args.matrix(v, "v"), args.matrix(v_first, "v_first"),
         args.matrix(w_low, "w_low"), args.matrix(a_low, "a_low"), args.matrix(v_low, "v_low"), args.vector(w0, "w0"),
         args.vector(a0, "a0"), args.vector(v0, "v0"), args.vector(k_k, "k_k"), args.vector(k_a, "k_a"), out(w),
         out(new_k), out(new_v), out(removal), out(replacement)},
        c10::cuda::getCurrentCUDAStream()
    ));
    return {w, new_k, new_v, removal, replacement};
}

// dk, dv (none where it is dnew_v itself), dv_first, da_low, dv_low, dw0, da0, dv0, dk_k, dk_a
std::tuple<Tensor, Maybe, Maybe, Tensor, Maybe, Tensor, Tensor, Maybe, Tensor, Tensor> gates_backward(
    const Tensor& dw, const Tensor& dnew_k, const Tensor& dnew_v, const Tensor& dremoval, const Tensor& dreplacement,
    const Maybe& dk_more, const Maybe& dv_more, const Tensor& k, const Maybe& v, const Maybe& v_first,
    const Tensor& a_low, const Maybe& v_low, const Tensor& a0, const Maybe& v0, const Tensor& k_k, const Tensor& k_a
) {
    const Arguments args("gates_backward", k);
    args.check_width();
    TORCH_CHECK(
        bool(v) == bool(v_first) && bool(v_low) == bool(v_first) && bool(v0) == bool(v_first),
        "gates_backward: v_first, v_low and v0 come together."
    );
    const c10::cuda::CUDAGuard guard(k.device());
    Tensor dk = at::empty_like(k), da_low = at::empty_like(k), sums = at::empty({5, args.C}, k.options());
    Maybe dv, dv_first, dv_low, dv0;
    if (v_first || dv_more) dv = at::empty_like(k);
    if (v_first) {
        dv_first = at::empty_like(k);
        dv_low = at::empty_like(k);
        dv0 = sums[4];
    }
    const Tensor parts = empty32(k, {fused::token_parts(args.tokens, args.C), 5, args.C});
    C10_CUDA_CHECK(fused::gates_backward(
        {args.tokens, args.C, args.matrix(dw, "dw"), args.matrix(dnew_k, "dk"), args.matrix(dnew_v, "dv"),
         args.matrix(dremoval, "dremoval"), args.matrix(dreplacement, "dreplacement"), args.matrix(dk_more, "dk_more"),
         args.matrix(dv_more, "dv_more"), args.matrix(k, "k"), args.matrix(v, "v"), args.matrix(v_first, "v_first"),
         args.matrix(a_low, "a_low"), args.matrix(v_low, "v_low"), args.vector(a0, "a0"), args.vector(v0, "v0"),
         args.vector(k_k, "k_k"), args.vector(k_a, "k_a"), out(dk), out(dv), out(dv_first), out(da_low), out(dv_low),
         out32(parts), out(sums)},
        c10::cuda::getCurrentCUDAStream()
    ));
    return {dk, dv, dv_first, da_low, dv_low, sums[0], sums[1], dv0, sums[2], sums[3]};
}

Tensor norm_bonus_gate(
    const Tensor& y, const Tensor& r, const Tensor& k, const Tensor& v, const Tensor& g, const Tensor& r_k,
    const Tensor& ln_weight, const Tensor& ln_bias
) {
    const Arguments args("norm_bonus_gate", y);
    args.check_width();
    const c10::cuda::CUDAGuard guard(y.device());
    Tensor result = at::empty_like(y);
    C10_CUDA_CHECK(fused::norm_bonus_gate(
        {args.tokens, args.C, args.matrix(y, "y"), args.matrix(r, "r"), args.matrix(k, "k"), args.matrix(v, "v"),
         args.matrix(g, "g"), args.vector(r_k, "r_k"), args.vector(ln_weight, "ln_weight"),
         args.vector(ln_bias, "ln_bias"), out(result)},
        c10::cuda::getCurrentCUDAStream()
    ));
    return result;
}

// dy, dr, dk, dv, dg, dr_k, dln_weight, dln_bias
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> norm_bonus_gate_backward(
    const Tensor& dout, const Tensor& y, const Tensor& r, const Tensor& k, const Tensor& v, const Tensor& g,
    const Tensor& r_k, const Tensor& ln_weight, const Tensor& ln_bias
) {
    const Arguments args("norm_bonus_gate_backward", y);
    args.check_width();
    const c10::cuda::CUDAGuard guard(y.device());
    Tensor dy = at::empty_like(y), dr = at::empty_like(y), dk = at::empty_like(y), dv = at::empty_like(y);
    Tensor dg = at::empty_like(y), result = at::empty_like(y), sums = at::empty({3, args.C}, y.options());
    const Tensor parts = empty32(y, {fused::token_parts(args.tokens, args.C), 3, args.C});
    C10_CUDA_CHECK(fused::norm_bonus_gate_backward(
        {args.tokens, args.C, args.matrix(dout, "dout"), args.matrix(y, "y"), args.matrix(r, "r"), args.matrix(k, "k"),
         args.matrix(v, "v"), args.matrix(g, "g"), args.vector(r_k, "r_k"), args.vector(ln_weight, "ln_weight"),
         args.vector(ln_bias, "ln_bias"), out(dy), out(dr), out(dk), out(dv), out(dg), out(result), out32(parts),
         out(sums)},
        c10::cuda::getCurrentCUDAStream()
    ));
    return {dy, dr, dk, dv, dg, sums[0], sums[1], sums[2], result};
}

int64_t elements(const Arguments& args) {
    TORCH_CHECK(args.C % 8 == 0, args.op, ": the width must be a multiple of 8, not ", std::to_string(args.C), ".");
    return args.tokens * args.C;
}

Tensor relu_squared(const Tensor& k) {
    const Arguments args("relu_squared", k);
    const c10::cuda::CUDAGuard guard(k.device());
    Tensor result = at::empty_like(k);
    C10_CUDA_CHECK(fused::relu_squared(
        args.matrix(k, "k"), out(result), elements(args), c10::cuda::getCurrentCUDAStream()
    ));
    return result;
}

// relu(k)^2, dk
std::tuple<Tensor, Tensor> relu_squared_backward(const Tensor& dout, const Tensor& k) {
    const Arguments args("relu_squared_backward", k);
    const c10::cuda::CUDAGuard guard(k.device());
    Tensor result = at::empty_like(k), dk = at::empty_like(k);
    C10_CUDA_CHECK(fused::relu_squared_backward(
        args.matrix(dout, "dout"), args.matrix(k, "k"), out(result), out(dk), elements(args),
        c10::cuda::getCurrentCUDAStream()
    ));
    return {result, dk};
}

Tensor embed_gate(const Tensor& x, const Tensor& out_, const Tensor& enn, const Tensor& ids) {
    const Arguments args("embed_gate", x);
    args.check_width();
    const c10::cuda::CUDAGuard guard(x.device());
    Tensor result = at::empty_like(x);
    C10_CUDA_CHECK(fused::embed_gate(
        {args.tokens, args.C, args.matrix(x, "x"), args.matrix(out_, "out"), rows(args, enn, "enn"),
         args.in<int64_t>(ids, "ids", at::kLong, {args.tokens}), out(result)},
        c10::cuda::getCurrentCUDAStream()
    ));
    return result;
}

// The gradient of the table, and of `out_` where there is one.
std::tuple<Tensor, Maybe> embed_sums(
    const Arguments& args, const Tensor& dx, const Maybe& out_, const Maybe& enn, const Tensor& ids,
    const Tensor& positions, int64_t vocab_size
) {
    args.check_width();
    const c10::cuda::CUDAGuard guard(dx.device());
    Maybe dout;
    if (out_) dout = at::empty_like(dx);
    Tensor dtable = at::zeros({vocab_size, args.C}, dx.options());
    const Tensor edges = empty32(dx, {fused::embed_chunks(args.tokens), 2, args.C});
    C10_CUDA_CHECK(fused::embed_sums(
        {args.tokens, args.C, args.in<int64_t>(ids, "ids", at::kLong, {args.tokens}),
         args.in<int64_t>(positions, "positions", at::kLong, {args.tokens}), args.matrix(dx, "dx"),
         args.matrix(out_, "out"), rows(args, enn, "enn"), out(dout), out(dtable), out32(edges)},
        c10::cuda::getCurrentCUDAStream()
    ));
    return {dtable, dout};
}

std::tuple<Tensor, Tensor> embed_gate_backward(
    const Tensor& dx, const Tensor& out_, const Tensor& enn, const Tensor& ids, const Tensor& positions
) {
    const auto [dtable, dout] =
        embed_sums(Arguments("embed_gate_backward", dx), dx, out_, enn, ids, positions, enn.size(0));
    return {*dout, dtable};
}

Tensor embedding_grad(const Tensor& dx, const Tensor& ids, const Tensor& positions, int64_t vocab_size) {
    return std::get<0>(embed_sums(Arguments("embedding_grad", dx), dx, {}, {}, ids, positions, vocab_size));
}

Tensor cross_entropy_(Tensor& logits, const Tensor& targets, const Maybe& scale_at, double scale) {
    const Arguments args("cross_entropy_", logits);
    const c10::cuda::CUDAGuard guard(logits.device());
    args.matrix(logits, "logits");
    Tensor nats = empty32(logits, {args.tokens});
    C10_CUDA_CHECK(fused::cross_entropy(
        {args.tokens, args.C, out(logits), args.in<int64_t>(targets, "targets", at::kLong, {args.tokens}),
         scale_at ? args.in<float>(*scale_at, "scale", at::kFloat, {}) : nullptr, float(scale), out32(nats)},
        c10::cuda::getCurrentCUDAStream()
    ));
    return nats;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(rwkv_music_cuda, m) {
    m.def(
        "norm_mix(Tensor x, Tensor ln_weight, Tensor ln_bias, Tensor mixes, Tensor first, Tensor? previous, float eps)"
        " -> (Tensor, Tensor)"
    );
    m.def(
        "norm_mix_backward(Tensor dmixed, Tensor x, Tensor mean_rstd, Tensor ln_weight, Tensor ln_bias, Tensor mixes,"
        " Tensor first, Tensor? previous, Tensor? dresidual) -> (Tensor, Tensor, Tensor, Tensor, Tensor?)"
    );
    m.def(
        "gates(Tensor k, Tensor? v, Tensor? v_first, Tensor w_low, Tensor a_low, Tensor? v_low, Tensor w0, Tensor a0,"
        " Tensor? v0, Tensor k_k, Tensor k_a) -> (Tensor, Tensor, Tensor?, Tensor, Tensor)"
    );
    m.def(
        "gates_backward(Tensor dw, Tensor dk, Tensor dv, Tensor dremoval, Tensor dreplacement, Tensor? dk_more,"
        " Tensor? dv_more, Tensor k, Tensor? v, Tensor? v_first, Tensor a_low, Tensor? v_low, Tensor a0, Tensor? v0,"
        " Tensor k_k, Tensor k_a)"
        " -> (Tensor, Tensor?, Tensor?, Tensor, Tensor?, Tensor, Tensor, Tensor?, Tensor, Tensor)"
    );
    m.def(
        "norm_bonus_gate(Tensor y, Tensor r, Tensor k, Tensor v, Tensor g, Tensor r_k, Tensor ln_weight,"
        " Tensor ln_bias) -> Tensor"
    );
    m.def(
        "norm_bonus_gate_backward(Tensor dout, Tensor y, Tensor r, Tensor k, Tensor v, Tensor g, Tensor r_k,"
        " Tensor ln_weight, Tensor ln_bias)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    );
    m.def("relu_squared(Tensor k) -> Tensor");
    m.def("relu_squared_backward(Tensor dout, Tensor k) -> (Tensor, Tensor)");
    m.def("embed_gate(Tensor x, Tensor out, Tensor enn, Tensor ids) -> Tensor");
    m.def(
        "embed_gate_backward(Tensor dx, Tensor out, Tensor enn, Tensor ids, Tensor positions) -> (Tensor, Tensor)"
    );
    m.def("embedding_grad(Tensor dx, Tensor ids, Tensor positions, int vocab_size) -> Tensor");
    m.def("cross_entropy_(Tensor(a!) logits, Tensor targets, Tensor? scale_at, float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(rwkv_music_cuda, CUDA, m) {
    m.impl("norm_mix", norm_mix);
    m.impl("norm_mix_backward", norm_mix_backward);
    m.impl("gates", gates);
    m.impl("gates_backward", gates_backward);
    m.impl("norm_bonus_gate", norm_bonus_gate);
    m.impl("norm_bonus_gate_backward", norm_bonus_gate_backward);
    m.impl("relu_squared", relu_squared);
    m.impl("relu_squared_backward", relu_squared_backward);
    m.impl("embed_gate", embed_gate);
    m.impl("embed_gate_backward", embed_gate_backward);
    m.impl("embedding_grad", embedding_grad);
    m.impl("cross_entropy_", cross_entropy_);
}
