"""Lets vLLM import a torchvision that was built for another torch than the one that is there.

Such a torchvision fails when it is imported, for operators that nobody declares, and vLLM imports it for LLaVA without
ever calling one. They are declared here when it is looked for. Python imports this module, whose folder stands in
PYTHONPATH, when it starts: vLLM starts processes of several kinds.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.metadata import version

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


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing: what torchvision is comes from where it always does."""

    def __init__(self) -> None:
        self._declared: list = []  # operators are known as long as what declared them lives

    def find_spec(self, name, path=None, target=None):  # noqa: ARG002  as Python calls it
        # A build for the CPU brings its operators.
        if name == "torchvision" and not self._declared and not version("torchvision").endswith("+cpu"):
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in _OPERATORS:
                library.define(operator)
            self._declared.append(library)


sys.meta_path.insert(0, _BeforeTorchvision())
