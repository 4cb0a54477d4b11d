"""A vision-language model in memory: its module, its processor, its family; and samples turned into its inputs.

Where a checkpoint comes from and whether it may be loaded stands in `slimdeploy.checkpoint`. Knows nothing of pruning.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature
from transformers.utils import logging as transformers_logging

from .archs import Arch
from .checkpoint import check_checkpoint, locate_model, model_name
from .errors import DataError, ModelError
from .images import load_image
from .policy import Layer, Tower
from .samples import Sample

DType = Literal["float32", "bfloat16", "float16"]
IGNORED_LABEL = -100
"""Marks the tokens that no loss is taken on, as in transformers."""

__all__ = ["Model", "encode", "load_model", "locate_model", "quiet_transformers", "refuse_control_tokens"]


@dataclass
class Model:
    """A loaded model. name: what users call it. source: the folder it came from."""

    module: nn.Module
    processor: Any
    arch: Arch
    name: str
    source: Path

    def layers(self) -> list[Layer]:
        """The weight matrices that may be pruned, block by block in forward order.

        Left out: embeddings, the head, and vision blocks behind the features that the projector reads.
        """
        return [
            Layer(name, tower, linear.out_features, linear.in_features)
            for tower, path in self._prunable_parts()
            for name, linear in linears_in(self.module, path)
        ]

    @property
    def pretrained(self) -> Any:
        """The module, seen as what transformers made it: it has `config`, `generate` and `save_pretrained`."""
        return self.module

    def linear(self, name: str) -> nn.Linear:
        linear = self.module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        return linear

    def vision_blocks(self) -> list[str]:
        """Paths of the vision tower's blocks that the projector's features depend on."""
        count = self._count_blocks(self.arch.vision_blocks)
        chosen: int | list[int] = getattr(self.config, self.arch.feature_layer)
        indices = [chosen] if isinstance(chosen, int) else chosen
        if not indices or not all(-count - 1 <= index <= count for index in indices):
            raise ModelError(
                f"{self.source}: {self.arch.feature_layer} = {chosen} in config.json names a hidden state that the "
                f"vision tower of {count} blocks does not have; it has {-count - 1} to {count}"
            )
        # Hidden state i is what block i-1 puts out.
        live = max(index if index >= 0 else count + 1 + index for index in indices)
        return [f"{self.arch.vision_blocks}.{i}" for i in range(live)]

    def language_blocks(self) -> list[str]:
        return [f"{self.arch.language_blocks}.{i}" for i in range(self._count_blocks(self.arch.language_blocks))]

    def _count_blocks(self, path: str) -> int:
        try:
            blocks = self.module.get_submodule(path)
        except AttributeError:
            raise ModelError(
                f"{self.source} has no {path}: slimdeploy does not know this kind of tower or language model in the "
                f"family '{self.arch.model_type}'"
            ) from None
        assert isinstance(blocks, nn.ModuleList)
        return len(blocks)

    def save(self, folder: Path) -> None:
        """Write a checkpoint that `load_model` and transformers load."""
        with quiet_transformers():
            self.pretrained.save_pretrained(folder)
        self.save_processor(folder)

    def save_processor(self, folder: Path) -> None:
        """Write tokenizer, image processor and chat template: equal files, whatever was encoded before."""
        tokenizer = getattr(self.processor.tokenizer, "backend_tokenizer", None)
        if tokenizer is not None:
            # Padding a batch leaves its length in the tokenizer, and from there it would get into tokenizer.json.
            tokenizer.no_padding()
            tokenizer.no_truncation()
        with quiet_transformers():
            self.processor.save_pretrained(folder)

    @property
    def config(self) -> Any:
        """The module's configuration, a transformers type."""
        return self.pretrained.config

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def _prunable_parts(self) -> list[tuple[Tower, str]]:
        return [
            *(("vision", path) for path in self.vision_blocks()),
            ("projector", self.arch.projector),
            *(("language", path) for path in self.language_blocks()),
        ]


def linears_in(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Linear]]:
    """Full names of the linear layers under `path`, in the order of their definition."""
    for name, part in module.get_submodule(path).named_modules(prefix=path):
        if isinstance(part, nn.Linear):
            yield name, part


def load_model(path: str, dtype: DType = "float32", device: str = "cpu", name: str | None = None) -> Model:
    """Load "demo", a folder in Hugging Face layout, or a model of the hub; safetensors only, no code from outside.

    name: what the path stands for when it is where a named model was found already.
    Raises ModelError where the checkpoint is missing, incomplete, inconsistent, of an unknown family, or holds pickled
    weights only, and where torch has no such device.
    """
    _require_device(device)
    folder = locate_model(path)
    arch = check_checkpoint(folder)
    with quiet_transformers():
        module = _load_module(folder, getattr(torch, dtype))
        processor = _load_processor(folder)
    model = Model(module.to(device).eval(), processor, arch, model_name(name or path), folder)
    model.layers()  # raises for a configuration that does not fit the module, before hours are spent on it
    return model


def _require_device(device: str) -> None:
    wanted = torch.device(device)
    count = torch.cuda.device_count()
    if wanted.type == "cuda" and (wanted.index or 0) >= count:
        raise ModelError(
            f"device '{device}' is not there: torch {torch.__version__} finds {count} CUDA devices; "
            "set model.device = 'cpu', or install a torch built for CUDA"
        )


def _load_module(folder: Path, dtype: torch.dtype) -> nn.Module:
    try:
        module, loading = AutoModelForImageTextToText.from_pretrained(
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
        raise ModelError(
            f"{folder} cannot be loaded: {_first_line(error)}; download or save the model again"
        ) from error
    # transformers fills what a checkpoint lacks with random numbers.
    absent = sorted(loading["missing_keys"]) + sorted(name for name, *_ in loading["mismatched_keys"])
    if absent:
        raise ModelError(
            f"{folder} is incomplete: {len(absent)} weights are missing or of another shape, such as {absent[0]}; "
            "download or save the model again"
        )
    assert isinstance(module, nn.Module)
    return module


def _load_processor(folder: Path) -> Any:
    try:
        # torchvision is no dependency of ours; without this transformers asks for it and warns.
        processor = AutoProcessor.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above
        raise ModelError(f"{folder} has no usable tokenizer or image processor: {_first_line(error)}") from error
    for part in ("tokenizer", "image_processor"):
        if getattr(processor, part, None) is None:
            raise ModelError(f"{folder} has no usable {part.replace('_', ' ')}; download or save the model again")
    if processor.tokenizer.eos_token is None:
        raise ModelError(f"{folder} has a tokenizer without an eos_token, which ends answers; name it there")
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token  # any will do: padding is masked
    if not getattr(processor, "chat_template", None):
        raise ModelError(f"{folder} has no chat template; add a chat_template.jinja beside config.json")
    for argument in ("backend", "is_local", "local_files_only"):
        # What loading was told would be saved with the tokenizer.
        processor.tokenizer.init_kwargs.pop(argument, None)
    return processor


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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


def encode(model: Model, samples: Sequence[Sample], answers: bool = False) -> BatchFeature:
    """Inputs for a batch of samples, on the model's device: pictures first, then the question, padded on the left.

    input_ids, attention_mask, position_ids: (samples, tokens). pixel_values: (pictures, 3, height, width), if any.
    answers: appends each sample's first answer and adds `labels`, -100 everywhere but on the answer's tokens.
    Raises DataError that names the sample for a picture that cannot be decoded and for control tokens in its texts.
    """
    tokenizer = model.processor.tokenizer
    refuse_control_tokens(model, samples)
    prompts = [_render(model, sample) for sample in samples]
    texts = (
        [_render_answered(model, sample, prompt) for sample, prompt in zip(samples, prompts, strict=True)]
        if answers
        else prompts
    )
    images = [image for sample in samples for image in _pictures(sample)]
    # A chat template that writes the begin-of-sequence token must not get a second one from the tokenizer.
    special = {"add_special_tokens": not (tokenizer.bos_token and prompts[0].startswith(tokenizer.bos_token))}
    batch = model.processor(
        text=texts, images=images or None, padding=True, padding_side="left", return_tensors="pt", **special
    )
    mask = batch["attention_mask"]
    batch["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    if answers:
        lengths = _answer_lengths(tokenizer(prompts, **special)["input_ids"], tokenizer(texts, **special)["input_ids"])
        from_end = mask.shape[1] - torch.arange(mask.shape[1])
        batch["labels"] = torch.where(from_end <= torch.tensor(lengths)[:, None], batch["input_ids"], IGNORED_LABEL)
    if "pixel_values" in batch:
        batch["pixel_values"] = batch["pixel_values"].to(next(model.module.parameters()).dtype)
    return batch.to(model.device)


def refuse_control_tokens(model: Model, samples: Sequence[Sample]) -> None:
    """Raises DataError that names the first sample whose question or first answer spells a control token.

    The server takes such a text for plain characters and the tokenizer here does not: answers would differ.
    """
    tokenizer = model.processor.tokenizer
    controls = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    controls |= {*tokenizer.all_special_tokens, getattr(model.processor, "image_token", None)} - {None, ""}
    longest_first = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))))
    for sample in samples:
        if found := longest_first.search("\0".join((sample.question, *sample.answers[:1]))):
            raise DataError(
                f"sample '{sample.id}' holds '{found.group()}' in its question or answer, which is a control token of "
                f"{model.name}; take it out of the text"
            )


def _pictures(sample: Sample) -> list[Image.Image]:
    try:
        return [load_image(image) for image in sample.images]
    except DataError as error:
        raise DataError(f"sample '{sample.id}': {error}") from None


def _render(model: Model, sample: Sample) -> str:
    return str(model.processor.apply_chat_template([_user_turn(sample)], add_generation_prompt=True, tokenize=False))


def _render_answered(model: Model, sample: Sample, prompt: str) -> str:
    """The prompt with the answer, ended as the model ends one; the prompt alone where no answer is known."""
    if not sample.answers:
        return prompt
    turn = {"role": "assistant", "content": [{"type": "text", "text": sample.answers[0]}]}
    text = str(model.processor.apply_chat_template([_user_turn(sample), turn], tokenize=False))
    if not text.startswith(prompt):
        raise ModelError(
            f"{model.source}: its chat template renders an answered question otherwise than the question alone, "
            "so the model cannot be trained on answers; make the one start with the other"
        )
    end = model.processor.tokenizer.eos_token
    return text if text.endswith(end) else text.rstrip() + end


def _user_turn(sample: Sample) -> dict[str, Any]:
    content = [{"type": "image"} for _ in sample.images]
    return {"role": "user", "content": [*content, {"type": "text", "text": sample.question}]}


def _answer_lengths(prompts: list[list[int]], texts: list[list[int]]) -> list[int]:
    """Tokens of each text behind what it shares with its prompt."""
    lengths = []
    for prompt, text in zip(prompts, texts, strict=True):
        shared = next((i for i, pair in enumerate(zip(prompt, text, strict=False)) if pair[0] != pair[1]), len(prompt))
        lengths.append(len(text) - shared)
    return lengths
