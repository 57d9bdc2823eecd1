// Channel mixing's squared ReLU, DeepEmbed with the residual, and the gradients of tables that are looked up by token.

#include "vec8.cuh"

namespace fused {
namespace {

constexpr int THREADS = 256;

__global__ __launch_bounds__(THREADS) void relu_squared_kernel(const bf16* k, bf16* out, int64_t elements) {
    const int64_t at = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * 8;
    if (at >= elements) return;
    const Eight positive = relu(read(k + at));
    write(out + at, positive * positive);
}

__global__ __launch_bounds__(THREADS) void relu_squared_backward_kernel(
    const bf16* dout, const bf16* k, bf16* out, bf16* dk, int64_t elements
) {
    const int64_t at = (int64_t(blockIdx.x) * THREADS + threadIdx.x) * 8;
    if (at >= elements) return;
    const Eight positive = relu(read(k + at));
    write(out + at, positive * positive);
    write(dk + at, positive * read(dout + at) * 2);
}

__global__ __launch_bounds__(WARPS * WARP) void embed_gate_kernel(const EmbedGate args) {
    const Place place(args.C);
    if (!place.inside) return;
    for (int64_t token = place.token; token < args.tokens; token += place.step) {
        const int64_t at = token * args.C + place.channel;
        const Eight row = read(args.enn + args.ids[token] * args.C + place.channel);
        write(args.result + at, read(args.x + at) + read(args.out + at) * row);
    }
}

// A run is the places that hold one id. A warp has a chunk of EMBED_CHUNK places, so that work is even however long the
// runs are. A run inside one chunk is done with; of a longer one each chunk leaves its share in `edges`: in [chunk, 1]
// where the run begins in the chunk, else in [chunk, 0].
template <bool GATED>
__global__ __launch_bounds__(WARPS * WARP) void embed_sums_kernel(const EmbedSums args) {
    constexpr int AHEAD = 4;  // tokens whose rows are on their way at once
    static_assert(EMBED_CHUNK == WARP, "a lane looks up a place");
    const int lane = threadIdx.x % WARP, C = args.C;
    const int64_t chunk = int64_t(blockIdx.y) * WARPS + threadIdx.x / WARP, begin = chunk * EMBED_CHUNK;
    if (begin >= args.tokens) return;
    const Place place(C);
    const int count = int(min(args.tokens - begin, int64_t(EMBED_CHUNK)));
    const int64_t mine = begin + min(lane, count - 1);
    const int64_t my_id = args.ids[mine], my_position = args.positions[mine];
    // Whether the next place, which may be another chunk's, holds the same id.
    const unsigned goes_on = __ballot_sync(ALL_LANES, mine + 1 < args.tokens && args.ids[mine + 1] == my_id);
    bool began_before = begin > 0 && args.ids[begin - 1] == args.ids[begin];

    Eight total = eight(0);
    for (int group = 0; group < count; group += AHEAD) {
        Packed dx[AHEAD], out[AHEAD], row[AHEAD];
        int64_t at[AHEAD], id[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            at[j] = __shfl_sync(ALL_LANES, my_position, group + j) * C + place.channel;
            id[j] = __shfl_sync(ALL_LANES, my_id, group + j);
            dx[j] = load(args.dx + at[j]);
            if constexpr (GATED) {
                out[j] = load(args.out + at[j]);
                row[j] = load(args.enn + id[j] * C + place.channel);
            }
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (group + j >= count) break;
            if constexpr (GATED) {
                if (place.inside) write(args.dout + at[j], unpack(dx[j]) * unpack(row[j]));
                total = total + unpack(dx[j]) * unpack(out[j]);
            } else {
                total = total + unpack(dx[j]);
            }
            const bool same_next = goes_on >> (group + j) & 1;
            if (same_next && group + j + 1 < count) continue;
            if (place.inside) {
                if (same_next || began_before) {
                    write(args.edges + (2 * chunk + (began_before ? 0 : 1)) * C + place.channel, total);
                } else {
                    write(args.dtable + id[j] * C + place.channel, total);
                }
            }
            total = eight(0);
            began_before = false;
        }
    }
}

// For each run that goes beyond the chunk it begins in: the sum of its shares.
__global__ __launch_bounds__(WARPS * WARP) void embed_edges_kernel(const EmbedSums args) {
    const int lane = threadIdx.x % WARP, C = args.C;
    const int64_t chunk = int64_t(blockIdx.y) * WARPS + threadIdx.x / WARP;
    const int64_t begin = chunk * EMBED_CHUNK, end = begin + EMBED_CHUNK;
    if (end >= args.tokens || args.ids[end] != args.ids[end - 1]) return;
    const int64_t id = args.ids[end];
    if (begin > 0 && args.ids[begin - 1] == id) return;
    int64_t last = chunk;  // the last chunk that the run reaches: found by looking into 32 at once
    for (unsigned reached = ALL_LANES; reached == ALL_LANES; last += __popc(reached)) {
        const int64_t start = (last + 1 + lane) * EMBED_CHUNK;
        reached = __ballot_sync(ALL_LANES, start < args.tokens && args.ids[start] == id);
    }
    const Place place(C);
    Eight total = read(args.edges + (2 * chunk + 1) * C + place.channel);
#pragma unroll 8
    for (int64_t other = chunk + 1; other <= last; other++) {
        total = total + read(args.edges + 2 * other * C + place.channel);
    }
    if (place.inside) write(args.dtable + id * C + place.channel, total);
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
    return launched ? launched : launch(embed_edges_kernel, grid, WARPS * WARP, 0, stream, args);
}

}  // namespace fused
