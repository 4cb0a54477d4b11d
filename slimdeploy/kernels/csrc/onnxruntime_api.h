// The part of onnxruntime's C interface that our operators use. No wheel ships its header, and none is needed: the
// table of functions only ever grows at the end, so a function stays in the place that it has here, and the layout of
// an OrtCustomOp goes by the version that is written into it. Version 17 came with onnxruntime 1.17.

#ifndef SLIMDEPLOY_ONNXRUNTIME_API_H
#define SLIMDEPLOY_ONNXRUNTIME_API_H

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;

constexpr uint32_t kOrtApiVersion = 17;

enum OrtErrorCode { kOrtFail = 1, kOrtInvalidArgument = 2 };

enum OrtElementType {
    kOrtAnyType = 0,
    kOrtFloat = 1,
    kOrtUint8 = 2,
    kOrtInt8 = 3,
    kOrtInt32 = 6,
    kOrtInt64 = 7,
    kOrtFloat16 = 10,
    kOrtBfloat16 = 16,
    kOrtInt4 = 22
};

enum OrtCharacteristic { kOrtRequired = 0, kOrtOptional = 1 };

// A function that returns a status gives NULL when it succeeds.
struct OrtApi {
    OrtStatus *(*CreateStatus)(OrtErrorCode code, const char *message);
    void *unused_1[25];
    OrtStatus *(*CreateCustomOpDomain)(const char *name, OrtCustomOpDomain **domain);  // 26
    OrtStatus *(*CustomOpDomain_Add)(OrtCustomOpDomain *domain, const struct OrtCustomOp *op);
    OrtStatus *(*AddCustomOpDomain)(OrtSessionOptions *options, OrtCustomOpDomain *domain);
    void *unused_29[22];
    OrtStatus *(*GetTensorMutableData)(OrtValue *value, void **data);  // 51
    void *unused_52[8];
    OrtStatus *(*GetTensorElementType)(const OrtTensorTypeAndShapeInfo *info, OrtElementType *type);  // 60
    OrtStatus *(*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo *info, size_t *count);
    OrtStatus *(*GetDimensions)(const OrtTensorTypeAndShapeInfo *info, int64_t *dimensions, size_t count);
    void *unused_63[2];
    OrtStatus *(*GetTensorTypeAndShape)(const OrtValue *value, OrtTensorTypeAndShapeInfo **info);  // 65
    void *unused_66[19];
    OrtStatus *(*KernelInfoGetAttribute_float)(const OrtKernelInfo *info, const char *name, float *value);  // 85
    OrtStatus *(*KernelInfoGetAttribute_int64)(const OrtKernelInfo *info, const char *name, int64_t *value);
    OrtStatus *(*KernelInfoGetAttribute_string)(const OrtKernelInfo *info, const char *name, char *value, size_t *size);
    void *unused_88[2];
    OrtStatus *(*KernelContext_GetInput)(const OrtKernelContext *context, size_t index, const OrtValue **value);  // 90
    OrtStatus *(*KernelContext_GetOutput)(OrtKernelContext *context, size_t index, const int64_t *dimensions,
                                          size_t count, OrtValue **value);
    void *unused_92;
    void (*ReleaseStatus)(OrtStatus *status);  // 93
    void *unused_94[5];
    void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo *info);  // 99
    void *unused_100[144];
    OrtStatus *(*KernelInfo_GetNodeName)(const OrtKernelInfo *info, char *name, size_t *size);  // 244
    void *unused_245[4];
    OrtStatus *(*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo *info, size_t index, int *is_constant,
                                                    const OrtValue **value);  // 249
    void *unused_250[24];
    OrtStatus *(*KernelContext_ParallelFor)(const OrtKernelContext *context, void (*task)(void *argument, size_t i),
                                            size_t tasks, size_t batches, void *argument);  // 274
};

constexpr bool ort_api_place(size_t offset, size_t place) { return offset == place * sizeof(void *); }
static_assert(ort_api_place(offsetof(OrtApi, CreateCustomOpDomain), 26), "");
static_assert(ort_api_place(offsetof(OrtApi, GetTensorMutableData), 51), "");
static_assert(ort_api_place(offsetof(OrtApi, GetTensorElementType), 60), "");
static_assert(ort_api_place(offsetof(OrtApi, GetTensorTypeAndShape), 65), "");
static_assert(ort_api_place(offsetof(OrtApi, KernelInfoGetAttribute_float), 85), "");
static_assert(ort_api_place(offsetof(OrtApi, KernelContext_GetInput), 90), "");
static_assert(ort_api_place(offsetof(OrtApi, ReleaseStatus), 93), "");
static_assert(ort_api_place(offsetof(OrtApi, ReleaseTensorTypeAndShapeInfo), 99), "");
static_assert(ort_api_place(offsetof(OrtApi, KernelInfo_GetNodeName), 244), "");
static_assert(ort_api_place(offsetof(OrtApi, KernelInfoGetConstantInput_tensor), 249), "");
static_assert(ort_api_place(offsetof(OrtApi, KernelContext_ParallelFor), 274), "");

struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version);  // NULL for a version that is too new
    const char *(*GetVersionString)();
};

// An operator as onnxruntime asks for it; functions that are not needed stay NULL.
struct OrtCustomOp {
    uint32_t version;
    void *(*CreateKernel)(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info);
    const char *(*GetName)(const OrtCustomOp *op);
    const char *(*GetExecutionProviderType)(const OrtCustomOp *op);
    OrtElementType (*GetInputType)(const OrtCustomOp *op, size_t index);
    size_t (*GetInputTypeCount)(const OrtCustomOp *op);
    OrtElementType (*GetOutputType)(const OrtCustomOp *op, size_t index);
    size_t (*GetOutputTypeCount)(const OrtCustomOp *op);
    void (*KernelCompute)(void *kernel, OrtKernelContext *context);
    void (*KernelDestroy)(void *kernel);
    OrtCharacteristic (*GetInputCharacteristic)(const OrtCustomOp *op, size_t index);
    OrtCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp *op, size_t index);
    int (*GetInputMemoryType)(const OrtCustomOp *op, size_t index);
    int (*GetVariadicInputMinArity)(const OrtCustomOp *op);
    int (*GetVariadicInputHomogeneity)(const OrtCustomOp *op);
    int (*GetVariadicOutputMinArity)(const OrtCustomOp *op);
    int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *op);
    OrtStatus *(*CreateKernelV2)(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel);
    OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *context);
    OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *op, OrtShapeInferContext *context);
    int (*GetStartVersion)(const OrtCustomOp *op);
    int (*GetEndVersion)(const OrtCustomOp *op);
    size_t (*GetMayInplace)(int **input, int **output);
    void (*ReleaseMayInplace)(int *input, int *output);
    size_t (*GetAliasMap)(int **input, int **output);
    void (*ReleaseAliasMap)(int *input, int *output);
};

}  // extern "C"

#endif
