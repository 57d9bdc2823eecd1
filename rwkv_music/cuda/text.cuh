// A tensor's shape as text, for the messages of TORCH_CHECK: streaming an IntArrayRef into one aborted the process under
// torch 2.11, in place of an error.

#pragma once

#include <string>

#include <c10/util/ArrayRef.h>

inline std::string text(c10::IntArrayRef shape) {
    std::string out = "[";
    for (const int64_t size : shape) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
    return out + "]";
}
