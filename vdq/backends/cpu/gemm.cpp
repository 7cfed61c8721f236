// Products of unsigned with signed bytes, exact on CPUs without VNNI: both are widened to 16 bits and pairs of products
// are added in 32 (vpmaddwd). Compiled where it runs and called through ctypes (native.py); AVX2 or AVX-512BW.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <immintrin.h>
#include <memory>

namespace {

#ifdef __AVX512BW__
using Vector = __m512i;
using Half = __m256i;
#define OP(name) _mm512_##name
#else
using Vector = __m256i;
using Half = __m128i;
#define OP(name) _mm256_##name
#endif

constexpr int64_t LANES = sizeof(Vector) / sizeof(int32_t);
constexpr int64_t PANEL = 2 * LANES; // outputs that are summed at once: two vectors
constexpr int64_t ROWS = 6;          // of that many tokens: twelve sums, three operands and a product fill 16 registers
constexpr int64_t TASK = 48;         // tokens whose widened codes a thread holds in its cache

inline Vector widened(const int8_t *w) {
    Half bytes;
    std::memcpy(&bytes, w, sizeof bytes);
    return OP(cvtepi8_epi16)(bytes);
}

// sums [ROWS, PANEL] of codes [pairs, ROWS], two 16-bit numbers each, with a panel of the weight [pairs, PANEL, 2].
// The sums have names, as compilers keep an array of them in memory. Not inlined for the same reason.
__attribute__((noinline)) void multiply_block(const int32_t *codes, const int8_t *w, int64_t pairs, int32_t *sums) {
    const Vector none = OP(set1_epi32)(0);
    Vector l0 = none, l1 = none, l2 = none, l3 = none, l4 = none, l5 = none;
    Vector r0 = none, r1 = none, r2 = none, r3 = none, r4 = none, r5 = none;
#define ROW(i)                                                                                                         \
    {                                                                                                                  \
        const Vector x = OP(set1_epi32)(codes[i]);                                                                     \
        l##i = OP(add_epi32)(l##i, OP(madd_epi16)(x, left));                                                           \
        r##i = OP(add_epi32)(r##i, OP(madd_epi16)(x, right));                                                          \
    }
    for (int64_t pair = 0; pair < pairs; ++pair, codes += ROWS, w += 2 * PANEL) {
        const Vector left = widened(w), right = widened(w + PANEL);
        ROW(0) ROW(1) ROW(2) ROW(3) ROW(4) ROW(5)
    }
    const Vector all[2 * ROWS] = {l0, r0, l1, r1, l2, r2, l3, r3, l4, r4, l5, r5};
    std::memcpy(sums, all, sizeof all);
}

// Codes [rows, columns] as [blocks, pairs, ROWS] of two 16-bit numbers, zeros where a block or a pair is not full.
void widen_codes(const uint8_t *q, int64_t rows, int64_t columns, int64_t pairs, int32_t *to) {
    std::memset(to, 0, (rows + ROWS - 1) / ROWS * ROWS * pairs * sizeof *to);
    for (int64_t row = 0; row < rows; ++row, q += columns) {
        int32_t *out = to + row / ROWS * ROWS * pairs + row % ROWS;
        for (int64_t pair = 0; pair < columns / 2; ++pair) out[pair * ROWS] = q[2 * pair] | q[2 * pair + 1] << 16;
        if (columns % 2) out[(pairs - 1) * ROWS] = q[columns - 1];
    }
}

} // namespace

extern "C" {

int64_t panel() { return PANEL; }

// y = scale * (q - zero) w [+ bias] [+ y if added]: q [rows, in], w packed [panels, pairs, PANEL, 2] with zeros where it
// is not full, w_sums (over in), scale and bias or null [out], y [rows, out].
void multiply(const uint8_t *q, const int8_t *w, const int32_t *w_sums, const float *scale, const float *bias, float *y,
              int64_t rows, int64_t in, int64_t out, int32_t zero, int32_t added, int32_t threads) {
    const int64_t pairs = (in + 1) / 2;
    const int64_t share = std::clamp<int64_t>((rows + threads - 1) / threads, 1, TASK);
    const int64_t task = (share + ROWS - 1) / ROWS * ROWS; // whole blocks
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const std::unique_ptr<int32_t[]> codes(new int32_t[task * pairs]);
        alignas(64) int32_t sums[ROWS * PANEL];
#pragma omp for schedule(static)
        for (int64_t first = 0; first < rows; first += task) {
            const int64_t last = std::min(first + task, rows);
            widen_codes(q + first * in, last - first, in, pairs, codes.get());
            for (int64_t start = 0; start < out; start += PANEL)
                for (int64_t row = first; row < last; row += ROWS) {
                    multiply_block(codes.get() + (row - first) * pairs, w + start * 2 * pairs, pairs, sums);
                    const int64_t columns = std::min(PANEL, out - start);
                    for (int64_t i = 0; i < std::min(ROWS, last - row); ++i) {
                        float *to = y + (row + i) * out + start;
                        for (int64_t c = 0; c < columns; ++c) {
                            const int32_t sum = sums[i * PANEL + c] - zero * w_sums[start + c];
                            const float value = sum * scale[start + c] + (bias ? bias[start + c] : 0.0f);
                            to[c] = added ? to[c] + value : value;
                        }
                    }
                }
        }
    }
}
}
