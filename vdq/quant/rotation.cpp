// The fast Walsh-Hadamard transform of rotation.py, with additions in the same order, so that both give the same bits:
// sums of two are rounded alike on every processor, and the one factor comes last.

#include <cstdint>
#include <memory>

extern "C" void hadamard(const float *x, float *y, int64_t blocks, int64_t size, float factor, int32_t threads) {
    const int64_t half = size / 2;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const std::unique_ptr<float[]> space(new float[2 * size]);
#pragma omp for schedule(static)
        for (int64_t block = 0; block < blocks; ++block) {
            const float *from = x + block * size;
            float *to = space.get(), *other = to + size;
            for (int64_t length = 1; length < size; length *= 2) {
#pragma omp simd
                for (int64_t i = 0; i < half; ++i) {
                    const float first = from[i], second = from[i + half];
                    to[2 * i] = first + second;
                    to[2 * i + 1] = first - second;
                }
                from = to;
                to = other;
                other = const_cast<float *>(from);
            }
            float *out = y + block * size;
#pragma omp simd
            for (int64_t i = 0; i < size; ++i) out[i] = from[i] * factor;
        }
    }
}
