// What our operators have in common for onnxruntime.

#ifndef SLIMDEPLOY_OPERATOR_H
#define SLIMDEPLOY_OPERATOR_H

#include <string>

#include "onnxruntime_tensor.h"
#include "slimdeploy_kernels.h"

namespace slimdeploy {

template <class Getter>
std::string get_text(Getter get) {
    size_t size = 0;
    check(get(nullptr, &size));
    std::string text(size, '\0');
    check(get(text.empty() ? nullptr : &text[0], &size));
    return text.c_str();  // without the terminating zero, which the size counts
}

int64_t get_number(const OrtApi &api, const OrtKernelInfo *info, const char *name);

Tensor input_of(const OrtApi &api, const OrtKernelContext *context, size_t index);
// Of that shape, for onnxruntime to hand on.
void *output_of(const OrtApi &api, OrtKernelContext *context, size_t index, const std::vector<int64_t> &shape);

// The set of kernels that the environment forces on every operator; NULL for the fastest.
const char *forced_instruction_set();

// The threads of a session, as slimdeploy_parallel_for wants them.
struct SessionThreads {
    const OrtApi &api;
    const OrtKernelContext *context;
    OrtStatus *status = nullptr;

    // As many as processors: a session with fewer runs fewer tasks at once.
    static int32_t most();
    static void run(void *own, size_t tasks, void (*task)(void *argument, size_t i), void *argument);
};

// An operator as onnxruntime asks for it, for float32 on the CPU; what differs is set by those who derive from it.
struct Operator : OrtCustomOp {
    const char *name;

    explicit Operator(const char *name);
};

// Has `op`, an `Op`, make and run kernels of this class: Kernel(api, where, info, op) and compute(context). What they
// throw becomes an error of onnxruntime that names the node.
template <class Kernel, class Op>
void use_kernel(Op *op) {
    struct Held {
        std::string where;
        Kernel kernel;
    };
    op->CreateKernelV2 = [](const OrtCustomOp *self, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
        const Op &own = *static_cast<const Op *>(self);
        std::string where = own.name;
        return guarded_call(*api, where, [&] {
            const auto node = [&](char *text, size_t *size) { return api->KernelInfo_GetNodeName(info, text, size); };
            where += " '" + get_text(node) + "'";
            *kernel = new Held{where, Kernel(*api, info, own)};
        });
    };
    op->KernelComputeV2 = [](void *kernel, OrtKernelContext *context) {
        const Held &held = *static_cast<const Held *>(kernel);
        return guarded_call(held.kernel.api, held.where, [&] { held.kernel.compute(context); });
    };
    op->KernelDestroy = [](void *kernel) { delete static_cast<Held *>(kernel); };
}

// SparseLinear and DenseLinear for float32 and float16, and GroupQueryAttention. onnxruntime keeps pointers to them for
// as long as any session lives.
const std::vector<const OrtCustomOp *> &linear_operators();
const OrtCustomOp &attention_operator();

}  // namespace slimdeploy

#endif
