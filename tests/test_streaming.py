"""A streamed model computes what a whole one does, holds one block at a time, and is written as a checkpoint."""

import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_samples, make_tiny_llava
from transformers.models.llama import modeling_llama

from slimdeploy.config import PruneConfig
from slimdeploy.errors import ModelError
from slimdeploy.inspection import inspect
from slimdeploy.losses import text_batch, text_logits
from slimdeploy.model import Model, load_model
from slimdeploy.policy import Level, Policy
from slimdeploy.progress import Progress
from slimdeploy.prune import Pruning, collect_stats, prune_blockwise
from slimdeploy.streaming import load_streamed, write_blocks


@pytest.fixture
def streamed(tiny_checkpoint: Path) -> Model:
    return load_streamed(str(tiny_checkpoint))


def _logits(model: Model) -> torch.Tensor:
    with torch.inference_mode():
        return text_logits(model, text_batch(model, make_samples(3)))


def _in_memory(model: Model) -> set[str]:
    """Blocks of which any weight is there."""
    assert model.streamed is not None
    return {
        path
        for path in model.streamed.blocks
        if any(not parameter.is_meta for parameter in model.module.get_submodule(path).parameters())
    }


@pytest.mark.parametrize("hub_layout", [False, True])
def test_it_computes_what_the_whole_model_does(tmp_path: Path, hub_layout: bool) -> None:
    folder = str(make_tiny_llava(tmp_path, hub_layout=hub_layout))
    streamed = load_streamed(folder)
    assert torch.equal(_logits(streamed), _logits(load_model(folder)))
    assert streamed.layers() == load_model(folder).layers()


def test_one_block_at_a_time_is_in_memory(streamed: Model) -> None:
    seen = []

    def note(module: torch.nn.Module, *_: object) -> None:
        seen.append(len(_in_memory(streamed)))

    for layer in streamed.layers():
        streamed.linear(layer.name).register_forward_pre_hook(note)
    _logits(streamed)
    collect_stats(streamed, make_samples(3), "wanda", 2, Progress.silent())
    assert max(seen) == 1
    assert not _in_memory(streamed)


# A process of its own: holes that other tests leave in the heap would take some of the tensors.
FREED = """
import re, sys
from pathlib import Path
import torch
from slimdeploy.streaming import load_streamed

def anonymous_bytes():  # pages of files come and go with what else the system does
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

model = load_streamed(sys.argv[1])
large = torch.ones(30_000_000, dtype=torch.uint8)
del large  # after which glibc by itself would take smaller ones from its heap
tensors = [torch.ones(5_000_000, dtype=torch.uint8) for _ in range(20)]
held = anonymous_bytes()
del tensors[:-1]  # the last one would lie behind the hole
print(held - anonymous_bytes())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc for what others do unasked")
def test_freed_tensors_go_back_to_the_system(streamed: Model) -> None:
    command = [sys.executable, "-c", FREED, str(streamed.source)]
    freed = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert freed > 80_000_000


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt", "atv"])
def test_statistics_are_those_of_the_whole_model(streamed: Model, tiny_model: Model, criterion: str) -> None:
    both = [collect_stats(model, make_samples(3), criterion, 2, Progress.silent()) for model in (streamed, tiny_model)]  # type: ignore[arg-type]
    for one, other in (
        (both[0].input_sq_sum, both[1].input_sq_sum),
        (both[0].factor_diagonal, both[1].factor_diagonal),
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def _pruned_blocks(model: Model, config: PruneConfig) -> Iterator[str]:
    policy = Policy({layer.name: Level(0.5) for layer in model.layers()})
    for path, _ in prune_blockwise(model, policy, Pruning(config, make_samples(4), 2, Progress.silent())):
        yield path


@pytest.mark.parametrize("propagate", ["dense", "pruned"])
@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_what_is_written_is_what_pruning_the_whole_model_makes(
    tiny_model: Model, streamed: Model, tmp_path: Path, criterion: str, propagate: str
) -> None:
    config = PruneConfig(criterion=criterion, propagate=propagate)  # type: ignore[arg-type]
    write_blocks(streamed, _pruned_blocks(streamed, config), tmp_path / "written")
    list(_pruned_blocks(tiny_model, config))
    written = load_model(str(tmp_path / "written")).module.state_dict()
    for name, tensor in tiny_model.module.state_dict().items():
        assert torch.equal(written[name], tensor), name


def test_a_weight_that_is_missing_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    make_tiny_llava(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        load_streamed(str(tmp_path))


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    make_tiny_llava(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    weights[name] = torch.zeros(7, 9)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"{re.escape(name)} has the shape \(7, 9\), and config.json asks for"):
        load_streamed(str(tmp_path))


def test_nothing_of_the_dense_model_is_written_beside_the_pruned_one(tmp_path: Path) -> None:
    source = make_tiny_llava(tmp_path / "dense")
    settings = {file.name for file in source.iterdir()} - {"model.safetensors"}
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json", "onnx/model.onnx", "onnx/config.json", "a.py"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"dense")
    streamed = load_streamed(str(source))
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    write_blocks(streamed, (), tmp_path / "written")
    written = {str(file.relative_to(tmp_path / "written")) for file in (tmp_path / "written").rglob("*.*")}
    weights = {name for name in written if name.endswith((".safetensors", ".safetensors.index.json"))}
    assert written - weights == settings | {"additional_chat_templates/tools.jinja"}


def test_the_configuration_says_in_which_type_weights_are_stored(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "dense"))
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["torch_dtype"] = config["torch_dtype"] = "float16"
    (source / "config.json").write_text(json.dumps(config))
    write_blocks(load_streamed(str(source), "bfloat16"), (), tmp_path / "written")
    written = json.loads((tmp_path / "written" / "config.json").read_text())
    for part in (written, written["text_config"], written["vision_config"]):
        assert (part["dtype"], part.get("torch_dtype")) == ("bfloat16", None)
    shards = [load_file(file) for file in (tmp_path / "written").glob("*.safetensors")]
    assert {tensor.dtype for shard in shards for tensor in shard.values()} == {torch.bfloat16}
    assert all(row["bytes"] == 2 * row["rows"] * row["columns"] for row in inspect(str(tmp_path / "written")))


class _CountingNorm(modeling_llama.LlamaRMSNorm):
    """Has a buffer that checkpoints hold, beside a weight."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__(hidden_size, eps)
        self.register_buffer("seen", torch.tensor(0))


def test_a_buffer_that_the_checkpoint_holds_is_read_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_llama, "LlamaRMSNorm", _CountingNorm)
    source = make_tiny_llava(tmp_path / "dense")
    weights = load_file(source / "model.safetensors")
    weights = {name: torch.tensor(1001) if name.endswith("seen") else tensor for name, tensor in weights.items()}
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    streamed = load_streamed(str(source), "bfloat16")  # which has no 1001
    write_blocks(streamed, (), tmp_path / "written")
    for model in (streamed, load_model(str(tmp_path / "written"))):
        buffers = [int(buffer) for name, buffer in model.module.named_buffers() if name.endswith("seen")]
        assert buffers == [1001] * 5


def test_quantised_weights_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "quantised"))
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"{source} holds quantised weights, which cannot be read block by block"):
        load_streamed(str(source))
