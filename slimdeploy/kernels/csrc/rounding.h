// How activations are rounded, the parts that are the same on every machine. See layout.h on unnamed namespaces.

#ifndef SLIMDEPLOY_ROUNDING_H
#define SLIMDEPLOY_ROUNDING_H

#include <cstring>

#include "layout.h"
#include "numbers.h"

namespace slimdeploy {
namespace {

// From the bit pattern of a row's largest magnitude. A row with infinity or NaN gets the scale NaN.
struct Int8Rounding {
    float scale, inverse;

    explicit Int8Rounding(uint32_t largest_bits) {
        const float largest = float_of_bits(largest_bits), floor = 1e-30f;
        const float magnitude = largest > floor ? largest : floor;
        const bool finite = largest_bits < 0x7F800000u;
        scale = finite ? magnitude / 127.0f : float_of_bits(0x7FC00000u);
        inverse = finite ? 127.0f / magnitude : 0.0f;
    }
};

inline float round_to_bf16(const float *x, size_t columns, size_t padded, void *out) {
    float *floats = static_cast<float *>(out);
    for (size_t k = 0; k < columns; k++) floats[k] = bf16_rounded(x[k]);
    for (size_t k = columns; k < padded; k++) floats[k] = 0;
    return 1.0f;
}

inline float copy_floats(const float *x, size_t columns, size_t padded, void *out) {
    float *floats = static_cast<float *>(out);
    memcpy(floats, x, columns * sizeof(float));
    for (size_t k = columns; k < padded; k++) floats[k] = 0;
    return 1.0f;
}

}  // namespace
}  // namespace slimdeploy

#endif
