"""torch's exporter, asked once for all models of one shape: it takes ten seconds even for a tiny one, and what it finds
is the same for all weights. They are put in afterwards; what slimdeploy makes of a traced graph is made every time.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from onnxscript import ir
from torch import Tensor, nn

Traces = dict[str, ir.Model]


def export_once(traces: Traces, export: Callable[..., Any], part: nn.Module, sample: Any, **options: Any) -> Any:
    """`export` is torch.onnx.export, whose other arguments and whose result these are."""
    key = _shape_of(part, sample, options)
    if key not in traces:
        traces[key] = export(part, sample, **options).model
    model = traces[key].clone()
    weights = dict([*part.named_buffers(), *part.named_parameters()])
    for name, value in model.graph.initializers.items():
        if name in weights:
            assert value.const_value is not None
            value.const_value = type(value.const_value)(weights[name], name=name)
    return SimpleNamespace(model=model)


def _shape_of(part: nn.Module, sample: Any, options: dict[str, Any]) -> str:
    """All that the graph follows from: modules, their settings, what is tied, and the sizes of the arguments."""
    settings = {name: value for name, value in vars(part).items() if not name.startswith("_")}
    configs = {str(module.config) for module in part.modules() if hasattr(module, "config")}
    weights = [(name, tensor.dtype) for name, tensor in part.named_parameters()]
    return repr((part, settings, sorted(configs), weights, _sizes(sample), options))


def _sizes(sample: Any) -> Any:
    if isinstance(sample, Tensor):
        return sample.dtype, tuple(sample.shape)
    return [_sizes(each) for each in sample]
