"""One tiny model, pruned a little, and one export of it in every format; tests that alter files copy them first."""

import io
from pathlib import Path

import pytest
import torch
from exported import Exported
from made_once import MakeOnce
from PIL import Image
from tiny import make_tiny_llava

from slimdeploy.config import ExportConfig, ExportFormat, OnnxConfig
from slimdeploy.exporters import ExportJob, export
from slimdeploy.model import Model, load_model
from slimdeploy.progress import Progress
from slimdeploy.samples import Sample


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llava(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> Model:
    """Half of every prunable matrix is zero."""
    model = load_model(str(checkpoint))
    with torch.no_grad():
        for layer in model.layers():
            weight = model.linear(layer.name).weight
            weight *= weight.abs() > weight.abs().median()
    return model


@pytest.fixture(scope="session")
def prompts() -> list[Sample]:
    """Of clearly different lengths, each with a picture of its own."""
    questions = [
        "What?",
        "Which colour has the square?",
        "Is there a circle to the left of it, or is it behind?",
        "Who?",
    ]
    return [Sample(str(i), question, (_picture(i),)) for i, question in enumerate(questions)]


def _picture(seed: int) -> bytes:
    pixels = torch.randint(0, 256, (30, 24, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def onnx_export(model: Model, prompts: list[Sample], make_once: MakeOnce) -> Exported:
    """Of plain float32 weights."""
    job = ExportJob(ExportConfig(onnx=OnnxConfig(weights="dense-fp32")), prompts)
    return make_once("onnx_export", lambda folder: Exported(folder, export(model, folder, job, Progress.silent())))


@pytest.fixture(scope="session")
def vllm_export(model: Model, prompts: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return _exported("vllm", model, prompts, tmp_path_factory.mktemp("vllm"))


@pytest.fixture(scope="session")
def checkpoint_export(model: Model, prompts: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return _exported("checkpoint", model, prompts, tmp_path_factory.mktemp("checkpoint"))


def _exported(name: ExportFormat, model: Model, prompts: list[Sample], folder: Path) -> Exported:
    return Exported(folder, export(model, folder, ExportJob(ExportConfig(format=name), prompts), Progress.silent()))
