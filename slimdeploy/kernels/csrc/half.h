// fp16 activations, for sessions that compute in fp16: as floats, and back with rounding to the nearest, ties to even.

#ifndef SLIMDEPLOY_HALF_H
#define SLIMDEPLOY_HALF_H

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace slimdeploy {

inline void widen(const uint16_t *halves, float *floats, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const uint32_t magnitude = uint32_t(halves[i] & 0x7FFFu) << 13, sign = uint32_t(halves[i] & 0x8000u) << 16;
        float value;
        memcpy(&value, &magnitude, sizeof value);
        value *= 0x1p112f;  // the difference of the exponents' offsets; exact, also for subnormal numbers
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (magnitude >= 0x0F800000u) bits = 0x7F800000u | magnitude;  // infinity or NaN
        bits |= sign;
        memcpy(&floats[i], &bits, sizeof bits);
    }
}

inline uint16_t narrowed(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const auto sign = uint16_t(bits >> 16 & 0x8000u);
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return sign | 0x7E00u;   // NaN
    if (magnitude >= 0x477FF000u) return sign | 0x7C00u;  // 65520 and more round to infinity
    if (magnitude < 0x38800000u) {                        // below 2^-14: subnormal
        float small;
        memcpy(&small, &magnitude, sizeof small);
        small += 0.5f;  // whose last place is the smallest fp16 number
        memcpy(&bits, &small, sizeof bits);
        return sign | uint16_t(bits - 0x3F000000u);
    }
    const uint32_t rounded = magnitude + 0x0FFFu + (magnitude >> 13 & 1u);
    return sign | uint16_t((rounded - 0x38000000u) >> 13);
}

inline void narrow(const float *floats, uint16_t *halves, size_t count) {
    for (size_t i = 0; i < count; i++) halves[i] = narrowed(floats[i]);
}

}  // namespace slimdeploy

#endif
