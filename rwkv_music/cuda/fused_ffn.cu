// Channel mixing's squared ReLU, DeepEmbed with the residual, and the gradients of embedding tables.

#include "vec8.cuh"

namespace fused {
namespace {

constexpr int THREADS = 256;

__global__ __launch_bounds__(THREADS) void relu_squared_kernel(const bf16* k, bf16* out, int64_t elements) {
    const int64_t offset = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * 8;
    if (offset >= elements) return;
    const Vec8 positive = relu(read(k + offset));
    write(out + offset, positive * positive);
}

__global__ __launch_bounds__(THREADS) void relu_squared_backward_kernel(
    const bf16* dout, const bf16* k, bf16* out, bf16* dk, int64_t elements
) {
    const int64_t offset = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * 8;
    if (offset >= elements) return;
    const Vec8 positive = relu(read(k + offset));
    write(out + offset, positive * positive);
    write(dk + offset, positive * read(dout + offset) * 2);
}

__global__ __launch_bounds__(WARPS * WARP) void embed_gate_kernel(const EmbedGate args) {
    const GridPosition position(args.C);
    if (!position.inside) return;
    for (int64_t token = position.token; token < args.tokens; token += position.step) {
        const int64_t offset = token * args.C + position.channel;
        const Vec8 row = read(args.enn + args.ids[token] * args.C + position.channel);
        write(args.result + offset, read(args.x + offset) + read(args.out + offset) * row);
    }
}

// Tokens are sorted by id. A run consists of all tokens with one id. Each warp processes a chunk of EMBED_CHUNK sorted
// tokens, so that the work is balanced, whatever the lengths of the runs. If a run is inside one chunk, its sum is
// written directly. If a run extends over several chunks, each chunk writes one partial sum: to partials[chunk, 1] if
// the run begins in that chunk, otherwise to partials[chunk, 0].
template <bool GATED>
__global__ __launch_bounds__(WARPS * WARP) void embed_sums_kernel(const EmbedSums args) {
    constexpr int AHEAD = 4;  // tokens whose rows are loaded at once
    static_assert(EMBED_CHUNK == WARP, "each lane reads the id of one token");
    const int lane = threadIdx.x % WARP, C = args.C;
    const int64_t chunk = int64_t(blockIdx.y) * WARPS + threadIdx.x / WARP, begin = chunk * EMBED_CHUNK;
    if (begin >= args.tokens) return;
    const GridPosition position(C);
    const int count = int(min(args.tokens - begin, int64_t(EMBED_CHUNK)));
    const int64_t mine = begin + min(lane, count - 1);
    const int64_t my_id = args.ids[mine], my_position = args.positions[mine];
    // Whether the next token, which may belong to another chunk, has the same id.
    const unsigned continues = __ballot_sync(FULL_MASK, mine + 1 < args.tokens && args.ids[mine + 1] == my_id);
    bool began_earlier = begin > 0 && args.ids[begin - 1] == args.ids[begin];

    Vec8 total = broadcast(0);
    for (int group = 0; group < count; group += AHEAD) {
        Packed dx[AHEAD], out[AHEAD], row[AHEAD];
        int64_t offset[AHEAD], id[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            offset[j] = __shfl_sync(FULL_MASK, my_position, group + j) * C + position.channel;
            id[j] = __shfl_sync(FULL_MASK, my_id, group + j);
            dx[j] = load(args.dx + offset[j]);
            if constexpr (GATED) {
                out[j] = load(args.out + offset[j]);
                row[j] = load(args.enn + id[j] * C + position.channel);
            }
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (group + j >= count) break;
            if constexpr (GATED) {
                if (position.inside) write(args.dout + offset[j], unpack(dx[j]) * unpack(row[j]));
                total = total + unpack(dx[j]) * unpack(out[j]);
            } else {
                total = total + unpack(dx[j]);
            }
            const bool same_next = continues >> (group + j) & 1;
            if (same_next && group + j + 1 < count) continue;
            if (position.inside) {
                if (same_next || began_earlier) {
                    write(args.partials + (2 * chunk + (began_earlier ? 0 : 1)) * C + position.channel, total);
                } else {
                    write(args.dtable + id[j] * C + position.channel, total);
                }
            }
            total = broadcast(0);
            began_earlier = false;
        }
    }
}

// For each run that extends over several chunks: the sum of its partial sums.
__global__ __launch_bounds__(WARPS * WARP) void embed_partials_kernel(const EmbedSums args) {
    const int lane = threadIdx.x % WARP, C = args.C;
    const int64_t chunk = int64_t(blockIdx.y) * WARPS + threadIdx.x / WARP;
    const int64_t begin = chunk * EMBED_CHUNK, end = begin + EMBED_CHUNK;
    if (end >= args.tokens || args.ids[end] != args.ids[end - 1]) return;
    const int64_t id = args.ids[end];
    if (begin > 0 && args.ids[begin - 1] == id) return;
    int64_t last = chunk;  // the last chunk of the run; the lanes search 32 chunks at once
    for (unsigned reached = FULL_MASK; reached == FULL_MASK; last += __popc(reached)) {
        const int64_t start = (last + 1 + lane) * EMBED_CHUNK;
        reached = __ballot_sync(FULL_MASK, start < args.tokens && args.ids[start] == id);
    }
    const GridPosition position(C);
    Vec8 total = read(args.partials + (2 * chunk + 1) * C + position.channel);
#pragma unroll 8
    for (int64_t other = chunk + 1; other <= last; other++) {
        total = total + read(args.partials + 2 * other * C + position.channel);
    }
    if (position.inside) write(args.dtable + id * C + position.channel, total);
}

}  // namespace

cudaError_t relu_squared(const bf16* k, bf16* out, int64_t elements, cudaStream_t stream) {
    const dim3 grid(unsigned(ceil_div(elements, 8 * THREADS)));
    return launch(relu_squared_kernel, grid, THREADS, 0, stream, k, out, elements);
}

cudaError_t relu_squared_backward(
    const bf16* dout, const bf16* k, bf16* out, bf16* dk, int64_t elements, cudaStream_t stream
) {
    const dim3 grid(unsigned(ceil_div(elements, 8 * THREADS)));
    return launch(relu_squared_backward_kernel, grid, THREADS, 0, stream, dout, k, out, dk, elements);
}

cudaError_t embed_gate(const EmbedGate& args, cudaStream_t stream) {
    const dim3 grid = token_grid(args.tokens, args.C, FORWARD_BLOCKS);
    return launch(embed_gate_kernel, grid, WARPS * WARP, 0, stream, args);
}

cudaError_t embed_sums(const EmbedSums& args, cudaStream_t stream) {
    const dim3 grid(unsigned(ceil_div(args.C, SLICE)), unsigned(ceil_div(embed_chunks(args.tokens), WARPS)));
    const auto kernel = args.out ? embed_sums_kernel<true> : embed_sums_kernel<false>;
    const cudaError_t launched = launch(kernel, grid, WARPS * WARP, 0, stream, args);
    return launched ? launched : launch(embed_partials_kernel, grid, WARPS * WARP, 0, stream, args);
}

}  // namespace fused
