// y = x W^T over the layout of layout.h, written once for all instruction sets.
//
// `Isa` supplies vectors and a few operations on them (see portable.cpp for the plainest one):
//
//     kLanes, kOffset          32-bit lanes of a vector; what is added to int8 activations when they are stored
//     Chunk, Bytes             64 int8 weights; 64 activations, or a pointer to them where registers are few
//     Ints, Floats             a vector of int32; a vector of float
//     expand, expand_low, expand_high (mask, values)     64 weights spread by a mask from int8, low or high nibbles
//     Few                      the same for masks of at most 32 bits
//     load, load_low, load_high (values)                 64 weights that are all there
//     dot(ints, bytes, chunk)  sums of 64 products, in any lanes
//     dot_by_32(floats, bytes, chunk, scales)            the same with a scale for each half
//     load_scales              two scales, each in all lanes
//     Words, expand16, load16, dot_bf16, dot_fp16        the same for 32 weights of 16 bits
//     Unit (one 32-bit lane): dot_units, and `store*` for panels
//
// Everything is in an unnamed namespace: see layout.h.

#ifndef SLIMDEPLOY_LINEAR_H
#define SLIMDEPLOY_LINEAR_H

#include <cstring>
#include <type_traits>

#include "layout.h"
#include "rounding.h"

namespace slimdeploy {
namespace {

// How far ahead of a row's position memory is fetched. Fused kernels have two or four rows in flight, which takes this
// much to hide the latency of DRAM; panels walk through so many rows at once that a few hundred bytes are time enough.
constexpr int kFusedPrefetch = 3072, kPanelPrefetch = 512;

#if !defined(SLIMDEPLOY_UNROLL)
#define SLIMDEPLOY_UNROLL _Pragma("GCC unroll 16")
#endif
#define SLIMDEPLOY_INLINE inline __attribute__((always_inline))

SLIMDEPLOY_INLINE uint64_t load_u64(const uint8_t *p) {
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

SLIMDEPLOY_INLINE float bf16_to_float(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    const uint32_t bits = uint32_t(half) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <int kBytes>
SLIMDEPLOY_INLINE void prefetch(const uint8_t *p, int ahead) {
    SLIMDEPLOY_UNROLL
    for (int line = 0; line < kBytes; line += 64) __builtin_prefetch(p + ahead + line);
}

// ---- Decoding: a Stream walks over the blocks of a row.

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

// ---- Fused kernels: kRows rows of the weight in flight, far apart, against kCount rows of activations.

template <class Isa, class Stream>
struct IntProduct {
    template <int kRows, int kCount>
    static SLIMDEPLOY_INLINE void run(const Matrix &w, const Activations &a, float *y, const size_t (&row)[kRows]) {
        const uint8_t *x = static_cast<const uint8_t *>(a.values);
        typename Isa::Floats sum[kRows][kCount];
        Stream stream[kRows];
        SLIMDEPLOY_UNROLL
        for (int r = 0; r < kRows; r++) {
            stream[r] = {w.data + w.row_offset[row[r]], w.kept_per_chunk, kFusedPrefetch};
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
                    sum[r][m] = add(sum[r][m], bytes, chunk, scales);
                }
            }
        }
        SLIMDEPLOY_UNROLL
        for (int r = 0; r < kRows; r++) {
            SLIMDEPLOY_UNROLL
            for (int m = 0; m < kCount; m++) {
                if (size_t(m) < a.count) {
                    const float offset = float(Isa::kOffset) * w.weight_sums[row[r]];
                    y[m * w.rows + row[r]] = a.scales[m] * (Isa::total(sum[r][m]) - offset);
                }
            }
        }
    }

    static SLIMDEPLOY_INLINE void load_bytes(const uint8_t *x, typename Isa::Bytes (&bytes)[kChunks]) {
        SLIMDEPLOY_UNROLL
        for (int c = 0; c < kChunks; c++) bytes[c] = Isa::load_bytes(x + kChunkColumns * c);
    }

    static SLIMDEPLOY_INLINE typename Isa::Floats add(typename Isa::Floats sum, const typename Isa::Bytes (&x)[kChunks],
                                                      const typename Isa::Chunk (&chunk)[kChunks],
                                                      const uint8_t *scales) {
        if constexpr (Stream::kGroup == 32) {
            SLIMDEPLOY_UNROLL
            for (int c = 0; c < kChunks; c++) sum = Isa::dot_by_32(sum, x[c], chunk[c], scales + 4 * c);
        } else {
            typename Isa::Floats scale[2];
            Isa::load_scales(scales, scale);
            SLIMDEPLOY_UNROLL
            for (int half = 0; half < 2; half++) {
                auto ints = Isa::dot(Isa::zero_ints(), x[2 * half], chunk[2 * half]);
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
                    for (int i = 0; i < Stream::kWords; i++) sum[r][m] = Arithmetic::dot(sum[r][m], xm + 32 * i, words[i]);
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

// ---- Panels: weights of kVectors * Lanes rows, decoded and interleaved in units of 32 bits (4 int8, 2 bf16 or 1 float):
// panel[unit][row]. A tile multiplies it with kTile rows of activations, whose units are broadcast.

template <class Isa>
struct Panel {
    static constexpr int kRows = Isa::kPanelVectors * Isa::kLanes;
    static constexpr size_t kUnits = size_t(kSlabBlocks) * kBlockColumns;  // of the widest kind, float
    static constexpr size_t kScales = size_t(kSlabBlocks) * kBlockColumns / 32;
    alignas(64) uint32_t units[kUnits * kRows];
    alignas(64) float scales[kScales * kRows];
};

// to[u * kStride + lane] = from[lane][u]: what rows hold one after the other, side by side.
template <int kLanes, int kUnits, int kStride>
struct Transpose {
    static SLIMDEPLOY_INLINE void run(const uint32_t (&from)[kLanes][kUnits], uint32_t *to) {
        for (int u = 0; u < kUnits; u++) {
            for (int lane = 0; lane < kLanes; lane++) to[size_t(u) * kStride + lane] = from[lane][u];
        }
    }
};

template <class Isa, class Stream>
struct IntPanel {
    static constexpr int kGroup = Stream::kGroup, kGroupUnits = kGroup / 4, kBlockUnits = kBlockColumns / 4;
    static constexpr int kOffset = Isa::kOffset;
    using Row = Stream;

    // One block of one row into `units`, its scales into the panel's column of that row.
    static SLIMDEPLOY_INLINE void decode(Stream &stream, size_t block, uint32_t *units, float *column) {
        constexpr int kRows = Panel<Isa>::kRows, kGroups = kBlockColumns / kGroup;
        typename Isa::Chunk chunk[kChunks];
        const uint8_t *scales = stream.next(chunk);
        for (int c = 0; c < kChunks; c++) Isa::store(units + 16 * c, chunk[c]);
        for (int g = 0; g < kGroups; g++) column[(block * kGroups + g) * kRows] = bf16_to_float(scales + 2 * g);
    }

    template <int kTile>
    static SLIMDEPLOY_INLINE void tile(const Panel<Isa> &panel, size_t blocks, const uint8_t *x, size_t stride,
                                       typename Isa::Floats (&sum)[kTile][Isa::kPanelVectors]) {
        constexpr int kVectors = Isa::kPanelVectors, kRows = Panel<Isa>::kRows;
        const uint32_t *units = panel.units;
        const float *scales = panel.scales;
        for (size_t g = 0; g < blocks * (kBlockColumns / kGroup); g++, scales += kRows, x += kGroup) {
            typename Isa::Ints ints[kTile][kVectors];
            SLIMDEPLOY_UNROLL
            for (int m = 0; m < kTile; m++) {
                SLIMDEPLOY_UNROLL
                for (int v = 0; v < kVectors; v++) ints[m][v] = Isa::zero_ints();
            }
            for (int u = 0; u < kGroupUnits; u++, units += kRows) {
                typename Isa::Units weights[kVectors];
                SLIMDEPLOY_UNROLL
                for (int v = 0; v < kVectors; v++) weights[v] = Isa::load_units(units + v * Isa::kLanes);
                SLIMDEPLOY_UNROLL
                for (int m = 0; m < kTile; m++) {
                    const auto activations = Isa::broadcast_unit(x + m * stride + 4 * u);
                    SLIMDEPLOY_UNROLL
                    for (int v = 0; v < kVectors; v++) ints[m][v] = Isa::dot_units(ints[m][v], activations, weights[v]);
                }
            }
            SLIMDEPLOY_UNROLL
            for (int v = 0; v < kVectors; v++) {
                const auto scale = Isa::load_floats(scales + v * Isa::kLanes);
                SLIMDEPLOY_UNROLL
                for (int m = 0; m < kTile; m++) sum[m][v] = Isa::multiply_add(sum[m][v], ints[m][v], scale);
            }
        }
    }
};

template <class Isa, class Stream, class Arithmetic>
struct WordPanel {
    static constexpr int kOffset = 0;
    static constexpr int kBlockUnits = kBlockColumns * sizeof(typename Arithmetic::Activation) / 4;
    using Row = Stream;

    static SLIMDEPLOY_INLINE void decode(Stream &stream, size_t, uint32_t *units, float *) {
        typename Isa::Words words[Stream::kWords];
        stream.next(words);
        for (int i = 0; i < Stream::kWords; i++) Arithmetic::store(units + i * (kBlockUnits / Stream::kWords), words[i]);
    }

    template <int kTile>
    static SLIMDEPLOY_INLINE void tile(const Panel<Isa> &panel, size_t blocks, const uint8_t *x, size_t stride,
                                       typename Isa::Floats (&sum)[kTile][Isa::kPanelVectors]) {
        constexpr int kVectors = Isa::kPanelVectors, kRows = Panel<Isa>::kRows;
        const uint32_t *units = panel.units;
        for (size_t u = 0; u < blocks * kBlockUnits; u++, units += kRows, x += 4) {
            typename Isa::Units weights[kVectors];
            SLIMDEPLOY_UNROLL
            for (int v = 0; v < kVectors; v++) weights[v] = Isa::load_units(units + v * Isa::kLanes);
            SLIMDEPLOY_UNROLL
            for (int m = 0; m < kTile; m++) {
                const auto activations = Isa::broadcast_unit(x + m * stride);
                SLIMDEPLOY_UNROLL
                for (int v = 0; v < kVectors; v++) sum[m][v] = Arithmetic::dot_units(sum[m][v], activations, weights[v]);
            }
        }
    }
};

// The next `blocks` blocks of a panel's rows. Rows behind the last leave what the panel held before: what is computed
// from it is not written anywhere.
template <class Isa, class Kind>
SLIMDEPLOY_INLINE void decode_panel(typename Kind::Row *stream, int rows, size_t blocks, Panel<Isa> &panel) {
    constexpr int kLanes = Isa::kLanes, kUnits = Kind::kBlockUnits, kRows = Panel<Isa>::kRows;
    for (int first = 0; first < rows; first += kLanes) {
        const int lanes = rows - first < kLanes ? rows - first : kLanes;
        for (size_t b = 0; b < blocks; b++) {
            alignas(64) uint32_t units[kLanes][kUnits];
            for (int lane = 0; lane < lanes; lane++) {
                Kind::decode(stream[first + lane], b, units[lane], panel.scales + first + lane);
            }
            for (int lane = lanes; lane < kLanes; lane++) memset(units[lane], 0, sizeof units[lane]);
            Transpose<kLanes, kUnits, kRows>::run(units, panel.units + b * kUnits * kRows + first);
        }
    }
}

// Adds a tile's sums to y, or sets them on the first slab, and applies scale and offset on the last.
template <class Isa, int kTile>
SLIMDEPLOY_INLINE void write_tile(const Matrix &w, const Activations &a, float *y, size_t m0, size_t n0, int offset,
                                  bool first, bool last, typename Isa::Floats (&sum)[kTile][Isa::kPanelVectors]) {
    constexpr int kRows = Panel<Isa>::kRows;
    const size_t columns = w.rows - n0 < size_t(kRows) ? w.rows - n0 : kRows;
    for (int m = 0; m < kTile && m0 + m < a.count; m++) {
        alignas(64) float out[kRows];
        for (int v = 0; v < Isa::kPanelVectors; v++) Isa::store_floats(out + v * Isa::kLanes, sum[m][v]);
        float *target = y + (m0 + m) * w.rows + n0;
        const float scale = a.scales ? a.scales[m0 + m] : 1.0f;
        for (size_t n = 0; n < columns; n++) {
            const float total = first ? out[n] : target[n] + out[n];
            target[n] = last ? scale * (offset ? total - offset * w.weight_sums[n0 + n] : total) : total;
        }
    }
}

template <class Isa, class Kind>
void panels(const Matrix &w, const Activations &a, float *y, size_t begin, size_t end, void *scratch) {
    constexpr int kRows = Panel<Isa>::kRows, kTile = Isa::kPanelTile;
    Panel<Isa> &panel = *static_cast<Panel<Isa> *>(scratch);
    for (size_t p = begin; p < end; p++) {
        const size_t n0 = p * kRows;
        const int rows = int(w.rows - n0 < size_t(kRows) ? w.rows - n0 : kRows);
        typename Kind::Row stream[kRows];
        for (int r = 0; r < rows; r++) stream[r] = {w.data + w.row_offset[n0 + r], w.kept_per_chunk, kPanelPrefetch};
        const uint8_t *x = static_cast<const uint8_t *>(a.values);
        for (size_t slab = 0; slab < w.blocks; slab += kSlabBlocks) {
            const size_t blocks = w.blocks - slab < size_t(kSlabBlocks) ? w.blocks - slab : kSlabBlocks;
            decode_panel<Isa, Kind>(stream, rows, blocks, panel);
            for (size_t m0 = 0; m0 < a.count; m0 += kTile) {
                typename Isa::Floats sum[kTile][Isa::kPanelVectors];
                SLIMDEPLOY_UNROLL
                for (int m = 0; m < kTile; m++) {
                    SLIMDEPLOY_UNROLL
                    for (int v = 0; v < Isa::kPanelVectors; v++) sum[m][v] = Isa::zero();
                }
                Kind::template tile<kTile>(panel, blocks, x + m0 * a.stride, a.stride, sum);
                const bool last = slab + blocks == w.blocks;
                write_tile<Isa, kTile>(w, a, y, m0, n0, Kind::kOffset, slab == 0, last, sum);
            }
            x += blocks * Kind::kBlockUnits * 4;
        }
    }
}

// ---- The table. A constant: code that ran when the library is loaded, before anyone asked what the CPU has, would be
// compiled for this instruction set.

template <class Isa, class Product>
constexpr void fill_fused(FusedKernel (&kernels)[kFusedSizes]) {
    kernels[kOneByTwo] = fused<Product, 2, 1>;
    kernels[kOneByFour] = fused<Product, 4, 1>;
    kernels[kTwo] = fused<Product, 2, 2>;
    kernels[kFour] = fused<Product, 2, 4>;
    kernels[kEight] = fused<Product, 1, 8>;
}

template <class Isa, Structure kStructure>
constexpr void fill_structure(KernelTable &table) {
    using Int8 = Int8Stream<Isa, kStructure>;
    using Int4 = Int4Stream<Isa, kStructure, 128>;
    using Int4By32 = Int4Stream<Isa, kStructure, 32>;
    using Words = WordStream<Isa, kStructure>;
    fill_fused<Isa, IntProduct<Isa, Int8>>(table.fused[kInt8][kStructure]);
    fill_fused<Isa, IntProduct<Isa, Int4>>(table.fused[kInt4Group128][kStructure]);
    fill_fused<Isa, IntProduct<Isa, Int4By32>>(table.fused[kInt4Group32][kStructure]);
    fill_fused<Isa, WordProduct<Isa, Words, typename Isa::Bf16>>(table.fused[kBf16][kStructure]);
    fill_fused<Isa, WordProduct<Isa, Words, typename Isa::Fp16>>(table.fused[kFp16][kStructure]);
    table.panel[kInt8][kStructure] = panels<Isa, IntPanel<Isa, Int8>>;
    table.panel[kInt4Group128][kStructure] = panels<Isa, IntPanel<Isa, Int4>>;
    table.panel[kInt4Group32][kStructure] = panels<Isa, IntPanel<Isa, Int4By32>>;
    table.panel[kBf16][kStructure] = panels<Isa, WordPanel<Isa, Words, typename Isa::Bf16>>;
    table.panel[kFp16][kStructure] = panels<Isa, WordPanel<Isa, Words, typename Isa::Fp16>>;
}

template <class Isa>
constexpr KernelTable make_table(const char *name) {
    KernelTable table{};
    table.name = name;
    fill_structure<Isa, kUnstructured>(table);
    fill_structure<Isa, kFixedCount>(table);
    fill_structure<Isa, kDense>(table);
    for (int kind = 0; kind < kValueKinds; kind++) {
        table.round[kind] = Isa::round_int8;
        table.activation_bytes[kind] = 1;
    }
    table.round[kBf16] = Isa::Bf16::round;
    table.activation_bytes[kBf16] = sizeof(typename Isa::Bf16::Activation);
    table.round[kFp16] = Isa::Fp16::round;
    table.activation_bytes[kFp16] = sizeof(typename Isa::Fp16::Activation);
    table.panel_rows = Panel<Isa>::kRows;
    table.tile_rows = Isa::kPanelTile;
    table.panel_bytes = sizeof(Panel<Isa>);
    return table;
}

}  // namespace
}  // namespace slimdeploy

#endif
