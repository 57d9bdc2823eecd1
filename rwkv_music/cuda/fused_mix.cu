// Layer norm, token shift and mixing: norm_mix and its backward. A block processes a run of consecutive tokens, and a
// thread processes eight channels of every token. The layer norm of the previous token stays in registers. It is
// recomputed only for the first token of a run.

#include "vec8.cuh"

namespace fused {
namespace {

constexpr int MOST_THREADS = WIDEST_NORM / 8;

// The number of threads per multiprocessor for which there are enough registers. Values that are common to all tokens
// are not kept in registers, but read from L1 again for every token.
constexpr int FORWARD_THREADS = 1024;
constexpr int BACKWARD_THREADS = 512;

// The stride of a thread's rows in shared memory, in vectors. It is odd, which avoids bank conflicts.
template <int n> constexpr int ROW_STRIDE = (n + 2) | 1;

__device__ Packed load_inside(const bf16* from, bool inside) { return inside ? load(from) : Packed{}; }
__device__ Vec8 read_inside(const bf16* from, bool inside) { return unpack(load_inside(from, inside)); }

template <int n>
__global__ __launch_bounds__(MOST_THREADS, FORWARD_THREADS / MOST_THREADS)
void norm_mix_kernel(const NormMix args, int run) {
    const int C = args.C, channel = 8 * int(threadIdx.x);
    const bool inside = channel < C;
    const int begin = int(blockIdx.x) * run, end = int(min(int64_t(begin) + run, args.tokens));
    const float share = 1.f / C;
    const auto vector = [&](const bf16* from) { return read_inside(from + channel, inside); };
    const auto row = [&](int token) { return args.x + int64_t(token) * C; };
    int buffer = 0, token = max(begin - 1, 0);
    Packed next = load_inside(row(token) + channel, inside);
    bf16 next_origin = *row(token);
    Vec8 before = broadcast(0);
    for (; token < end; token++) {
        const Packed x = next;
        const float origin = __bfloat162float(next_origin);
        if (token + 1 < end) {
            next = load_inside(row(token + 1) + channel, inside);
            next_origin = *row(token + 1);
        }
        // Before the moments are computed, one of the values is subtracted from all of them. The square of the mean is
        // then at most C times the variance. Subtracting it from the mean square therefore loses few digits.
        const Vec8 moved = inside ? unpack(x) - origin : broadcast(0);
        float moments[2] = {sum(moved), sum(moved * moved)};
        block_sum(moments, buffer);
        const float mean = moments[0] * share;
        const float rstd = rsqrtf(fmaxf(moments[1] * share - mean * mean, 0) + args.eps);
        const Vec8 h = (moved - mean) * rstd * vector(args.ln_weight) + vector(args.ln_bias);

        if (token >= begin && inside) {
            const int document = args.first[token];
            Vec8 s = before;
            if (document >= 0) s = args.previous ? vector(args.previous + int64_t(document) * C) : broadcast(0);
            const Vec8 shift = s - h;
#pragma unroll
            for (int i = 0; i < n; i++) {
                const Vec8 mixed = h + shift * vector(args.mixes + i * C);
                write(args.mixed + (i * args.tokens + token) * C + channel, mixed);
            }
            if (threadIdx.x == 0) {
                args.mean_rstd[2 * int64_t(token)] = origin + mean;
                args.mean_rstd[2 * int64_t(token) + 1] = rstd;
            }
        }
        before = h;
    }
}

// Processes a run from its last token to its first. h_t receives a gradient from the mixes of token t and, because
// s_{t+1} = h_t, from those of token t + 1.
//
// The sums over tokens occupy half of the registers, so the rows of the next STAGES tokens are prefetched into shared
// memory. Every thread reads only the rows that it copied itself.
template <int n, int STAGES>
__global__ __launch_bounds__(MOST_THREADS) void norm_mix_backward_kernel(const NormMixBackward args, int run) {
    constexpr int X_BEFORE = n, DRESIDUAL = n + 1, ROWS = n + 2;
    extern __shared__ Packed shared_rows[];
    const auto rows_of = [&](int token) {
        return shared_rows + (token % STAGES * blockDim.x + threadIdx.x) * ROW_STRIDE<n>;
    };
    const int C = args.C, channel = 8 * int(threadIdx.x);
    const bool inside = channel < C;
    const int begin = int(blockIdx.x) * run, end = int(min(int64_t(begin) + run, args.tokens));
    const float share = 1.f / C;
    const auto vector = [&](const bf16* from) { return read_inside(from + channel, inside); };
    const auto row = [&](const bf16* from, int64_t token) { return from + token * C + channel; };
    const auto copy_rows = [&](int token) {
        if (inside && token >= begin) {
            Packed* const rows = rows_of(token);
#pragma unroll
            for (int i = 0; i < n; i++) copy_async(rows + i, row(args.dmixed, i * args.tokens + token));
            if (token > 0) copy_async(rows + X_BEFORE, row(args.x, token - 1));
            if (args.dresidual) copy_async(rows + DRESIDUAL, row(args.dresidual, token));
        }
        copy_async_commit();
    };
    const auto normed = [&](const Packed& x, int token) {
        return (unpack(x) - args.mean_rstd[2 * token]) * args.mean_rstd[2 * token + 1];
    };

    Vec8 dmixes[n], dweight = broadcast(0), dbias = broadcast(0);
#pragma unroll
    for (int i = 0; i < n; i++) dmixes[i] = broadcast(0);
    for (int stage = 0; stage < STAGES; stage++) {
#pragma unroll
        for (int i = 0; i < ROWS; i++) rows_of(stage)[i] = Packed{};
    }
#pragma unroll
    for (int ahead = 0; ahead < STAGES; ahead++) copy_rows(end - 1 - ahead);
    Vec8 dh = broadcast(0);  // the gradient of h from the next token
    if (end < args.tokens && args.first[end] < 0) {
#pragma unroll
        for (int i = 0; i < n; i++) {
            const Vec8 dmixed = read_inside(row(args.dmixed, i * args.tokens + end), inside);
            dh = dh + dmixed * vector(args.mixes + i * C);
        }
    }
    int buffer = 0;
    Packed x = load_inside(row(args.x, end - 1), inside);
    for (int token = end - 1; token >= begin; token--) {
        const int document = args.first[token];
        copy_async_wait<STAGES - 1>();
        const Packed* const rows = rows_of(token);
        Vec8 s = broadcast(0);
        if (document < 0) {
            s = normed(rows[X_BEFORE], token - 1) * vector(args.ln_weight) + vector(args.ln_bias);
        } else if (args.previous) {
            s = vector(args.previous + int64_t(document) * C);
        }
        const Vec8 shift = s - (normed(x, token) * vector(args.ln_weight) + vector(args.ln_bias));
        Vec8 ds = broadcast(0);
#pragma unroll
        for (int i = 0; i < n; i++) {
            const Vec8 dmixed = unpack(rows[i]);
            ds = ds + dmixed * vector(args.mixes + i * C);
            dh = dh + dmixed;
            dmixes[i] = dmixes[i] + dmixed * shift;
            __syncwarp();  // otherwise the compiler loads all mixes at once and runs out of registers
        }
        dh = dh - ds;
        const Packed x_before = rows[X_BEFORE], dresidual = rows[DRESIDUAL];
        copy_rows(token - STAGES);
        if (document >= 0 && args.dprevious && inside) write(args.dprevious + int64_t(document) * C + channel, ds);

        const Vec8 xhat = normed(x, token), dxhat = dh * vector(args.ln_weight);
        dbias = dbias + dh;
        dweight = dweight + dh * xhat;
        float means[2] = {sum(dxhat), sum(dxhat * xhat)};
        block_sum(means, buffer);
        const Vec8 dx = (dxhat - means[0] * share - xhat * (means[1] * share)) * args.mean_rstd[2 * token + 1];
        if (inside) write(args.dx + int64_t(token) * C + channel, dx + unpack(dresidual));
        x = x_before;
        dh = document < 0 ? ds : broadcast(0);
    }
    if (inside) {
        float* partials = args.partials + int64_t(blockIdx.x) * ROWS * C + channel;
#pragma unroll
        for (int i = 0; i < n; i++) write(partials + i * C, dmixes[i]);
        write(partials + n * C, dweight);
        write(partials + (n + 1) * C, dbias);
    }
}

int threads_for(int C) { return int(ceil_div(C / 8, WARP)) * WARP; }

// The number of tokens per block for which the blocks fill the GPU exactly once.
int run_for(int64_t tokens, int C, int threads_at_once) {
    const int64_t blocks = int64_t(multiprocessors()) * (threads_at_once / threads_for(C));
    return int(max(int64_t(1), ceil_div(tokens, blocks)));
}

}  // namespace

int norm_mix_partials(int64_t tokens, int C) { return int(ceil_div(tokens, run_for(tokens, C, BACKWARD_THREADS))); }

cudaError_t norm_mix(const NormMix& args, cudaStream_t stream) {
    const int run = run_for(args.tokens, args.C, FORWARD_THREADS);
    const auto kernel = args.n == 1 ? norm_mix_kernel<1> : norm_mix_kernel<6>;
    return launch(kernel, dim3(unsigned(ceil_div(args.tokens, run))), threads_for(args.C), 0, stream, args, run);
}

cudaError_t norm_mix_backward(const NormMixBackward& args, cudaStream_t stream) {
    const int threads = threads_for(args.C), run = run_for(args.tokens, args.C, BACKWARD_THREADS);
    const int partials = norm_mix_partials(args.tokens, args.C);
    // Prefetch two tokens if the shared memory suffices for all blocks that run at once on a multiprocessor.
    const size_t ahead = threads * (args.n == 1 ? ROW_STRIDE<1> : ROW_STRIDE<6>) * sizeof(Packed);
    const bool two = BACKWARD_THREADS / threads * (2 * ahead + (1 << 10)) <= shared_memory();
    const auto kernel = args.n == 1 ? (two ? norm_mix_backward_kernel<1, 2> : norm_mix_backward_kernel<1, 1>)
                                    : (two ? norm_mix_backward_kernel<6, 2> : norm_mix_backward_kernel<6, 1>);
    const dim3 grid{unsigned(partials)};
    const cudaError_t launched = launch(kernel, grid, threads, two ? 2 * ahead : ahead, stream, args, run);
    return launched ? launched : reduce_partials(args.partials, partials, (args.n + 2) * args.C, args.sums, stream);
}

}  // namespace fused
