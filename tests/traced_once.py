"""torch's exporter, asked once for all models of one shape: it takes ten seconds even for a tiny one, and what it finds
is the same for all weights.
"""

from collections.abc import Callable

from onnxscript import ir

from slimdeploy.exporters.graph import Graph

Traces = dict[str, ir.Model]


def trace_once(traces: Traces, trace: Callable[[Graph], ir.Model], graph: Graph) -> ir.Model:
    """`trace` is slimdeploy.exporters.trace.trace."""
    key = _shape_of(graph)
    if key not in traces:
        traces[key] = trace(graph)
    return traces[key].clone()


def _shape_of(graph: Graph) -> str:
    """All that a traced graph follows from: modules, their settings, and the sizes of weights and arguments."""
    settings = {name: value for name, value in vars(graph.part).items() if not name.startswith("_")}
    configs = {str(module.config) for module in graph.part.modules() if hasattr(module, "config")}
    weights = [(name, tuple(weight.shape)) for name, weight in graph.part.named_parameters()]
    return repr((graph.name, graph.part, settings, sorted(configs), weights, graph.sample, graph.axes, graph.weights))
