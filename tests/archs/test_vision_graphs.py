"""The vision graph of every family: onnxruntime computes what the model's own `get_image_features` does, from pictures
of several sizes and numbers, and a matrix that may be pruned is found under its name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from families import FAMILIES, SIZE, make_checkpoint
from made_once import MakeOnce
from onnxscript import ir
from tiny import make_tiny_llava
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from slimdeploy.config import ExportConfig, OnnxConfig
from slimdeploy.errors import ExportError
from slimdeploy.exporters import ExportJob, check
from slimdeploy.exporters.graphs import graphs_of
from slimdeploy.exporters.limits import VISION_TOWERS, require_known_tower
from slimdeploy.exporters.onnx_edit import multiplied
from slimdeploy.exporters.onnx_storage import write
from slimdeploy.exporters.trace import trace
from slimdeploy.model import Model, load_model

EXPORTED = tuple(VISION_TOWERS["onnx"])

# -- pictures, and what the model makes of them ---------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """inputs: of the graph, by name. outputs: what torch computes for them."""

    inputs: dict[str, Tensor]
    outputs: tuple[Tensor, ...]


def cases(model: Model) -> list[Pictures]:
    """Pictures of noise in several numbers and, where the family has such, sizes."""
    match model.arch.model_type:
        case "llava_next":
            # Squares, wide and tall ones with and without edges that are cut away, two in one run.
            shapes = ([(24, 24)], [(24, 48)], [(48, 32)], [(10, 70)], [(48, 48), (30, 20)])
            return [packed_pictures(model, sizes) for sizes in shapes]
        case "idefics3" | "smolvlm":
            return [tiled_pictures(model, batch, tiles) for batch, tiles in ((1, 1), (1, 5), (2, 3))]
        case "qwen2_5_vl" | "qwen3_vl":
            # One token; parts of windows; whole windows and more; two sizes in one run; three frames beside pictures.
            one, two = ([(1, 2, 2)], [(1, 2, 6)], [(1, 8, 4)], [(1, 10, 14)]), [(1, 2, 10), (1, 6, 6)]
            return [patched_pictures(model, grids) for grids in (*one, two, [(3, 4, 6), (1, 8, 6), (1, 6, 2)])]
        case _:
            return [whole_pictures(model, count) for count in (1, 3)]


def whole_pictures(model: Model, count: int) -> Pictures:
    pixels = noise(count, 3, SIZE, SIZE)
    features = model.pretrained.get_image_features(pixel_values=pixels).pooler_output
    return Pictures({"pixel_values": pixels}, (torch.stack(list(features)),))


def tiled_pictures(model: Model, batch: int, tiles: int) -> Pictures:
    pixels = noise(batch, tiles, 3, SIZE, SIZE)
    features = model.pretrained.get_image_features(pixel_values=pixels).pooler_output
    return Pictures({"pixel_values": pixels}, (torch.cat(list(features)).unflatten(0, (batch * tiles, -1)),))


def packed_pictures(model: Model, sizes: Sequence[tuple[int, int]]) -> Pictures:
    counts = [image_size_to_num_patches(size, model.config.image_grid_pinpoints, SIZE) for size in sizes]
    pixels, image_sizes = noise(sum(counts), 3, SIZE, SIZE), torch.tensor(sizes)
    features = model.pretrained.get_image_features(pixel_values=pixels, image_sizes=image_sizes).pooler_output
    index = packed_numbers(model, counts, image_sizes)
    return Pictures({"pixel_values": pixels, "feature_index": index}, (torch.cat(list(features)),))


def packed_numbers(model: Model, counts: list[int], image_sizes: Tensor) -> Tensor:
    """What transformers makes of the numbers of features when it is told that they are features."""
    vision = model.config.vision_config
    tokens = sum(counts) * (vision.image_size // vision.patch_size) ** 2
    numbers = torch.arange(tokens, dtype=torch.float).reshape(sum(counts), -1, 1).split(counts)
    newline = torch.tensor([float(tokens)])
    packed, _ = model.pretrained.model.pack_image_features(numbers, image_sizes, "default", image_newline=newline)
    return torch.cat(packed)[:, 0].long()


def patched_pictures(model: Model, grids: Sequence[tuple[int, int, int]]) -> Pictures:
    grid, vision = torch.tensor(grids), model.config.vision_config
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = noise(int(grid.prod(dim=1).sum()), width)
    found = model.pretrained.get_image_features(pixel_values=pixels, image_grid_thw=grid)
    features, deepstack = torch.cat(list(found.pooler_output)), getattr(found, "deepstack_features", None)
    outputs = (features, torch.stack([torch.cat(layer) for layer in deepstack])) if deepstack else (features,)
    return Pictures({"pixel_values": pixels, "image_grid_thw": grid}, outputs)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


# -- one model and one graph of each family -------------------------------------------------------------------------


@pytest.fixture(scope="module", params=EXPORTED)
def model(request: pytest.FixtureRequest, make_once: MakeOnce) -> Model:
    name: str = request.param

    def make(folder: Path) -> Path:
        return make_tiny_llava(folder) if name == "llava" else make_checkpoint(FAMILIES[name], folder)

    return load_model(str(make_once(f"vision_checkpoint_{name}", make)))


@pytest.fixture(scope="module")
def exported(model: Model, make_once: MakeOnce) -> Path:
    return make_once(f"vision_graph_{model.arch.model_type}", lambda folder: write_vision(model, folder))


def write_vision(model: Model, folder: Path) -> Path:
    job = ExportJob(ExportConfig(onnx=OnnxConfig(weights="dense-fp32")), [])
    write(trace(graphs_of(model)[0]), model, job, folder / "vision.onnx")
    return folder / "vision.onnx"


# -- claims ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_onnxruntime_computes_the_features_that_torch_computes(model: Model, exported: Path) -> None:
    runtime: Any = onnxruntime
    session = runtime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    for pictures in cases(model):
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in pictures.inputs.items()})
        for output, expected in zip(outputs, pictures.outputs, strict=True):
            assert output.shape == expected.shape
            error = np.abs(output - expected.numpy()).max()
            shapes = {name: tuple(tensor.shape) for name, tensor in pictures.inputs.items()}
            assert error / expected.abs().max() < 1e-5, f"off by {error} for {shapes}"


def test_every_live_matrix_of_tower_and_projector_is_multiplied_under_its_name(model: Model, exported: Path) -> None:
    graph = ir.load(exported).graph
    products = {multiplied(node) for node in graph}
    for layer in model.layers():
        if layer.tower != "language":
            assert layer.name in products
            stored = graph.initializers[f"{layer.name}.weight"].const_value
            assert stored is not None
            np.testing.assert_array_equal(stored.numpy().T, model.linear(layer.name).weight.detach())


def test_inputs_outputs_and_axes_have_names(model: Model, exported: Path) -> None:
    graph = ir.load(exported).graph
    assert [value.name for value in graph.inputs] == list(cases(model)[0].inputs)
    deepstack = ["deepstack_features"] if model.arch.model_type == "qwen3_vl" else []
    assert [value.name for value in graph.outputs] == ["image_features", *deepstack]
    hidden = model.config.text_config.hidden_size
    for value in (*graph.inputs, *graph.outputs):
        assert value.shape is not None
        axes = [axis.value for axis in value.shape if isinstance(axis, ir.SymbolicDim)]
        assert all(axis and axis.strip("()").startswith(("batch_size", "num_")) for axis in axes), value
    assert {value.shape[-1] for value in graph.outputs if value.shape} == {hidden}


def test_two_traces_give_the_same_bytes(model: Model, exported: Path, tmp_path: Path) -> None:
    assert write_vision(model, tmp_path).read_bytes() == exported.read_bytes()


# -- what has no graph ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["instructblip", "qwen2_audio"])
def test_a_family_without_a_graph_is_refused(family: str, tmp_path: Path) -> None:
    model = load_model(str(make_checkpoint(FAMILIES[family], tmp_path)))
    with pytest.raises(ExportError, match=f"'{family}', but export format 'onnx' .* export.format = 'checkpoint'"):
        check(model, ExportConfig(format="onnx"))


def test_a_family_with_a_graph_is_let_through_unless_its_tower_is_another(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_known_tower(model, "onnx")
    monkeypatch.setattr(model.config.vision_config, "model_type", "pixtral")
    with pytest.raises(ExportError, match="vision tower of type 'pixtral'"):
        require_known_tower(model, "onnx")


@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
def test_tiles_of_another_size_than_the_tower_was_made_for_are_refused(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(str(make_checkpoint(FAMILIES[family], tmp_path)))
    monkeypatch.setitem(model.processor.image_processor.max_image_size, "longest_edge", 2 * SIZE)
    with pytest.raises(ExportError, match=f"tiles of {2 * SIZE} pixels, .* in its vision_config, {SIZE}"):
        require_known_tower(model, "onnx")
