// slimdeploy_linear and the rest of the C interface: activations are rounded once, rows of the weight are shared out.

#include <algorithm>
#include <cstring>

#include "parallel.h"
#include "weight.h"

namespace slimdeploy {
namespace {

struct Call {
    const slimdeploy_weight &weight;
    const float *x;
    size_t count;
    float *y;
    Workers workers;
};

// As many threads as are worth waking, which takes some microseconds: each gets at least `least` of the work.
size_t threads_for(const Call &call, size_t work, size_t least) {
    return std::clamp<size_t>(work / least, 1, call.workers.count);
}
// Where all threads work anyway, a few tasks for each even out what other processes take, and that a thread wakes late.
size_t tasks_for(const Call &call, size_t threads) {
    return threads > 1 && threads == call.workers.count ? 4 * threads : threads;
}
// About ten microseconds of a thread: numbers rounded; weights decoded and multiplied; products with decoded weights.
constexpr size_t kLeastRounded = size_t(1) << 15, kLeastWeights = size_t(1) << 18, kLeastProducts = size_t(1) << 20;

// How many rows of activations the kernel for `fused_size` takes at a time, or the others.
struct Plan {
    bool fused;
    int fused_size;
    size_t rows;

    explicit Plan(const KernelTable &kernels, size_t count)
        : fused(count <= kernels.most_fused), fused_size(0), rows(kernels.tile_rows) {
        if (!fused) return;
        const size_t most = size_t(kFusedRows[kernels.fused_sizes - 1]), passes = divide_up(count, most);
        while (size_t(kFusedRows[fused_size]) * passes < count) fused_size++;
        rows = size_t(kFusedRows[fused_size]);
    }
};

void round_activations(const Call &call, Activations &a, size_t padded_count, uint8_t *values, float *scales) {
    const slimdeploy_weight &w = call.weight;
    const size_t tasks = threads_for(call, call.count * w.matrix.columns, kLeastRounded);
    call.workers.share_out(tasks, tasks, [&](size_t task) {
        for (size_t m = part(call.count, task, tasks); m < part(call.count, task + 1, tasks); m++) {
            const float *x = call.x + m * w.matrix.columns;
            scales[m] = w.kernels->round[w.kind](x, w.matrix.columns, w.matrix.padded_columns, values + m * a.stride);
        }
    });
    memset(values + call.count * a.stride, 0, (padded_count - call.count) * a.stride);
}

void multiply_fused(const Call &call, const Activations &a, int size) {
    const slimdeploy_weight &w = call.weight;
    const FusedKernel kernel = w.kernels->fused[w.kind][w.structure][size];
    const size_t threads = threads_for(call, w.matrix.rows * w.matrix.columns, kLeastWeights);
    const size_t panels = divide_up(w.matrix.rows, kPanelRows), tasks = std::min(tasks_for(call, threads), panels);
    call.workers.share_out(threads, tasks, [&](size_t task) {
        kernel(w.matrix, a, call.y, part(panels, task, tasks), part(panels, task + 1, tasks));
    });
}

void multiply_cached(const Call &call, const Activations &a) {
    const slimdeploy_weight &w = call.weight;
    const CachedKernel kernel = w.kernels->cached[w.kind][w.structure];
    const size_t together = w.kernels->cached_panels, panels = divide_up(w.matrix.rows, kPanelRows);
    const size_t units = divide_up(panels, together);
    const size_t threads = threads_for(call, w.matrix.rows * w.matrix.columns * call.count, kLeastProducts);
    const size_t tasks = std::min(units, tasks_for(call, threads));
    Scratch scratch(std::min(tasks, threads), w.kernels->scratch_bytes);
    call.workers.share_out(threads, tasks, [&](size_t task) {
        const size_t begin = part(units, task, tasks) * together, end = part(units, task + 1, tasks) * together;
        scratch.lend([&](void *own) { kernel(w.matrix, a, call.y, begin, std::min(end, panels), own); });
    });
}

void multiply(const Call &call) {
    const slimdeploy_weight &w = call.weight;
    const Plan plan(*w.kernels, call.count);
    const size_t padded_count = divide_up(call.count, plan.rows) * plan.rows;
    // Not a power of two: rows of a tile would meet in the same places of the first-level cache.
    const size_t stride = w.matrix.padded_columns * w.kernels->activation_bytes[w.kind] + 64;
    const size_t scales_bytes = divide_up(padded_count * sizeof(float), 64) * 64;
    const Memory memory = allocate(scales_bytes + padded_count * stride);
    float *scales = static_cast<float *>(memory.get());
    uint8_t *values = static_cast<uint8_t *>(memory.get()) + scales_bytes;
    Activations a{values, scales, call.count, stride};
    round_activations(call, a, padded_count, values, scales);
    if (plan.fused) {
        multiply_fused(call, a, plan.fused_size);
    } else {
        multiply_cached(call, a);
    }
}

}  // namespace
}  // namespace slimdeploy

using slimdeploy::divide_up;
using slimdeploy::guarded;
using slimdeploy::InvalidInput;

int32_t slimdeploy_interface_version(void) { return 3; }

int slimdeploy_weight_create(const slimdeploy_packed *packed, const char *instruction_set, int32_t layout,
                             slimdeploy_weight **weight, char *error, size_t error_size) {
    return guarded(error, error_size, [&] {
        if (!packed || !weight) throw InvalidInput("no packed weight, or no place for the result");
        slimdeploy::validate(*packed);
        if (layout < SLIMDEPLOY_AUTOMATIC || layout > SLIMDEPLOY_DENSE) throw InvalidInput("there is no such layout");
        *weight = slimdeploy::make_weight(*packed, slimdeploy::find_kernels(instruction_set), layout).release();
    });
}

void slimdeploy_weight_free(slimdeploy_weight *weight) { delete weight; }

void slimdeploy_weight_describe(const slimdeploy_weight *weight, slimdeploy_weight_info *info) {
    const slimdeploy::Matrix &matrix = weight->matrix;
    *info = {int64_t(matrix.rows), int64_t(matrix.columns),
             weight->kept,         matrix.panel_offset[divide_up(matrix.rows, slimdeploy::kPanelRows)],
             weight->value_type,   weight->structure == slimdeploy::kDense ? SLIMDEPLOY_DENSE : SLIMDEPLOY_SPARSE,
             weight->kernels->name};
}

int slimdeploy_linear(const slimdeploy_weight *weight, const float *x, int64_t count, float *y, int32_t threads,
                      slimdeploy_parallel_for parallel_for, void *pool, char *error, size_t error_size) {
    return guarded(error, error_size, [&] {
        if (count < 0 || count > INT32_MAX) throw InvalidInput(std::to_string(count) + " rows cannot be multiplied");
        if (count == 0) return;
        if (!weight || !x || !y) throw InvalidInput("no weight, no input or no output");
        slimdeploy::multiply({*weight, x, size_t(count), y, {size_t(std::max(threads, 1)), parallel_for, pool}});
    });
}
