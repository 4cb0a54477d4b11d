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
    size_t count, padded_count;
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

void round_activations(const Call &call, Activations &a, uint8_t *values, float *scales) {
    const slimdeploy_weight &w = call.weight;
    const size_t tasks = threads_for(call, call.count * w.matrix.columns, kLeastRounded);
    call.workers.share_out(tasks, tasks, [&](size_t task) {
        for (size_t m = part(call.count, task, tasks); m < part(call.count, task + 1, tasks); m++) {
            const float *x = call.x + m * w.matrix.columns;
            scales[m] = w.kernels->round[w.kind](x, w.matrix.columns, w.matrix.blocks, values + m * a.stride);
        }
    });
    memset(values + call.count * a.stride, 0, (call.padded_count - call.count) * a.stride);
}

void multiply_fused(const Call &call, const Activations &a) {
    const slimdeploy_weight &w = call.weight;
    const FusedSize size = call.padded_count == 1   ? w.one_row
                           : call.padded_count == 2 ? kTwo
                           : call.padded_count == 4 ? kFour
                                                    : kEight;
    const FusedKernel kernel = w.kernels->fused[w.kind][w.structure][size];
    const size_t threads = threads_for(call, w.matrix.rows * w.matrix.columns, kLeastWeights);
    const size_t tasks = std::min(tasks_for(call, threads), w.matrix.rows);
    call.workers.share_out(threads, tasks, [&](size_t task) {
        kernel(w.matrix, a, call.y, part(w.matrix.rows, task, tasks), part(w.matrix.rows, task + 1, tasks));
    });
}

void multiply_panels(const Call &call, const Activations &a) {
    const slimdeploy_weight &w = call.weight;
    const PanelKernel kernel = w.kernels->panel[w.kind][w.structure];
    const size_t panels = (w.matrix.rows + w.kernels->panel_rows - 1) / w.kernels->panel_rows;
    const size_t threads = threads_for(call, w.matrix.rows * w.matrix.columns * call.count, kLeastProducts);
    const size_t tasks = std::min(panels, tasks_for(call, threads));
    Scratch scratch(std::min(tasks, threads), w.kernels->panel_bytes);
    call.workers.share_out(threads, tasks, [&](size_t task) {
        scratch.lend([&](void *own) {
            kernel(w.matrix, a, call.y, part(panels, task, tasks), part(panels, task + 1, tasks), own);
        });
    });
}

void multiply(Call call) {
    const slimdeploy_weight &w = call.weight;
    const bool fused = call.count <= size_t(kMaxFusedRows);
    if (fused) {
        call.padded_count = 1;
        while (call.padded_count < call.count) call.padded_count *= 2;
    } else {
        const size_t tile = w.kernels->tile_rows;
        call.padded_count = (call.count + tile - 1) / tile * tile;
    }
    // Not a power of two: rows of a tile would meet in the same places of the first-level cache.
    const size_t stride = w.matrix.blocks * kBlockColumns * w.kernels->activation_bytes[w.kind] + 64;
    const size_t scales_bytes = (call.padded_count * sizeof(float) + 63) / 64 * 64;
    const Memory memory = allocate(scales_bytes + call.padded_count * stride);
    float *scales = static_cast<float *>(memory.get());
    uint8_t *values = static_cast<uint8_t *>(memory.get()) + scales_bytes;
    Activations a{values, scales, call.count, stride};
    round_activations(call, a, values, scales);
    if (fused) {
        multiply_fused(call, a);
    } else {
        multiply_panels(call, a);
    }
}

}  // namespace
}  // namespace slimdeploy

using slimdeploy::guarded;
using slimdeploy::InvalidInput;

int32_t slimdeploy_interface_version(void) { return 2; }

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
             weight->kept,         matrix.row_offset[matrix.rows],
             weight->value_type,   weight->structure == slimdeploy::kDense ? SLIMDEPLOY_DENSE : SLIMDEPLOY_SPARSE,
             weight->kernels->name};
}

int slimdeploy_linear(const slimdeploy_weight *weight, const float *x, int64_t count, float *y, int32_t threads,
                      slimdeploy_parallel_for parallel_for, void *pool, char *error, size_t error_size) {
    return guarded(error, error_size, [&] {
        if (count < 0 || count > INT32_MAX) throw InvalidInput(std::to_string(count) + " rows cannot be multiplied");
        if (count == 0) return;
        if (!weight || !x || !y) throw InvalidInput("no weight, no input or no output");
        slimdeploy::multiply({*weight, x, size_t(count), 0, y, {size_t(std::max(threads, 1)), parallel_for, pool}});
    });
}
