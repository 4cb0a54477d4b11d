// Tensors and errors of onnxruntime as C++ has them.

#ifndef SLIMDEPLOY_ONNXRUNTIME_TENSOR_H
#define SLIMDEPLOY_ONNXRUNTIME_TENSOR_H

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "onnxruntime_api.h"

namespace slimdeploy {

// What onnxruntime itself reported; handed back to it unchanged.
struct Reported {
    OrtStatus *status;
};

inline void check(OrtStatus *status) {
    if (status) throw Reported{status};
}

struct Malformed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A tensor of the session, as far as it has been looked at.
struct Tensor {
    OrtElementType type;
    std::vector<int64_t> shape;
    void *data;

    Tensor(const OrtApi &api, const OrtValue *value) {
        OrtTensorTypeAndShapeInfo *info = nullptr;
        check(api.GetTensorTypeAndShape(value, &info));
        const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(api.ReleaseTensorTypeAndShapeInfo)> held(
            info, api.ReleaseTensorTypeAndShapeInfo);
        size_t dimensions = 0;
        check(api.GetTensorElementType(info, &type));
        check(api.GetDimensionsCount(info, &dimensions));
        shape.resize(dimensions);
        check(api.GetDimensions(info, shape.data(), dimensions));
        check(api.GetTensorMutableData(const_cast<OrtValue *>(value), &data));
    }

    // Elements; a shape from onnxruntime has no negative dimension and fits its memory.
    uint64_t count() const {
        uint64_t product = 1;
        for (const int64_t dimension : shape) product *= uint64_t(dimension);
        return product;
    }

    std::string shape_text() const {
        std::string text = "[";
        for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
        return text + "]";
    }
};

// No exception may cross into onnxruntime. `where` says which node it was.
template <class Function>
OrtStatus *guarded_call(const OrtApi &api, const std::string &where, Function fn) {
    try {
        fn();
        return nullptr;
    } catch (const Reported &reported) {
        return reported.status;
    } catch (const Malformed &problem) {
        return api.CreateStatus(kOrtInvalidArgument, (where + ": " + problem.what()).c_str());
    } catch (const std::exception &problem) {
        return api.CreateStatus(kOrtFail, (where + ": " + problem.what()).c_str());
    }
}

}  // namespace slimdeploy

#endif
