// How the rows of a weight are decoded: a Stream walks over the blocks of a row. See linear.h for `Isa`.

#ifndef SLIMDEPLOY_STREAMS_H
#define SLIMDEPLOY_STREAMS_H

#include <cstring>
#include <type_traits>

#include "layout.h"
#include "numbers.h"

namespace slimdeploy {
namespace {

#if !defined(SLIMDEPLOY_UNROLL)
#define SLIMDEPLOY_UNROLL _Pragma("GCC unroll 16")
#endif
#define SLIMDEPLOY_INLINE inline __attribute__((always_inline))

SLIMDEPLOY_INLINE uint64_t load_u64(const uint8_t *p) {
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

SLIMDEPLOY_INLINE float load_bf16(const uint8_t *p) {
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
    return float_of_bf16(bits);
}

template <int kBytes>
SLIMDEPLOY_INLINE void prefetch(const uint8_t *p, int ahead) {
    SLIMDEPLOY_UNROLL
    for (int line = 0; line < kBytes; line += 64) __builtin_prefetch(p + ahead + line);
}

// A fixed count is at most half (layout.h).
template <class Isa, Structure kStructure>
using SpreadOf = std::conditional_t<kStructure == kFixedCount, typename Isa::Few, Isa>;

template <class Isa, Structure kStructure>
struct Int8Stream {
    static constexpr int kGroup = 128, kScaleBytes = 4, kPrefetch = kStructure == kDense ? 320 : 192;
    using Spread = SpreadOf<Isa, kStructure>;
    const uint8_t *p;
    int count, ahead;

    SLIMDEPLOY_INLINE const uint8_t *next(typename Isa::Chunk (&out)[kChunks]) {
        prefetch<kPrefetch>(p, ahead);
        const uint8_t *scales = p, *masks = p + kScaleBytes;
        const uint8_t *v = kStructure == kDense ? masks : masks + kMaskBytes;
        SLIMDEPLOY_UNROLL
        for (int c = 0; c < kChunks; c++) {
            if constexpr (kStructure == kDense) {
                out[c] = Isa::load(v);
                v += kChunkColumns;
            } else {
                const uint64_t mask = load_u64(masks + 8 * c);
                out[c] = Spread::expand(mask, v);
                v += kStructure == kFixedCount ? count : __builtin_popcountll(mask);
            }
        }
        p = v;
        return scales;
    }
};

template <class Isa, Structure kStructure, int kGroupColumns>
struct Int4Stream {
    static constexpr int kGroup = kGroupColumns, kScaleBytes = 2 * kBlockColumns / kGroup, kPrefetch = 128;
    using Spread = SpreadOf<Isa, kStructure>;
    const uint8_t *p;
    int count, ahead;

    SLIMDEPLOY_INLINE const uint8_t *next(typename Isa::Chunk (&out)[kChunks]) {
        prefetch<kPrefetch>(p, ahead);
        const uint8_t *scales = p, *masks = p + kScaleBytes;
        if constexpr (kStructure == kDense) {
            const uint8_t *v = masks;
            out[0] = Isa::load_low(v);
            out[1] = Isa::load_low(v + 64);
            out[2] = Isa::load_high(v);
            out[3] = Isa::load_high(v + 64);
            p = v + 128;
        } else {
            const uint8_t *v = masks + kMaskBytes;
            const uint64_t m0 = load_u64(masks), m1 = load_u64(masks + 8);
            const uint64_t m2 = load_u64(masks + 16), m3 = load_u64(masks + 24);
            const int low = kStructure == kFixedCount ? count : __builtin_popcountll(m0);
            const int high = kStructure == kFixedCount ? count : __builtin_popcountll(m2);
            out[0] = Spread::expand_low(m0, v);
            out[1] = Spread::expand_low(m1, v + low);
            out[2] = Spread::expand_high(m2, v);
            out[3] = Spread::expand_high(m3, v + high);
            if constexpr (kStructure == kFixedCount) {
                p = v + 2 * count;
            } else {
                const int low_end = low + __builtin_popcountll(m1), high_end = high + __builtin_popcountll(m3);
                p = v + (low_end > high_end ? low_end : high_end);
            }
        }
        return scales;
    }
};

template <class Isa, Structure kStructure>
struct WordStream {
    static constexpr int kPrefetch = kStructure == kDense ? 512 : 320, kWords = kBlockColumns / 32;
    const uint8_t *p;
    int count, ahead;

    SLIMDEPLOY_INLINE void next(typename Isa::Words (&out)[kWords]) {
        prefetch<kPrefetch>(p, ahead);
        const uint8_t *masks = p, *v = kStructure == kDense ? masks : masks + kMaskBytes;
        SLIMDEPLOY_UNROLL
        for (int c = 0; c < kChunks; c++) {
            if constexpr (kStructure == kDense) {
                out[2 * c] = Isa::load16(v);
                out[2 * c + 1] = Isa::load16(v + 64);
                v += 2 * kChunkColumns;
            } else {
                const uint64_t mask = load_u64(masks + 8 * c);
                const uint32_t first = uint32_t(mask), second = uint32_t(mask >> 32);
                out[2 * c] = Isa::expand16(first, v);
                out[2 * c + 1] = Isa::expand16(second, v + 2 * __builtin_popcount(first));
                v += 2 * (kStructure == kFixedCount ? count : __builtin_popcountll(mask));
            }
        }
        p = v;
    }
};

}  // namespace
}  // namespace slimdeploy

#endif
