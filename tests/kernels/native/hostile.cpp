#include "hostile.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t kRows = 3, kColumns = 70;
constexpr int64_t kHuge = int64_t(1) << 62;

// A valid weight with arrays of its own, to be spoilt.
struct Weight {
    std::vector<uint8_t> mask, values;
    std::vector<uint16_t> scales;
    slimdeploy_packed packed{};

    // Keeps the first of every two columns, which is also what 1:2 keeps.
    Weight(int32_t value_type, int32_t group, bool dense) {
        const int64_t kept = dense ? kColumns : kColumns / 2, size = value_type == SLIMDEPLOY_INT8 ? 1 : 2;
        const int64_t per_row = value_type < SLIMDEPLOY_INT8 ? 0 : group ? (kColumns + group - 1) / group : 1;
        for (int64_t n = 0; n < kRows && !dense; n++) {
            for (int byte = 0; byte < 16; byte++) mask.push_back(byte < 8 ? 0x55 : byte == 8 ? 0x15 : 0);
        }
        values.assign(size_t(value_type == SLIMDEPLOY_INT4 ? (kept * kRows + 1) / 2 : kept * kRows * size), 0x11);
        scales.assign(size_t(per_row * kRows), 0x3F80);
        packed = {kRows,
                  kColumns,
                  value_type,
                  group,
                  dense ? 0 : 1,
                  dense ? 0 : 2,
                  mask.empty() ? nullptr : mask.data(),
                  mask.size(),
                  values.data(),
                  uint64_t(kept * kRows),
                  scales.empty() ? nullptr : scales.data(),
                  scales.size()};
    }
};

struct Spoiling {
    const char *what;
    std::function<void(Weight &)> spoil;
    bool (*applies)(const Weight &) = [](const Weight &) { return true; };
};

bool has_mask(const Weight &w) { return w.packed.mask; }
bool has_scales(const Weight &w) { return w.packed.scales; }

void set_scales(Weight &w, uint16_t bits) { w.scales.back() = bits; }

const Spoiling kSpoilings[] = {
    {"no rows", [](Weight &w) { w.packed.rows = 0; }},
    {"no columns", [](Weight &w) { w.packed.columns = 0; }},
    {"negative rows", [](Weight &w) { w.packed.rows = -kRows; }},
    {"negative columns", [](Weight &w) { w.packed.columns = std::numeric_limits<int64_t>::min(); }},
    {"one row more", [](Weight &w) { w.packed.rows++; }},
    {"one row less", [](Weight &w) { w.packed.rows--; }},
    {"fewer columns", [](Weight &w) { w.packed.columns = 62; }},
    {"more columns", [](Weight &w) { w.packed.columns = 129; }},
    {"2^31 - 1 rows", [](Weight &w) { w.packed.rows = INT32_MAX; }},
    {"2^31 - 1 columns", [](Weight &w) { w.packed.columns = INT32_MAX; }},
    {"2^62 rows", [](Weight &w) { w.packed.rows = kHuge; }},
    {"2^62 columns", [](Weight &w) { w.packed.columns = kHuge; }},
    {"2^62 rows and columns", [](Weight &w) { w.packed.rows = w.packed.columns = kHuge; }},
    {"the most rows and columns", [](Weight &w) { w.packed.rows = w.packed.columns = INT32_MAX; }},
    {"an unknown value type", [](Weight &w) { w.packed.value_type = 4; }},
    {"a negative value type", [](Weight &w) { w.packed.value_type = -1; }},
    {"a group of 64", [](Weight &w) { w.packed.group = 64; }},
    {"a negative group", [](Weight &w) { w.packed.group = -128; }},
    {"a value less", [](Weight &w) { w.packed.value_count--; }},
    {"a value more", [](Weight &w) { w.packed.value_count++; }},
    {"no values", [](Weight &w) { w.packed.value_count = 0; }},
    {"2^63 values", [](Weight &w) { w.packed.value_count = uint64_t(1) << 63; }},
    {"values nowhere", [](Weight &w) { w.packed.values = nullptr; }},
    {"a scale less", [](Weight &w) { w.packed.scale_count--; }},
    {"a scale more", [](Weight &w) { w.packed.scale_count++; }},
    {"2^64 - 1 scales", [](Weight &w) { w.packed.scale_count = UINT64_MAX; }},
    {"scales nowhere", [](Weight &w) { w.packed.scales = nullptr; }, has_scales},
    {"a scale of zero", [](Weight &w) { set_scales(w, 0); }, has_scales},
    {"a scale of minus zero", [](Weight &w) { set_scales(w, 0x8000); }, has_scales},
    {"a negative scale", [](Weight &w) { set_scales(w, 0xBF80); }, has_scales},
    {"an infinite scale", [](Weight &w) { set_scales(w, 0x7F80); }, has_scales},
    {"a scale that is NaN", [](Weight &w) { set_scales(w, 0x7FC0); }, has_scales},
    {"a mask of no bytes", [](Weight &w) { w.packed.mask_count = 0; }, has_mask},
    {"a byte of mask less", [](Weight &w) { w.packed.mask_count--; }, has_mask},
    {"2^64 - 1 bytes of mask", [](Weight &w) { w.packed.mask_count = UINT64_MAX; }},
    {"a mask nowhere", [](Weight &w) { w.packed.mask = nullptr; }, has_mask},
    {"a bit in the padding", [](Weight &w) { w.mask[15] = 0x80; }, has_mask},
    {"the first bit of the padding", [](Weight &w) { w.mask[8] |= 0x40; }, has_mask},
    {"a weight more than the pattern keeps", [](Weight &w) { w.mask[0] |= 2; w.packed.value_count++; }, has_mask},
    {"one weight less", [](Weight &w) { w.mask[0] &= 0xFE; w.packed.value_count--; }, has_mask},
    {"another place of a block", [](Weight &w) { w.mask[0] = 0x56; w.mask[1] = 0x51; }, has_mask},
    {"a bit that no value goes with",
     [](Weight &w) { w.packed.block = w.packed.kept_per_block = 0; w.mask[0] |= 2; }, has_mask},
    {"2:1", [](Weight &w) { w.packed.kept_per_block = 2; w.packed.block = 1; }},
    {"0:2", [](Weight &w) { w.packed.kept_per_block = 0; w.packed.block = 2; }},
    {"1:0", [](Weight &w) { w.packed.kept_per_block = 1; w.packed.block = 0; }},
    {"-1:2", [](Weight &w) { w.packed.kept_per_block = -1; w.packed.block = 2; }},
    {"1:-2", [](Weight &w) { w.packed.kept_per_block = 1; w.packed.block = -2; }},
    {"1 of 2^31 - 1", [](Weight &w) { w.packed.kept_per_block = 1; w.packed.block = INT32_MAX; }, has_mask},
    {"2:2", [](Weight &w) { w.packed.kept_per_block = 2; w.packed.block = 2; }, has_mask},
};

int failures = 0;

void expect(bool refused, const char *error, const char *what) {
    if (refused && error[0]) return;
    printf("%s: %s\n", what, refused ? "refused without a sentence" : "not refused");
    failures++;
}

void check_spoilt_weights() {
    const struct {
        int32_t value_type, group;
    } kinds[] = {{SLIMDEPLOY_BF16, 0}, {SLIMDEPLOY_FP16, 0}, {SLIMDEPLOY_INT8, 0}, {SLIMDEPLOY_INT8, 128},
                 {SLIMDEPLOY_INT4, 128}, {SLIMDEPLOY_INT4, 32}};
    for (const auto &kind : kinds) {
        for (const bool dense : {false, true}) {
            slimdeploy_weight *weight = nullptr;
            char error[256] = "";
            const Weight good(kind.value_type, kind.group, dense);
            if (slimdeploy_weight_create(&good.packed, "portable", SLIMDEPLOY_SPARSE, &weight, error, sizeof error)) {
                printf("a good weight is refused: %s\n", error);
                failures++;
            }
            slimdeploy_weight_free(weight);
            for (const Spoiling &spoiling : kSpoilings) {
                Weight bad(kind.value_type, kind.group, dense);
                if (!spoiling.applies(bad)) continue;
                spoiling.spoil(bad);
                error[0] = 0;
                const int code =
                    slimdeploy_weight_create(&bad.packed, "portable", SLIMDEPLOY_SPARSE, &weight, error, sizeof error);
                expect(code, error, spoiling.what);
            }
        }
    }
}

void check_calls_that_make_no_sense() {
    const Weight good(SLIMDEPLOY_INT8, 128, false);
    const slimdeploy_packed *packed = &good.packed;
    slimdeploy_weight *weight = nullptr;
    char error[256] = "";
    const size_t size = sizeof error;
    const auto refused = [&](int code, const char *what) {
        expect(code, error, what);
        error[0] = 0;
    };
    refused(slimdeploy_weight_create(nullptr, nullptr, 0, &weight, error, size), "no packed weight");
    refused(slimdeploy_weight_create(packed, nullptr, 0, nullptr, error, size), "no place for the weight");
    refused(slimdeploy_weight_create(packed, "abacus", 0, &weight, error, size), "an unknown instruction set");
    refused(slimdeploy_weight_create(packed, "", 0, &weight, error, size), "an instruction set without a name");
    refused(slimdeploy_weight_create(packed, nullptr, 3, &weight, error, size), "an unknown layout");
    refused(slimdeploy_weight_create(packed, nullptr, -1, &weight, error, size), "a negative layout");
    if (slimdeploy_weight_create(packed, nullptr, SLIMDEPLOY_SPARSE, &weight, nullptr, 0)) {
        printf("a good weight is refused\n");
        failures++;
        return;
    }
    std::vector<float> x(2 * kColumns, 1), y(2 * kRows);
    const auto multiply = [&](const slimdeploy_weight *w, const float *in, int64_t count, float *out, int32_t threads) {
        return slimdeploy_linear(w, in, count, out, threads, nullptr, nullptr, error, size);
    };
    refused(multiply(weight, x.data(), -1, y.data(), 1), "-1 rows of activations");
    refused(multiply(weight, x.data(), kHuge, y.data(), 1), "2^62 rows of activations");
    refused(multiply(weight, nullptr, 1, y.data(), 1), "no activations");
    refused(multiply(weight, x.data(), 1, nullptr, 1), "nowhere to write to");
    refused(multiply(nullptr, x.data(), 1, y.data(), 1), "no weight");
    for (const int32_t threads : {INT32_MIN, 0, 1, 3, 100}) {
        if (multiply(weight, x.data(), 2, y.data(), threads) || std::fabs(y[5] - 35 * 17) > 1e-2) {
            printf("%d threads: %g, not %d\n", int(threads), y[5], 35 * 17);
            failures++;
        }
    }
    if (multiply(weight, nullptr, 0, nullptr, 1)) {
        printf("no rows of activations are refused\n");
        failures++;
    }
    slimdeploy_weight_free(weight);
    slimdeploy_weight_free(nullptr);
    expect(slimdeploy_instruction_set(-1, nullptr) == nullptr, "-", "instruction set -1");
    expect(slimdeploy_instruction_set(1000, nullptr) == nullptr, "-", "instruction set 1000");
}

// Codes and bit patterns that a file should not hold but that cannot be told from others: any result, and no crash.
void check_values_outside_the_format() {
    int32_t supported;
    for (int32_t index = 0; const char *set = slimdeploy_instruction_set(index, &supported); index++) {
        if (!supported) continue;
        for (const int32_t value_type : {SLIMDEPLOY_BF16, SLIMDEPLOY_FP16, SLIMDEPLOY_INT8, SLIMDEPLOY_INT4}) {
            for (const int32_t layout : {SLIMDEPLOY_SPARSE, SLIMDEPLOY_DENSE}) {
                Weight odd(value_type, value_type == SLIMDEPLOY_INT4 ? 32 : 0, false);
                const uint8_t bytes[] = {0x80, 0x88, 0xFF, 0x7F};
                for (size_t i = 0; i < odd.values.size(); i++) odd.values[i] = bytes[i % 4];
                slimdeploy_weight *weight = nullptr;
                char error[256] = "";
                std::vector<float> x(20 * kColumns), y(20 * kRows);
                const float inputs[] = {1e38f, -3.4e38f, NAN, INFINITY, -INFINITY, 1e-40f, 0.0f};
                for (size_t i = 0; i < x.size(); i++) x[i] = inputs[(i / kColumns + i % 2) % 7];
                if (slimdeploy_weight_create(&odd.packed, set, layout, &weight, error, sizeof error)) {
                    printf("%s, values outside the format: %s\n", set, error);
                    failures++;
                    continue;
                }
                for (const int64_t count : {1, 2, 4, 8, 20}) {
                    failures +=
                        slimdeploy_linear(weight, x.data(), count, y.data(), 1, nullptr, nullptr, error, sizeof error);
                }
                slimdeploy_weight_free(weight);
            }
        }
    }
}

}  // namespace

int check_hostile_input() {
    check_spoilt_weights();
    check_calls_that_make_no_sense();
    check_values_outside_the_format();
    printf("hostile input: %d failures\n", failures);
    return failures != 0;
}
