// A thread updates four neighboring elements, 16 bytes of each fp32 array. The elements after the last group of four
// are updated one by one, and so are all elements if an array does not start at a multiple of four elements. Each block
// recomputes the factors of AdamW that depend only on the step number. This takes less time than another kernel, and
// the step number stays on the device.

#include "optimizer.cuh"

namespace optimizer {
namespace {

constexpr int THREADS = 256, PER_THREAD = 4;

// Factors of the update that all elements share.
struct Factors {
    float beta1, beta2, decay, step_size, root_correction, eps, divisor;
};

__device__ Factors make_factors(const AdamW& args) {
    const double step = *args.step;
    const double correction1 = 1 - exp2(step * log2(args.beta1)), correction2 = 1 - exp2(step * log2(args.beta2));
    return {
        float(args.beta1), float(args.beta2), float(1 - args.lr * args.weight_decay), float(args.lr / correction1),
        float(1 / sqrt(correction2)), float(args.eps), *args.divisor,
    };
}

__device__ void update_element(float& master, float& m, float& v, float gradient, const Factors& factors) {
    gradient /= factors.divisor;
    m = factors.beta1 * m + (1 - factors.beta1) * gradient;
    v = factors.beta2 * v + (1 - factors.beta2) * gradient * gradient;
    master = factors.decay * master - factors.step_size * m / (sqrtf(v) * factors.root_correction + factors.eps);
}

__device__ void read(float (&to)[PER_THREAD], const float* from) {
    const float4 x = *reinterpret_cast<const float4*>(from);
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
}

__device__ void read(float (&to)[PER_THREAD], const bf16* from) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    to[0] = bf16_low(words.x), to[1] = bf16_high(words.x), to[2] = bf16_low(words.y), to[3] = bf16_high(words.y);
}

__device__ void write(float* to, const float (&x)[PER_THREAD]) {
    *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
}

__device__ void write(bf16* to, const float (&x)[PER_THREAD]) {
    const __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(x[0], x[1]), __floats2bfloat162_rn(x[2], x[3])};
    *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(pairs);
}

template <class Gradient, bool ALIGNED>
__global__ __launch_bounds__(THREADS) void adamw_kernel(const AdamW args) {
    __shared__ Factors factors;
    if (*args.bad != 0) return;
    const Gradient* const gradients = static_cast<const Gradient*>(args.gradient);
    const int64_t offset = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * PER_THREAD;
    const bool vectorized = ALIGNED && offset + PER_THREAD <= args.elements;
    float master[PER_THREAD], m[PER_THREAD], v[PER_THREAD], gradient[PER_THREAD];
    if (vectorized) {
        read(gradient, gradients + offset);
        read(master, args.masters + offset);
        read(m, args.exp_avg + offset);
        read(v, args.exp_avg_sq + offset);
    }
    if (threadIdx.x == 0) factors = make_factors(args);  // slow (double precision), but overlaps with loads of others
    __syncthreads();
    if (vectorized) {
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) update_element(master[i], m[i], v[i], gradient[i], factors);
        write(args.masters + offset, master);
        write(args.exp_avg + offset, m);
        write(args.exp_avg_sq + offset, v);
        write(args.weights + offset, master);
        return;
    }
    for (int64_t i = offset; i < min(offset + PER_THREAD, args.elements); i++) {
        float master = args.masters[i], m = args.exp_avg[i], v = args.exp_avg_sq[i];
        update_element(master, m, v, float(gradients[i]), factors);
        args.masters[i] = master, args.exp_avg[i] = m, args.exp_avg_sq[i] = v;
        args.weights[i] = __float2bfloat16(master);
    }
}

template <class Gradient, bool ALIGNED>
__global__ __launch_bounds__(THREADS) void momentum_kernel(const Momentum args) {
    Gradient* const gradients = static_cast<Gradient*>(args.gradient);
    const int64_t offset = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * PER_THREAD;
    const float beta = float(args.beta), divisor = *args.divisor;
    const bool bad = *args.bad != 0;
    const auto update_element = [&](float& momentum, float& gradient) {
        gradient = bad ? 0 : gradient / divisor;
        momentum = bad ? momentum : beta * momentum + gradient;
        gradient += beta * momentum;
    };
    if (ALIGNED && offset + PER_THREAD <= args.elements) {
        float momentum[PER_THREAD], gradient[PER_THREAD];
        read(gradient, gradients + offset);
        read(momentum, args.momentum + offset);
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) update_element(momentum[i], gradient[i]);
        write(args.momentum + offset, momentum);
        write(gradients + offset, gradient);
        return;
    }
    for (int64_t i = offset; i < min(offset + PER_THREAD, args.elements); i++) {
        float momentum = args.momentum[i], gradient = float(gradients[i]);
        update_element(momentum, gradient);
        args.momentum[i] = momentum, gradients[i] = Gradient(gradient);
    }
}

template <bool ALIGNED>
__global__ __launch_bounds__(THREADS) void step_kernel(const Step args) {
    if (*args.bad != 0) return;
    const int64_t offset = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * PER_THREAD;
    const float kept = float(args.kept), rate = float(args.rate);
    if (ALIGNED && offset + PER_THREAD <= args.elements) {
        float master[PER_THREAD], direction[PER_THREAD];
        read(master, args.masters + offset);
        read(direction, args.direction + offset);
#pragma unroll
        for (int i = 0; i < PER_THREAD; i++) master[i] = kept * master[i] - rate * direction[i];
        write(args.masters + offset, master);
        if (args.weights) write(args.weights + offset, master);
        return;
    }
    for (int64_t i = offset; i < min(offset + PER_THREAD, args.elements); i++) {
        args.masters[i] = kept * args.masters[i] - rate * __bfloat162float(args.direction[i]);
        if (args.weights) args.weights[i] = __float2bfloat16(args.masters[i]);
    }
}

bool aligned(const void* data, size_t element) {
    return reinterpret_cast<uintptr_t>(data) % (PER_THREAD * element) == 0;
}

// Calls `kernel` with one thread per PER_THREAD elements.
template <class Args>
cudaError_t launch_over(void (*kernel)(const Args), const Args& args, cudaStream_t stream) {
    if (args.elements == 0) return cudaSuccess;
    return launch(kernel, dim3(unsigned(ceil_div(args.elements, THREADS * PER_THREAD))), THREADS, 0, stream, args);
}

template <class Gradient>
cudaError_t launch_update(const AdamW& args, cudaStream_t stream) {
    const bool all_aligned = aligned(args.masters, 4) && aligned(args.exp_avg, 4) && aligned(args.exp_avg_sq, 4) &&
                             aligned(args.gradient, sizeof(Gradient)) && aligned(args.weights, 2);
    const auto kernel = all_aligned ? adamw_kernel<Gradient, true> : adamw_kernel<Gradient, false>;
    return launch_over(kernel, args, stream);
}

template <class Gradient>
cudaError_t launch_update(const Momentum& args, cudaStream_t stream) {
    const bool all_aligned = aligned(args.momentum, 4) && aligned(args.gradient, sizeof(Gradient));
    return launch_over(all_aligned ? momentum_kernel<Gradient, true> : momentum_kernel<Gradient, false>, args, stream);
}

}  // namespace

cudaError_t update(const AdamW& args, cudaStream_t stream) {
    return args.gradient_is_fp32 ? launch_update<float>(args, stream) : launch_update<bf16>(args, stream);
}

cudaError_t update(const Momentum& args, cudaStream_t stream) {
    return args.gradient_is_fp32 ? launch_update<float>(args, stream) : launch_update<bf16>(args, stream);
}

cudaError_t update(const Step& args, cudaStream_t stream) {
    const bool all_aligned = aligned(args.masters, 4) && aligned(args.direction, 2) && aligned(args.weights, 2);
    return launch_over(all_aligned ? step_kernel<true> : step_kernel<false>, args, stream);
}

}  // namespace optimizer
