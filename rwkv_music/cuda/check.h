// Checks of the tensors that an operator receives. All bindings use this class, so that all errors have the same form:
// "op: name must be ..., but it is ...".

#pragma once

#include <string>
#include <type_traits>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "common.cuh"

// A shape as text. Streaming an IntArrayRef into TORCH_CHECK aborted the process under torch 2.11.
inline std::string text(at::IntArrayRef shape) {
    std::string out = "[";
    for (const auto size : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
    return out + "]";
}

class ArgumentChecker {
public:
    // `op` is the operator's name in errors; all tensors must be on `device`.
    ArgumentChecker(const char* op, at::Device device) : op(op), device(device) {}

    // The data of `x`, after checks that it is a contiguous tensor of T with this shape on the device and starts at a
    // multiple of `alignment` bytes. The kernels read bf16 as vectors of 16 bytes.
    template <class T>
    T* tensor(
        const at::Tensor& x, const char* name, at::IntArrayRef shape, size_t alignment = default_alignment<T>
    ) const {
        check(x, name, dtype<T>(), x.sizes() == shape, text(shape));
        const bool aligned = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % alignment == 0;
        TORCH_CHECK(
            aligned, op, ": ", name, " must start at a multiple of ", std::to_string(alignment),
            " bytes, but it does not; pass ", name, ".clone()."
        );
        return data<T>(x);
    }

    // The data of `x`, after checks that it has `elements` contiguous elements of T, in any shape and alignment.
    template <class T>
    T* elements(const at::Tensor& x, const char* name, int64_t elements) const {
        check(x, name, dtype<T>(), x.numel() == elements, "of " + std::to_string(elements) + " elements");
        return data<T>(x);
    }

    // Like `tensor`; null if `x` is empty.
    template <class T>
    T* tensor(
        const std::optional<at::Tensor>& x, const char* name, at::IntArrayRef shape,
        size_t alignment = default_alignment<T>
    ) const {
        return x ? tensor<T>(*x, name, shape, alignment) : nullptr;
    }

    const char* op;
    at::Device device;

private:
    template <class T>
    static constexpr size_t default_alignment = std::is_same_v<std::remove_const_t<T>, common::bf16> ? 16 : alignof(T);

    template <class T>
    static constexpr at::ScalarType dtype() {
        using Element = std::remove_const_t<T>;
        if constexpr (std::is_same_v<Element, common::bf16>) return at::kBFloat16;
        if constexpr (std::is_same_v<Element, float>) return at::kFloat;
        if constexpr (std::is_same_v<Element, int32_t>) return at::kInt;
        if constexpr (std::is_same_v<Element, int64_t>) return at::kLong;
    }

    template <class T>
    static T* data(const at::Tensor& x) {
        if constexpr (std::is_const_v<T>) {
            return static_cast<T*>(x.const_data_ptr());
        } else {
            return static_cast<T*>(x.mutable_data_ptr());
        }
    }

    void check(
        const at::Tensor& x, const char* name, at::ScalarType dtype, bool right_size, const std::string& size
    ) const {
        TORCH_CHECK(
            x.scalar_type() == dtype && right_size && x.device() == device,
            op, ": ", name, " must be ", dtype, " ", size, " on ", device, ", but it is ", x.scalar_type(), " ",
            text(x.sizes()), " on ", x.device(), "."
        );
        TORCH_CHECK(
            x.is_contiguous(), op, ": ", name, " must be contiguous, but its shape is ", text(x.sizes()),
            " and its strides are ", text(x.strides()), "; pass ", name, ".contiguous()."
        );
    }
};
