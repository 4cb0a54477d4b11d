// Runs every instruction set that this CPU can run, in both layouts, over a file of vectors, and compares with float64,
// and each layout with a plain way to write it:
//
//     kernel_vectors FILE [LARGEST-BATCH [SET...]]
//     kernel_vectors --attention [SET]
//     kernel_vectors --hostile
//     kernel_vectors --given-back FILE
//
// Prints the largest relative error of each set, and on any failure what failed; exits with 1 then.

#include <cmath>
#include <map>
#include <string>

#include "attending.h"
#include "given_back.h"
#include "hostile.h"
#include "laid_out.h"
#include "vectors.h"

namespace {

const char *const kValueTypes[] = {"bf16", "fp16", "int8", "int4"};

// A pool of one thread that runs tasks backwards: their order must not matter.
void run_backwards(void *, size_t tasks, void (*task)(void *, size_t), void *argument) {
    while (tasks) task(argument, --tasks);
}

struct Comparison {
    double error = 0;           // ||y - expected|| / ||expected|| over the rows whose expectation is finite
    bool same_finiteness = true;
};

Comparison compare(const float *y, const double *expected, int64_t count, int64_t rows) {
    double difference = 0, norm = 0;
    Comparison result;
    for (int64_t i = 0; i < count * rows; i++) {
        if (std::isfinite(expected[i]) != std::isfinite(y[i])) result.same_finiteness = false;
        if (!std::isfinite(expected[i]) || !std::isfinite(y[i])) continue;
        difference += (y[i] - expected[i]) * (y[i] - expected[i]);
        norm += expected[i] * expected[i];
    }
    // An activation of zeros has a scale of 1e-30 / 127: what comes of it is not exactly zero.
    result.error = std::sqrt(difference) / std::max(std::sqrt(norm), 1e-25);
    return result;
}

class Run {
   public:
    explicit Run(int64_t largest_batch) : largest_batch_(largest_batch) {}

    void check(const Case &c, const Input &input, const char *set, int32_t layout) {
        const slimdeploy_packed packed = c.packed();
        slimdeploy_weight *weight = nullptr;
        char error[256] = "";
        if (slimdeploy_weight_create(&packed, set, layout, &weight, error, sizeof error)) {
            report(c, set, layout, 0, error);
            return;
        }
        if (!is_laid_out(packed, *weight)) report(c, set, layout, 0, "it is not laid out as layout.h says");
        for (const int64_t count : c.batches) {
            if (count > largest_batch_) continue;
            const Block x(input.values.data(), size_t(count * c.columns) * sizeof(float));
            Block y(size_t(count * c.rows) * sizeof(float));
            memset(y.data(), 0xFF, y.bytes());
            const int32_t threads = int32_t(1 + count % 3);
            const auto pool = count % 2 ? run_backwards : nullptr;
            if (slimdeploy_linear(weight, x.as<const float>(), count, y.as<float>(), threads, pool, nullptr, error,
                                  sizeof error)) {
                report(c, set, layout, count, error);
                continue;
            }
            const Comparison result = compare(y.as<const float>(), c.expected.as<const double>(), count, c.rows);
            const bool bf16_tiles = !strcmp(set, "amx") && c.value_type == SLIMDEPLOY_BF16;
            std::string name = set;
            if (bf16_tiles) name += " bf16";
            double &worst = worst_[name];
            worst = std::max(worst, result.error);
            if (!(result.error < (bf16_tiles ? 5e-3 : 1e-5)) || !result.same_finiteness) {
                snprintf(error, sizeof error, "relative error %g%s", result.error,
                         result.same_finiteness ? "" : ", NaN or infinity in the wrong places");
                report(c, set, layout, count, error);
            }
            products_++;
        }
        slimdeploy_weight_free(weight);
    }

    int finish() const {
        for (const auto &[set, error] : worst_) printf("%s: largest relative error %.1e\n", set.c_str(), error);
        printf("%ld products, %ld failures\n", products_, failures_);
        return failures_ || !products_;
    }

   private:
    void report(const Case &c, const char *set, int32_t layout, int64_t count, const char *what) {
        if (failures_++ > 20) return;
        printf("%s %s, input %d, %s group %d, %d:%d, %d x %d, batch %d: %s\n", set,
               layout == SLIMDEPLOY_DENSE ? "dense" : "sparse", int(c.input), kValueTypes[c.value_type], int(c.group),
               int(c.kept_per_block), int(c.block), int(c.rows), int(c.columns), int(count), what);
    }

    int64_t largest_batch_;
    long products_ = 0, failures_ = 0;
    std::map<std::string, double> worst_;
};

}  // namespace

int main(int count, char **arguments) {
    if (count >= 2 && !strcmp(arguments[1], "--attention")) return check_attention(arguments[2]);
    if (count == 2 && !strcmp(arguments[1], "--hostile")) return check_hostile_input();
    if (count == 3 && !strcmp(arguments[1], "--given-back")) return check_given_back_pages(arguments[2]);
    if (count < 2) {
        fprintf(stderr,
                "usage: kernel_vectors FILE [LARGEST-BATCH [SET...]] | --attention [SET] | --hostile | --given-back "
                "FILE\n");
        return 2;
    }
    std::vector<std::string> sets(arguments + (count > 3 ? 3 : count), arguments + count);
    if (sets.empty()) {
        int32_t supported;
        while (const char *name = slimdeploy_instruction_set(int32_t(sets.size()), &supported)) sets.push_back(name);
    }
    Run run(count > 2 ? atoll(arguments[2]) : INT64_MAX);
    for (const std::string &set : sets) {
        int32_t index = 0, supported = 0;
        while (const char *name = slimdeploy_instruction_set(index++, &supported)) {
            if (set == name) break;
        }
        if (!supported) {
            printf("%s: not on this CPU\n", set.c_str());
            continue;
        }
        VectorFile file(arguments[1]);
        for (Case c; file.next(c);) {
            const Input &input = file.inputs.at(size_t(c.input));
            run.check(c, input, set.c_str(), SLIMDEPLOY_SPARSE);
            run.check(c, input, set.c_str(), SLIMDEPLOY_DENSE);
        }
    }
    return run.finish();
}
