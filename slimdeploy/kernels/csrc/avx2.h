// AVX2 with FMA and F16C: operations for linear.h. 8 lanes; bf16 and fp16 weights are multiplied as floats.
// `Products` says how bytes are multiplied: with the VNNI instruction or without.

#ifndef SLIMDEPLOY_AVX2_H
#define SLIMDEPLOY_AVX2_H

#include <immintrin.h>

#include "expand.h"
#include "linear.h"

namespace slimdeploy {
namespace {

template <class Products>
struct Avx2 {
    static constexpr int kLanes = 8, kOffset = Products::kOffset, kFusedSizes = 4;
    static constexpr int kMostFused = 8, kPanelVectors = 2, kPanelTile = 4;
    static constexpr size_t kPanelCache = size_t(256) << 10;
    struct Chunk {
        __m256i half[2];  // 8 rows each
    };
    struct Words {
        __m128i part[4];  // 8 rows each, two parts for every column
    };
    using Ints = __m256i;
    using Units = __m256i;
    using Floats = __m256;

    static SLIMDEPLOY_INLINE __m128i load_128(const void *p) {
        return _mm_loadu_si128(static_cast<const __m128i *>(p));
    }
    static SLIMDEPLOY_INLINE __m256i load_256(const void *p) {
        return _mm256_loadu_si256(static_cast<const __m256i *>(p));
    }

    // 16 q from the low or from the high nibbles.
    static SLIMDEPLOY_INLINE __m256i high_nibbles(__m256i v) {
        return _mm256_and_si256(v, _mm256_set1_epi8(char(0xF0)));
    }
    static SLIMDEPLOY_INLINE __m256i low_nibbles(__m256i v) { return high_nibbles(_mm256_slli_epi16(v, 4)); }
    static SLIMDEPLOY_INLINE Chunk high_nibbles(Chunk c) {
        return {{high_nibbles(c.half[0]), high_nibbles(c.half[1])}};
    }
    static SLIMDEPLOY_INLINE Chunk low_nibbles(Chunk c) { return {{low_nibbles(c.half[0]), low_nibbles(c.half[1])}}; }

    // The table's entry for the byte of the mask at bit kShift. Rotated to 16 times the byte: that is one instruction.
    template <int kShift>
    static SLIMDEPLOY_INLINE __m128i entry(const uint8_t (&table)[256][16], uint64_t mask) {
        constexpr int kRotation = (kShift + 60) % 64;
        const uint64_t offset = (mask >> kRotation | mask << (64 - kRotation)) & 0xFF0;
        return load_128(table[0] + offset);
    }
    template <int kShift>
    static SLIMDEPLOY_INLINE __m128i spread(uint64_t mask, const uint8_t *p) {
        p += __builtin_popcountll(mask & ((uint64_t(1) << kShift) - 1));
        const __m128i first = entry<kShift>(kExpand.first, mask), second = entry<kShift + 8>(kExpand.second, mask);
        return _mm_shuffle_epi8(load_128(p), _mm_add_epi8(first, second));
    }
    static SLIMDEPLOY_INLINE Chunk expand(uint64_t mask, const uint8_t *p) {
        return {{_mm256_set_m128i(spread<16>(mask, p), spread<0>(mask, p)),
                 _mm256_set_m128i(spread<48>(mask, p), spread<32>(mask, p))}};
    }
    static SLIMDEPLOY_INLINE Chunk expand_low(uint64_t mask, const uint8_t *p) { return low_nibbles(expand(mask, p)); }
    static SLIMDEPLOY_INLINE Chunk expand_high(uint64_t mask, const uint8_t *p) {
        return high_nibbles(expand(mask, p));
    }
    static SLIMDEPLOY_INLINE Chunk load(const uint8_t *p) { return {{load_256(p), load_256(p + 32)}}; }
    static SLIMDEPLOY_INLINE Chunk load_low(const uint8_t *p) { return low_nibbles(load(p)); }
    static SLIMDEPLOY_INLINE Chunk load_high(const uint8_t *p) { return high_nibbles(load(p)); }
    static SLIMDEPLOY_INLINE Words load16(const uint8_t *p) {
        return {{load_128(p), load_128(p + 16), load_128(p + 32), load_128(p + 48)}};
    }
    template <int kShift>
    static SLIMDEPLOY_INLINE __m128i spread_words(uint32_t mask, const uint8_t *p) {
        const int before = __builtin_popcount(mask & ((1u << kShift) - 1));
        return _mm_shuffle_epi8(load_128(p + 2 * before), entry<kShift>(kExpand.words, mask));
    }
    static SLIMDEPLOY_INLINE Words expand16(uint32_t mask, const uint8_t *p) {
        return {
            {spread_words<0>(mask, p), spread_words<8>(mask, p), spread_words<16>(mask, p), spread_words<24>(mask, p)}};
    }
    static SLIMDEPLOY_INLINE Units units(const Chunk &chunk, int v) { return chunk.half[v]; }

    static SLIMDEPLOY_INLINE Ints load_ints(const int32_t *p) { return load_256(p); }
    static SLIMDEPLOY_INLINE Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
    static SLIMDEPLOY_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }

    static SLIMDEPLOY_INLINE Floats zero() { return _mm256_setzero_ps(); }
    static SLIMDEPLOY_INLINE Floats multiply_add(Floats sum, Ints ints, Floats scale) {
        return _mm256_fmadd_ps(_mm256_cvtepi32_ps(ints), scale, sum);
    }
    // bf16 is the upper half of a float.
    static SLIMDEPLOY_INLINE Floats widen_bf16(__m128i words) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
    }
    static SLIMDEPLOY_INLINE Floats load_bf16(const uint8_t *p) { return widen_bf16(load_128(p)); }
    static SLIMDEPLOY_INLINE Floats load_floats(const float *p) { return _mm256_load_ps(p); }
    static SLIMDEPLOY_INLINE void store_floats(float *p, Floats value) { _mm256_store_ps(p, value); }

    static SLIMDEPLOY_INLINE Units load_units(const uint32_t *p) { return load_256(p); }
    static SLIMDEPLOY_INLINE void store_units(uint32_t *p, Units units) {
        _mm256_store_si256(reinterpret_cast<__m256i *>(p), units);
    }
    static SLIMDEPLOY_INLINE Units broadcast_unit(const uint8_t *p) {
        int unit;
        memcpy(&unit, p, sizeof unit);
        return _mm256_set1_epi32(unit);
    }
    static SLIMDEPLOY_INLINE Ints dot_units(Ints sum, Units x, Units weights) { return Products::add(sum, x, weights); }

    static SLIMDEPLOY_INLINE __m256 load_some(const float *x, size_t left) {
        if (left >= 8) return _mm256_loadu_ps(x);
        const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_maskload_ps(x, _mm256_cmpgt_epi32(_mm256_set1_epi32(int(left)), places));
    }
    // Largest magnitude by bit pattern, so that infinity and NaN come out on top.
    static float round_int8(const float *x, size_t columns, size_t padded, void *out) {
        __m256i most = _mm256_setzero_si256();
        for (size_t k = 0; k < columns; k += 8) {
            const __m256i bits = _mm256_castps_si256(load_some(x + k, columns - k));
            most = _mm256_max_epu32(most, _mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFFFF)));
        }
        alignas(32) uint32_t lanes[kLanes];
        _mm256_store_si256(reinterpret_cast<__m256i *>(lanes), most);
        uint32_t largest = 0;
        for (uint32_t lane : lanes) largest = lane > largest ? lane : largest;
        const Int8Rounding rounding(largest);
        const __m256 inverse = _mm256_set1_ps(rounding.inverse);
        uint8_t *bytes = static_cast<uint8_t *>(out);
        for (size_t k = 0; k < padded; k += 8) {
            const __m256 scaled = _mm256_mul_ps(load_some(x + k, k < columns ? columns - k : 0), inverse);
            const __m256i codes = _mm256_add_epi32(_mm256_cvtps_epi32(scaled), _mm256_set1_epi32(kOffset));
            const __m256i low_bytes = _mm256_setr_epi32(0x0C080400, -1, -1, -1, 0x0C080400, -1, -1, -1);
            const __m256i packed = _mm256_shuffle_epi8(codes, low_bytes);
            const __m128i low = _mm256_castsi256_si128(packed), high = _mm256_extracti128_si256(packed, 1);
            _mm_storel_epi64(reinterpret_cast<__m128i *>(bytes + k), _mm_unpacklo_epi32(low, high));
        }
        return rounding.scale;
    }

    template <class Widen, RoundKernel kRound>
    struct ByFloats {
        using Activation = float;
        static constexpr RoundKernel round = kRound;
        static SLIMDEPLOY_INLINE Units units(const Words &words, int i, int v) {
            return _mm256_castps_si256(Widen::floats(words.part[2 * i + v]));
        }
        static SLIMDEPLOY_INLINE Floats dot_units(Floats sum, Units x, Units weights) {
            return _mm256_fmadd_ps(_mm256_castsi256_ps(x), _mm256_castsi256_ps(weights), sum);
        }
    };
    struct WidenFp16 {
        static SLIMDEPLOY_INLINE Floats floats(__m128i words) { return _mm256_cvtph_ps(words); }
    };
    struct WidenBf16 {
        static SLIMDEPLOY_INLINE Floats floats(__m128i words) { return widen_bf16(words); }
    };
    using Fp16 = ByFloats<WidenFp16, copy_floats>;
    using Bf16 = ByFloats<WidenBf16, round_to_bf16>;
};

}  // namespace
}  // namespace slimdeploy

#endif
