// The torch operators of the fused kernels, in torch.ops.rwkv_music_cuda. rwkv_music/ops/fused.py calls them. Each
// operator checks its arguments, allocates its outputs and launches its kernels on the current stream.

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

#include "check.h"
#include "fused.cuh"

namespace {

using at::Tensor;
using fused::bf16;
using Maybe = std::optional<Tensor>;

// Checks the tensors of a fused operator against the device and shape of its main tensor [tokens, C].
class Arguments : public ArgumentChecker {
public:
    Arguments(const char* op, const Tensor& main) : ArgumentChecker(op, main.device()) {
        TORCH_CHECK(
            main.dim() == 2, op, ": the first tensor must be [tokens, width], but it is ", text(main.sizes()), "."
        );
        tokens = main.size(0);
        C = int(main.size(1));
    }

    void check_width(int multiple = fused::HEAD) const {
        TORCH_CHECK(
            C % multiple == 0 && (C > 0 || multiple < fused::HEAD), op, ": the width must be a positive multiple of ",
            std::to_string(multiple), ", but it is ", std::to_string(C), "."
        );
    }

    template <class Optional>
    const bf16* matrix(const Optional& x, const char* name) const { return tensor<const bf16>(x, name, {tokens, C}); }
    template <class Optional>
    const bf16* vector(const Optional& x, const char* name) const { return tensor<const bf16>(x, name, {C}); }

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
    TORCH_CHECK(
        args.C <= fused::WIDEST_NORM, args.op, ": the width must be at most ", std::to_string(fused::WIDEST_NORM),
        ", but it is ", std::to_string(args.C), "."
    );
    return int(mixes.size(0));
}

const bf16* rows(const Arguments& args, const Maybe& x, const char* name) {
    return x ? args.tensor<const bf16>(*x, name, {x->size(0), args.C}) : nullptr;
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
         args.vector(ln_bias, "ln_bias"), args.tensor<const bf16>(mixes, "mixes", {n, args.C}),
         args.tensor<const int32_t>(first, "first", {args.tokens}), rows(args, previous, "previous"), out(mixed),
         out32(mean_rstd)},
        c10::cuda::getCurrentCUDAStream()
    ));
    return {mixed, mean_rstd};
}

// Returns dx, dln_weight, dln_bias, dmixes, dprevious.
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
    const Tensor partials = empty32(x, {fused::norm_mix_partials(args.tokens, args.C), n + 2, args.C});
    C10_CUDA_CHECK(fused::norm_mix_backward(
        {args.tokens, args.C, n, args.tensor<const bf16>(dmixed, "dmixed", {n, args.tokens, args.C}),
         args.matrix(x, "x"), args.tensor<const float>(mean_rstd, "mean_rstd", {args.tokens, 2}),
         args.vector(ln_weight, "ln_weight"), args.vector(ln_bias, "ln_bias"),
         args.tensor<const bf16>(mixes, "mixes", {n, args.C}),
         args.tensor<const int32_t>(first, "first", {args.tokens}), rows(args, previous, "previous"),
         args.matrix(dresidual, "dresidual"), out(dx), out(dprevious), out32(partials), out(sums)},
        c10::cuda::getCurrentCUDAStream()
    ));
    return {dx, sums[n], sums[n + 1], sums.narrow(0, 0, n), dprevious};
}

// Returns w, new_k, new_v (none in layer 0), removal, replacement.
std::tuple<Tensor, Tensor, Maybe, Tensor, Tensor> gates(
    const Tensor& k, const Maybe& v, const Maybe& v_first, const Tensor& w_low, const Tensor& a_low, const Maybe& v_low,
    const Tensor& w0, const Tensor& a0, const Maybe& v0, const Tensor& k_k, const Tensor& k_a
) {
    const Arguments args("gates", k);
    args.check_width();
    TORCH_CHECK(
        bool(v) == bool(v_first) && bool(v_low) == bool(v_first) && bool(v0) == bool(v_first),
        "gates: v, v_first, v_low and v0 must all be given (layers above 0) or all be None (layer 0)."
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

// Returns dk, dv (none if it equals dnew_v), dv_first, da_low, dv_low, dw0, da0, dv0, dk_k, dk_a.
std::tuple<Tensor, Maybe, Maybe, Tensor, Maybe, Tensor, Tensor, Maybe, Tensor, Tensor> gates_backward(
    const Tensor& dw, const Tensor& dnew_k, const Tensor& dnew_v, const Tensor& dremoval, const Tensor& dreplacement,
    const Maybe& dk_extra, const Maybe& dv_extra, const Tensor& k, const Maybe& v, const Maybe& v_first,
    const Tensor& a_low, const Maybe& v_low, const Tensor& a0, const Maybe& v0, const Tensor& k_k, const Tensor& k_a
) {
    const Arguments args("gates_backward", k);
    args.check_width();
    TORCH_CHECK(
        bool(v) == bool(v_first) && bool(v_low) == bool(v_first) && bool(v0) == bool(v_first),
        "gates_backward: v, v_first, v_low and v0 must all be given (layers above 0) or all be None (layer 0)."
    );
    const c10::cuda::CUDAGuard guard(k.device());
    Tensor dk = at::empty_like(k), da_low = at::empty_like(k), sums = at::empty({5, args.C}, k.options());
    Maybe dv, dv_first, dv_low, dv0;
    if (v_first || dv_extra) dv = at::empty_like(k);
    if (v_first) {
        dv_first = at::empty_like(k);
        dv_low = at::empty_like(k);
        dv0 = sums[4];
    }
    const Tensor partials = empty32(k, {fused::token_partials(args.tokens, args.C), 5, args.C});
    C10_CUDA_CHECK(fused::gates_backward(
        {args.tokens, args.C, args.matrix(dw, "dw"), args.matrix(dnew_k, "dk"), args.matrix(dnew_v, "dv"),
         args.matrix(dremoval, "dremoval"), args.matrix(dreplacement, "dreplacement"),
         args.matrix(dk_extra, "dk_extra"), args.matrix(dv_extra, "dv_extra"), args.matrix(k, "k"), args.matrix(v, "v"),
         args.matrix(v_first, "v_first"), args.matrix(a_low, "a_low"), args.matrix(v_low, "v_low"),
         args.vector(a0, "a0"), args.vector(v0, "v0"), args.vector(k_k, "k_k"), args.vector(k_a, "k_a"), out(dk),
         out(dv), out(dv_first), out(da_low), out(dv_low), out32(partials), out(sums)},
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

// Returns dy, dr, dk, dv, dg, dr_k, dln_weight, dln_bias and the output of the forward.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> norm_bonus_gate_backward(
    const Tensor& dout, const Tensor& y, const Tensor& r, const Tensor& k, const Tensor& v, const Tensor& g,
    const Tensor& r_k, const Tensor& ln_weight, const Tensor& ln_bias
) {
    const Arguments args("norm_bonus_gate_backward", y);
    args.check_width();
    const c10::cuda::CUDAGuard guard(y.device());
    Tensor dy = at::empty_like(y), dr = at::empty_like(y), dk = at::empty_like(y), dv = at::empty_like(y);
    Tensor dg = at::empty_like(y), result = at::empty_like(y), sums = at::empty({3, args.C}, y.options());
    const Tensor partials = empty32(y, {fused::token_partials(args.tokens, args.C), 3, args.C});
    C10_CUDA_CHECK(fused::norm_bonus_gate_backward(
        {args.tokens, args.C, args.matrix(dout, "dout"), args.matrix(y, "y"), args.matrix(r, "r"), args.matrix(k, "k"),
         args.matrix(v, "v"), args.matrix(g, "g"), args.vector(r_k, "r_k"), args.vector(ln_weight, "ln_weight"),
         args.vector(ln_bias, "ln_bias"), out(dy), out(dr), out(dk), out(dv), out(dg), out(result), out32(partials),
         out(sums)},
        c10::cuda::getCurrentCUDAStream()
    ));
    return {dy, dr, dk, dv, dg, sums[0], sums[1], sums[2], result};
}

// The number of elements of an element-wise operator, which processes eight at a time.
int64_t elements(const Arguments& args) {
    args.check_width(8);
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

// Returns relu(k)^2 and dk.
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
         args.tensor<const int64_t>(ids, "ids", {args.tokens}), out(result)},
        c10::cuda::getCurrentCUDAStream()
    ));
    return result;
}

// Returns the gradient of the table and, if `out_` is given, the gradient of `out_`.
std::tuple<Tensor, Maybe> embed_sums(
    const Arguments& args, const Tensor& dx, const Maybe& out_, const Maybe& enn, const Tensor& ids,
    const Tensor& positions, int64_t vocab_size
) {
    args.check_width();
    const c10::cuda::CUDAGuard guard(dx.device());
    Maybe dout;
    if (out_) dout = at::empty_like(dx);
    Tensor dtable = at::zeros({vocab_size, args.C}, dx.options());
    const Tensor partials = empty32(dx, {fused::embed_chunks(args.tokens), 2, args.C});
    C10_CUDA_CHECK(fused::embed_sums(
        {args.tokens, args.C, args.tensor<const int64_t>(ids, "ids", {args.tokens}),
         args.tensor<const int64_t>(positions, "positions", {args.tokens}), args.matrix(dx, "dx"),
         args.matrix(out_, "out"), rows(args, enn, "enn"), out(dout), out(dtable), out32(partials)},
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

Tensor cross_entropy_(Tensor& logits, const Tensor& targets, const Maybe& scale_tensor, double scale) {
    const Arguments args("cross_entropy_", logits);
    const c10::cuda::CUDAGuard guard(logits.device());
    args.matrix(logits, "logits");
    Tensor nats = empty32(logits, {args.tokens});
    C10_CUDA_CHECK(fused::cross_entropy(
        {args.tokens, args.C, out(logits), args.tensor<const int64_t>(targets, "targets", {args.tokens}),
         args.tensor<const float>(scale_tensor, "scale", {}), float(scale), out32(nats)},
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
        "gates_backward(Tensor dw, Tensor dk, Tensor dv, Tensor dremoval, Tensor dreplacement, Tensor? dk_extra,"
        " Tensor? dv_extra, Tensor k, Tensor? v, Tensor? v_first, Tensor a_low, Tensor? v_low, Tensor a0, Tensor? v0,"
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
    m.def("cross_entropy_(Tensor(a!) logits, Tensor targets, Tensor? scale_tensor, float scale) -> Tensor");
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
