// One row of activations times a weight that keeps the same number of every 64 columns, at most 32 (kFixedCount): the
// activations that meet a kept weight are gathered, instead of spreading the weights. What is then multiplied takes
// half a vector. On Zen 4 spreading, multiplying and moving masks wait for the same two units; this takes a fifth off
// int4, which is bound by them.

#ifndef SLIMDEPLOY_AVX512_GATHERED_H
#define SLIMDEPLOY_AVX512_GATHERED_H

#include "avx512.h"

namespace slimdeploy {
namespace {

// The values of a block, `count` for every 64 columns; returns where they end. What lies behind them in a vector is
// multiplied with gathered zeros.
struct Int8Values {
    static constexpr int kPrefetch = 192;

    static SLIMDEPLOY_INLINE const uint8_t *load(const uint8_t *p, int count, __m256i (&out)[kChunks]) {
        SLIMDEPLOY_UNROLL
        for (int c = 0; c < kChunks; c++) out[c] = Avx512Few::load(p + c * count);
        return p + kChunks * count;
    }
};
struct Int4Values {
    static constexpr int kPrefetch = 128;

    static SLIMDEPLOY_INLINE const uint8_t *load(const uint8_t *p, int count, __m256i (&out)[kChunks]) {
        const __m256i first = Avx512Few::load(p), second = Avx512Few::load(p + count);
        out[0] = Avx512Few::low(first);
        out[1] = Avx512Few::low(second);
        out[2] = Avx512Few::high(first);
        out[3] = Avx512Few::high(second);
        return p + 2 * count;
    }
};

template <class Values>
struct GatheredProduct {
    static constexpr int kLanes = 8, kUnitsOfLane = 128 / 4 / kLanes, kScaleBytes = 4;

    template <int kRows, int kCount>
    static SLIMDEPLOY_INLINE void run(const Matrix &w, const Activations &a, float *y, const size_t (&row)[kRows]) {
        static_assert(kCount == 1, "what is gathered serves one row of activations");
        const uint8_t *x = static_cast<const uint8_t *>(a.values);
        const uint8_t *p[kRows];
        __m256i start[kRows];
        __m256 sum[kRows];
        SLIMDEPLOY_UNROLL
        for (int r = 0; r < kRows; r++) {
            p[r] = w.data + w.row_offset[row[r]];
            start[r] = _mm256_set1_epi32(w.starts[row[r]] * kUnitsOfLane);
            sum[r] = _mm256_setzero_ps();
        }
        for (size_t b = 0; b < w.blocks; b++, x += kBlockColumns) {
            __m512i bytes[kChunks];
            SLIMDEPLOY_UNROLL
            for (int c = 0; c < kChunks; c++) bytes[c] = Avx512::load_bytes(x + kChunkColumns * c);
            SLIMDEPLOY_UNROLL
            for (int r = 0; r < kRows; r++) {
                prefetch<Values::kPrefetch>(p[r], kFusedPrefetch);
                const uint8_t *scales = p[r], *masks = scales + kScaleBytes;
                __m256i gathered[kChunks], values[kChunks];
                SLIMDEPLOY_UNROLL
                for (int c = 0; c < kChunks; c++) gathered[c] = gather(load_u64(masks + 8 * c), bytes[c]);
                p[r] = Values::load(masks + kMaskBytes, w.kept_per_chunk, values);
                sum[r] = add(sum[r], start[r], gathered, values, scales);
            }
        }
        SLIMDEPLOY_UNROLL
        for (int r = 0; r < kRows; r++) {
            const float total = _mm512_reduce_add_ps(_mm512_zextps256_ps512(sum[r]));
            y[row[r]] = a.scales[0] * (total - w.corrections[row[r]]);
        }
    }

    static SLIMDEPLOY_INLINE __m256i gather(uint64_t mask, __m512i x) {
        return _mm512_castsi512_si256(_mm512_maskz_compress_epi8(mask, x));
    }
    static SLIMDEPLOY_INLINE __m256 add(__m256 sum, __m256i start, const __m256i (&x)[kChunks],
                                        const __m256i (&values)[kChunks], const uint8_t *scales) {
        __m256i ints[2] = {start, start};
        SLIMDEPLOY_UNROLL
        for (int c = 0; c < kChunks; c++) ints[c / 2] = _mm256_dpbusd_epi32(ints[c / 2], x[c], values[c]);
        // As Avx512::load_scales.
        int both;
        memcpy(&both, scales, sizeof both);
        const __m256i pair = _mm256_set1_epi32(both);
        const __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
        const __m256 second = _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32(int(0xFFFF0000))));
        sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(ints[0]), first, sum);
        return _mm256_fmadd_ps(_mm256_cvtepi32_ps(ints[1]), second, sum);
    }
};

template <class Isa>
constexpr KernelTable make_avx512_table(const char *name) {
    KernelTable table = make_table<Isa>(name);
    FusedKernel(&int8)[kFusedSizes] = table.fused[kInt8][kFixedCount];
    FusedKernel(&int4)[kFusedSizes] = table.fused[kInt4Group128][kFixedCount];
    int8[kOneByTwo] = fused<GatheredProduct<Int8Values>, 2, 1>;
    int8[kOneByFour] = fused<GatheredProduct<Int8Values>, 4, 1>;
    int4[kOneByTwo] = fused<GatheredProduct<Int4Values>, 2, 1>;
    int4[kOneByFour] = fused<GatheredProduct<Int4Values>, 4, 1>;
    return table;
}

}  // namespace
}  // namespace slimdeploy

#endif
