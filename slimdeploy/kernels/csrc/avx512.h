// AVX-512 with VBMI2 (expanding bytes by a mask) and VNNI (products of bytes): operations for linear.h. 16 lanes;
// activations are stored as uint8 with an offset of 128, as VNNI wants them.

#ifndef SLIMDEPLOY_AVX512_H
#define SLIMDEPLOY_AVX512_H

#include <immintrin.h>

#include "linear.h"

namespace slimdeploy {
namespace {

struct Avx512 {
    static constexpr int kLanes = 16, kOffset = 128, kFusedSizes = 6;
    static constexpr int kMostFused = 32, kPanelVectors = 2, kPanelTile = 6;
    static constexpr size_t kPanelCache = size_t(512) << 10;  // of at least 1 MB at the second level
    using Chunk = __m512i;
    using Words = __m512i;
    using Ints = __m512i;
    using Units = __m512i;
    using Floats = __m512;

    static SLIMDEPLOY_INLINE Chunk load(const uint8_t *p) { return _mm512_loadu_si512(p); }
    // For expanding: from memory that takes three times as long as from a register (Zen 4), which the compiler ignores.
    static SLIMDEPLOY_INLINE Chunk load_first(const uint8_t *p) {
        Chunk values = load(p);
        __asm__("" : "+v"(values));
        return values;
    }
    // 16 q from the low or from the high nibbles.
    static SLIMDEPLOY_INLINE Chunk high(Chunk v) { return _mm512_and_si512(v, _mm512_set1_epi8(char(0xF0))); }
    static SLIMDEPLOY_INLINE Chunk load_low(const uint8_t *p) { return high(_mm512_slli_epi16(load(p), 4)); }
    static SLIMDEPLOY_INLINE Chunk load_high(const uint8_t *p) { return high(load(p)); }
    static SLIMDEPLOY_INLINE Chunk expand(uint64_t mask, const uint8_t *p) {
        return _mm512_maskz_expand_epi8(mask, load_first(p));
    }
    static SLIMDEPLOY_INLINE Chunk expand_low(uint64_t mask, const uint8_t *p) {
        return _mm512_maskz_expand_epi8(mask, load_low(p));
    }
    static SLIMDEPLOY_INLINE Chunk expand_high(uint64_t mask, const uint8_t *p) {
        return _mm512_maskz_expand_epi8(mask, load_high(p));
    }
    static SLIMDEPLOY_INLINE Words load16(const uint8_t *p) { return load(p); }
    static SLIMDEPLOY_INLINE Words expand16(uint32_t mask, const uint8_t *p) {
        return _mm512_maskz_expand_epi16(mask, load_first(p));
    }
    static SLIMDEPLOY_INLINE Units units(Chunk chunk, int) { return chunk; }

    static SLIMDEPLOY_INLINE Ints load_ints(const int32_t *p) { return _mm512_loadu_si512(p); }
    static SLIMDEPLOY_INLINE Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
    static SLIMDEPLOY_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
    // For its own intrinsic gcc 12 copies every sum there and back, which takes a fifth of prefill on Zen 5.
    static SLIMDEPLOY_INLINE Ints dot_units(Ints sum, Units x, Units weights) {
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(weights));
        return sum;
    }
    static SLIMDEPLOY_INLINE Floats zero() { return _mm512_setzero_ps(); }
    static SLIMDEPLOY_INLINE Floats multiply_add(Floats sum, Ints ints, Floats scale) {
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(ints), scale, sum);
    }
    static SLIMDEPLOY_INLINE Floats load_bf16(const uint8_t *p) {
        return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }
    // bf16 is the upper half of a float.
    static SLIMDEPLOY_INLINE Floats widen_bf16(__m256i words) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
    }
    static SLIMDEPLOY_INLINE Floats load_floats(const float *p) { return _mm512_load_ps(p); }
    static SLIMDEPLOY_INLINE void store_floats(float *p, Floats value) { _mm512_store_ps(p, value); }

    static SLIMDEPLOY_INLINE Units load_units(const uint32_t *p) { return _mm512_loadu_si512(p); }
    static SLIMDEPLOY_INLINE void store_units(uint32_t *p, Units units) { _mm512_store_si512(p, units); }
    static SLIMDEPLOY_INLINE Units broadcast_unit(const uint8_t *p) {
        int unit;
        memcpy(&unit, p, sizeof unit);
        return _mm512_set1_epi32(unit);
    }

    // Largest magnitude by bit pattern, so that infinity and NaN come out on top.
    static float round_int8(const float *x, size_t columns, size_t padded, void *out) {
        const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
        __m512i most = _mm512_setzero_si512();
        for (size_t k = 0; k < columns; k += 16) {
            const __m512i bits = _mm512_castps_si512(load_some(x + k, columns - k));
            most = _mm512_max_epu32(most, _mm512_and_si512(bits, magnitude));
        }
        const Int8Rounding rounding(_mm512_reduce_max_epu32(most));
        const __m512 inverse = _mm512_set1_ps(rounding.inverse);
        uint8_t *bytes = static_cast<uint8_t *>(out);
        for (size_t k = 0; k < padded; k += 16) {
            const __m512 scaled = _mm512_mul_ps(load_some(x + k, k < columns ? columns - k : 0), inverse);
            const __m512i codes = _mm512_add_epi32(_mm512_cvtps_epi32(scaled), _mm512_set1_epi32(kOffset));
            _mm_storeu_si128(reinterpret_cast<__m128i *>(bytes + k), _mm512_cvtepi32_epi8(codes));
        }
        return rounding.scale;
    }

    static SLIMDEPLOY_INLINE __m512 load_some(const float *x, size_t left) {
        return left >= 16 ? _mm512_loadu_ps(x) : _mm512_maskz_loadu_ps(__mmask16((1u << left) - 1), x);
    }

    static SLIMDEPLOY_INLINE __m256i half(Words words, int i) {
        return i ? _mm512_extracti64x4_epi64(words, 1) : _mm512_castsi512_si256(words);
    }
    struct Fp16 {
        using Activation = float;
        static constexpr auto round = copy_floats;
        static SLIMDEPLOY_INLINE Units units(Words words, int i, int) {
            return _mm512_castps_si512(_mm512_cvtph_ps(half(words, i)));
        }
        static SLIMDEPLOY_INLINE Floats dot_units(Floats sum, Units x, Units w) { return dot_float_units(sum, x, w); }
    };
    struct Bf16 {
        using Activation = float;
        static constexpr auto round = round_to_bf16;
        static SLIMDEPLOY_INLINE Units units(Words words, int i, int) {
            return _mm512_castps_si512(widen_bf16(half(words, i)));
        }
        static SLIMDEPLOY_INLINE Floats dot_units(Floats sum, Units x, Units w) { return dot_float_units(sum, x, w); }
    };

    static SLIMDEPLOY_INLINE Floats dot_float_units(Floats sum, Units x, Units w) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), sum);
    }
};

// 16 x 16 units at a time: units of 4 rows are gathered in 128-bit lanes, then lanes are exchanged.
template <int kUnits, int kStride>
struct Transpose<16, kUnits, kStride> {
    static SLIMDEPLOY_INLINE void run(const uint32_t (&from)[16][kUnits], uint32_t *to) {
        for (int u = 0; u < kUnits; u += 16) {
            __m512i row[16], quad[16];
            SLIMDEPLOY_UNROLL
            for (int i = 0; i < 16; i++) row[i] = _mm512_load_si512(from[i] + u);
            // quad[4 q + i], lane l: unit 4 l + i of rows 4 q to 4 q + 3.
            SLIMDEPLOY_UNROLL
            for (int q = 0; q < 16; q += 4) {
                const __m512i a = _mm512_unpacklo_epi32(row[q], row[q + 1]),
                              b = _mm512_unpackhi_epi32(row[q], row[q + 1]);
                const __m512i c = _mm512_unpacklo_epi32(row[q + 2], row[q + 3]);
                const __m512i d = _mm512_unpackhi_epi32(row[q + 2], row[q + 3]);
                quad[q] = _mm512_unpacklo_epi64(a, c);
                quad[q + 1] = _mm512_unpackhi_epi64(a, c);
                quad[q + 2] = _mm512_unpacklo_epi64(b, d);
                quad[q + 3] = _mm512_unpackhi_epi64(b, d);
            }
            // Unit 4 l + i of all rows is lane l of quad[i], quad[4 + i], quad[8 + i] and quad[12 + i].
            SLIMDEPLOY_UNROLL
            for (int i = 0; i < 4; i++) {
                const __m512i even_a = _mm512_shuffle_i32x4(quad[i], quad[4 + i], 0x88);
                const __m512i odd_a = _mm512_shuffle_i32x4(quad[i], quad[4 + i], 0xDD);
                const __m512i even_b = _mm512_shuffle_i32x4(quad[8 + i], quad[12 + i], 0x88);
                const __m512i odd_b = _mm512_shuffle_i32x4(quad[8 + i], quad[12 + i], 0xDD);
                uint32_t *out = to + size_t(u + i) * kStride;
                _mm512_store_si512(out, _mm512_shuffle_i32x4(even_a, even_b, 0x88));
                _mm512_store_si512(out + 4 * kStride, _mm512_shuffle_i32x4(odd_a, odd_b, 0x88));
                _mm512_store_si512(out + 8 * kStride, _mm512_shuffle_i32x4(even_a, even_b, 0xDD));
                _mm512_store_si512(out + 12 * kStride, _mm512_shuffle_i32x4(odd_a, odd_b, 0xDD));
            }
        }
    }
};

}  // namespace
}  // namespace slimdeploy

#endif
