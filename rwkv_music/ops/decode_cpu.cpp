// One decoding step on a CPU: the next token of each of B rows passes through all layers in one call.
//
// A step is bound by the memory bandwidth for the weights. Notable choices:
// - The weights of the matrices are bf16. A step reads each of them once for all rows. Everything else is fp32: vectors,
//   activations, sums and states.
// - A panel holds PANEL outputs of a matrix: for each input, the weights of these outputs. A panel is one stream in
//   memory, and its sums stay in registers. A word of a panel holds output k in its low and k + PANEL / 2 in its high
//   half, so that a shift and a mask make two vectors of fp32.
// - The threads take panels one by one. If another program interrupts a thread, the others wait for one panel only.
// - The result does not depend on the number of threads or of rows.
//
// decode_cpu.py packs the weights and documents the formulas' source. Shapes: B rows, C width, N head size, L layers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace {

constexpr int64_t PANEL = 32;
constexpr int64_t N = 64;
constexpr float GROUP_NORM_EPS = 64e-5f, LAYER_NORM_EPS = 1e-5f;
constexpr int64_t PREFETCH = 1024;  // words between the one in use and the one to fetch

#if defined(__AVX512F__)
constexpr int64_t LANES = 16, MOST_ROWS = 8;  // MOST_ROWS: rows whose sums fit into the registers
#elif defined(__AVX2__)
constexpr int64_t LANES = 8, MOST_ROWS = 4;
#else
constexpr int64_t LANES = 4, MOST_ROWS = 2;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
constexpr int64_t VECTORS = PANEL / LANES;

enum Vector { LN1_W, LN1_B, X_R, X_K, X_V, X_W, X_A, X_G, W0, A0, V0, K_K, K_A, R_K, LN_X_W, LN_X_B, LN2_W, LN2_B,
              FFN_X_K, VECTORS_OF_LAYER };
enum Gate { W, A, G, V, GATES };  // layer 0 lacks the last one

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

// Multiply R rows by one panel. x has `inputs` values a row; the rows of y are `stride` values apart.
template <int R>
inline void multiply(const uint32_t* words, const float* x, int64_t inputs, float* y, int64_t stride) {
    Floats sums[R][VECTORS] = {};
    for (int64_t i = 0; i < inputs; i++, words += PANEL / 2) {
        __builtin_prefetch(words + PREFETCH);
        Floats weights[VECTORS];
        for (int64_t j = 0; j < VECTORS / 2; j++) {
            Words pair;
            memcpy(&pair, words + j * LANES, sizeof pair);
            weights[j] = (Floats)(pair << 16);
            weights[j + VECTORS / 2] = (Floats)(pair & 0xffff0000u);
        }
        for (int64_t r = 0; r < R; r++)
            for (int64_t j = 0; j < VECTORS; j++) sums[r][j] += weights[j] * x[r * inputs + i];
    }
    for (int64_t r = 0; r < R; r++) memcpy(y + r * stride, sums[r], sizeof sums[r]);
}

template <int R>
void multiply_rows(const Product& product, int64_t panel, int64_t row, int64_t rows) {
    const auto [inputs, outputs] = std::pair(product.matrix.inputs, product.matrix.outputs);
    for (; row + R <= rows; row += R)
        multiply<R>(product.matrix.panel(panel), product.x + row * inputs, inputs,
                    product.y + row * outputs + panel * PANEL, outputs);
    if constexpr (R > 1) multiply_rows<R / 2>(product, panel, row, rows);
}

// Compute products in parallel. finish(product, y, row, output) follows on the PANEL values at y.
template <class Finish>
void multiply_all(const std::vector<Product>& products, int64_t rows, Finish finish) {
    int64_t panels = 0;
    for (const Product& product : products) panels += product.matrix.outputs / PANEL;
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < panels; i++) {
        size_t index = 0;
        int64_t panel = i;
        for (; panel >= products[index].matrix.outputs / PANEL; index++) panel -= products[index].matrix.outputs / PANEL;
        const Product& product = products[index];
        multiply_rows<MOST_ROWS>(product, panel, 0, rows);
        for (int64_t row = 0; row < rows; row++)
            finish(index, product.y + row * product.matrix.outputs + panel * PANEL, row, panel * PANEL);
    }
}

float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

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

// Write `mixes` [n, C] of h and the preceding token's h, `shift`, to mixed [n, B, C] at one row; h becomes `shift`.
void mix(const float* h, float* shift, const float* mixes, int64_t n, int64_t C, float* mixed, int64_t stride) {
    for (int64_t i = 0; i < n; i++)
#pragma omp simd
        for (int64_t c = 0; c < C; c++) mixed[i * stride + c] = h[c] + (shift[c] - h[c]) * mixes[i * C + c];
    memcpy(shift, h, C * sizeof(float));
}

// One head of one row: the gates, the recurrence, the norm, the bonus and the output gate. All pointers are to the
// head's N values, S is its state [N, N] (value axis, key axis); z is the output. v_first is null in layer 0.
void head_step(const float* vectors, int64_t C, const float* r, const float* k, const float* v, const float* v_first,
               const float* const low[GATES], float* S, float* z) {
    float removal[N], replacement[N], decay[N], key[N], value[N], y[N], square = 0, bonus = 0;
    const auto vector = [&](Vector name) { return vectors + name * C; };
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < N; i++) {
        removal[i] = k[i] * vector(K_K)[i];
        square += removal[i] * removal[i];
    }
    const float scale = -1 / std::max(std::sqrt(square), 1e-12f);
    for (int64_t i = 0; i < N; i++) {
        const float a = sigmoid(vector(A0)[i] + low[A][i]);
        removal[i] *= scale;
        replacement[i] = -removal[i] * a;
        decay[i] = std::exp(-0.60653065971f * sigmoid(vector(W0)[i] + low[W][i]));
        key[i] = k[i] * (1 + (a - 1) * vector(K_A)[i]);
        value[i] = v_first ? v[i] + (v_first[i] - v[i]) * sigmoid(vector(V0)[i] + low[V][i]) : v[i];
    }
#pragma omp simd reduction(+ : bonus)
    for (int64_t i = 0; i < N; i++) bonus += r[i] * key[i] * vector(R_K)[i];
    for (int64_t i = 0; i < N; i++) {
        float *s = S + i * N, removed = 0, read = 0;
#pragma omp simd reduction(+ : removed)
        for (int64_t j = 0; j < N; j++) removed += s[j] * removal[j];
#pragma omp simd reduction(+ : read)
        for (int64_t j = 0; j < N; j++) {
            s[j] = s[j] * decay[j] + removed * replacement[j] + value[i] * key[j];
            read += s[j] * r[j];
        }
        y[i] = read;
    }
    layer_norm(y, vector(LN_X_W), vector(LN_X_B), N, GROUP_NORM_EPS, y);
    for (int64_t i = 0; i < N; i++) z[i] = (y[i] + bonus * value[i]) * low[G][i];
}

}  // namespace

struct Shape {
    int64_t layers, width, hidden, vocabulary;  // the vocabulary and the ranks are padded to multiples of PANEL
    int64_t ranks[GATES];
    int64_t bf16_tables;  // whether the tables are bf16, otherwise fp32
    int64_t rows, threads;
};

// Process one token of each row. Arguments, all contiguous:
//   words: the matrices of each layer in the order in which they are taken below, then the head.
//   vectors: [2, C] ln0; for each layer [VECTORS_OF_LAYER, C] in the order of Vector; [2, C] ln_out.
//   tables: the embedding, then each layer's DeepEmbed or null, each [V, C].
//   tokens: [B]. att_shift, ffn_shift [L, B, C] and wkv [L, B, H, N, N] are updated.
//   logits: [B, vocabulary].
extern "C" void rwkv_music_decode_step(const Shape* shape, const uint32_t* words, const float* vectors,
                                       const void* const* tables, const int64_t* tokens, float* att_shift, float* wkv,
                                       float* ffn_shift, float* logits) {
    const Shape s = *shape;
    const int64_t B = s.rows, C = s.width, BC = B * C;
    static thread_local std::vector<float> memory;
    size_t used = 0;
    memory.resize(B * (16 * C + s.hidden + s.ranks[W] + s.ranks[A] + s.ranks[G] + s.ranks[V]));
    const auto take_memory = [&](int64_t n) { return memory.data() + (used += B * n) - B * n; };
    float *x = take_memory(C), *h = take_memory(C), *mixed = take_memory(6 * C), *rkv = take_memory(3 * C);
    float *v_first = take_memory(C), *gates = take_memory(GATES * C), *hidden = take_memory(s.hidden);
    float* low[GATES];
    for (int gate = 0; gate < GATES; gate++) low[gate] = take_memory(s.ranks[gate]);

    const auto embed = [&](const void* table, int64_t row, int64_t channel) {
        const int64_t i = tokens[row] * C + channel;
        if (!s.bf16_tables) return ((const float*)table)[i];
        const uint32_t bits = (uint32_t)((const uint16_t*)table)[i] << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    };

#pragma omp parallel num_threads(s.threads)
    {
        const uint32_t* next = words;
        const auto take = [&](int64_t inputs, int64_t outputs) {
            const Matrix matrix{next, inputs, outputs};
            next += inputs * outputs / 2;
            return matrix;
        };
        const auto nothing = [](size_t, float*, int64_t, int64_t) {};
#pragma omp for
        for (int64_t b = 0; b < B; b++) {
            for (int64_t c = 0; c < C; c++) h[b * C + c] = embed(tables[0], b, c);
            layer_norm(h + b * C, vectors, vectors + C, C, LAYER_NORM_EPS, x + b * C);
        }
        for (int64_t layer = 0; layer < s.layers; layer++) {
            const float* own = vectors + (2 + layer * VECTORS_OF_LAYER) * C;
            const auto vector = [&](Vector name) { return own + name * C; };
            const int gates_here = layer == 0 ? V : GATES;
#pragma omp for
            for (int64_t b = 0; b < B; b++) {
                layer_norm(x + b * C, vector(LN1_W), vector(LN1_B), C, LAYER_NORM_EPS, h + b * C);
                mix(h + b * C, att_shift + layer * BC + b * C, vector(X_R), 6, C, mixed + b * C, BC);
            }
            std::vector<Product> products;
            for (int i = 0; i < 3; i++) products.push_back({take(C, C), mixed + i * BC, rkv + i * BC});
            for (int gate = 0; gate < gates_here; gate++)
                products.push_back({take(C, s.ranks[gate]), mixed + (gate == V ? 2 : 3 + gate) * BC, low[gate]});
            multiply_all(products, B, [&](size_t index, float* y, int64_t, int64_t) {
                if (index == 3 + W)
                    for (int64_t i = 0; i < PANEL; i++) y[i] = std::tanh(y[i]);
                if (index == 3 + G)
                    for (int64_t i = 0; i < PANEL; i++) y[i] = sigmoid(y[i]);
            });

            std::vector<Product> ups;
            for (int gate = 0; gate < gates_here; gate++)
                ups.push_back({take(s.ranks[gate], C), low[gate], gates + gate * BC});
#pragma omp for schedule(dynamic)
            for (int64_t head = 0; head < C / N; head++) {
                for (const Product& up : ups)
                    for (int64_t panel = head * N / PANEL; panel < (head + 1) * N / PANEL; panel++)
                        multiply_rows<MOST_ROWS>(up, panel, 0, B);
                for (int64_t b = 0; b < B; b++) {
                    const int64_t at = b * C + head * N;
                    const float* of_gates[GATES];
                    for (int gate = 0; gate < GATES; gate++) of_gates[gate] = gates + gate * BC + at;
                    float* const v = rkv + 2 * BC + at;
                    head_step(own + head * N, C, rkv + at, rkv + BC + at, v, layer ? v_first + at : nullptr, of_gates,
                              wkv + ((layer * B + b) * C + head * N) * N, h + at);
                    if (layer == 0) memcpy(v_first + at, v, N * sizeof(float));
                }
            }

            multiply_all({{take(C, C), h, mixed}}, B, [&](size_t, float* y, int64_t b, int64_t c) {
                for (int64_t i = 0; i < PANEL; i++) x[b * C + c + i] += y[i];
            });
#pragma omp for
            for (int64_t b = 0; b < B; b++) {
                layer_norm(x + b * C, vector(LN2_W), vector(LN2_B), C, LAYER_NORM_EPS, h + b * C);
                mix(h + b * C, ffn_shift + layer * BC + b * C, vector(FFN_X_K), 1, C, mixed + b * C, BC);
            }
            multiply_all({{take(C, s.hidden), mixed, hidden}}, B, [&](size_t, float* y, int64_t, int64_t) {
                for (int64_t i = 0; i < PANEL; i++) y[i] = y[i] < 0 ? 0 : y[i] * y[i];
            });
            const void* const deep_embed = tables[1 + layer];
            multiply_all({{take(s.hidden, C), hidden, mixed}}, B, [&](size_t, float* y, int64_t b, int64_t c) {
                for (int64_t i = 0; i < PANEL; i++)
                    x[b * C + c + i] += deep_embed ? y[i] * embed(deep_embed, b, c + i) : y[i];
            });
        }
        const float* ln_out = vectors + (2 + s.layers * VECTORS_OF_LAYER) * C;
#pragma omp for
        for (int64_t b = 0; b < B; b++)
            layer_norm(x + b * C, ln_out, ln_out + C, C, LAYER_NORM_EPS, h + b * C);
        multiply_all({{take(C, s.vocabulary), h, logits}}, B, nothing);
    }
}
