// onnxruntime's operator slimdeploy::GroupQueryAttention: the causal case of com.microsoft's of that name, with the
// same inputs in the same order, and with an output for each cache that may be the same memory as its input. One more
// input, cache_rows, says which rows of the caches the sequences have, where it is not empty; the caches may have
// others then.

#include <algorithm>
#include <cstring>
#include <vector>

#include "operator.h"

namespace slimdeploy {
namespace {

enum Input : size_t { kQuery, kKey, kValue, kPastKey, kPastValue, kLast, kLongest, kRows, kInputs };
constexpr const char *kInputNames[kInputs] = {
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cache_rows"};
constexpr size_t kOutputs = 3;

struct AttentionOperator : Operator {
    AttentionOperator();
};

struct AttentionNode {
    const OrtApi &api;
    int64_t heads, kv_heads;
    float scale = 0;

    AttentionNode(const OrtApi &api, const OrtKernelInfo *info, const AttentionOperator &)
        : api(api), heads(get_number(api, info, "num_heads")), kv_heads(get_number(api, info, "kv_num_heads")) {
        check(api.KernelInfoGetAttribute_float(info, "scale", &scale));
        if (heads < 1 || kv_heads < 1 || heads % kv_heads) {
            throw Malformed("it has " + std::to_string(heads) + " heads and " + std::to_string(kv_heads) +
                            " of keys and values");
        }
    }

    Tensor input(OrtKernelContext *context, Input index, const std::vector<int64_t> &shape) const;
    void *cache(OrtKernelContext *context, size_t output, const Tensor &past, int64_t capacity) const;
    void compute(OrtKernelContext *context) const;
};

// Of that shape; a dimension of -1 may be any.
Tensor AttentionNode::input(OrtKernelContext *context, Input index, const std::vector<int64_t> &shape) const {
    Tensor tensor = input_of(api, context, index);
    const auto fits = [](int64_t found, int64_t wanted) { return wanted < 0 || found == wanted; };
    if (tensor.shape.size() == shape.size() &&
        std::equal(tensor.shape.begin(), tensor.shape.end(), shape.begin(), fits)) {
        return tensor;
    }
    std::string wanted;
    for (const int64_t size : shape) wanted += (wanted.empty() ? "" : ", ") + (size < 0 ? "any" : std::to_string(size));
    throw Malformed(std::string("its input '") + kInputNames[index] + "' has shape " + tensor.shape_text() + ", not [" +
                    wanted + "]");
}

// The output, which holds what the past holds: it may be the same memory, and have room for more.
void *AttentionNode::cache(OrtKernelContext *context, size_t output, const Tensor &past, int64_t capacity) const {
    std::vector<int64_t> shape = past.shape;
    shape[2] = capacity;
    void *present = output_of(api, context, output, shape);
    if (present == past.data || past.count() == 0) return present;
    const size_t row = size_t(past.shape[3]) * sizeof(float), pairs = size_t(past.shape[0] * past.shape[1]);
    for (size_t i = 0; i < pairs; i++) {
        memcpy(static_cast<char *>(present) + i * size_t(capacity) * row,
               static_cast<const char *>(past.data) + i * size_t(past.shape[2]) * row, size_t(past.shape[2]) * row);
    }
    return present;
}

void AttentionNode::compute(OrtKernelContext *context) const {
    const Tensor query = input(context, kQuery, {-1, -1, -1});
    const int64_t batch = query.shape[0], tokens = query.shape[1], size = query.shape[2] / heads;
    if (size * heads != query.shape[2]) {
        throw Malformed("its input 'query' has rows of " + std::to_string(query.shape[2]) + " numbers, for " +
                        std::to_string(heads) + " heads");
    }
    const Tensor key = input(context, kKey, {batch, tokens, kv_heads * size});
    const Tensor value = input(context, kValue, {batch, tokens, kv_heads * size});
    Tensor rows = input(context, kRows, {-1});
    if (rows.shape[0] == 0) rows.data = nullptr;
    if (rows.data) rows = input(context, kRows, {batch});
    const int64_t cache_rows = rows.data ? -1 : batch;
    const Tensor past_key = input(context, kPastKey, {cache_rows, kv_heads, -1, size});
    const Tensor past_value = input(context, kPastValue, past_key.shape);
    const auto *last = static_cast<const int32_t *>(input(context, kLast, {batch}).data);
    const int32_t longest = *static_cast<const int32_t *>(input(context, kLongest, {}).data);
    for (int64_t b = 0; b < batch; b++) {
        if (last[b] < 0 || last[b] >= longest) {
            throw Malformed("a sequence's last token is number " + std::to_string(last[b]) + " of " +
                            std::to_string(longest));
        }
    }
    const int64_t capacity = std::max<int64_t>(past_key.shape[2], longest);
    void *output = output_of(api, context, 0, query.shape);
    auto *keys = static_cast<float *>(cache(context, 1, past_key, capacity));
    auto *values = static_cast<float *>(cache(context, 2, past_value, capacity));
    if (query.count() == 0) return;

    const auto floats = [](const Tensor &tensor) { return static_cast<const float *>(tensor.data); };
    const slimdeploy_attention attention{batch,
                                         tokens,
                                         past_key.shape[0],
                                         capacity,
                                         heads,
                                         kv_heads,
                                         size,
                                         scale,
                                         floats(query),
                                         floats(key),
                                         floats(value),
                                         keys,
                                         values,
                                         static_cast<const int64_t *>(rows.data),
                                         last,
                                         static_cast<float *>(output)};
    SessionThreads threads{api, context};
    char error[512] = "";
    const int failed = slimdeploy_attend(&attention, forced_instruction_set(), SessionThreads::most(),
                                         SessionThreads::run, &threads, error, sizeof error);
    check(threads.status);
    if (failed) throw Malformed(error);
}

AttentionOperator::AttentionOperator() : Operator("GroupQueryAttention") {
    GetInputTypeCount = [](const OrtCustomOp *) { return size_t(kInputs); };
    GetInputType = [](const OrtCustomOp *, size_t i) {
        return i == kRows ? kOrtInt64 : i == kLast || i == kLongest ? kOrtInt32 : kOrtFloat;
    };
    GetOutputTypeCount = [](const OrtCustomOp *) { return kOutputs; };
    use_kernel<AttentionNode>(this);
}

}  // namespace

const OrtCustomOp &attention_operator() {
    static const AttentionOperator op;
    return op;
}

}  // namespace slimdeploy
