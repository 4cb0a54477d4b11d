// Attention of 9 queries and more by tile products of bf16. Every number is split into a high and a low half of 8 bits
// of mantissa each, and three of the four products of halves are added up, which leaves an error of some 2^-17 of each
// product (Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype For
// Higher-Precision Computations"). See attention.h.

#ifndef SLIMDEPLOY_AMX_ATTENTION_H
#define SLIMDEPLOY_AMX_ATTENTION_H

#include "amx_tiles.h"
#include "attention.h"
#include "avx512.h"

namespace slimdeploy {
namespace {

using AttentionTiles = Tiles<kTileBytes>;
constexpr size_t kTileDepth = 32;    // numbers that a tile multiplies in a row
constexpr size_t kTileColumns = 32;  // of two tiles side by side
constexpr size_t kBlockKeys = AttentionScratch::kPadding;
static_assert(AttentionScratch::kRowPadding == kTileRows, "there is room for whole tiles of queries");

// 32 numbers as bf16, and what that leaves of them as bf16 as well, both in order.
struct Halves {
    __m512i high, low;

    SLIMDEPLOY_INLINE Halves(__m512 first, __m512 second)
        : high((__m512i)_mm512_cvtne2ps_pbh(second, first)),
          low((__m512i)_mm512_cvtne2ps_pbh(rest(second, _mm512_extracti64x4_epi64(high, 1)),
                                           rest(first, _mm512_castsi512_si256(high)))) {}

   private:
    static SLIMDEPLOY_INLINE __m512 rest(__m512 values, __m256i words) {
        return _mm512_sub_ps(values, Avx512::widen_bf16(words));
    }
};

// block[d / 2][key]: pairs of numbers of `count` keys, high halves and behind them low ones; zeros for other keys, and
// for d up to `depth`.
SLIMDEPLOY_INLINE void split_keys(const float *keys, size_t count, size_t size, size_t depth, uint32_t *block) {
    uint32_t *const low_block = block + depth / 2 * kBlockKeys;
    for (size_t first = 0; first < kBlockKeys; first += kTileRows) {
        prefetch_rows(keys + (first + kKeysAhead) * size, kTileRows * size);
        for (size_t d = 0; d < depth; d += kTileDepth) {
            alignas(64) uint32_t high[kTileRows][kTileRows], low[kTileRows][kTileRows];
            for (size_t i = 0; i < size_t(kTileRows); i++) {
                const size_t left = first + i < count && d < size ? size - d : 0;
                const float *x = keys + (first + i) * size + d;
                const Halves halves(Avx512::load_some(x, left), Avx512::load_some(x + 16, left > 16 ? left - 16 : 0));
                _mm512_store_si512(high[i], halves.high);
                _mm512_store_si512(low[i], halves.low);
            }
            const size_t place = d / 2 * kBlockKeys + first;
            Transpose<16, 16, int(kBlockKeys)>::run(high, block + place);
            Transpose<16, 16, int(kBlockKeys)>::run(low, low_block + place);
        }
    }
}

// block[key / 2][d]: pairs of keys of `count`, high halves and behind them low ones; zeros for others, and for d up to
// `columns`.
SLIMDEPLOY_INLINE void split_values(const float *values, size_t count, size_t size, size_t columns, uint32_t *block) {
    // Words of the even key and of the odd one, which Halves has one behind the other.
    alignas(64) static constexpr uint16_t kInPairs[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i in_pairs = _mm512_load_si512(kInPairs);
    uint32_t *low_block = block + kBlockKeys / 2 * columns;
    prefetch_rows(values + kBlockKeys * size, kBlockKeys * size);
    for (size_t key = 0; key < kBlockKeys; key += 2) {
        for (size_t d = 0; d < columns; d += 16, block += 16, low_block += 16) {
            const size_t left = d < size ? size - d : 0;
            const float *x = values + key * size + d;
            const Halves halves(Avx512::load_some(x, key < count ? left : 0),
                                Avx512::load_some(x + size, key + 1 < count ? left : 0));
            _mm512_store_si512(block, _mm512_permutexvar_epi16(in_pairs, halves.high));
            _mm512_store_si512(low_block, _mm512_permutexvar_epi16(in_pairs, halves.low));
        }
    }
}

// kBlockKeys numbers become their high halves, and their low ones behind these.
SLIMDEPLOY_INLINE void split_in_place(float *x) {
    const Halves first(_mm512_load_ps(x), _mm512_load_ps(x + 16)),
        second(_mm512_load_ps(x + 32), _mm512_load_ps(x + 48));
    _mm512_store_si512(x, first.high);
    _mm512_store_si512(x + 16, second.high);
    _mm512_store_si512(x + 32, first.low);
    _mm512_store_si512(x + 48, second.low);
}

// Adds the products of `depth` numbers of rows with those of two tiles' columns. Low halves lie kHalvesApart bytes
// behind high ones, or `y_apart` words.
template <bool kBoth>
SLIMDEPLOY_INLINE void multiply_halves(const float *x, size_t x_stride, const uint32_t *y, size_t y_stride,
                                       size_t y_apart, size_t depth) {
    constexpr size_t kHalvesApart = kBlockKeys * sizeof(uint16_t);
    const auto *high = reinterpret_cast<const uint8_t *>(x);
    for (size_t d = 0; d < depth; d += kTileDepth, high += kTileBytes, y += kTileRows * y_stride) {
        AttentionTiles::load<kBoth>(high, x_stride * sizeof *x, y, y_stride * sizeof *y);
        AttentionTiles::multiply_bf16<kBoth>();
        AttentionTiles::load<kBoth>(high + kHalvesApart, x_stride * sizeof *x, y, y_stride * sizeof *y);
        AttentionTiles::multiply_bf16<kBoth>();
        AttentionTiles::load<kBoth>(high, x_stride * sizeof *x, y + y_apart, y_stride * sizeof *y);
        AttentionTiles::multiply_bf16<kBoth>();
    }
}

// Scores of two tiles' queries and a block of keys. depth: of the block.
template <bool kBoth>
void score_block(const float *queries, size_t width, const uint32_t *block, size_t depth, float *scores,
                 size_t stride) {
    for (size_t key = 0; key < kBlockKeys; key += kTileColumns) {
        AttentionTiles::zero();
        for (size_t d = 0; d < depth; d += kBlockKeys) {
            multiply_halves<kBoth>(queries + d, width, block + d / 2 * kBlockKeys + key, kBlockKeys,
                                   depth / 2 * kBlockKeys, depth - d < kBlockKeys ? depth - d : kBlockKeys);
        }
        AttentionTiles::store_sums<kBoth>(scores + key, stride * sizeof *scores);
    }
}

// Adds a block of values, weighted for two tiles' queries, to sums, or sets these.
template <bool kBoth>
void add_block_of_values(const float *weights, size_t stride, const uint32_t *block, size_t columns, bool add,
                         float *sums, size_t width) {
    for (size_t column = 0; column < columns; column += kTileColumns) {
        if (add) {
            AttentionTiles::load_sums<kBoth>(sums + column, width * sizeof *sums);
        } else {
            AttentionTiles::zero();
        }
        multiply_halves<kBoth>(weights, stride, block + column, columns, kBlockKeys / 2 * columns, kBlockKeys);
        AttentionTiles::store_sums<kBoth>(sums + column, width * sizeof *sums);
    }
}

void attend_in_tiles(const AttentionHead &head, const AttentionQuery *queries, size_t count, float *scratch) {
    constexpr size_t kTogether = 2 * kTileRows;
    const AttentionScratch parts(count, head.size, head.count);
    const size_t size = head.size, width = parts.width, stride = parts.keys;
    const size_t depth = (size + kTileDepth - 1) / kTileDepth * kTileDepth;
    float *scaled = scratch + parts.queries, *scores = scratch + parts.scores, *sums = scratch + parts.sums;
    auto *block = reinterpret_cast<uint32_t *>(scratch + parts.block);
    const AttentionTiles tiles;

    size_t seen[kMaxAttentionQueries / kTogether] = {};  // keys that some query of two tiles sees
    for (size_t m = 0; m < parts.rows; m++) {
        float *row = scaled + m * width;
        memset(row, 0, width * sizeof *row);
        if (m >= count) continue;
        for (size_t d = 0; d < size; d++) row[d] = queries[m].data[d] * head.scale;
        for (size_t d = 0; d < width; d += kBlockKeys) split_in_place(row + d);
        size_t &most = seen[m / kTogether];
        most = queries[m].keys > most ? queries[m].keys : most;
    }
    for (size_t first = 0; first < head.count; first += kBlockKeys) {
        split_keys(head.keys + first * size, head.count - first, size, depth, block);
        AttentionTiles::see_memory();
        for (size_t m = 0; m < parts.rows; m += kTogether) {
            if (seen[m / kTogether] <= first) continue;
            const auto score = parts.rows - m < kTogether ? score_block<false> : score_block<true>;
            score(scaled + m * width, width, block, depth, scores + m * stride + first, stride);
        }
    }
    AttentionTiles::see_memory();

    float inverse[kMaxAttentionQueries];
    for (size_t m = 0; m < parts.rows; m++) {
        float *row = scores + m * stride;
        const size_t whole = (seen[m / kTogether] + kBlockKeys - 1) / kBlockKeys * kBlockKeys;
        inverse[m] = 1.0f / exponentials(row, m < count ? queries[m].keys : 0, whole);
        for (size_t key = 0; key < whole; key += kBlockKeys) split_in_place(row + key);
    }

    for (size_t first = 0; first < head.count; first += kBlockKeys) {
        split_values(head.values + first * size, head.count - first, size, depth, block);
        AttentionTiles::see_memory();
        for (size_t m = 0; m < parts.rows; m += kTogether) {
            if (seen[m / kTogether] <= first) continue;
            const auto add = parts.rows - m < kTogether ? add_block_of_values<false> : add_block_of_values<true>;
            add(scores + m * stride + first, stride, block, depth, first > 0, sums + m * width, width);
        }
    }
    AttentionTiles::see_memory();
    for (size_t m = 0; m < count; m++) {
        for (size_t d = 0; d < size; d++) queries[m].output[d] = sums[m * width + d] * inverse[m];
    }
}

// Few queries wait for memory, and get every bit.
void attend_by_tiles(const AttentionHead &head, const AttentionQuery *queries, size_t count, float *scratch) {
    const auto kernel = count > size_t(kTileRows) / 2 ? attend_in_tiles : attend<Avx512>;
    kernel(head, queries, count, scratch);
}

}  // namespace
}  // namespace slimdeploy

#endif
