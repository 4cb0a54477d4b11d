// Which layout is faster on this machine, found by running both over synthetic weights that are in no cache.
//
// Zeros pay where memory is the bottleneck. On a CPU that spreads bytes by a mask slowly, or whose memory is fast, a
// dense layout can win.

#include <pthread.h>
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
// Otherwise the weights that are made to measure a choice would ask for that choice.
static_assert(kRows * kColumns < kWorthMeasuring);
#if defined(__x86_64__) || defined(__aarch64__)
constexpr size_t kStackBytes = size_t(16) << 20;
#else
constexpr size_t kStackBytes = size_t(256) << 20;  // nothing can be flushed: larger than caches are
#endif
constexpr double kMostSecondsOfRun = 0.004;
constexpr int kRounds = 4;
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
    const bool dense = structure == kDense, words = kind == kBf16 || kind == kFp16;
    std::vector<uint64_t> mask(dense ? 0 : kRows * kColumns / 64);
    for (uint64_t &chunk : mask) {
        // Unstructured counts vary around their mean.
        const int jitter = int(next_random(state) % 9) - 4;
        chunk = random_mask(std::clamp(kept_of_64 + jitter, 1, 63), state);
        kept += __builtin_popcountll(chunk);
    }
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
    if (!dense) packed.mask = reinterpret_cast<const uint8_t *>(mask.data()), packed.mask_count = mask.size() * 8;
    packed.values = values.data();
    packed.value_count = dense ? uint64_t(kRows * kColumns) : kept;
    packed.scales = scales.data();
    packed.scale_count = words ? 0 : uint64_t(kRows * kColumns / packed.group);
    return make_weight(packed, kernels, dense ? SLIMDEPLOY_DENSE : SLIMDEPLOY_SPARSE);
}

// Takes memory out of all caches, whatever their size, where a program may do that.
void flush(const uint8_t *begin, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 64) {
#if defined(__x86_64__)
        __builtin_ia32_clflush(begin + at);
#elif defined(__aarch64__)
        __asm__ volatile("dc civac, %0" : : "r"(begin + at) : "memory");
#endif
    }
}

// One thread's product of one row of activations with weights that come from memory.
class Trial {
   public:
    Trial(const KernelTable &kernels, ValueKind kind, Structure structure, int kept_of_64)
        : kernels_(kernels),
          weight_(synthetic_weight(kernels, kind, structure, kept_of_64)),
          bytes_(weight_->panel_offset.back()),
          copies_(kStackBytes / bytes_ + 1),
          stack_(copies_ * bytes_ + kReadAhead),
          x_(kColumns * kernels.activation_bytes[kind]),
          y_(kRows) {
        for (size_t i = 0; i < copies_; i++) memcpy(stack_.data() + i * bytes_, weight_->matrix.data, bytes_);
        const std::vector<float> x(kColumns, 1.0f);
        x_scale_ = kernels.round[kind](x.data(), kColumns, kColumns, x_.data());
    }

    // Runs once through the stack, or as far as time allows, and remembers the best speed.
    void run() {
        const FusedKernel kernel = kernels_.fused[weight_->kind][weight_->structure][0];
        const Activations activations{x_.data(), &x_scale_, 1, x_.size()};
        flush(stack_.data(), copies_ * bytes_);
        const double start = seconds_now();
        double seconds = 0;
        int64_t weights = 0;
        for (size_t i = 0; i < copies_ && seconds < kMostSecondsOfRun; i++) {
            Matrix matrix = weight_->matrix;
            matrix.data = stack_.data() + i * bytes_;
            kernel(matrix, activations, y_.data(), 0, kRows / kPanelRows);
            weights += kRows * kColumns;
            seconds = seconds_now() - start;
        }
        best_ns_ = std::min(best_ns_, seconds * 1e12 / double(weights));
    }

    // For 1000 weights.
    double best_ns() const { return best_ns_; }

   private:
    const KernelTable &kernels_;
    const std::unique_ptr<slimdeploy_weight> weight_;
    const size_t bytes_, copies_;
    const Buffer stack_;
    std::vector<uint8_t> x_;
    std::vector<float> y_;
    float x_scale_;
    double best_ns_ = 1e30;
};

// Layouts take turns, so that what else happens on the machine meets both.
LayoutChoice measure(const KernelTable &kernels, ValueKind kind, int kept_of_64) {
    Trial dense(kernels, kind, kDense, 64), sparse(kernels, kind, kSparse, kept_of_64);
    for (int round = 0; round < kRounds; round++) {
        dense.run();
        sparse.run();
    }
    const bool faster_dense = dense.best_ns() < kDenseMargin * sparse.best_ns();
    return {faster_dense ? kDense : kSparse, sparse.best_ns(), dense.best_ns()};
}

std::mutex measuring;

}  // namespace

LayoutChoice choose_layout(const KernelTable &kernels, ValueKind kind, double kept) {
    static std::map<std::tuple<const KernelTable *, ValueKind, int>, LayoutChoice> known;
    // A child of a process that forks while it measures must find the lock open.
    static const bool safe_to_fork = [] {
        const auto lock = [] { measuring.lock(); };
        const auto unlock = [] { measuring.unlock(); };
        return pthread_atfork(lock, unlock, unlock) == 0;
    }();
    static_cast<void>(safe_to_fork);
    const int quarters = std::clamp(int(kept * 4 + 0.5), 1, 3);
    const auto key = std::make_tuple(&kernels, kind, quarters);
    const std::lock_guard<std::mutex> lock(measuring);
    const auto found = known.find(key);
    if (found != known.end()) return found->second;
    return known[key] = measure(kernels, kind, quarters * 16);
}

}  // namespace slimdeploy

int slimdeploy_layout_choice(const char *instruction_set, int32_t value_type, int32_t group, double kept,
                             int32_t *layout, double *sparse_ns, double *dense_ns, char *error, size_t error_size) {
    using namespace slimdeploy;
    return guarded(error, error_size, [&] {
        validate_kind(value_type, group);
        if (!(kept >= 0.0 && kept <= 1.0)) throw InvalidInput("the share of kept weights is not between 0 and 1");
        const LayoutChoice choice = choose_layout(find_kernels(instruction_set), value_kind(value_type, group), kept);
        *layout = choice.structure == kDense ? SLIMDEPLOY_DENSE : SLIMDEPLOY_SPARSE;
        *sparse_ns = choice.sparse_ns;
        *dense_ns = choice.dense_ns;
    });
}
