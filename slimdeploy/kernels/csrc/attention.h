// Softmax attention of a few queries over the keys and values of one head, written once for all instruction sets: `Isa`
// is linear.h's, whose arithmetic with units of floats does.
//
// Scores of all keys are kept and then weighted (Vaswani et al. 2017, equation 1), so that every weight is exp of its
// distance to the largest score that there is. Keys are transposed a block at a time, and a block is multiplied with
// all queries while it is in the cache.

#ifndef SLIMDEPLOY_ATTENTION_H
#define SLIMDEPLOY_ATTENTION_H

#include <cstring>

#include "attention_scratch.h"
#include "numbers.h"
#include "streams.h"

namespace slimdeploy {
namespace {

// Queries and vectors of a tile, whose sums stay in registers: of 16 where vectors have 8 lanes, of 32 elsewhere.
constexpr int kTileQueries = kAttentionQueries;
template <class Isa>
constexpr int kTileVectors = Isa::kLanes == 8 ? 2 : 4;

// c[m][n] = sum of a[m][k] b[k][n] over `steps` k, or that added to c, for kTileQueries m and n of kVectors vectors.
template <class Isa, int kVectors>
SLIMDEPLOY_INLINE void multiply_tile(const float *a, size_t a_stride, const uint32_t *b, size_t b_stride, size_t steps,
                                     bool add, float *c, size_t c_stride) {
    typename Isa::Floats sum[kTileQueries][kVectors];
    SLIMDEPLOY_UNROLL
    for (int m = 0; m < kTileQueries; m++) {
        SLIMDEPLOY_UNROLL
        for (int v = 0; v < kVectors; v++) {
            sum[m][v] = add ? Isa::load_floats(c + m * c_stride + v * Isa::kLanes) : Isa::zero();
        }
    }
    for (size_t k = 0; k < steps; k++, b += b_stride) {
        typename Isa::Units row[kVectors];
        SLIMDEPLOY_UNROLL
        for (int v = 0; v < kVectors; v++) row[v] = Isa::load_units(b + v * Isa::kLanes);
        SLIMDEPLOY_UNROLL
        for (int m = 0; m < kTileQueries; m++) {
            const auto factor = Isa::broadcast_unit(reinterpret_cast<const uint8_t *>(a + m * a_stride + k));
            SLIMDEPLOY_UNROLL
            for (int v = 0; v < kVectors; v++) sum[m][v] = Isa::Fp16::dot_units(sum[m][v], factor, row[v]);
        }
    }
    SLIMDEPLOY_UNROLL
    for (int m = 0; m < kTileQueries; m++) {
        SLIMDEPLOY_UNROLL
        for (int v = 0; v < kVectors; v++) Isa::store_floats(c + m * c_stride + v * Isa::kLanes, sum[m][v]);
    }
}

// Keys and values come from memory: asked for this early, or by the block, a token takes two thirds of the time (Zen
// 5).
constexpr size_t kKeysAhead = 32;
SLIMDEPLOY_INLINE void prefetch_rows(const float *rows, size_t numbers) {
    for (size_t i = 0; i < numbers; i += 64 / sizeof(float)) __builtin_prefetch(rows + i);
}

// to[u * kStride + lane] = from[lane][u].
template <int kLanes, int kUnits, int kStride>
struct Transpose {
    static SLIMDEPLOY_INLINE void run(const uint32_t (&from)[kLanes][kUnits], uint32_t *to) {
        for (int u = 0; u < kUnits; u++) {
            for (int lane = 0; lane < kLanes; lane++) to[size_t(u) * kStride + lane] = from[lane][u];
        }
    }
};

// block[d][key] = keys[key][d] for `count` keys, zeros for the others up to kKeys; also for d up to a whole vector.
template <class Isa, size_t kKeys>
SLIMDEPLOY_INLINE void transpose_keys(const float *keys, size_t count, size_t size, uint32_t *block) {
    constexpr int kLanes = Isa::kLanes;
    for (size_t first = 0; first < kKeys; first += kLanes) {
        prefetch_rows(keys + (first + kKeysAhead) * size, kLanes * size);
        for (size_t d = 0; d < size; d += kLanes) {
            alignas(64) uint32_t units[kLanes][kLanes];
            const size_t width = size - d < size_t(kLanes) ? size - d : kLanes;
            for (size_t i = 0; i < size_t(kLanes); i++) {
                if (first + i < count && width == size_t(kLanes)) {
                    memcpy(units[i], keys + (first + i) * size + d, sizeof units[i]);
                } else {
                    memset(units[i], 0, sizeof units[i]);
                    if (first + i < count) memcpy(units[i], keys + (first + i) * size + d, width * sizeof(float));
                }
            }
            Transpose<kLanes, kLanes, int(kKeys)>::run(units, block + d * kKeys + first);
        }
    }
}

// exp(x) for x <= 0, to 2 ulp: a power of two times a polynomial on [-ln 2 / 2, ln 2 / 2], with the coefficients of the
// Cephes library. NaN stays NaN. In plain C++ that compilers turn into vectors.
SLIMDEPLOY_INLINE float exp_of_negative(float x) {
    constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, found in the lowest bits
    x = x < -87.0f ? -87.0f : x;
    const float shifted = x * 1.44269504f + kMagic, whole = shifted - kMagic;
    const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float power = 1.9875691500e-4f;
    power = power * rest + 1.3981999507e-3f;
    power = power * rest + 8.3334519073e-3f;
    power = power * rest + 4.1665795894e-2f;
    power = power * rest + 1.6666665459e-1f;
    power = power * rest + 5.0000001201e-1f;
    power = power * rest * rest + rest + 1.0f;
    return power * float_of_bits((bits_of_float(shifted) - bits_of_float(kMagic) + 127) << 23);
}

// Scores become exp(score - largest); those behind `count`, up to `padded`, zero. Returns their sum.
SLIMDEPLOY_INLINE float exponentials(float *scores, size_t count, size_t padded) {
    // Compilers make of these what vectors there are, and of a loop over floats nothing: its order might be meant.
    constexpr size_t kWidth = 16;
    using Lanes = float __attribute__((vector_size(kWidth * sizeof(float))));
    const size_t whole = count / kWidth * kWidth;
    Lanes lanes, largest = Lanes{} - 3.4e38f, sums{};
    for (size_t i = 0; i < whole; i += kWidth) {
        memcpy(&lanes, scores + i, sizeof lanes);
        largest = lanes > largest ? lanes : largest;
    }
    float most = -3.4e38f;
    for (size_t l = 0; l < kWidth; l++) most = largest[l] > most ? largest[l] : most;
    for (size_t i = whole; i < count; i++) most = scores[i] > most ? scores[i] : most;
    for (size_t i = 0; i < count; i++) scores[i] = exp_of_negative(scores[i] - most);
    memset(scores + count, 0, (padded - count) * sizeof(float));
    for (size_t i = 0; i < whole; i += kWidth) {
        memcpy(&lanes, scores + i, sizeof lanes);
        sums += lanes;
    }
    float total = 0;
    for (size_t l = 0; l < kWidth; l++) total += sums[l];
    for (size_t i = whole; i < count; i++) total += scores[i];
    return total;
}

template <class Isa>
void attend(const AttentionHead &head, const AttentionQuery *queries, size_t count, float *scratch) {
    constexpr size_t kLanes = Isa::kLanes, kVectors = kTileVectors<Isa>, kKeys = kVectors * kLanes;
    const AttentionScratch parts(count, head.size, head.count);
    float *scaled = scratch + parts.queries, *scores = scratch + parts.scores, *sums = scratch + parts.sums;
    auto *block = reinterpret_cast<uint32_t *>(scratch + parts.block);
    const size_t size = head.size, width = parts.width, stride = parts.keys;
    size_t seen[kMaxAttentionQueries / kTileQueries] = {};  // keys that some query of a tile sees
    for (size_t m = 0; m < parts.count; m++) {
        for (size_t d = 0; d < size; d++) scaled[m * width + d] = m < count ? queries[m].data[d] * head.scale : 0.0f;
        size_t &most = seen[m / kTileQueries];
        if (m < count && queries[m].keys > most) most = queries[m].keys;
    }

    for (size_t first = 0; first < head.count; first += kKeys) {
        const size_t keys = head.count - first < kKeys ? head.count - first : kKeys;
        transpose_keys<Isa, kKeys>(head.keys + first * size, keys, size, block);
        for (size_t m = 0; m < parts.count; m += kTileQueries) {
            if (seen[m / kTileQueries] <= first) continue;
            multiply_tile<Isa, kVectors>(scaled + m * width, width, block, kKeys, size, false,
                                         scores + m * stride + first, stride);
        }
    }

    float inverse[kMaxAttentionQueries];
    for (size_t m = 0; m < parts.count; m++) {
        const size_t keys = m < count ? queries[m].keys : 0;
        inverse[m] = 1.0f / exponentials(scores + m * stride, keys, seen[m / kTileQueries]);
    }

    for (size_t first = 0; first < head.count; first += kKeys) {
        const auto *values = reinterpret_cast<const uint32_t *>(head.values + first * size);
        prefetch_rows(head.values + (first + kKeys) * size, kKeys * size);
        for (size_t m = 0; m < parts.count; m += kTileQueries) {
            const size_t tile = seen[m / kTileQueries];
            if (tile <= first) continue;
            const size_t keys = tile - first < kKeys ? tile - first : kKeys;
            const float *weights = scores + m * stride + first;
            float *sum = sums + m * width;
            size_t d = 0;
            for (; d + kKeys <= size; d += kKeys) {
                multiply_tile<Isa, kVectors>(weights, stride, values + d, size, keys, first > 0, sum + d, width);
            }
            for (; d + kLanes <= size; d += kLanes) {
                multiply_tile<Isa, 1>(weights, stride, values + d, size, keys, first > 0, sum + d, width);
            }
            for (; d < size; d++) {
                for (size_t i = m; i < m + kTileQueries; i++) {
                    float total = first > 0 ? sums[i * width + d] : 0.0f;
                    for (size_t k = 0; k < keys; k++) {
                        total += scores[i * stride + first + k] * head.values[(first + k) * size + d];
                    }
                    sums[i * width + d] = total;
                }
            }
        }
    }
    for (size_t m = 0; m < count; m++) {
        for (size_t d = 0; d < size; d++) queries[m].output[d] = sums[m * width + d] * inverse[m];
    }
}

}  // namespace
}  // namespace slimdeploy

#endif
