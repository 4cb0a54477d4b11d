// How the panels of a weight are decoded: a Stream walks over the blocks of one. See linear.h for `Isa`.

#ifndef SLIMDEPLOY_STREAMS_H
#define SLIMDEPLOY_STREAMS_H

#include <cstring>

#include "layout.h"
#include "numbers.h"

namespace slimdeploy {
namespace {

#if !defined(SLIMDEPLOY_UNROLL)
#define SLIMDEPLOY_UNROLL _Pragma("GCC unroll 32")
#endif
#define SLIMDEPLOY_INLINE inline __attribute__((always_inline))

// How far ahead of a panel's position memory is fetched, which hides the latency of DRAM.
constexpr int kPrefetchAhead = 3072;

SLIMDEPLOY_INLINE uint64_t load_u64(const uint8_t *p) {
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

template <int kBytes>
SLIMDEPLOY_INLINE void prefetch(const uint8_t *p) {
    SLIMDEPLOY_UNROLL
    for (int line = 0; line < kBytes; line += 64) __builtin_prefetch(p + kPrefetchAhead + line);
}

// Vectors that hold a unit of every row of a panel.
template <class Isa>
constexpr int kUnitVectors = kPanelRows / Isa::kLanes;

template <class Isa, Structure kStructure>
struct Int8Stream {
    static constexpr int kGroup = 128, kPrefetch = kStructure == kDense ? 256 : 192;
    const uint8_t *p;
    typename Isa::Chunk chunk[kChunks];

    SLIMDEPLOY_INLINE void next() {
        prefetch<kPrefetch>(p);
        const uint8_t *masks = p, *v = kStructure == kDense ? masks : masks + kMaskBytes;
        SLIMDEPLOY_UNROLL
        for (int c = 0; c < kChunks; c++) {
            if constexpr (kStructure == kDense) {
                chunk[c] = Isa::load(v);
                v += kChunkWeights;
            } else {
                const uint64_t mask = load_u64(masks + 8 * c);
                chunk[c] = Isa::expand(mask, v);
                v += __builtin_popcountll(mask);
            }
        }
        p = v;
    }
};

template <class Isa, Structure kStructure, int kGroupColumns>
struct Int4Stream {
    static constexpr int kGroup = kGroupColumns, kPrefetch = 128;
    const uint8_t *p;
    typename Isa::Chunk chunk[kChunks];

    SLIMDEPLOY_INLINE void next() {
        prefetch<kPrefetch>(p);
        if constexpr (kStructure == kDense) {
            chunk[0] = Isa::load_low(p);
            chunk[1] = Isa::load_low(p + 64);
            chunk[2] = Isa::load_high(p);
            chunk[3] = Isa::load_high(p + 64);
            p += 128;
        } else {
            const uint64_t m0 = load_u64(p), m1 = load_u64(p + 8), m2 = load_u64(p + 16), m3 = load_u64(p + 24);
            const int low = __builtin_popcountll(m0), high = __builtin_popcountll(m2);
            const uint8_t *v = p + kMaskBytes;
            chunk[0] = Isa::expand_low(m0, v);
            chunk[1] = Isa::expand_low(m1, v + low);
            chunk[2] = Isa::expand_high(m2, v);
            chunk[3] = Isa::expand_high(m3, v + high);
            const int low_end = low + __builtin_popcountll(m1), high_end = high + __builtin_popcountll(m3);
            p = v + (low_end > high_end ? low_end : high_end);
        }
    }
};

template <class Isa, Structure kStructure>
struct WordStream {
    static constexpr int kPrefetch = kStructure == kDense ? 512 : 320;
    const uint8_t *p;
    typename Isa::Words words[2 * kChunks];

    SLIMDEPLOY_INLINE void next() {
        prefetch<kPrefetch>(p);
        const uint8_t *masks = p, *v = kStructure == kDense ? masks : masks + kMaskBytes;
        SLIMDEPLOY_UNROLL
        for (int c = 0; c < kChunks; c++) {
            if constexpr (kStructure == kDense) {
                words[2 * c] = Isa::load16(v);
                words[2 * c + 1] = Isa::load16(v + 64);
                v += 2 * kChunkWeights;
            } else {
                const uint64_t mask = load_u64(masks + 8 * c);
                const uint32_t first = uint32_t(mask), second = uint32_t(mask >> 32);
                words[2 * c] = Isa::expand16(first, v);
                words[2 * c + 1] = Isa::expand16(second, v + 2 * __builtin_popcount(first));
                v += 2 * __builtin_popcountll(mask);
            }
        }
        p = v;
    }
};

}  // namespace
}  // namespace slimdeploy

#endif
