// Fused kernels, for few rows of activations: the weight is read once and decoded into registers, with kRows of its
// rows in flight, far apart, against kCount rows of activations. See linear.h for `Isa`.

#ifndef SLIMDEPLOY_FUSED_H
#define SLIMDEPLOY_FUSED_H

#include "streams.h"

namespace slimdeploy {
namespace {

// How far ahead of a row's position memory is fetched: two or four rows in flight take this much to hide the latency of
// DRAM.
constexpr int kFusedPrefetch = 3072;

template <class Isa, class Stream>
struct IntProduct {
    // Units of 4 columns that a lane sums before it is scaled. A group of 32 columns takes 8 lanes at most.
    static constexpr int kGroupUnits = Stream::kGroup / 4;
    static constexpr int kUnitsOfLane = kGroupUnits < Isa::kLanes ? 1 : kGroupUnits / Isa::kLanes;

    template <int kRows, int kCount>
    static SLIMDEPLOY_INLINE void run(const Matrix &w, const Activations &a, float *y, const size_t (&row)[kRows]) {
        const uint8_t *x = static_cast<const uint8_t *>(a.values);
        typename Isa::Floats sum[kRows][kCount];
        typename Isa::Ints start[kRows];
        Stream stream[kRows];
        SLIMDEPLOY_UNROLL
        for (int r = 0; r < kRows; r++) {
            stream[r] = {w.data + w.row_offset[row[r]], w.kept_per_chunk, kFusedPrefetch};
            start[r] = Isa::broadcast_ints(w.starts[row[r]] * kUnitsOfLane);
            SLIMDEPLOY_UNROLL
            for (int m = 0; m < kCount; m++) sum[r][m] = Isa::zero();
        }
        for (size_t b = 0; b < w.blocks; b++, x += kBlockColumns) {
            typename Isa::Bytes bytes[kChunks];
            if constexpr (kCount == 1) load_bytes(x, bytes);
            SLIMDEPLOY_UNROLL
            for (int r = 0; r < kRows; r++) {
                typename Isa::Chunk chunk[kChunks];
                const uint8_t *scales = stream[r].next(chunk);
                SLIMDEPLOY_UNROLL
                for (int m = 0; m < kCount; m++) {
                    if constexpr (kCount > 1) load_bytes(x + m * a.stride, bytes);
                    sum[r][m] = add(sum[r][m], start[r], bytes, chunk, scales);
                }
            }
        }
        SLIMDEPLOY_UNROLL
        for (int r = 0; r < kRows; r++) {
            SLIMDEPLOY_UNROLL
            for (int m = 0; m < kCount; m++) {
                if (size_t(m) < a.count) {
                    y[m * w.rows + row[r]] = a.scales[m] * (Isa::total(sum[r][m]) - w.corrections[row[r]]);
                }
            }
        }
    }

    static SLIMDEPLOY_INLINE void load_bytes(const uint8_t *x, typename Isa::Bytes (&bytes)[kChunks]) {
        SLIMDEPLOY_UNROLL
        for (int c = 0; c < kChunks; c++) bytes[c] = Isa::load_bytes(x + kChunkColumns * c);
    }

    static SLIMDEPLOY_INLINE typename Isa::Floats add(typename Isa::Floats sum, typename Isa::Ints start,
                                                      const typename Isa::Bytes (&x)[kChunks],
                                                      const typename Isa::Chunk (&chunk)[kChunks],
                                                      const uint8_t *scales) {
        if constexpr (Stream::kGroup == 32) {
            SLIMDEPLOY_UNROLL
            for (int c = 0; c < kChunks; c++) sum = Isa::dot_by_32(sum, start, x[c], chunk[c], scales + 4 * c);
        } else {
            typename Isa::Floats scale[2];
            Isa::load_scales(scales, scale);
            SLIMDEPLOY_UNROLL
            for (int half = 0; half < 2; half++) {
                auto ints = Isa::dot(start, x[2 * half], chunk[2 * half]);
                ints = Isa::dot(ints, x[2 * half + 1], chunk[2 * half + 1]);
                sum = Isa::multiply_add(sum, ints, scale[half]);
            }
        }
        return sum;
    }
};

template <class Isa, class Stream, class Arithmetic>
struct WordProduct {
    template <int kRows, int kCount>
    static SLIMDEPLOY_INLINE void run(const Matrix &w, const Activations &a, float *y, const size_t (&row)[kRows]) {
        using Activation = typename Arithmetic::Activation;
        const uint8_t *x = static_cast<const uint8_t *>(a.values);
        typename Isa::Floats sum[kRows][kCount];
        Stream stream[kRows];
        SLIMDEPLOY_UNROLL
        for (int r = 0; r < kRows; r++) {
            stream[r] = {w.data + w.row_offset[row[r]], w.kept_per_chunk, kFusedPrefetch};
            SLIMDEPLOY_UNROLL
            for (int m = 0; m < kCount; m++) sum[r][m] = Isa::zero();
        }
        for (size_t b = 0; b < w.blocks; b++, x += kBlockColumns * sizeof(Activation)) {
            SLIMDEPLOY_UNROLL
            for (int r = 0; r < kRows; r++) {
                typename Isa::Words words[Stream::kWords];
                stream[r].next(words);
                SLIMDEPLOY_UNROLL
                for (int m = 0; m < kCount; m++) {
                    const Activation *xm = reinterpret_cast<const Activation *>(x + m * a.stride);
                    SLIMDEPLOY_UNROLL
                    for (int i = 0; i < Stream::kWords; i++)
                        sum[r][m] = Arithmetic::dot(sum[r][m], xm + 32 * i, words[i]);
                }
            }
        }
        SLIMDEPLOY_UNROLL
        for (int r = 0; r < kRows; r++) {
            SLIMDEPLOY_UNROLL
            for (int m = 0; m < kCount; m++) {
                if (size_t(m) < a.count) y[m * w.rows + row[r]] = Isa::total(sum[r][m]);
            }
        }
    }
};

template <class Product, int kRows, int kCount>
void fused(const Matrix &w, const Activations &a, float *y, size_t begin, size_t end) {
    const size_t stripe = (end - begin) / kRows;
    for (size_t i = 0; i < stripe; i++) {
        size_t row[kRows];
        for (int r = 0; r < kRows; r++) row[r] = begin + r * stripe + i;
        Product::template run<kRows, kCount>(w, a, y, row);
    }
    for (size_t n = begin + kRows * stripe; n < end; n++) {
        const size_t row[1] = {n};
        Product::template run<1, kCount>(w, a, y, row);
    }
}

}  // namespace
}  // namespace slimdeploy

#endif
