// Floats and their 16-bit relatives by their bits. See layout.h on unnamed namespaces.

#ifndef SLIMDEPLOY_NUMBERS_H
#define SLIMDEPLOY_NUMBERS_H

#include <cstdint>
#include <cstring>

namespace slimdeploy {
namespace {

inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// How many bits of each byte are set, in that byte.
inline uint64_t bits_in_bytes(uint64_t word) {
    word -= word >> 1 & 0x5555555555555555u;
    word = (word & 0x3333333333333333u) + (word >> 2 & 0x3333333333333333u);
    return (word + (word >> 4)) & 0x0F0F0F0F0F0F0F0Fu;
}

// At most 255.
inline uint64_t sum_of_bytes(uint64_t word) { return word * 0x0101010101010101u >> 56; }

// For files that are built without an instruction for it, whose builtin is a call for every word.
inline uint64_t bits_in(uint64_t word) { return sum_of_bytes(bits_in_bytes(word)); }

inline float float_of_bf16(uint16_t bf16) { return float_of_bits(uint32_t(bf16) << 16); }

// Nearest, ties to even, kept in a float; NaN stays NaN.
inline float bf16_rounded(float value) {
    const uint32_t bits = bits_of_float(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return value;
    return float_of_bits((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u);
}

inline float float_of_fp16(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000u) << 16, magnitude = uint32_t(half & 0x7FFFu) << 13;
    if (magnitude >= 0x0F800000u) return float_of_bits(sign | 0x7F800000u | magnitude);  // infinity or NaN
    // As a float with the same bits it is 2^112 times too small; multiplying also handles subnormal numbers.
    const float value = float_of_bits(magnitude) * 0x1p112f;
    return sign ? -value : value;
}

// Nearest, ties to even.
inline uint16_t fp16_of_float(float value) {
    const uint32_t bits = bits_of_float(value), magnitude = bits & 0x7FFFFFFFu;
    const auto sign = uint16_t(bits >> 16 & 0x8000u);
    if (magnitude > 0x7F800000u) return sign | 0x7E00u;   // NaN
    if (magnitude >= 0x477FF000u) return sign | 0x7C00u;  // 65520 and more round to infinity
    if (magnitude < 0x38800000u) {                        // below 2^-14: subnormal
        // The last place of a float between 0.5 and 1 is the smallest fp16 number.
        return sign | uint16_t(bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3F000000u);
    }
    const uint32_t rounded = magnitude + 0x0FFFu + (magnitude >> 13 & 1u);
    return sign | uint16_t((rounded - 0x38000000u) >> 13);
}

}  // namespace
}  // namespace slimdeploy

#endif
