// A tensor's shape as text, for the messages of TORCH_CHECK: streaming an IntArrayRef into one aborted the process under
// torch 2.11, in place of an error.

#pragma once

#include <string>

template <class Shape>
std::string text(const Shape& shape) {
    std::string out = "[";
    for (const auto size : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
    return out + "]";
}
