// For many rows of activations: panels are decoded into the cache before they are multiplied. kPanelVectors vectors of
// rows lie side by side there, which may be two panels: cached[unit][row]. See linear.h for `Isa`.

#ifndef SLIMDEPLOY_PANELS_H
#define SLIMDEPLOY_PANELS_H

#include "tile.h"

namespace slimdeploy {
namespace {

// Rows of the weight that lie side by side.
template <class Isa>
constexpr int kCachedRows = Isa::kPanelVectors *Isa::kLanes;

// A slab of columns of these rows, decoded. scales: of integer kinds.
template <class Isa, class Kind>
struct Cached {
    static constexpr int kRows = kCachedRows<Isa>;
    static constexpr int kGroups = Kind::kIntegers ? kSlabColumns / Kind::kGroup : 1;
    alignas(64) uint32_t units[size_t(kSlabColumns / kBlockColumns) * Kind::kBlockUnits * kRows];
    alignas(64) float scales[size_t(kGroups) * kRows];

    // The next columns of a panel into its place, which begins at row `first`.
    SLIMDEPLOY_INLINE void decode(Decoded<Isa, Kind, 1> &source, size_t columns, int first) {
        uint32_t *place = units + first;
        for (size_t group = 0; group < columns / Kind::kGroup; group++) {
            typename Isa::Floats scale[kUnitVectors<Isa>];
            source.begin_group(scale);
            for (int v = 0; v < kUnitVectors<Isa> && Kind::kIntegers; v++) {
                Isa::store_floats(scales + group * kRows + first + v * Isa::kLanes, scale[v]);
            }
            for (int block = 0; block < Kind::kGroup / kBlockColumns; block++) {
                source.next_block();
                SLIMDEPLOY_UNROLL
                for (int u = 0; u < Kind::kBlockUnits; u++, place += kRows) {
                    SLIMDEPLOY_UNROLL
                    for (int v = 0; v < kUnitVectors<Isa>; v++) {
                        Isa::store_units(place + v * Isa::kLanes, source.unit(u, v));
                    }
                }
            }
        }
    }
};

// Weights that were decoded before.
template <class Isa, class Kind>
struct FromCache {
    static constexpr int kVectors = Isa::kPanelVectors, kRows = kCachedRows<Isa>;
    const uint32_t *next, *units;
    const float *scales;
    const int32_t *starts;

    SLIMDEPLOY_INLINE typename Isa::Ints start(int v) const { return Isa::load_ints(starts + v * Isa::kLanes); }
    SLIMDEPLOY_INLINE void begin_group(typename Isa::Floats (&scale)[kVectors]) {
        if constexpr (Kind::kIntegers) {
            SLIMDEPLOY_UNROLL
            for (int v = 0; v < kVectors; v++) scale[v] = Isa::load_floats(scales + v * Isa::kLanes);
            scales += kRows;
        }
    }
    SLIMDEPLOY_INLINE void next_block() {
        units = next;
        next += Kind::kBlockUnits * kRows;
    }
    SLIMDEPLOY_INLINE typename Isa::Units unit(int u, int v) const {
        return Isa::load_units(units + u * kRows + v * Isa::kLanes);
    }
};

// How a tile of kTile rows of activations is multiplied, of which `count` are left. `Setup` is held while that goes on.
template <class Isa, class ValueKind>
struct VectorTiles {
    using Kind = ValueKind;
    static constexpr int kTile = Isa::kPanelTile;
    struct Setup {};

    static SLIMDEPLOY_INLINE void tile(const Cached<Isa, Kind> &cached, const int32_t *starts, size_t columns,
                                       const uint8_t *x, size_t stride, size_t /* count */,
                                       typename Isa::Floats (&sum)[kTile][Isa::kPanelVectors]) {
        FromCache<Isa, Kind> source{cached.units, cached.units, cached.scales, starts};
        multiply_weights<Isa, Kind, kTile>(source, columns, x, stride, sum);
    }
};

// What is decoded before it is multiplied: together it fills the cache that an instruction set's CPUs can spare, and
// activations, which may not fit there, are read once for all of it.
template <class Isa, class Kind>
constexpr size_t cached_at_once() {
    const size_t fit = Isa::kPanelCache / sizeof(Cached<Isa, Kind>::units);
    return fit > 1 ? fit : 1;
}

template <class Isa, class Tiles>
void cached_panels(const Matrix &w, const Activations &a, float *y, size_t begin, size_t end, void *scratch) {
    using Kind = typename Tiles::Kind;
    constexpr size_t kTogether = kCachedRows<Isa> / kPanelRows, kAtOnce = kTogether * cached_at_once<Isa, Kind>();
    auto *cached = static_cast<Cached<Isa, Kind> *>(scratch);
    [[maybe_unused]] const typename Tiles::Setup setup;
    for (size_t p = begin; p < end; p += kAtOnce) {
        const size_t count = end - p < kAtOnce ? end - p : kAtOnce;
        // Rows that no panel has are multiplied too, although nobody reads what comes of it.
        if (count % kTogether) memset(&cached[count / kTogether], 0, sizeof *cached);
        Decoded<Isa, Kind, 1> source[kAtOnce];
        for (size_t i = 0; i < count; i++) source[i].open(w, 0, p + i);
        const uint8_t *x = static_cast<const uint8_t *>(a.values);
        for (size_t slab = 0; slab < w.padded_columns; slab += kSlabColumns) {
            const size_t left = w.padded_columns - slab, columns = left < size_t(kSlabColumns) ? left : kSlabColumns;
            const bool first = slab == 0, last = columns == left;
            for (size_t i = 0; i < count; i++) {
                cached[i / kTogether].decode(source[i], columns, int(i % kTogether) * kPanelRows);
            }
            for (size_t m = 0; m < a.count; m += Tiles::kTile) {
                for (size_t i = 0; i < count; i += kTogether) {
                    const size_t n = (p + i) * kPanelRows;
                    typename Isa::Floats sum[Tiles::kTile][Isa::kPanelVectors];
                    Tiles::tile(cached[i / kTogether], w.starts + n, columns, x + m * a.stride, a.stride, a.count - m,
                                sum);
                    write_tile<Isa, Kind, Isa::kPanelVectors>(w, a, y, m, n, first, last, sum);
                }
            }
            x += columns / kBlockColumns * Kind::kBlockUnits * 4;
        }
    }
}

}  // namespace
}  // namespace slimdeploy

#endif
