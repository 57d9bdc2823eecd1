// An RWKV v7 or v8 on a CPU: T tokens of each of B rows pass through all layers in one call.
//
// With one token, the memory bandwidth for the weights limits the speed of a call; with many tokens, arithmetic does.
// Notable choices:
// - The weights of the matrices are bf16, and a call reads each of them from memory once. Everything else is fp32:
//   vectors, activations, sums and states.
// - A panel has the weights for PANEL outputs of a matrix: for each input, the weights of these outputs. A panel is
//   read sequentially, and its sums stay in registers. A word of a panel has the weight of output k in its low half and
//   that of output k + PANEL / 2 in its high half, so that a shift and a mask give two fp32 vectors.
// - The threads take work one piece at a time. If another program interrupts a thread, the others wait only for the
//   piece that this thread has taken.
// - The recurrence runs token by token, because the state of a head stays in the fastest cache.
// - The result depends neither on the number of threads or rows, nor on the division of a row's tokens among calls.
//
// Shapes: B rows, T tokens, M = B * T, C width, N head size, H heads, L layers, V vocabulary.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int64_t PANEL = 32;
constexpr int64_t N = 64;
constexpr float GROUP_NORM_EPS = 64e-5f, LAYER_NORM_EPS = 1e-5f;
constexpr int64_t PREFETCH = 1024;  // words from the one in use to the one that is prefetched

#if defined(__AVX512F__)
constexpr int64_t LANES = 16, MOST_ROWS = 8;  // MOST_ROWS: the sums of this many rows fit into the registers
#elif defined(__AVX2__)
constexpr int64_t LANES = 8, MOST_ROWS = 6;
#else
constexpr int64_t LANES = 4, MOST_ROWS = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

template <class Vector>
inline Vector load(const void* address) {
    Vector vector;
    memcpy(&vector, address, sizeof vector);
    return vector;
}

enum Parameter { LN1_W, LN1_B, X_R, X_K, X_V, X_W, X_A, X_G, W0, A0, V0, K_K, K_A, R_K, LN_X_W, LN_X_B, LN2_W, LN2_B,
              FFN_X_K, VECTORS_OF_LAYER };
enum Gate { W, A, G, V, GATES };  // layer 0 has no gate V

// A phase of the work, which all threads share: work(i) for each i below `items`, in any order.
struct Phase {
    std::atomic<int64_t> taken{0}, done{0};

    template <class Work>
    void share(int64_t items, Work work) {
        for (int64_t i; (i = taken.fetch_add(1)) < items;) {
            work(i);
            done.fetch_add(1, std::memory_order_release);
        }
        while (done.load(std::memory_order_acquire) < items) std::this_thread::yield();
    }
};

// The weights [outputs, inputs] of a matrix in panels; both are multiples of PANEL.
struct Matrix {
    const uint32_t* words;
    int64_t inputs, outputs;

    const uint32_t* panel(int64_t index) const { return words + index * inputs * PANEL / 2; }
};

// y [rows, outputs] = x [rows, inputs] @ matrix.T
struct Product {
    Matrix matrix;
    const float* x;
    float* y;
};

// Multiply R rows by one panel. The rows of x are `inputs` and those of y `stride` values apart. With few rows, all
// outputs are summed at once, because more sums hide the latency of an addition; with many, 2 * LANES at a time. The
// panel is prefetched if it comes from memory.
template <int R, bool FROM_MEMORY>
inline void multiply(const uint32_t* words, const float* x, int64_t inputs, float* y, int64_t stride) {
    constexpr int64_t PAIRS = R > 2 ? 1 : PANEL / 2 / LANES;
    for (int64_t first = 0; first < PANEL / 2; first += PAIRS * LANES) {
        Floats low[R][PAIRS] = {}, high[R][PAIRS] = {};
        const uint32_t* next = words + first;
        for (int64_t i = 0; i < inputs; i++, next += PANEL / 2) {
            if (FROM_MEMORY) __builtin_prefetch(next + PREFETCH);
            for (int64_t j = 0; j < PAIRS; j++) {
                const auto pair = load<Words>(next + j * LANES);
                const Floats weights_low = (Floats)(pair << 16), weights_high = (Floats)(pair & 0xffff0000u);
                for (int64_t r = 0; r < R; r++) {
                    low[r][j] += weights_low * x[r * inputs + i];
                    high[r][j] += weights_high * x[r * inputs + i];
                }
            }
        }
        for (int64_t r = 0; r < R; r++) {
            memcpy(y + r * stride + first, low[r], sizeof low[r]);
            memcpy(y + r * stride + first + PANEL / 2, high[r], sizeof high[r]);
        }
    }
}

// Multiply the rows from `row` on by one panel. The first rows load it into a cache.
template <int R>
void multiply_rows(const Product& product, int64_t panel, int64_t row, int64_t rows) {
    const int64_t inputs = product.matrix.inputs, outputs = product.matrix.outputs;
    for (; row + R <= rows; row += R)
        (row ? multiply<R, false> : multiply<R, true>)(product.matrix.panel(panel), product.x + row * inputs, inputs,
                                                       product.y + row * outputs + panel * PANEL, outputs);
    if constexpr (R > 1) multiply_rows<(R > 4 ? 4 : R / 2)>(product, panel, row, rows);
}

// Compute products in one phase. finish(index of the product, y, row, first output) is called for every PANEL outputs
// of a row; y points to their values.
template <class Finish>
void multiply_all(Phase& phase, const std::vector<Product>& products, int64_t rows, Finish finish) {
    int64_t panels = 0;
    for (const Product& product : products) panels += product.matrix.outputs / PANEL;
    phase.share(panels, [&](int64_t panel) {
        size_t index = 0;
        for (; panel >= products[index].matrix.outputs / PANEL; index++) panel -= products[index].matrix.outputs / PANEL;
        const Product& product = products[index];
        multiply_rows<MOST_ROWS>(product, panel, 0, rows);
        for (int64_t row = 0; row < rows; row++)
            finish(index, product.y + row * product.matrix.outputs + panel * PANEL, row, panel * PANEL);
    });
}

// Return e^x with a relative error of about 2e-7, in a form that compilers vectorize. NaN stays NaN.
inline float exponential(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float n = std::nearbyint(x * 1.44269504f), f = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // n ln 2 + f
    const float power = 1 + f * (1 + f * (1 / 2.f + f * (1 / 6.f + f * (1 / 24.f + f * (1 / 120.f + f / 720)))));
    const int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return power * scale;
}

inline float sigmoid(float x) { return 1 / (1 + exponential(-x)); }

void layer_norm(const float* x, const float* weight, const float* bias, int64_t n, float eps, float* y) {
    float mean = 0, variance = 0;
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < n; i++) mean += x[i];
    mean /= n;
#pragma omp simd reduction(+ : variance)
    for (int64_t i = 0; i < n; i++) variance += (x[i] - mean) * (x[i] - mean);
    const float scale = 1 / std::sqrt(variance / n + eps);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

// Layer norm, token shift and mixing of all tokens in three phases: with h = layer_norm(x), mixed [n, M, C] = h + (h of
// the preceding token - h) * mixes [n, C]. `shift` [B, C] is the h before each row's first token, and is overwritten by
// the h of its last token.
void norm_mix(Phase* phases, const float* x, const float* norm, float* shift, const float* mixes, int64_t n, int64_t B,
              int64_t T, int64_t C, float* h, float* mixed) {
    phases[0].share(B * T, [&](int64_t m) { layer_norm(x + m * C, norm, norm + C, C, LAYER_NORM_EPS, h + m * C); });
    phases[1].share(B * T, [&](int64_t m) {
        const float *own = h + m * C, *previous = m % T ? own - C : shift + m / T * C;
        for (int64_t i = 0; i < n; i++)
#pragma omp simd
            for (int64_t c = 0; c < C; c++)
                mixed[(i * B * T + m) * C + c] = own[c] + (previous[c] - own[c]) * mixes[i * C + c];
    });
    phases[2].share(B, [&](int64_t b) { memcpy(shift + b * C, h + (b * T + T - 1) * C, C * sizeof(float)); });
}

// One head and one token: the gates, the recurrence, the norm, the bonus and the output gate. All pointers are to the
// head's N values; S is its state [N, N] (key axis, value axis), and z is the output. v_first is null in layer 0.
void head_step(const float* vectors, int64_t C, const float* r, const float* k, const float* v, const float* v_first,
               const float* const low[GATES], float* S, float* z) {
    float removal[N], replacement[N], decay[N], key[N], value[N], y[N], square = 0, bonus = 0;
    const auto vector = [&](Parameter name) { return vectors + name * C; };
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < N; i++) {
        removal[i] = k[i] * vector(K_K)[i];
        square += removal[i] * removal[i];
    }
    const float scale = -1 / std::max(std::sqrt(square), 1e-12f);
#pragma omp simd
    for (int64_t i = 0; i < N; i++) {
        const float a = sigmoid(vector(A0)[i] + low[A][i]);
        removal[i] *= scale;
        replacement[i] = -removal[i] * a;
        decay[i] = exponential(-0.60653065971f * sigmoid(vector(W0)[i] + low[W][i]));
        key[i] = k[i] * (1 + (a - 1) * vector(K_A)[i]);
        value[i] = v_first ? v[i] + (v_first[i] - v[i]) * sigmoid(vector(V0)[i] + low[V][i]) : v[i];
    }
#pragma omp simd reduction(+ : bonus)
    for (int64_t i = 0; i < N; i++) bonus += r[i] * key[i] * vector(R_K)[i];
    Floats removed[N / LANES] = {}, sums[N / LANES] = {}, values[N / LANES];
    memcpy(values, value, sizeof value);
    for (int64_t j = 0; j < N; j++)
        for (int64_t i = 0; i < N / LANES; i++) removed[i] += load<Floats>(S + j * N + i * LANES) * removal[j];
    for (int64_t j = 0; j < N; j++)
        for (int64_t i = 0; i < N / LANES; i++) {
            float* const s = S + j * N + i * LANES;
            const Floats after = load<Floats>(s) * decay[j] + removed[i] * replacement[j] + values[i] * key[j];
            sums[i] += after * r[j];
            memcpy(s, &after, sizeof after);
        }
    memcpy(y, sums, sizeof y);
    layer_norm(y, vector(LN_X_W), vector(LN_X_B), N, GROUP_NORM_EPS, y);
    for (int64_t i = 0; i < N; i++) z[i] = (y[i] + bonus * value[i]) * low[G][i];
}

}  // namespace

struct Shape {
    int64_t layers, width, hidden, vocabulary;  // the vocabulary and the ranks are padded to multiples of PANEL
    int64_t ranks[GATES];
    int64_t bf16_tables;  // whether the tables are bf16, otherwise fp32
    int64_t rows, tokens, threads;
};

// Process the tokens. Arguments, all contiguous:
//   words: the matrices of each layer in the order in which they are taken below, then the head.
//   vectors: [2, C] ln0; for each layer [VECTORS_OF_LAYER, C] in the order of Parameter; [2, C] ln_out.
//   tables: the embedding, then each layer's DeepEmbed or null, each [V, C].
//   ids: [B, T]. att_shift, ffn_shift [L, B, C] and wkv [L, B, H, N, N] (key axis, value axis) are updated.
//   logits: [B, vocabulary], of the last token of each row.
extern "C" void rwkv_music_forward(const Shape* shape, const uint32_t* words, const float* vectors,
                                   const void* const* tables, const int64_t* ids, float* att_shift, float* wkv,
                                   float* ffn_shift, float* logits) {
    const Shape s = *shape;
    const int64_t B = s.rows, T = s.tokens, M = B * T, C = s.width, H = C / N;
    static thread_local std::vector<float> memory;
    int64_t used = 0;
    const auto take_memory = [&](int64_t n) { return memory.data() + (used += M * n) - M * n; };
    memory.resize(M * (16 * C + s.hidden + s.ranks[W] + s.ranks[A] + s.ranks[G] + s.ranks[V]));
    float *x = take_memory(C), *h = take_memory(C), *mixed = take_memory(6 * C), *rkv = take_memory(3 * C);
    float *v_first = take_memory(C), *gates = take_memory(GATES * C), *hidden = take_memory(s.hidden);
    float* low[GATES];
    for (int gate = 0; gate < GATES; gate++) low[gate] = take_memory(s.ranks[gate]);

    // Write to `values` the n values of a token's row of a table, from column c on.
    const auto embed = [&](const void* table, int64_t m, int64_t c, int64_t n, float* values) {
        const int64_t first = ids[m] * C + c;
        if (!s.bf16_tables) {
            memcpy(values, (const float*)table + first, n * sizeof(float));
            return;
        }
        for (int64_t i = 0; i < n; i++) {
            const uint32_t bits = (uint32_t)((const uint16_t*)table)[first + i] << 16;
            memcpy(values + i, &bits, sizeof bits);
        }
    };

    constexpr int64_t PHASES_OF_LAYER = 11;
    std::vector<Phase> phases(1 + PHASES_OF_LAYER * s.layers + 2);
#pragma omp parallel num_threads(s.threads)
    {
        Phase* phase = phases.data();
        const uint32_t* next = words;
        const auto take = [&](int64_t inputs, int64_t outputs) {
            const Matrix matrix{next, inputs, outputs};
            next += inputs * outputs / 2;
            return matrix;
        };
        phase++->share(M, [&](int64_t m) {
            embed(tables[0], m, 0, C, h + m * C);
            layer_norm(h + m * C, vectors, vectors + C, C, LAYER_NORM_EPS, x + m * C);
        });
        for (int64_t layer = 0; layer < s.layers; layer++, phase += PHASES_OF_LAYER) {
            const float* own = vectors + (2 + layer * VECTORS_OF_LAYER) * C;
            const auto vector = [&](Parameter name) { return own + name * C; };
            const int n_gates = layer == 0 ? V : GATES;
            norm_mix(phase, x, vector(LN1_W), att_shift + layer * B * C, vector(X_R), 6, B, T, C, h, mixed);
            std::vector<Product> products, ups;
            for (int i = 0; i < 3; i++) products.push_back({take(C, C), mixed + i * M * C, rkv + i * M * C});
            for (int gate = 0; gate < n_gates; gate++)
                products.push_back({take(C, s.ranks[gate]), mixed + (gate == V ? 2 : 3 + gate) * M * C, low[gate]});
            multiply_all(phase[3], products, M, [&](size_t index, float* y, int64_t, int64_t) {
                if (index == 3 + W)
                    for (int64_t i = 0; i < PANEL; i++) y[i] = std::tanh(y[i]);
                if (index == 3 + G)
                    for (int64_t i = 0; i < PANEL; i++) y[i] = sigmoid(y[i]);
            });

            for (int gate = 0; gate < n_gates; gate++)
                ups.push_back({take(s.ranks[gate], C), low[gate], gates + gate * M * C});
            phase[4].share(H, [&](int64_t head) {
                for (const Product& up : ups)
                    for (int64_t panel = head * N / PANEL; panel < (head + 1) * N / PANEL; panel++)
                        multiply_rows<MOST_ROWS>(up, panel, 0, M);
                for (int64_t m = 0; m < M; m++) {
                    const int64_t at = m * C + head * N;
                    const float* of_gates[GATES];
                    for (int gate = 0; gate < GATES; gate++) of_gates[gate] = gates + gate * M * C + at;
                    const float* const v = rkv + 2 * M * C + at;
                    head_step(own + head * N, C, rkv + at, rkv + M * C + at, v, layer ? v_first + at : nullptr,
                              of_gates, wkv + ((layer * B + m / T) * H + head) * N * N, h + at);
                    if (layer == 0) memcpy(v_first + at, v, N * sizeof(float));
                }
            });

            multiply_all(phase[5], {{take(C, C), h, mixed}}, M, [&](size_t, float* y, int64_t m, int64_t c) {
                for (int64_t i = 0; i < PANEL; i++) x[m * C + c + i] += y[i];
            });
            norm_mix(phase + 6, x, vector(LN2_W), ffn_shift + layer * B * C, vector(FFN_X_K), 1, B, T, C, h, mixed);
            multiply_all(phase[9], {{take(C, s.hidden), mixed, hidden}}, M, [&](size_t, float* y, int64_t, int64_t) {
                for (int64_t i = 0; i < PANEL; i++) y[i] = y[i] < 0 ? 0 : y[i] * y[i];
            });
            const void* const deep_embed = tables[1 + layer];
            multiply_all(phase[10], {{take(s.hidden, C), hidden, mixed}}, M, [&](size_t, float* y, int64_t m, int64_t c) {
                float factors[PANEL];
                if (deep_embed) embed(deep_embed, m, c, PANEL, factors);
                else std::fill_n(factors, PANEL, 1.0f);
                for (int64_t i = 0; i < PANEL; i++) x[m * C + c + i] += y[i] * factors[i];
            });
        }
        const float* ln_out = vectors + (2 + s.layers * VECTORS_OF_LAYER) * C;
        phase[0].share(B, [&](int64_t b) {
            layer_norm(x + (b * T + T - 1) * C, ln_out, ln_out + C, C, LAYER_NORM_EPS, h + b * C);
        });
        multiply_all(phase[1], {{take(C, s.vocabulary), h, logits}}, B, [](size_t, float*, int64_t, int64_t) {});
    }
}
