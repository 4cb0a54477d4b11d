// What may be wrong with a packed weight, found before anything is read through its counts. Values are taken as they
// are: no pattern of bits is a danger to the kernels.

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "numbers.h"
#include "weight.h"

namespace slimdeploy {
namespace {

// Between these, nothing that kernels make of a scale leaves the range of normal floats (docs/packed-format.md).
constexpr float kSmallestScale = 0x1p-100f, kLargestScale = 0x1p80f;
constexpr int32_t kLargestBlock = 65535;

[[noreturn]] void fail(const char *format, int64_t a, int64_t b) {
    char text[256];
    snprintf(text, sizeof text, format, a, b);
    throw InvalidInput(text);
}

// round(kept * columns / block), ties to even.
int64_t kept_of_rest(int64_t kept, int64_t block, int64_t columns) {
    const int64_t product = kept * columns, quotient = product / block, twice_rest = 2 * (product % block);
    if (twice_rest != block) return quotient + (twice_rest > block);
    return quotient + quotient % 2;
}

int64_t count_bits(const uint8_t *row, int64_t begin, int64_t end) {
    int64_t count = 0;
    for (int64_t c = begin; c < end;) {
        if (c % 64 == 0 && c + 64 <= end) {
            uint64_t word;
            memcpy(&word, row + c / 8, sizeof word);
            count += bits_in(word);
            c += 64;
        } else {
            count += row[c / 8] >> (c % 8) & 1;
            c++;
        }
    }
    return count;
}

void validate_shape(const slimdeploy_packed &p) {
    const int64_t limit = INT32_MAX;
    if (p.rows < 1 || p.columns < 1 || p.rows > limit || p.columns > limit) {
        fail("a weight of %" PRId64 " x %" PRId64 " is no matrix that can be held", p.rows, p.columns);
    }
}

void validate_scales(const slimdeploy_packed &p) {
    const bool words = p.value_type == SLIMDEPLOY_BF16 || p.value_type == SLIMDEPLOY_FP16;
    const int64_t per_row = words ? 0 : p.group ? int64_t(divide_up(p.columns, p.group)) : 1;
    if (p.scale_count != uint64_t(p.rows * per_row) || (p.scale_count && !p.scales)) {
        const int64_t count = int64_t(p.scale_count);
        fail("%" PRId64 " scales, not the %" PRId64 " that its shape asks for", count, p.rows * per_row);
    }
    for (uint64_t i = 0; i < p.scale_count; i++) {
        const float scale = float_of_bf16(p.scales[i]);
        if (!(scale >= kSmallestScale && scale <= kLargestScale)) {
            fail("scale %" PRId64 " is not between 2^-100 and 2^80", int64_t(i), 0);
        }
    }
}

void validate_mask(const slimdeploy_packed &p) {
    const int64_t stride = 8 * int64_t(divide_up(p.columns, 64));
    if (!p.mask) {
        if (p.mask_count) fail("%" PRId64 " bytes of mask, but no mask", int64_t(p.mask_count), 0);
        if (p.value_count != uint64_t(p.rows * p.columns)) {
            const int64_t count = int64_t(p.value_count);
            fail("%" PRId64 " values, not the %" PRId64 " of a dense weight", count, p.rows * p.columns);
        }
        return;
    }
    if (p.mask_count != uint64_t(p.rows * stride)) {
        fail("%" PRId64 " bytes of mask, not %" PRId64, int64_t(p.mask_count), p.rows * stride);
    }
    int64_t kept = 0;
    for (int64_t n = 0; n < p.rows; n++) {
        const uint8_t *row = p.mask + n * stride;
        if (count_bits(row, p.columns, stride * 8)) fail("row %" PRId64 " of the mask has bits in its padding", n, 0);
        kept += count_bits(row, 0, p.columns);
        for (int64_t c = 0; p.block && c < p.columns; c += p.block) {
            const int64_t end = std::min<int64_t>(c + p.block, p.columns);
            const int64_t expected = kept_of_rest(p.kept_per_block, p.block, end - c);
            if (count_bits(row, c, end) != expected) {
                fail("row %" PRId64 " does not keep the pattern's share in the block at column %" PRId64, n, c);
            }
        }
    }
    if (p.value_count != uint64_t(kept)) {
        fail("%" PRId64 " values, but the mask keeps %" PRId64, int64_t(p.value_count), kept);
    }
}

// 0:0: unstructured.
void validate_pattern(int32_t kept, int32_t block) {
    if ((kept || block) && (kept < 1 || block < kept || block > kLargestBlock)) {
        fail("%" PRId64 ":%" PRId64 " is no pattern; N:M keeps 1 to M of every M weights, M at most 65535", kept,
             block);
    }
}

}  // namespace

void validate_kind(int32_t value_type, int32_t group) {
    const bool words = value_type == SLIMDEPLOY_BF16 || value_type == SLIMDEPLOY_FP16;
    const bool int8 = value_type == SLIMDEPLOY_INT8, int4 = value_type == SLIMDEPLOY_INT4;
    if (!words && !int8 && !int4) fail("value type %" PRId64 " is not known", value_type, 0);
    if ((words && group != 0) || (int8 && group != 0 && group != 128) || (int4 && group != 128 && group != 32)) {
        fail("a group of %" PRId64 " columns per scale does not go with value type %" PRId64, group, value_type);
    }
}

void validate(const slimdeploy_packed &packed) {
    validate_shape(packed);
    validate_kind(packed.value_type, packed.group);
    validate_pattern(packed.kept_per_block, packed.block);
    if (packed.value_count && !packed.values) throw InvalidInput("there are no values");
    validate_scales(packed);
    validate_mask(packed);
}

}  // namespace slimdeploy
