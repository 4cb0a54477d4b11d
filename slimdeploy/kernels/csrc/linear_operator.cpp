// onnxruntime's operators slimdeploy::SparseLinear and slimdeploy::DenseLinear: y = x W^T with a packed weight.
//
// The packed weight is a constant of the model. Its kernel layout is made once, when the session is created, and the
// pages of the file that it was read from are then given back, so that a weight is in memory once. Everything that
// comes from the model is checked before it is read; an error names the node.

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "numbers.h"
#include "operator.h"
#include "pages.h"

namespace slimdeploy {
namespace {

// activations: the type of x and y.
struct LinearOperator : Operator {
    bool sparse;
    OrtElementType activations;

    LinearOperator(const char *name, bool sparse, OrtElementType activations);
};

// ---- A node's weight

struct FreeWeight {
    void operator()(slimdeploy_weight *weight) const { slimdeploy_weight_free(weight); }
};

struct LinearNode {
    const OrtApi &api;
    std::unique_ptr<slimdeploy_weight, FreeWeight> weight;
    int64_t rows = 0, columns = 0;

    LinearNode(const OrtApi &api, const OrtKernelInfo *info, const LinearOperator &op);
    void compute(OrtKernelContext *context) const;
};

// 1 to 5 digits, the first of them not 0; 0 for anything else.
int32_t parse_count(const std::string &text) {
    const bool digits = text.find_first_not_of("0123456789") == std::string::npos;
    return digits && !text.empty() && text.size() <= 5 && text[0] != '0' ? std::stoi(text) : 0;
}

// N and M of "N:M"; 0 and 0 for "unstructured" and "dense".
std::pair<int32_t, int32_t> parse_pattern(const std::string &pattern, bool sparse) {
    if (pattern == (sparse ? "unstructured" : "dense")) return {0, 0};
    const size_t colon = pattern.find(':');
    const int32_t kept = parse_count(pattern.substr(0, colon));
    const int32_t block = colon == std::string::npos ? 0 : parse_count(pattern.substr(colon + 1));
    if (!sparse || !kept || kept > block) throw Malformed("its pattern is '" + pattern + "'");
    return {kept, block};
}

Tensor constant_input(const OrtApi &api, const OrtKernelInfo *info, size_t index, const char *name) {
    int is_constant = 0;
    const OrtValue *value = nullptr;
    check(api.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
    if (!is_constant || !value) throw Malformed(std::string("its input '") + name + "' is not a constant of the model");
    return Tensor(api, value);
}

Tensor matrix_input(const OrtApi &api, const OrtKernelInfo *info, size_t index, const char *name, OrtElementType type) {
    Tensor tensor = constant_input(api, info, index, name);
    if (tensor.type != type || tensor.shape.size() != 2) {
        throw Malformed(std::string("its input '") + name + "' has shape " + tensor.shape_text() + " and type " +
                        std::to_string(tensor.type) + ", not a matrix of type " + std::to_string(type));
    }
    return tensor;
}

int32_t value_type(const Tensor &values) {
    switch (values.type) {
        case kOrtBfloat16:
            return SLIMDEPLOY_BF16;
        case kOrtFloat16:
            return SLIMDEPLOY_FP16;
        case kOrtInt8:
            return SLIMDEPLOY_INT8;
        case kOrtInt4:
            return SLIMDEPLOY_INT4;
        default:
            throw Malformed("its values are of type " + std::to_string(values.type));
    }
}

size_t bytes_of(const Tensor &values) {
    switch (values.type) {
        case kOrtInt4:
            return (values.count() + 1) / 2;
        case kOrtBfloat16:
        case kOrtFloat16:
            return 2 * values.count();
        default:
            return values.count();
    }
}

// A file may have 16-bit elements at odd addresses. Those are copied, for as long as the kernel layout is made.
struct Words {
    std::vector<uint16_t> copy;
    const uint16_t *data;

    explicit Words(const Tensor &tensor) : data(static_cast<const uint16_t *>(tensor.data)) {
        if (reinterpret_cast<uintptr_t>(tensor.data) % alignof(uint16_t) == 0) return;
        copy.resize(tensor.count());
        if (!copy.empty()) memcpy(copy.data(), tensor.data, 2 * copy.size());
        data = copy.data();
    }
};

LinearNode::LinearNode(const OrtApi &api, const OrtKernelInfo *info, const LinearOperator &op) : api(api) {
    const bool sparse = op.sparse;
    slimdeploy_packed packed = {};
    packed.columns = columns = get_number(api, info, "columns");
    const int64_t group = get_number(api, info, "group");
    if (columns < 1 || columns > INT32_MAX) throw Malformed("it has " + std::to_string(columns) + " columns");
    if (group < 0 || group > INT32_MAX) throw Malformed("its group is " + std::to_string(group));
    packed.group = int32_t(group);
    const std::string pattern = get_text(
        [&](char *text, size_t *size) { return api.KernelInfoGetAttribute_string(info, "pattern", text, size); });
    std::tie(packed.kept_per_block, packed.block) = parse_pattern(pattern, sparse);

    const size_t first = sparse ? 2 : 1;
    const Tensor values = constant_input(api, info, first, "values");
    if (values.shape.size() != 1) throw Malformed("its values have shape " + values.shape_text());
    packed.value_type = value_type(values);
    packed.value_count = values.count();
    std::optional<Words> value_words, scale_words;
    if (values.type == kOrtBfloat16 || values.type == kOrtFloat16) value_words.emplace(values);
    packed.values = value_words ? value_words->data : values.data;
    std::vector<std::pair<const void *, size_t>> read = {{values.data, bytes_of(values)}};
    if (sparse) {
        const Tensor mask = matrix_input(api, info, 1, "mask", kOrtUint8);
        packed.mask = static_cast<const uint8_t *>(mask.data);
        packed.mask_count = mask.count();
        packed.rows = mask.shape[0];
        read.push_back({mask.data, mask.count()});
    } else {
        packed.rows = int64_t(values.count() / uint64_t(columns));
    }
    if (packed.value_type == SLIMDEPLOY_INT8 || packed.value_type == SLIMDEPLOY_INT4) {
        const Tensor scales = matrix_input(api, info, first + 1, "scales", kOrtBfloat16);
        if (scales.shape[0] != packed.rows) {
            throw Malformed("its scales have shape " + scales.shape_text() + ", but it has " +
                            std::to_string(packed.rows) + " rows");
        }
        packed.scales = scale_words.emplace(scales).data;
        packed.scale_count = scales.count();
        read.push_back({scales.data, 2 * scales.count()});
    }
    rows = packed.rows;

    char error[512] = "";
    slimdeploy_weight *made = nullptr;
    if (slimdeploy_weight_create(&packed, forced_instruction_set(), SLIMDEPLOY_AUTOMATIC, &made, error, sizeof error)) {
        throw Malformed(error);
    }
    weight.reset(made);
    for (const auto &[data, bytes] : read) give_back_file_pages(data, bytes);
}

// ---- A product

void LinearNode::compute(OrtKernelContext *context) const {
    const Tensor x = input_of(api, context, 0);
    if (x.shape.empty() || x.shape.back() != columns) {
        throw Malformed("its input has shape " + x.shape_text() + ", but the weight has " + std::to_string(columns) +
                        " columns");
    }
    const uint64_t count = x.count() / uint64_t(columns);
    std::vector<int64_t> shape = x.shape;
    shape.back() = rows;
    void *y = output_of(api, context, 0, shape);
    if (count == 0) return;

    const bool half = x.type == kOrtFloat16;
    std::vector<float> wide_x, wide_y;
    if (half) {
        wide_x.resize(count * uint64_t(columns));
        wide_y.resize(count * uint64_t(rows));
        const uint16_t *halves = static_cast<const uint16_t *>(x.data);
        std::transform(halves, halves + wide_x.size(), wide_x.data(), float_of_fp16);
    }
    SessionThreads threads{api, context};
    char error[512] = "";
    const float *from = half ? wide_x.data() : static_cast<const float *>(x.data);
    float *to = half ? wide_y.data() : static_cast<float *>(y);
    const int failed = slimdeploy_linear(weight.get(), from, int64_t(count), to, SessionThreads::most(),
                                         SessionThreads::run, &threads, error, sizeof error);
    check(threads.status);
    if (failed) throw Malformed(error);
    if (half) std::transform(wide_y.begin(), wide_y.end(), static_cast<uint16_t *>(y), fp16_of_float);
}

// SparseLinear: x, mask, values, scales. DenseLinear: x, values, scales. bf16 and fp16 values have no scales.
const LinearOperator &self(const OrtCustomOp *op) { return *static_cast<const LinearOperator *>(op); }

LinearOperator::LinearOperator(const char *name, bool sparse, OrtElementType activations)
    : Operator(name), sparse(sparse), activations(activations) {
    GetInputTypeCount = [](const OrtCustomOp *op) { return size_t(self(op).sparse ? 4 : 3); };
    GetInputType = [](const OrtCustomOp *op, size_t i) { return i == 0 ? self(op).activations : kOrtAnyType; };
    GetInputCharacteristic = [](const OrtCustomOp *op, size_t i) {
        return i + 1 == self(op).GetInputTypeCount(op) ? kOrtOptional : kOrtRequired;
    };
    GetOutputType = [](const OrtCustomOp *op, size_t) { return self(op).activations; };
    use_kernel<LinearNode>(this);
}

}  // namespace

const std::vector<const OrtCustomOp *> &linear_operators() {
    static const LinearOperator sparse("SparseLinear", true, kOrtFloat), dense("DenseLinear", false, kOrtFloat);
    static const LinearOperator sparse_half("SparseLinear", true, kOrtFloat16);
    static const LinearOperator dense_half("DenseLinear", false, kOrtFloat16);
    static const std::vector<const OrtCustomOp *> all = {&sparse, &dense, &sparse_half, &dense_half};
    return all;
}

}  // namespace slimdeploy
