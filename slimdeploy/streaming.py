"""A model whose blocks stay in the checkpoint's files: each is read when it runs, and given up afterwards.

What is no block (embeddings, head, norms, projector) is in memory. So a model is pruned on a machine that could not
hold it. Knows nothing of pruning.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMultimodalLM, GenerationConfig
from transformers.utils import CHAT_TEMPLATE_DIR

from .archs import Arch
from .checkpoint import WEIGHTS_INDEX, check_checkpoint, locate_model, model_name, settings_files, weight_files
from .errors import ModelError, first_line
from .heap import give_back_when_freed
from .model import DType, Model, quiet_transformers
from .processor import load_processor

_CONFIG, _GENERATION = "config.json", "generation_config.json"


def load_streamed(path: str, dtype: DType = "float32", name: str | None = None, include: tuple[str, ...] = ()) -> Model:
    """As `load_model`, with the blocks left on disk. On the CPU, for reading and pruning: its blocks cannot be trained.

    Raises ModelError as `load_model` does, and for weights that are quantised.
    """
    give_back_when_freed()
    folder = locate_model(path)
    arch = check_checkpoint(folder)
    stored = StoredWeights.of(folder, arch)
    with quiet_transformers():
        module = _empty_module(folder, getattr(torch, dtype))
        processor = load_processor(folder, arch)
    model = Model(module.eval(), processor, arch, model_name(name or path), folder, include)
    blocks = [*model.blocks(arch.vision_blocks), *model.blocks(arch.language_blocks)]
    model.streamed = Streamed(module, stored, blocks)
    model.layers()
    return model


def _empty_module(folder: Path, dtype: torch.dtype) -> nn.Module:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            module = AutoModelForMultimodalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # as in `model`: no list of what a configuration can raise is complete
        raise ModelError(f"{folder} cannot be loaded: {first_line(error)}; download or save the model again") from error
    assert isinstance(module, nn.Module)
    if getattr(config, "quantization_config", None) is not None:  # its numbers mean nothing without their scales
        raise ModelError(
            f"{folder} holds quantised weights, which cannot be read block by block; give the checkpoint that they "
            "were made from"
        )
    if (folder / _GENERATION).is_file():  # it says what ends an answer
        module.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return module


@dataclass(frozen=True)
class StoredWeights:
    """The tensors of a checkpoint by the names that they have in its files. files, shapes: where and what each is."""

    arch: Arch
    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]

    @staticmethod
    def of(folder: Path, arch: Arch) -> "StoredWeights":
        files: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - it is no dictionary
                    files[key], shapes[key] = file, tuple(opened.get_slice(key).get_shape())
        return StoredWeights(arch, files, shapes)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors by their names in the module, in pages of the file while the next is not asked for.

        Raises ModelError for one that the checkpoint lacks.
        """
        by_file: dict[Path, list[tuple[str, str]]] = {}
        for name in names:
            key = self.name_of(name)
            by_file.setdefault(self.files[key], []).append((name, key))
        for file, wanted in by_file.items():
            with safe_open(file, framework="pt") as opened:
                for name, key in wanted:
                    yield name, opened.get_tensor(key)

    def name_of(self, name: str) -> str:
        """What a tensor of the module is called in the files."""
        return self.arch.stored_name(name, self.files)

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises ModelError where the files lack a tensor of the module, or hold one of another shape."""
        key = self.name_of(name)
        if self.shapes[key] != shape:
            raise ModelError(
                f"{self.files[key]}: {key} has the shape {self.shapes[key]}, and config.json asks for {shape}; "
                "download or save the model again"
            )

    def holds(self, name: str) -> bool:
        """Whether the files have a tensor of the module."""
        return any(candidate in self.files for candidate in self.arch.checkpoint_names(name))


class Streamed:
    """The residence of a module's blocks. blocks: paths.

    kept: names of the tensors that stay in memory: parameters of no block, and buffers that the checkpoint has, of any.
    """

    def __init__(self, module: nn.Module, stored: StoredWeights, blocks: list[str]) -> None:
        self.stored = stored
        self.blocks = blocks
        self._module = module
        self._resident: set[str] = set()
        module.tie_weights()  # type: ignore[operator]
        names = [name for name, _ in module.named_parameters()]
        saved = module.state_dict().keys()  # other buffers are computed
        buffers = [name for name, _ in module.named_buffers() if name in saved and stored.holds(name)]
        for name in names + buffers:
            stored.require(name, tuple(self.tensor(name).shape))  # now, not when hours were spent on the others
        in_blocks = tuple(f"{block}." for block in blocks)
        self.kept = [name for name in names if not name.startswith(in_blocks)] + buffers
        self._load(self.kept)
        module.tie_weights()  # type: ignore[operator]
        for path in blocks:
            block = module.get_submodule(path)
            block.forward = _ResidentForward(self, path, block.forward)

    @contextmanager
    def resident(self, path: str) -> Iterator[None]:
        """A block's weights are in memory while the body runs; what it does to them is lost unless it is written.

        Parts of the model that are no block always are.
        """
        if path in self._resident or path not in self.blocks:
            yield
            return
        names = self.parameters_of(path)
        self._load(names)
        self._resident.add(path)
        try:
            yield
        finally:
            self._resident.discard(path)
            for name in names:
                self._set(name, torch.empty_like(self.tensor(name), device="meta"))

    def parameters_of(self, path: str) -> list[str]:
        """Names of the parameters under a path."""
        return [name for name, _ in self._module.get_submodule(path).named_parameters(prefix=path)]

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer of the module, as it is now."""
        owner, _, leaf = name.rpartition(".")
        tensor = getattr(self._module.get_submodule(owner), leaf)
        assert isinstance(tensor, Tensor)
        return tensor

    def _load(self, names: Iterable[str]) -> None:
        for name, tensor in self.stored.read(names):
            # A copy, so that no page of the file stays mapped.
            self._set(name, tensor.to(self.tensor(name).dtype, copy=True))

    def _set(self, name: str, tensor: Tensor) -> None:
        owner, _, leaf = name.rpartition(".")
        is_parameter = isinstance(self.tensor(name), nn.Parameter)
        value = nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
        setattr(self._module.get_submodule(owner), leaf, value)


@dataclass(frozen=True)
class _ResidentForward:
    """A block's forward function, with its weights in memory while it runs."""

    streamed: Streamed
    path: str
    forward: Any

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        with self.streamed.resident(self.path):
            return self.forward(*arguments, **keywords)


def write_blocks(model: Model, done: Iterable[str], folder: Path) -> None:
    """Write a streamed model as a checkpoint into `folder`, each block when `done` names its path, as it is then."""
    folder.mkdir()
    writer = ShardWriter(model, folder)
    for path in done:
        writer.write_block(path)
    writer.finish()


@dataclass
class ShardWriter:
    """Writes a streamed model into an empty folder, block by block, under the names that its weights came by."""

    model: Model
    folder: Path
    _places: dict[str, str] = field(default_factory=dict)
    _bytes: int = 0

    def write_block(self, path: str) -> None:
        """Write a block as it is now; it is resident. Other paths are left to `finish`."""
        streamed = self._streamed()
        if path not in streamed.blocks:
            return
        self._write(streamed.parameters_of(path), streamed.blocks.index(path) + 1)

    def finish(self) -> None:
        """Write everything that was not written, the index, and the settings that the checkpoint has."""
        streamed = self._streamed()
        self._write(streamed.kept, 0)
        for path in streamed.blocks:
            if streamed.stored.name_of(streamed.parameters_of(path)[0]) not in self._places:
                with streamed.resident(path):
                    self.write_block(path)
        index = {"metadata": {"total_size": self._bytes}, "weight_map": dict(sorted(self._places.items()))}
        (self.folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        self._write_settings()

    def _write_settings(self) -> None:
        """Every part of a processor may have a folder, as the second tokenizer of a Q-Former does."""
        source = self.model.source
        for file in settings_files(source, [CHAT_TEMPLATE_DIR, *self.model.processor.get_attributes()]):
            (self.folder / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / file, self.folder / file)
        dtype = str(self.model.pretrained.dtype).removeprefix("torch.")
        config = _stored_as(dtype, json.loads((source / _CONFIG).read_text(encoding="utf-8")))
        (self.folder / _CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")

    def _write(self, names: list[str], number: int) -> None:
        streamed = self._streamed()
        file = f"model-{number:05d}-of-{len(streamed.blocks):05d}.safetensors"
        tensors = {streamed.stored.name_of(name): streamed.tensor(name).detach() for name in names}
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, self.folder / file, {"format": "pt"})
        self._places |= dict.fromkeys(tensors, file)
        self._bytes += sum(tensor.nbytes for tensor in tensors.values())

    def _streamed(self) -> Streamed:
        assert self.model.streamed is not None
        return self.model.streamed


def _stored_as(dtype: str, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a model and its parts whose weights are stored as `dtype`, whatever it said before."""
    parts = {
        key: _stored_as(dtype, value) if key.endswith("_config") and isinstance(value, dict) else value
        for key, value in config.items()
        if key != "torch_dtype"  # its name before transformers 4.56
    }
    return parts | {"dtype": dtype}
