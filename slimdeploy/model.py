"""A vision-language model in memory: its module, its processor, its family.

Where a checkpoint comes from and whether it may be loaded stands in `slimdeploy.checkpoint`, how samples become inputs
in `slimdeploy.encoding`. Knows nothing of pruning.
"""

import gc
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForMultimodalLM
from transformers.utils import logging as transformers_logging

from .archs import Arch
from .checkpoint import check_checkpoint, count_weights, locate_model, model_name
from .doctor import free_memory
from .encoding import IGNORED_LABEL, encode, refuse_control_tokens
from .errors import ModelError, first_line
from .policy import Layer, Tower
from .processor import load_processor, save_processor

if TYPE_CHECKING:
    from .streaming import Streamed

DType = Literal["float32", "bfloat16", "float16"]

__all__ = [
    "IGNORED_LABEL",
    "Model",
    "encode",
    "load_model",
    "locate_model",
    "quiet_transformers",
    "refuse_control_tokens",
]


@dataclass
class Model:
    """A loaded model. name: what users call it. source: its folder.

    include: globs on linear layers that may be pruned beside those of blocks and projector. streamed: set where blocks
    stay in the folder.
    """

    module: nn.Module
    processor: Any
    arch: Arch
    name: str
    source: Path
    include: tuple[str, ...] = ()
    streamed: "Streamed | None" = None

    def layers(self) -> list[Layer]:
        """The weight matrices that may be pruned, block by block in forward order.

        Left out: embeddings, the head unless it is included, and what runs although nothing reads it, such as vision
        blocks behind the features that the projector reads. The tower "vision" is the encoder of sounds in a family
        that hears.
        """
        found: list[tuple[str, Tower, nn.Linear]] = [
            (name, tower, linear) for tower, path in self._prunable_parts() for name, linear in self.linears(path)
        ]
        return [
            Layer(name, tower, linear.out_features, linear.in_features)
            for name, tower, linear in found + self.included()
        ]

    def included(self) -> list[tuple[str, Tower, nn.Linear]]:
        """The layers that `include` adds. Raises ModelError for a glob that names none that could be pruned."""
        usual = {name for _, path in self._prunable_parts() for name, _ in self.linears(path)}
        tied = {name.rpartition(".")[0] for name in self.pretrained.all_tied_weights_keys}
        found: dict[str, tuple[str, Tower, nn.Linear]] = {}
        for glob in self.include:
            named = {name: part for name, part in self.module.named_modules() if fnmatchcase(name, glob)}
            linears = {name: part for name, part in named.items() if isinstance(part, nn.Linear)}
            if not linears:
                kinds = f"only {next(iter(named))}, which multiplies with no matrix" if named else "no layer"
                raise ModelError(
                    f"prune.include = '{glob}' names {kinds} of {self.name}, such as {self.arch.lm_head} is"
                )
            if shared := sorted(tied & linears.keys()):
                raise ModelError(
                    f"prune.include = '{glob}' names {shared[0]}, whose weights are also those of another part of "
                    f"{self.name}, such as the embeddings; leave it out"
                )
            found |= {name: (name, self._tower_of(name), part) for name, part in linears.items() if name not in usual}
        return list(found.values())

    def _tower_of(self, name: str) -> Tower:
        if name.startswith(f"{self.arch.vision_tower}."):
            return "vision"
        return "language" if name.startswith((f"{self.arch.language_model}.", self.arch.lm_head)) else "projector"

    def linears(self, path: str) -> list[tuple[str, nn.Linear]]:
        """Full names of the linear layers under `path` that something reads, in the order of their definition."""
        dead = self.arch.dead(self.config)
        found = self.module.get_submodule(path).named_modules(prefix=path)
        return [(name, part) for name, part in found if isinstance(part, nn.Linear) and not name.startswith(dead)]

    def projector_linears(self) -> list[tuple[str, nn.Linear]]:
        """Those of the projector; none where it is no linear layer."""
        return [found for path in self.arch.projector for found in self.linears(path)]

    def resident(self, path: str) -> AbstractContextManager[None]:
        """The weights of the block at `path` are in memory while the body runs; unless streamed, they always are."""
        return self.streamed.resident(path) if self.streamed else nullcontext()

    @property
    def pretrained(self) -> Any:
        """The module, seen as what transformers made it: it has `config`, `generate` and `save_pretrained`."""
        return self.module

    @contextmanager
    def frozen(self, but: Collection[nn.Parameter] = ()) -> Iterator[None]:
        """Only these parameters have gradients while the body runs, and nothing is kept for those of others."""
        kept = {id(parameter) for parameter in but}
        frozen = [each for each in self.module.parameters() if each.requires_grad and id(each) not in kept]
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def linear(self, name: str) -> nn.Linear:
        linear = self.module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        return linear

    def weight(self, name: str) -> NDArray[np.float32]:
        """A parameter, from memory or, where the model is streamed, from its folder."""
        tensor: Tensor = self.module.get_parameter(name)
        if tensor.is_meta:
            assert self.streamed is not None
            ((_, tensor),) = self.streamed.stored.read([name])
        weight: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
        return weight

    def vision_blocks(self) -> list[str]:
        """Paths of the vision tower's blocks that the projector's features depend on."""
        blocks = self.blocks(self.arch.vision_blocks)
        return blocks if self.arch.feature_layer is None else blocks[: max(self._feature_layers())]

    def _feature_layers(self) -> list[int]:
        """Hidden states of the vision tower that the projector reads; number i is what block i - 1 puts out."""
        assert self.arch.feature_layer is not None
        count = len(self.blocks(self.arch.vision_blocks))
        chosen: int | list[int] = getattr(self.config, self.arch.feature_layer)
        indices = [chosen] if isinstance(chosen, int) else chosen
        if not indices or not all(-count - 1 <= index <= count for index in indices):
            raise ModelError(
                f"{self.source}: {self.arch.feature_layer} = {chosen} in config.json names a hidden state that the "
                f"vision tower of {count} blocks does not have; it has {-count - 1} to {count}"
            )
        return [index if index >= 0 else count + 1 + index for index in indices]

    def feature_blocks(self) -> list[str]:
        """Those of the vision tower's blocks whose outputs something outside the next block may read."""
        blocks = self.vision_blocks()
        # Towers without a setting for it read what they please on their way.
        return (
            blocks if self.arch.feature_layer is None else [blocks[live - 1] for live in self._feature_layers() if live]
        )

    def language_blocks(self) -> list[str]:
        return self.blocks(self.arch.language_blocks)

    def blocks(self, part: str) -> list[str]:
        """Paths of all blocks of a tower, live or not. Raises ModelError for a kind of tower that has no such part."""
        try:
            blocks = self.module.get_submodule(part)
        except AttributeError:
            raise ModelError(
                f"{self.source} has no {part}: slimdeploy does not know this kind of tower or language model in the "
                f"family '{self.arch.model_type}'"
            ) from None
        assert isinstance(blocks, nn.ModuleList)
        return [f"{part}.{i}" for i in range(len(blocks))]

    def save(self, folder: Path) -> None:
        """Write a checkpoint that `load_model` and transformers load."""
        with quiet_transformers():
            self.pretrained.save_pretrained(folder)
        self.save_processor(folder)

    def save_processor(self, folder: Path) -> None:
        """Write tokenizer, image processor and chat template: equal files, whatever was encoded before."""
        with quiet_transformers():
            save_processor(self.processor, self.arch, self.source, folder)

    @property
    def config(self) -> Any:
        """The module's configuration, a transformers type."""
        return self.pretrained.config

    @property
    def media_token_id(self) -> int:
        """The token whose places the features of pictures, or of sounds, take."""
        token: int = getattr(self.config, self.arch.media_token)
        return token

    def end_tokens(self) -> tuple[str, ...]:
        """The texts of the tokens that end an answer, the tokenizer's own first."""
        ends = getattr(self.pretrained.generation_config, "eos_token_id", None) or []
        ids = [ends] if isinstance(ends, int) else ends
        return (self.processor.tokenizer.eos_token, *self.processor.tokenizer.convert_ids_to_tokens(ids))

    @property
    def device(self) -> torch.device:
        return next(parameter.device for parameter in self.module.parameters() if not parameter.is_meta)

    def _prunable_parts(self) -> list[tuple[Tower, str]]:
        return [
            *(("vision", path) for path in self.vision_blocks()),
            *(("projector", path) for path in self.arch.projector),
            *(("language", path) for path in self.language_blocks()),
        ]


def load_model(
    path: str,
    dtype: DType = "float32",
    device: str = "cpu",
    name: str | None = None,
    include: tuple[str, ...] = (),
) -> Model:
    """Load "demo", a folder in Hugging Face layout, or a model of the hub; safetensors only, no code from outside.

    name: what the path stands for when it is where a named model was found already.
    Raises ModelError where the checkpoint is missing, incomplete, inconsistent, of an unknown family, holds pickled
    weights only or more of them than there is memory for, and where torch has no such device.
    """
    _require_device(device)
    folder = locate_model(path)
    arch = check_checkpoint(folder)
    _require_memory(folder, dtype)
    with quiet_transformers():
        module = _load_module(folder, getattr(torch, dtype))
        processor = load_processor(folder, arch)
    model = Model(module.to(device).eval(), processor, arch, model_name(name or path), folder, include)
    model.layers()  # raises for a configuration that does not fit the module, before hours are spent on it
    return model


def load_packed(folder: Path) -> Model:
    """Load a packed checkpoint to ask it, not to compress it: packed layers are no linear ones. On the CPU, in float32.

    Raises ModelError as `load_model` does.
    """
    from . import transformers_plugin  # noqa: F401 - teaches transformers the format

    arch = check_checkpoint(folder, may_be_packed=True)
    with quiet_transformers():
        module = _load_module(folder, torch.float32)
        processor = load_processor(folder, arch)
    return Model(module.eval(), processor, arch, model_name(str(folder)), folder)


def _require_device(device: str) -> None:
    wanted = torch.device(device)
    count = torch.cuda.device_count()
    if wanted.type == "cuda" and (wanted.index or 0) >= count:
        raise ModelError(
            f"device '{device}' is not there: torch {torch.__version__} finds {count} CUDA devices; "
            "set model.device = 'cpu', or install a torch built for CUDA"
        )


def _require_memory(folder: Path, dtype: DType) -> None:
    """Told now: where memory ends while weights are read, the system kills the process without a word."""
    gc.collect()  # a model that was loaded before may still lie in a cycle
    needed, free = count_weights(folder) * getattr(torch, dtype).itemsize, free_memory()
    if free is not None and needed > free:
        raise ModelError(
            f"{folder} takes {needed / 1e9:.1f} GB in {dtype}, and {free / 1e9:.1f} GB of memory are free; take a "
            "larger machine, or a smaller model.dtype where that is the type. With model.streamed = true, "
            "`slimdeploy prune` needs one block at a time, and a larger machine goes on from there"
        )


def _load_module(folder: Path, dtype: torch.dtype) -> nn.Module:
    try:
        module, loading = AutoModelForMultimodalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are an error below, in a sentence that names one
        )
    except Exception as error:
        # The configuration comes from anywhere, and no list of what its values make transformers raise is complete.
        raise ModelError(f"{folder} cannot be loaded: {first_line(error)}; download or save the model again") from error
    # transformers fills what a checkpoint lacks with random numbers.
    absent = sorted(loading["missing_keys"]) + sorted(name for name, *_ in loading["mismatched_keys"])
    if absent:
        raise ModelError(
            f"{folder} is incomplete: {len(absent)} weights are missing or of another shape, such as {absent[0]}; "
            "download or save the model again"
        )
    assert isinstance(module, nn.Module)
    return module


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no advice on the terminal: what matters of it becomes an error here."""
    verbosity, had_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()
