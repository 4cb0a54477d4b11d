"""One random LLaVA, exported to ONNX with weights in every form. Not verified: tests do that on small models."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from onnxscript import ir
from random_llava import Prune, Shape, Tower, gathered, half_of, write_checkpoint
from transformers import AutoModelForMultimodalLM

from slimdeploy.config import ExportConfig, OnnxConfig, OnnxWeights
from slimdeploy.config_shipping import VisionWeights
from slimdeploy.exporters import ExportJob
from slimdeploy.exporters.checkpoint import save_settings
from slimdeploy.exporters.graphs import graphs_of
from slimdeploy.exporters.onnx_storage import write
from slimdeploy.exporters.trace import trace
from slimdeploy.policy import UNSTRUCTURED
from slimdeploy.streaming import load_streamed

Graphs = Mapping[str, ir.Model]
"""By name, without weights."""

TINY = Shape(
    vision=Tower(blocks=1, width=64, mlp=128, heads=2, key_value_heads=2),
    language=Tower(blocks=2, width=64, mlp=128, heads=4, key_value_heads=2),
    vocabulary=448,
    image=48,
    patch=12,
)
"""To try a benchmark on."""


@dataclass(frozen=True)
class Form:
    """prune: the weights that it is made of. vision: the form of tower and projector."""

    name: str
    weights: OnnxWeights
    prune: Prune
    pattern: str = UNSTRUCTURED
    vision: VisionWeights = "same"

    @property
    def folder(self) -> str:
        return self.name.replace(":", "-")


FORMS = (
    Form("packed int4 50%", "packed-int4", half_of),
    Form("packed int4 26:64", "packed-int4", gathered, "26:64"),
    Form("packed int8 50%", "packed-int8", half_of),
    Form("packed bf16 50%", "packed-bf16", half_of),
    Form("MatMulNBits int4", "dense-int4", half_of),
    Form("dynamic int8", "dense-int8", half_of),
    Form("float16", "dense-fp16", half_of),
    Form("float32", "dense-fp32", half_of),
)


@dataclass(frozen=True)
class Made:
    """seconds: that the export took, without tracing."""

    name: str
    folder: Path
    seconds: float


def make(folder: Path, shape: Shape, forms: Sequence[Form]) -> tuple[list[Made], Any]:
    """An export in every form; and the model in torch, in bfloat16."""
    sources = {prune: write_checkpoint(folder / prune.__name__, shape, prune=prune) for prune in (half_of, gathered)}
    traced = traced_graphs(sources[half_of])
    made = [export(form, sources[form.prune], traced, folder / form.folder) for form in forms]
    module = AutoModelForMultimodalLM.from_pretrained(sources[half_of], dtype=torch.bfloat16)
    return made, module.eval()


def traced_graphs(source: Path) -> Graphs:
    """Of all models of one shape."""
    return {graph.name: trace(graph) for graph in graphs_of(load_streamed(str(source)))}


def export(form: Form, source: Path, traced: Graphs, target: Path) -> Made:
    """Into a new folder. source: a checkpoint of the form's pruning."""
    model = load_streamed(str(source))
    patterns = {layer.name: form.pattern for layer in model.layers() if layer.tower != "projector"}
    job = ExportJob(ExportConfig(onnx=OnnxConfig(weights=form.weights, vision=form.vision)), [], patterns)
    target.mkdir(exist_ok=True)
    save_settings(model, target)
    start = time.perf_counter()
    for name, graph in traced.items():
        write(graph.clone(), model, job, target / f"{name}.onnx")
    return Made(form.name, target, time.perf_counter() - start)
