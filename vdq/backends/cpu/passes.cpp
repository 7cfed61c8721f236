// The elementwise passes of int8_cpu over rows of fp32 numbers, one read and one write each. Compiled where it runs and
// called through ctypes (native.py); passes.py says what each computes and has the same in torch.
// Loops over a row stay in the cache and are simple enough to be vectorized. omp simd lets sums change their order.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>

struct Rows {
    const float *x;         // [batch, rows, columns]
    int64_t batch, rows, columns;
    int64_t swap_a, swap_b; // rows = a * b; row (i, j) is written as row (j, i). 0: rows stay
    const float *position;  // [a, columns], added to the rows (i, j); null: none
    float eps;              // of LayerNorm; negative: none
    int32_t gelu;           // whether GELU, tanh approximation, comes first
};

struct Grid {
    const float *mul, *add; // [batch, columns]: t = v * mul + add; null: t = v / div
    const float *div;       // [columns]; null: t = v
    uint8_t *codes;         // [batch, rows, columns]
    float *sums;            // [batch, rows] of codes - zero; null: not wanted
    float *scale, *shift;   // [batch, rows], dynamic: step size, and 128 - zero point; null: static
    int32_t zero, top;      // zero point if static, last code; the first is 0
    int32_t half;           // dynamic and symmetric: the zero point, else 0
};

namespace {

constexpr float EPS = 1e-6f; // smallest step size, as in vdq.quant.affine

// Cephes' expf without branches: relative error below 2e-7 for x in -87..88, outside of which the bounds' values stand.
inline float exponential(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    const float n = std::rint(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return (p * r * r + r + 1.0f) * power;
}

// v <- what the grids quantize.
void read_row(const Rows &in, const float *x, const float *position, float *v) {
    const int64_t n = in.columns;
    if (in.gelu) {
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) {
            const float u = 0.79788456080287f * (x[c] + 0.044715f * x[c] * x[c] * x[c]);
            v[c] = x[c] / (1.0f + exponential(-2.0f * u));
        }
    } else if (position) {
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) v[c] = x[c] + position[c];
    } else {
        std::memcpy(v, x, n * sizeof(float));
    }
    if (in.eps < 0) return;
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < n; ++c) sum += v[c];
    const float mean = sum / n;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < n; ++c) squares += (v[c] - mean) * (v[c] - mean);
    const float rstd = 1.0f / std::sqrt(squares / n + in.eps);
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) v[c] = (v[c] - mean) * rstd;
}

// p = clamp(round(t / scale) + zero, 0, top); the bounds are whole, so that they may come before rounding.
template <class Value>
float write_codes(int64_t n, float zero, float top, uint8_t *codes, Value value) {
    int32_t sum = 0;
    const float low = -zero, high = top - zero;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < n; ++c) {
        float t = value(c);
        t = t > low ? t : low;
        t = t < high ? t : high;
        const int32_t step = static_cast<int32_t>(std::rint(t));
        sum += step;
        codes[c] = static_cast<uint8_t>(step + static_cast<int32_t>(zero));
    }
    return static_cast<float>(sum);
}

void static_row(const Grid &g, int64_t n, int64_t row, int64_t batch, const float *v) {
    uint8_t *codes = g.codes + row * n;
    const float *div = g.div, *mul = g.mul + batch * n, *add = g.add + batch * n;
    float sum;
    if (g.mul)
        sum = write_codes(n, g.zero, g.top, codes, [=](int64_t c) { return v[c] * mul[c] + add[c]; });
    else
        sum = write_codes(n, g.zero, g.top, codes, [=](int64_t c) { return v[c] / div[c]; });
    if (g.sums) g.sums[row] = sum;
}

void dynamic_row(const Grid &g, int64_t n, int64_t row, int64_t batch, const float *v, float *t) {
    float low = 0, high = 0;
    if (g.mul) {
        const float *mul = g.mul + batch * n, *add = g.add + batch * n;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) t[c] = v[c] * mul[c] + add[c];
    } else if (g.div) {
        const float *div = g.div;
#pragma omp simd
        for (int64_t c = 0; c < n; ++c) t[c] = v[c] / div[c];
    } else {
        t = const_cast<float *>(v); // read only below
    }
#pragma omp simd reduction(min : low) reduction(max : high)
    for (int64_t c = 0; c < n; ++c) {
        low = t[c] < low ? t[c] : low;
        high = t[c] > high ? t[c] : high;
    }
    float scale = g.half ? (-low > high ? -low : high) / (g.half - 1) : (high - low) / g.top;
    scale = scale > EPS ? scale : EPS;
    const float zero = g.half ? g.half : std::rint(-low / scale), shift = 128 - zero;
    const float *values = t;
    const float sum = write_codes(n, zero, g.top, g.codes + row * n, [=](int64_t c) { return values[c] / scale; });
    g.scale[row] = scale;
    g.shift[row] = shift;
    if (g.sums) g.sums[row] = sum;
}

struct Line {
    const float *y, *into, *w_sums, *offset, *bias;
    float scale, shift, sum;
};

template <bool Sums, bool Into> void finish_row(const Line &in, float *out, int64_t n) {
    const Line l = in;
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) {
        float t = l.y[c] + l.shift * l.w_sums[c];
        if constexpr (Sums) t += l.sum * l.offset[c];
        t = t * l.scale + l.bias[c];
        if constexpr (Into) t += l.into[c];
        out[c] = t;
    }
}

} // namespace

extern "C" {

// Each row once: read it, then write its codes for every grid.
void quantize(const Rows *rows, const Grid *grids, int64_t count, int32_t threads) {
    const Rows in = *rows;
    const int64_t total = in.batch * in.rows, n = in.columns;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const std::unique_ptr<float[]> values(new float[2 * n]);
#pragma omp for schedule(static)
        for (int64_t out = 0; out < total; ++out) {
            const int64_t batch = out / in.rows, place = out % in.rows;
            int64_t from = place, first = 0;
            if (in.swap_a) {
                first = place % in.swap_a;
                from = first * in.swap_b + place / in.swap_a;
            }
            const float *position = in.position ? in.position + first * n : nullptr;
            read_row(in, in.x + (batch * in.rows + from) * n, position, values.get());
            for (int64_t k = 0; k < count; ++k)
                if (grids[k].scale)
                    dynamic_row(grids[k], n, out, batch, values.get(), values.get() + n);
                else
                    static_row(grids[k], n, out, batch, values.get());
        }
    }
}

// out = scale * (y + shift * w_sums + sums * offset) + bias, + into if given: y, into, out [rows, n]; scale, shift, sums
// [rows]; w_sums, offset, bias [n]. out may be y or into. sums null: no such term.
void finish(const float *y, const float *into, float *out, int64_t rows, int64_t n, const float *scale,
            const float *shift, const float *w_sums, const float *sums, const float *offset, const float *bias,
            int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; ++row) {
        const Line line{y + row * n, into ? into + row * n : nullptr, w_sums, offset, bias, scale[row], shift[row],
                        sums ? sums[row] : 0};
        float *to = out + row * n;
        if (into)
            sums ? finish_row<true, true>(line, to, n) : finish_row<false, true>(line, to, n);
        else
            sums ? finish_row<true, false>(line, to, n) : finish_row<false, false>(line, to, n);
    }
}
}
