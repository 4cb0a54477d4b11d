"""transformers loads packed checkpoints as if they were its own, and what does not fit is refused by name."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_samples
from torch import Tensor
from transformers import AutoModelForImageTextToText

import slimdeploy.transformers_plugin  # noqa: F401 - the one line that the test is about
from slimdeploy.config import CheckpointConfig, CheckpointWeights, Config, DataConfig, ExportConfig, ValidateConfig
from slimdeploy.errors import ArtifactError, ConfigError, ExportError, ModelError
from slimdeploy.evaluate import greedy_answers
from slimdeploy.exporters import ExportJob, export
from slimdeploy.exporters.reference import packed_reference, standing_in
from slimdeploy.inspection import evaluate
from slimdeploy.kernels import library
from slimdeploy.model import Model, encode, load_model
from slimdeploy.packed import PackedTensor, read_packed
from slimdeploy.packed_linear import PackedLinear
from slimdeploy.progress import Progress

Q_PROJ = "model.language_model.layers.0.self_attn.q_proj"
WEIGHTS: tuple[CheckpointWeights, ...] = ("packed-bf16", "packed-int8", "packed-int4")


@pytest.fixture(scope="module")
def source(tiny_checkpoint: Path) -> Model:
    """Half of every prunable matrix but one is zero."""
    model = load_model(str(tiny_checkpoint))
    with torch.no_grad():
        for layer in model.layers()[1:]:
            weight = model.linear(layer.name).weight
            weight *= weight.abs() > weight.abs().median()
    return model


@pytest.fixture(scope="module")
def folders(source: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A packed checkpoint of each kind."""
    return {weights: _packed(source, weights, tmp_path_factory.mktemp(weights)) for weights in WEIGHTS}


def _packed(source: Model, weights: CheckpointWeights, folder: Path) -> Path:
    config = ExportConfig(format="checkpoint", checkpoint=CheckpointConfig(weights=weights))
    export(source, folder, ExportJob(config, make_samples(1)), Progress.silent())
    return folder


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(folders["packed-int8"], tmp_path / "packed"))


def load(folder: Path, **arguments: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True, **arguments)


def logits(model: Any, source: Model) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(**encode(source, make_samples(2))).logits
    return result


@pytest.mark.parametrize("weights", WEIGHTS)
def test_it_generates_what_the_dense_model_with_unpacked_weights_does(
    source: Model, folders: dict[str, Path], weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernels sum in another order, which tells in a random model's answers; they have tests of their own.
    monkeypatch.setattr(library, "library_file", lambda: None)
    model = load(folders[weights])
    inputs = encode(source, make_samples(3))
    packed: dict[str, PackedTensor] = read_packed(folders[weights] / "model.safetensors")[0]
    with standing_in(source, packed_reference(packed)):
        expected = source.pretrained.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=False), expected)
    assert isinstance(model.get_submodule(Q_PROJ), PackedLinear)


def test_it_computes_in_bfloat16_too(source: Model, folders: dict[str, Path]) -> None:
    model = load(folders["packed-int8"], dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert model.get_submodule(Q_PROJ).scales.dtype == torch.uint16
    inputs = encode(source, make_samples(2))
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    with torch.no_grad():
        found = model(**inputs).logits.float()
    expected = logits(load(folders["packed-int8"]), source)
    assert (found - expected).norm() < 0.2 * expected.norm()


def test_copies_of_the_model_are_equal(source: Model, folders: dict[str, Path]) -> None:
    model = load(folders["packed-int4"])
    expected = logits(model, source)
    assert torch.equal(logits(copy.deepcopy(model).to("cpu"), source), expected)
    other = load(folders["packed-int4"])
    with torch.no_grad():
        other.get_submodule(Q_PROJ).scales.fill_(0x3F80)
    assert not torch.equal(logits(other, source), expected)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other, source), expected)


def test_a_block_compiles_to_one_graph(folders: dict[str, Path]) -> None:
    torch.compiler.reset()
    block = load(folders["packed-int8"]).model.language_model.layers[0].mlp
    x = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(compiled, block(x))


def test_it_is_not_saved_again_but_its_unpacked_weights_are(
    source: Model, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = load(folders["packed-bf16"])
    with pytest.raises(ExportError, match="copy the folder"):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()
    model.dequantize().save_pretrained(tmp_path / "dense")
    source.save_processor(tmp_path / "dense")
    packed, _ = read_packed(folders["packed-bf16"] / "model.safetensors")
    again = load_model(str(tmp_path / "dense"))
    expected = torch.from_numpy(packed[Q_PROJ].mask_as_bool())
    assert torch.equal(again.linear(Q_PROJ).weight != 0, expected)


def test_it_stays_on_the_cpu(source: Model, folders: dict[str, Path]) -> None:
    assert load(folders["packed-int8"], device_map="auto").device.type == "cpu"
    for device_map in ("cuda:0", {"": 0}, {"model": "cpu", "lm_head": "disk"}):
        with pytest.raises(ConfigError, match=r"multiplied on the CPU.*device_map"):
            load(folders["packed-int8"], device_map=device_map)


def test_it_is_evaluated_as_any_checkpoint(
    source: Model, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "library_file", lambda: None)  # as above
    samples = make_samples(6)
    packed: dict[str, PackedTensor] = read_packed(folders["packed-int8"] / "model.safetensors")[0]
    with standing_in(source, packed_reference(packed)):
        answers = greedy_answers(source, samples, 4, 3, Progress.silent())
    known = [replace(sample, answers=(answer or "nothing",)) for sample, answer in zip(samples, answers, strict=True)]
    monkeypatch.setattr("slimdeploy.inspection.load_samples", lambda *_: {"test": known})
    config = Config(data=DataConfig(batch_size=3), validate=ValidateConfig(max_tokens=4))
    accuracy, _ = evaluate(str(folders["packed-int8"]), config, Progress.silent())
    assert accuracy.value * accuracy.count == sum(map(bool, answers)) > 0


def test_pruning_it_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"holds packed weights.*quantised already.*made from"):
        load_model(str(folders["packed-int8"]))


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q.pop("layers"), r"config\.json has None for packed layers"),
        (lambda q: q.update(version="2"), r"version '2'.*reads 1"),
        (lambda q: q["layers"][Q_PROJ].pop("kept"), rf"{Q_PROJ}.*has not exactly rows"),
        (lambda q: q["layers"][Q_PROJ].update(kept=10**9), rf"{Q_PROJ}.*keeps 1000000000"),
        (lambda q: q["layers"][Q_PROJ].update(values="int3"), rf"{Q_PROJ}.*'int3'"),
        (lambda q: q["layers"][Q_PROJ].update(rows=10**12), rf"{Q_PROJ}.*1000000000000 rows"),
        (lambda q: q["layers"][Q_PROJ].update(rows=63), rf"{Q_PROJ}.*63 x 64, but 64 x 64"),
        (lambda q: q["layers"][Q_PROJ].update(kept=7), rf"{Q_PROJ}.*'values' is int8 \[\d+\].*int8 \[7\]"),
        (lambda q: q["layers"][Q_PROJ].update(pattern="dense"), rf"{Q_PROJ}.*'mask' is uint8.*says not there"),
        (lambda q: q["layers"][Q_PROJ].update(pattern="2:4"), rf"{Q_PROJ}.*2:4"),
        (lambda q: q["layers"].update({"model.nowhere": q["layers"][Q_PROJ]}), r"model\.nowhere.*no such layer"),
        (lambda q: q["layers"].update({"model": q["layers"][Q_PROJ]}), r"'model'.*not linear"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(folder: Path, change: Change, message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{Q_PROJ}.mask"), rf"{Q_PROJ}.*'mask' is not there"),
        (lambda t: t.pop(f"{Q_PROJ}.scales"), rf"{Q_PROJ}.*'scales' is not there"),
        (lambda t: t.update({f"{Q_PROJ}.values": t[f"{Q_PROJ}.values"][1:].clone()}), rf"{Q_PROJ}.*'values' is int8"),
        (lambda t: t.update({f"{Q_PROJ}.values": t[f"{Q_PROJ}.values"].float()}), rf"{Q_PROJ}.*'values' is F32"),
        (lambda t: t[f"{Q_PROJ}.values"].fill_(-128), rf"{Q_PROJ}.*-128"),
        (lambda t: t[f"{Q_PROJ}.mask"].fill_(255), rf"{Q_PROJ}.*values"),
        (lambda t: t[f"{Q_PROJ}.scales"].fill_(0), rf"{Q_PROJ}.*scale is 0"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(folder: Path, change: Change, message: str) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match=message):
        load(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"model\.safetensors is truncated"):
        load(folder)
