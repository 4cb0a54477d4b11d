// Panels, for many rows of activations: weights of kVectors * Lanes rows, decoded and interleaved in units of 32 bits (4
// int8, 2 bf16 or 1 float): panel[unit][row]. A tile multiplies it with kTile rows of activations, whose units are
// broadcast. See linear.h for `Isa`.

#ifndef SLIMDEPLOY_PANELS_H
#define SLIMDEPLOY_PANELS_H

#include "streams.h"

namespace slimdeploy {
namespace {

// Bytes ahead of a row's position: a panel walks through so many rows at once that a few hundred are time enough.
constexpr int kPanelPrefetch = 512;

template <class Isa>
struct Panel {
    static constexpr int kRows = Isa::kPanelVectors * Isa::kLanes;
    static constexpr size_t kUnits = size_t(kSlabBlocks) * kBlockColumns;  // of the widest kind, float
    static constexpr size_t kScales = size_t(kSlabBlocks) * kBlockColumns / 32;
    alignas(64) uint32_t units[kUnits * kRows];
    alignas(64) float scales[kScales * kRows];
    alignas(64) int32_t starts[kRows];  // for a group of columns
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
    static constexpr bool kIntegers = true;
    using Row = Stream;

    // One block of one row into `units`, its scales into the panel's column of that row.
    static SLIMDEPLOY_INLINE void decode(Stream &stream, size_t block, uint32_t *units, float *column) {
        constexpr int kRows = Panel<Isa>::kRows, kGroups = kBlockColumns / kGroup;
        typename Isa::Chunk chunk[kChunks];
        const uint8_t *scales = stream.next(chunk);
        for (int c = 0; c < kChunks; c++) Isa::store(units + 16 * c, chunk[c]);
        for (int g = 0; g < kGroups; g++) column[(block * kGroups + g) * kRows] = load_bf16(scales + 2 * g);
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
    static constexpr bool kIntegers = false;
    static constexpr int kGroupUnits = 0;
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

template <class Isa, class Kind>
SLIMDEPLOY_INLINE void begin_panel(const Matrix &w, size_t n0, int rows, typename Kind::Row *stream,
                                   Panel<Isa> &panel) {
    for (int r = 0; r < Panel<Isa>::kRows; r++) panel.starts[r] = r < rows ? w.starts[n0 + r] * Kind::kGroupUnits : 0;
    for (int r = 0; r < rows; r++) stream[r] = {w.data + w.row_offset[n0 + r], w.kept_per_chunk, kPanelPrefetch};
}

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

// Adds a tile's sums to y, or sets them on the first slab, and applies scale and correction on the last.
template <class Isa, int kTile>
SLIMDEPLOY_INLINE void write_tile(const Matrix &w, const Activations &a, float *y, size_t m0, size_t n0, bool integers,
                                  bool first, bool last, typename Isa::Floats (&sum)[kTile][Isa::kPanelVectors]) {
    constexpr int kRows = Panel<Isa>::kRows;
    const size_t columns = w.rows - n0 < size_t(kRows) ? w.rows - n0 : kRows;
    for (int m = 0; m < kTile && m0 + m < a.count; m++) {
        alignas(64) float out[kRows];
        for (int v = 0; v < Isa::kPanelVectors; v++) Isa::store_floats(out + v * Isa::kLanes, sum[m][v]);
        float *target = y + (m0 + m) * w.rows + n0;
        for (size_t n = 0; n < columns; n++) {
            const float total = first ? out[n] : target[n] + out[n];
            target[n] = last && integers ? a.scales[m0 + m] * (total - w.corrections[n0 + n]) : total;
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
        begin_panel<Isa, Kind>(w, n0, rows, stream, panel);
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
                write_tile<Isa, kTile>(w, a, y, m0, n0, Kind::kIntegers, slab == 0, last, sum);
            }
            x += blocks * Kind::kBlockUnits * 4;
        }
    }
}

}  // namespace
}  // namespace slimdeploy

#endif
