// Which layout is faster on this machine, found by running both over a stack of synthetic weights larger than its caches.
//
// Zeros pay where memory is the bottleneck. On a CPU that spreads bytes by a mask slowly, or whose memory is fast, a
// dense layout can win; and whether two or four rows should be in flight depends on the prefetchers.

#include <time.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>

#include "weight.h"

namespace slimdeploy {
namespace {

constexpr int64_t kRows = 64, kColumns = 4096;
constexpr size_t kStackBytes = size_t(48) << 20;
constexpr double kSecondsPerRound = 0.004;
constexpr int kRounds = 3;
// Sparse weights take less memory, so dense ones must be this much faster to be preferred.
constexpr double kDenseMargin = 0.8;

// Of this thread, so that what other processes take does not count.
double seconds_now() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

uint64_t next_random(uint64_t &state) {  // xorshift64, Marsaglia 2003
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

// A mask of 64 columns with exactly `count` bits.
uint64_t random_mask(int count, uint64_t &state) {
    uint64_t mask = 0;
    while (__builtin_popcountll(mask) < count) mask |= uint64_t(1) << (next_random(state) % 64);
    return mask;
}

std::unique_ptr<slimdeploy_weight> synthetic_weight(const KernelTable &kernels, ValueKind kind, Structure structure,
                                                    int kept_of_64) {
    uint64_t state = 0x9E3779B97F4A7C15u, kept = 0;
    std::vector<uint64_t> mask(kRows * kColumns / 64);
    for (uint64_t &chunk : mask) {
        // Unstructured counts vary around their mean.
        const int jitter = structure == kUnstructured ? int(next_random(state) % 9) - 4 : 0;
        chunk = random_mask(std::clamp(kept_of_64 + jitter, 1, 63), state);
        kept += __builtin_popcountll(chunk);
    }
    const bool dense = structure == kDense, words = kind == kBf16 || kind == kFp16;
    const std::vector<uint8_t> values(2 * kRows * kColumns);
    const std::vector<uint16_t> scales(words ? 0 : kRows * kColumns / 32, 0x3F80);
    slimdeploy_packed packed{};
    packed.rows = kRows;
    packed.columns = kColumns;
    packed.value_type = kind == kBf16   ? SLIMDEPLOY_BF16
                        : kind == kFp16 ? SLIMDEPLOY_FP16
                        : kind == kInt8 ? SLIMDEPLOY_INT8
                                        : SLIMDEPLOY_INT4;
    packed.group = words ? 0 : kind == kInt4Group32 ? 32 : 128;
    if (structure == kFixedCount) packed.kept_per_block = kept_of_64, packed.block = 64;
    if (!dense) packed.mask = reinterpret_cast<const uint8_t *>(mask.data()), packed.mask_count = mask.size() * 8;
    packed.values = values.data();
    packed.value_count = dense ? uint64_t(kRows * kColumns) : kept;
    packed.scales = scales.data();
    packed.scale_count = words ? 0 : uint64_t(kRows * kColumns / packed.group);
    return make_weight(packed, kernels, dense ? SLIMDEPLOY_DENSE : SLIMDEPLOY_SPARSE);
}

// One thread's speed on one row of activations, from memory.
Speed measure(const KernelTable &kernels, ValueKind kind, Structure structure, int kept_of_64) {
    const auto weight = synthetic_weight(kernels, kind, structure, kept_of_64);
    const size_t bytes = weight->row_offset.back(), copies = kStackBytes / bytes + 1;
    const Buffer stack(copies * bytes + kReadAhead);
    for (size_t i = 0; i < copies; i++) memcpy(stack.data() + i * bytes, weight->matrix.data, bytes);
    const std::vector<float> x(kColumns, 1.0f);
    std::vector<uint8_t> rounded(kColumns * kernels.activation_bytes[kind]);
    const float scale = kernels.round[kind](x.data(), kColumns, kColumns / kBlockColumns, rounded.data());
    const Activations activations{rounded.data(), &scale, 1, rounded.size()};
    std::vector<float> y(kRows);

    double best[2] = {1e30, 1e30};
    size_t copy = 0;
    for (int i = 0; i < 2 * kRounds; i++) {
        const FusedKernel kernel = kernels.fused[kind][weight->structure][i % 2 ? kOneByFour : kOneByTwo];
        const double start = seconds_now();
        double seconds = 0;
        int64_t weights = 0;
        while (seconds < kSecondsPerRound) {
            Matrix matrix = weight->matrix;
            matrix.data = stack.data() + copy++ % copies * bytes;
            kernel(matrix, activations, y.data(), 0, kRows);
            weights += kRows * kColumns;
            seconds = seconds_now() - start;
        }
        best[i % 2] = std::min(best[i % 2], seconds * 1e12 / double(weights));
    }
    const bool four = best[1] < best[0];
    return {best[four], four ? kOneByFour : kOneByTwo};
}

// Measured once for a process.
Speed speed_of(const KernelTable &kernels, ValueKind kind, Structure structure, double kept) {
    static std::mutex mutex;
    static std::map<std::tuple<const KernelTable *, ValueKind, Structure, int>, Speed> known;
    const int kept_of_64 = structure == kDense ? 64 : std::clamp(int(kept * 4 + 0.5), 1, 3) * 16;
    const int at_most = structure == kFixedCount ? 32 : 64;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto key = std::make_tuple(&kernels, kind, structure, std::min(kept_of_64, at_most));
    const auto found = known.find(key);
    if (found != known.end()) return found->second;
    return known[key] = measure(kernels, kind, structure, std::min(kept_of_64, at_most));
}

}  // namespace

LayoutChoice choose_layout(const KernelTable &kernels, ValueKind kind, Structure structure, double kept) {
    const Speed dense = speed_of(kernels, kind, kDense, 1.0);
    if (structure == kDense) return {kDense, dense, dense};
    const Speed sparse = speed_of(kernels, kind, structure, kept);
    return {dense.ns_per_1000 < kDenseMargin * sparse.ns_per_1000 ? kDense : structure, sparse, dense};
}

}  // namespace slimdeploy

int slimdeploy_layout_choice(const char *instruction_set, int32_t value_type, double kept, int32_t *layout,
                             double *sparse_ns, double *dense_ns, char *error, size_t error_size) {
    using namespace slimdeploy;
    return guarded(error, error_size, [&] {
        if (value_type < SLIMDEPLOY_BF16 || value_type > SLIMDEPLOY_INT4) throw InvalidInput("there is no such value type");
        const KernelTable &kernels = find_kernels(instruction_set);
        const LayoutChoice choice = choose_layout(kernels, value_kind(value_type, 128), kUnstructured, kept);
        *layout = choice.structure == kDense ? SLIMDEPLOY_DENSE : SLIMDEPLOY_SPARSE;
        *sparse_ns = choice.sparse.ns_per_1000;
        *dense_ns = choice.dense.ns_per_1000;
    });
}
