// A packed weight in kernel layout, and how it is made from the arrays of a file.

#ifndef SLIMDEPLOY_WEIGHT_H
#define SLIMDEPLOY_WEIGHT_H

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "layout.h"
#include "pages.h"
#include "slimdeploy_kernels.h"

namespace slimdeploy {

// What a caller did wrong; becomes the sentence in `error`.
struct InvalidInput : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }

// The fastest instruction set of this CPU, or the one named. Throws InvalidInput for one that it does not support.
const KernelTable &find_kernels(const char *name);

// Throws InvalidInput for a type of value or a group that is not in the format.
void validate_kind(int32_t value_type, int32_t group);

// Throws InvalidInput that says which array disagrees with what.
void validate(const slimdeploy_packed &packed);

ValueKind value_kind(int32_t value_type, int32_t group);

// How a weight of which a certain share is kept is best held, and nanoseconds per 1000 weights of both layouts, on one
// thread and one row of activations, from memory.
struct LayoutChoice {
    Structure structure;
    double sparse_ns, dense_ns;
};

// Smaller weights live in caches, and measuring would take longer than it saves.
constexpr int64_t kWorthMeasuring = int64_t(1) << 20;

// For weights with a mask. Measured on first use (layout_choice.cpp).
LayoutChoice choose_layout(const KernelTable &kernels, ValueKind kind, double kept);

}  // namespace slimdeploy

struct slimdeploy_weight {
    slimdeploy::Matrix matrix;
    const slimdeploy::KernelTable *kernels;
    slimdeploy::ValueKind kind;
    slimdeploy::Structure structure;
    int32_t value_type;
    int64_t kept;
    std::vector<uint64_t> panel_offset;
    std::vector<int32_t> starts;
    std::vector<float> corrections;
    std::unique_ptr<slimdeploy::Buffer> buffer;
};

namespace slimdeploy {

// `packed` must have been validated.
std::unique_ptr<slimdeploy_weight> make_weight(const slimdeploy_packed &packed, const KernelTable &kernels,
                                               int32_t layout);

// Runs fn and turns what it throws into a return code and a sentence.
template <class Function>
int guarded(char *error, size_t error_size, Function fn) {
    try {
        fn();
        return 0;
    } catch (const std::bad_alloc &) {
        if (error && error_size) snprintf(error, error_size, "not enough memory");
    } catch (const std::exception &problem) {
        if (error && error_size) snprintf(error, error_size, "%s", problem.what());
    }
    return 1;
}

}  // namespace slimdeploy

#endif
