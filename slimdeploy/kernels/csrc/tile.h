// A tile: some rows of activations times the weights of some vectors' rows, a row of the weight in each lane.
//
// Where the weights come from is a Source: decoded as they are read (`Decoded`), or from what was decoded into the
// cache before (panels.h). A Kind of values says what is added up, and how. See linear.h for `Isa`.

#ifndef SLIMDEPLOY_TILE_H
#define SLIMDEPLOY_TILE_H

#include <type_traits>

#include "streams.h"

namespace slimdeploy {
namespace {

// kGroup: columns that are added up before their scale is applied. kBlockUnits: of 32 bits, in a block of a row.
// decoded: a unit of the block that `stream` has decoded, of the rows of vector v.

template <class Isa, class Weights>
struct IntKind {
    using Stream = Weights;
    using Sum = typename Isa::Ints;
    static constexpr bool kIntegers = true;
    static constexpr int kGroup = Stream::kGroup, kBlockUnits = kBlockColumns / 4;

    static SLIMDEPLOY_INLINE typename Isa::Units decoded(const Stream &stream, int unit, int v) {
        return Isa::units(stream.chunk[unit], v);
    }
    static SLIMDEPLOY_INLINE Sum dot(Sum sum, typename Isa::Units x, typename Isa::Units weights) {
        return Isa::dot_units(sum, x, weights);
    }
};

template <class Isa, class Weights, class Arithmetic>
struct WordKind {
    using Stream = Weights;
    using Sum = typename Isa::Floats;
    static constexpr bool kIntegers = false;
    static constexpr int kGroup = kPaddedColumns;
    static constexpr int kBlockUnits = kBlockColumns * sizeof(typename Arithmetic::Activation) / 4;

    static SLIMDEPLOY_INLINE typename Isa::Units decoded(const Stream &stream, int unit, int v) {
        constexpr int kUnitsOfWords = kBlockUnits / (2 * kChunks);
        return Arithmetic::units(stream.words[unit / kUnitsOfWords], unit % kUnitsOfWords, v);
    }
    static SLIMDEPLOY_INLINE Sum dot(Sum sum, typename Isa::Units x, typename Isa::Units weights) {
        return Arithmetic::dot_units(sum, x, weights);
    }
};

// Weights of kPanels panels, decoded into registers. starts: of each panel's sums of integers.
template <class Isa, class Kind, int kPanels>
struct Decoded {
    static constexpr int kVectors = kPanels * kUnitVectors<Isa>;
    typename Kind::Stream stream[kPanels];
    const int32_t *starts[kPanels];

    SLIMDEPLOY_INLINE void open(const Matrix &w, int i, size_t panel) {
        stream[i].p = w.data + w.panel_offset[panel];
        starts[i] = w.starts + panel * kPanelRows;
    }
    SLIMDEPLOY_INLINE typename Isa::Ints start(int v) const {
        return Isa::load_ints(starts[v / kUnitVectors<Isa>] + v % kUnitVectors<Isa> * Isa::kLanes);
    }
    SLIMDEPLOY_INLINE void begin_group(typename Isa::Floats (&scale)[kVectors]) {
        SLIMDEPLOY_UNROLL
        for (int i = 0; i < kPanels && Kind::kIntegers; i++) {
            SLIMDEPLOY_UNROLL
            for (int v = 0; v < kUnitVectors<Isa>; v++) {
                scale[i * kUnitVectors<Isa> + v] = Isa::load_bf16(stream[i].p + 2 * v * Isa::kLanes);
            }
            stream[i].p += 2 * kPanelRows;
        }
    }
    SLIMDEPLOY_INLINE void next_block() {
        SLIMDEPLOY_UNROLL
        for (int i = 0; i < kPanels; i++) stream[i].next();
    }
    SLIMDEPLOY_INLINE typename Isa::Units unit(int u, int v) const {
        return Kind::decoded(stream[v / kUnitVectors<Isa>], u, v % kUnitVectors<Isa>);
    }
};

// Adds the products of a block's weights with kCount rows of activations, which take turns at several sums where a tile
// is so small that each would wait for the one before it.
template <class Isa, class Kind, int kTurns, int kCount, class Source>
SLIMDEPLOY_INLINE void add_block(const Source &source, const uint8_t *x, size_t stride,
                                 typename Kind::Sum (&part)[kTurns][kCount][Source::kVectors]) {
    SLIMDEPLOY_UNROLL
    for (int u = 0; u < Kind::kBlockUnits; u++) {
        SLIMDEPLOY_UNROLL
        for (int m = 0; m < kCount; m++) {
            const auto activations = Isa::broadcast_unit(x + m * stride + 4 * u);
            SLIMDEPLOY_UNROLL
            for (int v = 0; v < Source::kVectors; v++) {
                auto &sum = part[u % kTurns][m][v];
                sum = Kind::dot(sum, activations, source.unit(u, v));
            }
        }
    }
}

// x: the first of kCount rows of activations.
template <class Isa, class Kind, int kCount, class Source>
SLIMDEPLOY_INLINE void multiply_weights(Source &source, size_t columns, const uint8_t *x, size_t stride,
                                        typename Isa::Floats (&sum)[kCount][Source::kVectors]) {
    constexpr int kVectors = Source::kVectors, kTurns = kCount * kVectors >= 4 ? 1 : 4 / (kCount * kVectors);
    SLIMDEPLOY_UNROLL
    for (int i = 0; i < kCount * kVectors; i++) sum[i / kVectors][i % kVectors] = Isa::zero();
    for (size_t column = 0; column < columns; column += Kind::kGroup) {
        typename Kind::Sum part[kTurns][kCount][kVectors];
        typename Isa::Floats scale[kVectors];
        source.begin_group(scale);
        SLIMDEPLOY_UNROLL
        for (int i = 0; i < kCount * kVectors; i++) {
            const int m = i / kVectors, v = i % kVectors;
            for (int turn = 1; turn < kTurns; turn++) part[turn][m][v] = typename Kind::Sum{};
            if constexpr (Kind::kIntegers) {
                part[0][m][v] = source.start(v);
            } else {
                part[0][m][v] = sum[m][v];
            }
        }
        for (int block = 0; block < Kind::kGroup / kBlockColumns; block++, x += 4 * Kind::kBlockUnits) {
            source.next_block();
            add_block<Isa, Kind>(source, x, stride, part);
        }
        SLIMDEPLOY_UNROLL
        for (int i = 0; i < kCount * kVectors; i++) {
            const int m = i / kVectors, v = i % kVectors;
            for (int turn = 1; turn < kTurns; turn++) part[0][m][v] = Isa::add(part[0][m][v], part[turn][m][v]);
            if constexpr (Kind::kIntegers) {
                sum[m][v] = Isa::multiply_add(sum[m][v], part[0][m][v], scale[v]);
            } else {
                sum[m][v] = part[0][m][v];
            }
        }
    }
}

// Adds a row of a tile's sums to y, or sets them on the first slab of columns, and applies scale and correction on the
// last. Count: int, or a constant, with which compilers use vectors.
template <bool kIntegers, class Count>
SLIMDEPLOY_INLINE void write_row(float *sums, Count count, bool first, bool last, float scale, const float *corrections,
                                 float *target) {
    if (!first) {
        for (int n = 0; n < count; n++) sums[n] += target[n];
    }
    if (last && kIntegers) {
        for (int n = 0; n < count; n++) sums[n] = scale * (sums[n] - corrections[n]);
    }
    memcpy(target, sums, size_t(count) * sizeof(float));
}

// m0, n0: the first rows of activations and of the weight. The sums of kVectors vectors, from `vector` on.
template <class Isa, class Kind, int kVectors, int kCount, int kAllVectors>
SLIMDEPLOY_INLINE void write_tile(const Matrix &w, const Activations &a, float *y, size_t m0, size_t n0, bool first,
                                  bool last, const typename Isa::Floats (&sum)[kCount][kAllVectors], int vector = 0) {
    constexpr std::integral_constant<int, kVectors * Isa::kLanes> kAll{};
    for (int m = 0; m < kCount && m0 + m < a.count; m++) {
        alignas(64) float out[kAll];
        for (int v = 0; v < kVectors; v++) Isa::store_floats(out + v * Isa::kLanes, sum[m][vector + v]);
        const float scale = Kind::kIntegers ? a.scales[m0 + m] : 1.0f;
        float *target = y + (m0 + m) * w.rows + n0;
        if (w.rows - n0 >= size_t(kAll)) {
            write_row<Kind::kIntegers>(out, kAll, first, last, scale, w.corrections + n0, target);
        } else {
            write_row<Kind::kIntegers>(out, int(w.rows - n0), first, last, scale, w.corrections + n0, target);
        }
    }
}

}  // namespace
}  // namespace slimdeploy

#endif
