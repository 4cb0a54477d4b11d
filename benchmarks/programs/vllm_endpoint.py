"""vLLM's OpenAI server, where torchvision was built for another torch than the one that is there.

Such a torchvision declares no operators and fails when it is imported, which vLLM does for LLaVA without ever calling
one. They are declared here before that, in every process: vLLM's others import this file as well.

Run by the Python that has vLLM: vllm_endpoint.py OPTIONS...
"""

import torch

_POOLED = "Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width"
_POOLED_BACKWARD = (
    "float spatial_scale, int pooled_height, int pooled_width, int batch_size, int channels, int height, int width"
)
_CONVOLVED = (
    "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, int stride_h, int stride_w, int pad_h, "
    "int pad_w, int dilation_h, int dilation_w, int groups, int offset_groups, bool use_mask"
)
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align({_POOLED}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_align_backward(Tensor grad, Tensor rois, {_POOLED_BACKWARD}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool({_POOLED}) -> (Tensor, Tensor)",
    f"_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, {_POOLED_BACKWARD}) -> Tensor",
    f"ps_roi_align({_POOLED}, int sampling_ratio) -> (Tensor, Tensor)",
    f"_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor mapping, {_POOLED_BACKWARD}, int sampling_ratio) "
    "-> Tensor",
    f"ps_roi_pool({_POOLED}) -> (Tensor, Tensor)",
    f"_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor mapping, {_POOLED_BACKWARD}) -> Tensor",
    f"deform_conv2d({_CONVOLVED}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, {_CONVOLVED}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def declare_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(operator)
    return library


try:
    import torchvision  # noqa: F401
except RuntimeError:
    DECLARED = declare_operators()
    """As long as this lives they are known."""

if __name__ == "__main__":
    import runpy

    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
