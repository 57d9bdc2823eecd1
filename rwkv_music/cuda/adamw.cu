// One thread has four neighbouring elements, 16 bytes of each fp32 array; where an array does not begin at a multiple of
// that, and past the last whole four, it has them one by one. What depends on the step alone is made by each block
// again: cheaper than a launch to make it, and nobody waits for the host to know the step.

#include "adamw.cuh"

namespace adamw {
namespace {

constexpr int THREADS = 256, EACH = 4;

struct Factors {
    float beta1, beta2, decay, step_size, root_correction, eps, divisor;
};

__device__ Factors factors(const Update& args) {
    const double step = *args.step;
    const double correction1 = 1 - exp2(step * log2(args.beta1)), correction2 = 1 - exp2(step * log2(args.beta2));
    return {
        float(args.beta1), float(args.beta2), float(1 - args.lr * args.weight_decay), float(args.lr / correction1),
        float(1 / sqrt(correction2)), float(args.eps), *args.divisor,
    };
}

__device__ void advance(float& master, float& m, float& v, float gradient, const Factors& by) {
    gradient /= by.divisor;
    m = by.beta1 * m + (1 - by.beta1) * gradient;
    v = by.beta2 * v + (1 - by.beta2) * gradient * gradient;
    master = by.decay * master - by.step_size * m / (sqrtf(v) * by.root_correction + by.eps);
}

__device__ void read(float (&to)[EACH], const float* from) {
    const float4 x = *reinterpret_cast<const float4*>(from);
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
}

__device__ void read(float (&to)[EACH], const __nv_bfloat16* from) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    to[0] = __uint_as_float(words.x << 16), to[1] = __uint_as_float(words.x & 0xffff0000u);
    to[2] = __uint_as_float(words.y << 16), to[3] = __uint_as_float(words.y & 0xffff0000u);
}

__device__ void write(float* to, const float (&x)[EACH]) {
    *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
}

__device__ void write(__nv_bfloat16* to, const float (&x)[EACH]) {
    const __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(x[0], x[1]), __floats2bfloat162_rn(x[2], x[3])};
    *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(pairs);
}

template <class Gradient, bool ALIGNED>
__global__ __launch_bounds__(THREADS) void update_kernel(const Update args) {
    __shared__ Factors by;
    if (*args.bad != 0) return;
    const Gradient* const gradients = static_cast<const Gradient*>(args.gradient);
    const int64_t at = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * EACH;
    const bool together = ALIGNED && at + EACH <= args.elements;
    float master[EACH], m[EACH], v[EACH], gradient[EACH];
    if (together) {
        read(gradient, gradients + at);
        read(master, args.masters + at);
        read(m, args.exp_avg + at);
        read(v, args.exp_avg_sq + at);
    }
    if (threadIdx.x == 0) by = factors(args);  // in double precision, which is slow, while the others' reads arrive
    __syncthreads();
    if (together) {
#pragma unroll
        for (int i = 0; i < EACH; i++) advance(master[i], m[i], v[i], gradient[i], by);
        write(args.masters + at, master);
        write(args.exp_avg + at, m);
        write(args.exp_avg_sq + at, v);
        write(args.weights + at, master);
        return;
    }
    for (int64_t i = at; i < min(at + EACH, args.elements); i++) {
        float master = args.masters[i], m = args.exp_avg[i], v = args.exp_avg_sq[i];
        advance(master, m, v, float(gradients[i]), by);
        args.masters[i] = master, args.exp_avg[i] = m, args.exp_avg_sq[i] = v;
        args.weights[i] = __float2bfloat16(master);
    }
}

bool aligned(const void* at, size_t element) { return reinterpret_cast<uintptr_t>(at) % (EACH * element) == 0; }

template <class Gradient>
cudaError_t launch(const Update& args, cudaStream_t stream) {
    const bool whole = aligned(args.masters, 4) && aligned(args.exp_avg, 4) && aligned(args.exp_avg_sq, 4) &&
                       aligned(args.gradient, sizeof(Gradient)) && aligned(args.weights, 2);
    const unsigned blocks = unsigned((args.elements + THREADS * EACH - 1) / (THREADS * EACH));
    if (whole) {
        update_kernel<Gradient, true><<<blocks, THREADS, 0, stream>>>(args);
    } else {
        update_kernel<Gradient, false><<<blocks, THREADS, 0, stream>>>(args);
    }
    return cudaGetLastError();
}

}  // namespace

cudaError_t update(const Update& args, cudaStream_t stream) {
    if (args.elements == 0) return cudaSuccess;
    return args.gradient_is_fp32 ? launch<float>(args, stream) : launch<__nv_bfloat16>(args, stream);
}

}  // namespace adamw
