// AVX-512 with products of bf16 pairs besides.

#ifndef SLIMDEPLOY_AVX512_BF16_H
#define SLIMDEPLOY_AVX512_BF16_H

#include "avx512.h"

namespace slimdeploy {
namespace {

struct Avx512Bf16 : Avx512 {
    struct Bf16 {
        using Activation = uint16_t;

        static float round(const float *x, size_t columns, size_t padded, void *out) {
            uint16_t *words = static_cast<uint16_t *>(out);
            for (size_t k = 0; k < padded; k += 16) {
                const __m512 values = load_some(x + k, k < columns ? columns - k : 0);
                _mm256_storeu_si256(reinterpret_cast<__m256i *>(words + k), (__m256i)_mm512_cvtneps_pbh(values));
            }
            return 1.0f;
        }
        static SLIMDEPLOY_INLINE Units units(Words words, int, int) { return words; }
        static SLIMDEPLOY_INLINE Floats dot_units(Floats sum, Units x, Units w) {
            return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
        }
    };
};

}  // namespace
}  // namespace slimdeploy

#endif
