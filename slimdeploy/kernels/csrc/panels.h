// Panels, for many rows of activations: weights of kVectors * Lanes rows, decoded and interleaved in units of 32 bits
// (4 int8, 2 bf16 or 1 float): panel[unit][row]. A tile multiplies it with kTile rows of activations, whose units are
// broadcast. See linear.h for `Isa`.

#ifndef SLIMDEPLOY_PANELS_H
#define SLIMDEPLOY_PANELS_H

#include "streams.h"

namespace slimdeploy {
namespace {

// Bytes ahead of a row's position: a panel walks through so many rows at once that a few hundred are time enough.
constexpr int kPanelPrefetch = 512;

// Rows of the weight that a panel holds.
template <class Isa>
constexpr int kPanelRows = Isa::kPanelVectors * Isa::kLanes;

// A slab of columns of these rows. starts: of sums over a group of columns.
template <int kRows, int kBlockUnits, int kBlockGroups>
struct Panel {
    alignas(64) uint32_t units[size_t(kSlabBlocks) * kBlockUnits * kRows];
    alignas(64) float scales[size_t(kSlabBlocks) * kBlockGroups * kRows];
    alignas(64) int32_t starts[kRows];
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

template <class Isa, int kTile>
SLIMDEPLOY_INLINE void set_to_zero(typename Isa::Floats (&sum)[kTile][Isa::kPanelVectors]) {
    SLIMDEPLOY_UNROLL
    for (int m = 0; m < kTile; m++) {
        SLIMDEPLOY_UNROLL
        for (int v = 0; v < Isa::kPanelVectors; v++) sum[m][v] = Isa::zero();
    }
}

// The kinds of panels: how a block is decoded into one, and how a tile is multiplied with it. `Setup` is held while
// that goes on. A tile reads kTile rows of activations; `count` are left that count.

template <class Isa, class Stream>
struct IntPanel {
    static constexpr int kGroup = Stream::kGroup, kGroupUnits = kGroup / 4, kBlockUnits = kBlockColumns / 4;
    static constexpr int kTile = Isa::kPanelTile, kRows = kPanelRows<Isa>, kBlockGroups = kBlockColumns / kGroup;
    static constexpr bool kIntegers = true;
    using Panel = slimdeploy::Panel<kRows, kBlockUnits, kBlockGroups>;
    using Row = Stream;
    struct Setup {};

    // One block of one row into `units`, its scales into the panel's column of that row.
    static SLIMDEPLOY_INLINE void decode(Stream &stream, size_t block, uint32_t *units, float *column) {
        typename Isa::Chunk chunk[kChunks];
        const uint8_t *scales = stream.next(chunk);
        for (int c = 0; c < kChunks; c++) Isa::store(units + 16 * c, chunk[c]);
        for (int g = 0; g < kBlockGroups; g++) column[(block * kBlockGroups + g) * kRows] = load_bf16(scales + 2 * g);
    }

    static SLIMDEPLOY_INLINE void tile(const Panel &panel, size_t blocks, const uint8_t *x, size_t stride,
                                       size_t /* count */, typename Isa::Floats (&sum)[kTile][Isa::kPanelVectors]) {
        constexpr int kVectors = Isa::kPanelVectors;
        set_to_zero<Isa>(sum);
        const uint32_t *units = panel.units;
        const float *scales = panel.scales;
        for (size_t g = 0; g < blocks * kBlockGroups; g++, scales += kRows, x += kGroup) {
            typename Isa::Ints ints[kTile][kVectors];
            SLIMDEPLOY_UNROLL
            for (int m = 0; m < kTile; m++) {
                SLIMDEPLOY_UNROLL
                for (int v = 0; v < kVectors; v++) ints[m][v] = Isa::load_ints(panel.starts + v * Isa::kLanes);
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
    static constexpr int kGroupUnits = 0, kBlockUnits = kBlockColumns * sizeof(typename Arithmetic::Activation) / 4;
    static constexpr int kTile = Isa::kPanelTile, kRows = kPanelRows<Isa>;
    static constexpr bool kIntegers = false;
    using Panel = slimdeploy::Panel<kRows, kBlockUnits, 1>;
    using Row = Stream;
    struct Setup {};

    static SLIMDEPLOY_INLINE void decode(Stream &stream, size_t, uint32_t *units, float *) {
        typename Isa::Words words[Stream::kWords];
        stream.next(words);
        for (int i = 0; i < Stream::kWords; i++)
            Arithmetic::store(units + i * (kBlockUnits / Stream::kWords), words[i]);
    }

    static SLIMDEPLOY_INLINE void tile(const Panel &panel, size_t blocks, const uint8_t *x, size_t stride,
                                       size_t /* count */, typename Isa::Floats (&sum)[kTile][Isa::kPanelVectors]) {
        constexpr int kVectors = Isa::kPanelVectors;
        set_to_zero<Isa>(sum);
        const uint32_t *units = panel.units;
        for (size_t u = 0; u < blocks * kBlockUnits; u++, units += kRows, x += 4) {
            typename Isa::Units weights[kVectors];
            SLIMDEPLOY_UNROLL
            for (int v = 0; v < kVectors; v++) weights[v] = Isa::load_units(units + v * Isa::kLanes);
            SLIMDEPLOY_UNROLL
            for (int m = 0; m < kTile; m++) {
                const auto activations = Isa::broadcast_unit(x + m * stride);
                SLIMDEPLOY_UNROLL
                for (int v = 0; v < kVectors; v++)
                    sum[m][v] = Arithmetic::dot_units(sum[m][v], activations, weights[v]);
            }
        }
    }
};

template <class Kind>
SLIMDEPLOY_INLINE void begin_panel(const Matrix &w, size_t n0, int rows, typename Kind::Row *stream,
                                   typename Kind::Panel &panel) {
    // Rows behind the last are multiplied too, although nobody reads what comes of it.
    if (rows < Kind::kRows) memset(&panel, 0, sizeof panel);
    for (int r = 0; r < rows; r++) {
        stream[r] = {w.data + w.row_offset[n0 + r], w.kept_per_chunk, kPanelPrefetch};
        panel.starts[r] = w.starts[n0 + r] * Kind::kGroupUnits;
    }
}

// The next `blocks` blocks of a panel's rows. Of a vector that is not full the rest becomes zero, as it was.
template <class Isa, class Kind>
SLIMDEPLOY_INLINE void decode_panel(typename Kind::Row *stream, int rows, size_t blocks, typename Kind::Panel &panel) {
    constexpr int kLanes = Isa::kLanes, kUnits = Kind::kBlockUnits, kRows = Kind::kRows;
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

// Adds a row of a tile's sums to y, or sets them on the first slab, and applies scale and correction on the last.
// Count: int, or a constant, with which compilers use vectors.
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

template <class Isa, class Kind>
SLIMDEPLOY_INLINE void write_tile(const Matrix &w, const Activations &a, float *y, size_t m0, size_t n0, int rows,
                                  bool first, bool last, typename Isa::Floats (&sum)[Kind::kTile][Isa::kPanelVectors]) {
    constexpr std::integral_constant<int, Kind::kRows> kAll{};
    for (int m = 0; m < Kind::kTile && m0 + m < a.count; m++) {
        alignas(64) float out[Kind::kRows];
        for (int v = 0; v < Isa::kPanelVectors; v++) Isa::store_floats(out + v * Isa::kLanes, sum[m][v]);
        const float scale = Kind::kIntegers ? a.scales[m0 + m] : 1.0f;
        const float *corrections = Kind::kIntegers ? w.corrections + n0 : nullptr;
        float *target = y + (m0 + m) * w.rows + n0;
        if (rows == kAll) {
            write_row<Kind::kIntegers>(out, kAll, first, last, scale, corrections, target);
        } else {
            write_row<Kind::kIntegers>(out, rows, first, last, scale, corrections, target);
        }
    }
}

// Panels that are decoded before they are multiplied: together they fill the cache that an instruction set's CPUs can
// spare, and activations, which may not fit there, are read once for all of them.
template <class Isa, class Kind>
constexpr size_t panels_at_once() {
    const size_t fit = Isa::kPanelCache / sizeof(Kind::Panel::units);
    return fit > 1 ? fit : 1;
}

template <class Isa, class Kind>
void panels(const Matrix &w, const Activations &a, float *y, size_t begin, size_t end, void *scratch) {
    constexpr size_t kAtOnce = panels_at_once<Isa, Kind>(), kRows = size_t(Kind::kRows);
    auto *panel = static_cast<typename Kind::Panel *>(scratch);
    [[maybe_unused]] const typename Kind::Setup setup;
    for (size_t p = begin; p < end; p += kAtOnce) {
        const size_t count = end - p < kAtOnce ? end - p : kAtOnce;
        typename Kind::Row stream[kAtOnce * kRows];
        int rows[kAtOnce];
        for (size_t i = 0; i < count; i++) {
            const size_t n0 = (p + i) * kRows;
            rows[i] = int(w.rows - n0 < kRows ? w.rows - n0 : kRows);
            begin_panel<Kind>(w, n0, rows[i], stream + i * kRows, panel[i]);
        }
        const uint8_t *x = static_cast<const uint8_t *>(a.values);
        for (size_t slab = 0; slab < w.blocks; slab += kSlabBlocks) {
            const size_t blocks = w.blocks - slab < size_t(kSlabBlocks) ? w.blocks - slab : kSlabBlocks;
            const bool first = slab == 0, last = slab + blocks == w.blocks;
            for (size_t i = 0; i < count; i++) decode_panel<Isa, Kind>(stream + i * kRows, rows[i], blocks, panel[i]);
            for (size_t m0 = 0; m0 < a.count; m0 += Kind::kTile) {
                for (size_t i = 0; i < count; i++) {
                    typename Isa::Floats sum[Kind::kTile][Isa::kPanelVectors];
                    Kind::tile(panel[i], blocks, x + m0 * a.stride, a.stride, a.count - m0, sum);
                    write_tile<Isa, Kind>(w, a, y, m0, (p + i) * kRows, rows[i], first, last, sum);
                }
            }
            x += blocks * Kind::kBlockUnits * 4;
        }
    }
}

}  // namespace
}  // namespace slimdeploy

#endif
