// Fused kernels, for few rows of activations: weights are decoded into registers and multiplied with kCount rows. For
// more rows a panel, which is in the first-level cache by then, is decoded again.

#ifndef SLIMDEPLOY_FUSED_H
#define SLIMDEPLOY_FUSED_H

#include "tile.h"

namespace slimdeploy {
namespace {

template <class Isa, class Kind, int kCount, int kPanels>
SLIMDEPLOY_INLINE void multiply_panels(const Matrix &w, const Activations &a, float *y,
                                       const size_t (&panel)[kPanels]) {
    const uint8_t *x = static_cast<const uint8_t *>(a.values);
    for (size_t m = 0; m < a.count; m += kCount) {
        Decoded<Isa, Kind, kPanels> source;
        for (int i = 0; i < kPanels; i++) source.open(w, i, panel[i]);
        typename Isa::Floats sum[kCount][source.kVectors];
        multiply_weights<Isa, Kind, kCount>(source, w.padded_columns, x + m * a.stride, a.stride, sum);
        for (int i = 0; i < kPanels; i++) {
            constexpr int kVectors = kUnitVectors<Isa>;
            write_tile<Isa, Kind, kVectors>(w, a, y, m, panel[i] * kPanelRows, true, true, sum, i * kVectors);
        }
    }
}

// For one row of activations two panels are in flight, far apart: products of one alone would wait for its decoding.
template <class Isa, class Kind, int kCount>
void fused(const Matrix &w, const Activations &a, float *y, size_t begin, size_t end) {
    constexpr size_t kPanels = kCount == 1 ? 2 : 1;
    const size_t stripe = (end - begin) / kPanels;
    for (size_t i = begin; i < begin + stripe; i++) {
        size_t panel[kPanels];
        for (size_t p = 0; p < kPanels; p++) panel[p] = i + p * stripe;
        multiply_panels<Isa, Kind, kCount, int(kPanels)>(w, a, y, panel);
    }
    for (size_t i = begin + kPanels * stripe; i < end; i++) multiply_panels<Isa, Kind, kCount, 1>(w, a, y, {i});
}

}  // namespace
}  // namespace slimdeploy

#endif
