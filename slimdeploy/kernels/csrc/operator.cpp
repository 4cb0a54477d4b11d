// Our operators' common part, and what onnxruntime calls when it loads this library.

#include "operator.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <thread>

namespace slimdeploy {

int64_t get_number(const OrtApi &api, const OrtKernelInfo *info, const char *name) {
    int64_t value = 0;
    check(api.KernelInfoGetAttribute_int64(info, name, &value));
    return value;
}

Tensor input_of(const OrtApi &api, const OrtKernelContext *context, size_t index) {
    const OrtValue *value = nullptr;
    check(api.KernelContext_GetInput(context, index, &value));
    return Tensor(api, value);
}

void *output_of(const OrtApi &api, OrtKernelContext *context, size_t index, const std::vector<int64_t> &shape) {
    OrtValue *value = nullptr;
    void *data = nullptr;
    check(api.KernelContext_GetOutput(context, index, shape.data(), shape.size(), &value));
    check(api.GetTensorMutableData(value, &data));
    return data;
}

const char *forced_instruction_set() {
    const char *forced = getenv("SLIMDEPLOY_KERNELS");
    return forced && *forced ? forced : nullptr;
}

int32_t SessionThreads::most() {
    // Asking takes longer than a small product.
    static const auto processors = int32_t(std::max(std::thread::hardware_concurrency(), 1u));
    return processors;
}

void SessionThreads::run(void *own, size_t tasks, void (*task)(void *argument, size_t i), void *argument) {
    auto &threads = *static_cast<SessionThreads *>(own);
    OrtStatus *status = threads.api.KernelContext_ParallelFor(threads.context, task, tasks, tasks, argument);
    if (threads.status && status) threads.api.ReleaseStatus(status);
    if (!threads.status) threads.status = status;
}

Operator::Operator(const char *name) : OrtCustomOp{}, name(name) {
    version = kOrtApiVersion;
    GetName = [](const OrtCustomOp *op) { return static_cast<const Operator *>(op)->name; };
    GetExecutionProviderType = [](const OrtCustomOp *) { return "CPUExecutionProvider"; };
    GetInputType = GetOutputType = [](const OrtCustomOp *, size_t) { return kOrtFloat; };
    GetInputCharacteristic = GetOutputCharacteristic = [](const OrtCustomOp *, size_t) { return kOrtRequired; };
    GetInputMemoryType = [](const OrtCustomOp *, size_t) { return 0; };
    GetOutputTypeCount = [](const OrtCustomOp *) { return size_t(1); };
    GetVariadicInputMinArity = GetVariadicInputHomogeneity = [](const OrtCustomOp *) { return 1; };
    GetVariadicOutputMinArity = GetVariadicOutputHomogeneity = [](const OrtCustomOp *) { return 1; };
    GetStartVersion = GetEndVersion = [](const OrtCustomOp *) { return 1; };
}

}  // namespace slimdeploy

extern "C" SLIMDEPLOY_API OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    static OrtCustomOpDomain *domain = nullptr;
    static std::mutex mutex;

    const OrtApi *api = base->GetApi(kOrtApiVersion);
    if (!api) {
        const std::string version = base->GetVersionString();
        return base->GetApi(1)->CreateStatus(
            kOrtFail, ("slimdeploy's operators need onnxruntime 1.17 or later, not " + version).c_str());
    }
    return slimdeploy::guarded_call(*api, "slimdeploy's operators", [&] {
        using slimdeploy::check;
        const std::lock_guard<std::mutex> lock(mutex);
        if (!domain) {
            OrtCustomOpDomain *created = nullptr;
            check(api->CreateCustomOpDomain("slimdeploy", &created));
            for (const OrtCustomOp *op : slimdeploy::linear_operators()) check(api->CustomOpDomain_Add(created, op));
            check(api->CustomOpDomain_Add(created, &slimdeploy::attention_operator()));
            domain = created;
        }
        check(api->AddCustomOpDomain(options, domain));
    });
}
