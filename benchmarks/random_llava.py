"""Checkpoints of LLaVA's shapes with random weights, written block by block, and samples for them to see.

Processor and chat template are the demo's, told of the pictures' size, and so is the tokenizer unless tokens are wanted
that an answer can show.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForMultimodalLM
from visible_tokens import BEFORE_WORDS, visible_tokens

from slimdeploy.archs.llava import LLAVA
from slimdeploy.checkpoint import WEIGHTS_INDEX
from slimdeploy.demo import CHECKPOINT
from slimdeploy.model import Model, encode
from slimdeploy.samples import Sample

_SCALE = 0.02
"""Standard deviation of weights: with norms of 1 it keeps activations of any depth finite."""
_LONGEST = 4096
_INPUTS = ("input_ids", "attention_mask", "pixel_values")


@dataclass(frozen=True)
class Tower:
    """blocks: of the vision tower, those that the projector reads; the checkpoint has one more, as LLaVA-1.5."""

    blocks: int
    width: int
    mlp: int
    heads: int
    key_value_heads: int


@dataclass(frozen=True)
class Shape:
    """Of a LLaVA-1.5. image, patch: sides in pixels."""

    vision: Tower
    language: Tower
    vocabulary: int
    image: int = 336
    patch: int = 14

    @property
    def blocks(self) -> str:
        """How many the towers have, for people."""
        return f"{self.vision.blocks} + {self.language.blocks} blocks"

    def first_blocks(self, count: int) -> "Shape":
        """With that many blocks of each tower, if it has more."""
        vision, language = (replace(tower, blocks=min(tower.blocks, count)) for tower in (self.vision, self.language))
        return replace(self, vision=vision, language=language)

    def config(self) -> dict[str, Any]:
        """What config.json says."""
        config: dict[str, Any] = json.loads((CHECKPOINT / "config.json").read_text())
        config |= {"dtype": "bfloat16", "image_seq_length": (self.image // self.patch) ** 2}
        config["vision_config"] |= {
            "hidden_size": self.vision.width,
            "image_size": self.image,
            "intermediate_size": self.vision.mlp,
            "num_attention_heads": self.vision.heads,
            "num_hidden_layers": self.vision.blocks + 1,
            "patch_size": self.patch,
        }
        config["text_config"] |= {
            "head_dim": self.language.width // self.language.heads,
            "hidden_size": self.language.width,
            "intermediate_size": self.language.mlp,
            "max_position_embeddings": _LONGEST,
            "num_attention_heads": self.language.heads,
            "num_hidden_layers": self.language.blocks,
            "num_key_value_heads": self.language.key_value_heads,
            "vocab_size": self.vocabulary,
        }
        return config


Prune = Callable[[Tensor, torch.Generator], Tensor]
"""A matrix, (rows, columns), with zeros in it."""


def half_of(weight: Tensor, generator: torch.Generator) -> Tensor:
    return weight * (torch.rand(weight.shape, generator=generator) < 0.5)


def gathered(weight: Tensor, generator: torch.Generator) -> Tensor:
    """26 of every 64 neighbours in a row stay."""
    places = torch.rand(weight.numel() // 64, 64, generator=generator).topk(26).indices
    kept = torch.zeros(weight.numel() // 64, 64, dtype=torch.bool).scatter_(1, places, True)
    return weight * kept.view(weight.shape)


def write_checkpoint(
    folder: Path, shape: Shape, seed: int = 0, prune: Prune | None = None, *, visible: bool = False
) -> Path:
    """Never more than one block of it is in memory. Returns its folder, which is made. prune: matrices of blocks.

    visible: every token of a greedy answer is a word, and none ends it.
    """
    folder.mkdir(exist_ok=True)
    _write_settings(folder, shape)
    if visible:
        visible_tokens(shape.vocabulary).save(str(folder / "tokenizer.json"))
    config = AutoConfig.from_pretrained(folder)
    with init_empty_weights():
        module = AutoModelForMultimodalLM.from_config(config, dtype=torch.bfloat16)
    shards: dict[str, list[tuple[str, torch.Size]]] = {}
    for name, parameter in module.named_parameters():
        shards.setdefault(_shard_of(name), []).append((LLAVA.hub_name(name), parameter.shape))
    generator = torch.Generator().manual_seed(seed)
    places, size = {}, 0
    for number, (block, members) in enumerate(shards.items(), start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _random(name, tuple(shape), generator) for name, shape in members}
        if prune is not None and block:
            tensors = {name: prune(each, generator) if each.ndim == 2 else each for name, each in tensors.items()}
        head = LLAVA.hub_name(f"{LLAVA.lm_head}.weight")
        if visible and head in tensors:
            tensors[head][:BEFORE_WORDS] = 0  # of 32,000 random logits the largest is above zero
        save_file(tensors, folder / file, {"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    (folder / WEIGHTS_INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}))
    return folder


def _write_settings(folder: Path, shape: Shape) -> None:
    (folder / "config.json").write_text(json.dumps(shape.config()))
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        (folder / name).write_bytes((CHECKPOINT / name).read_bytes())
    tokenizer = json.loads((CHECKPOINT / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"model_max_length": _LONGEST}))
    processor = json.loads((CHECKPOINT / "processor_config.json").read_text()) | {"patch_size": shape.patch}
    processor["image_processor"] |= {
        "crop_size": {"height": shape.image, "width": shape.image},
        "size": {"shortest_edge": shape.image},
    }
    (folder / "processor_config.json").write_text(json.dumps(processor))


def _shard_of(name: str) -> str:
    """The block that a parameter belongs to; "" for what is in none."""
    for blocks in (LLAVA.vision_blocks, LLAVA.language_blocks):
        if name.startswith(f"{blocks}."):
            return f"{blocks}.{name.removeprefix(f'{blocks}.').partition('.')[0]}"
    return ""


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape).normal_(0, _SCALE, generator=generator).bfloat16()


def write_samples(folder: Path, model: Model, count: int, tokens: int) -> Path:
    """Questions of random digits, each a token, about a picture of random noise. tokens: of each, the picture's too.

    The file of entries that is returned has a neighbour NAME.safetensors: the same, encoded.
    """
    side = model.config.vision_config.image_size
    others = encode(model, list(_questions([1], side)))["input_ids"].shape[1] - 1
    samples = list(_questions([tokens - others] * count, side))
    entries = []
    for sample in samples:
        for picture in sample.images:
            assert isinstance(picture, bytes)
            (folder / f"{sample.id}.png").write_bytes(picture)
        entries.append({"id": sample.id, "question": sample.question, "image": f"{sample.id}.png"})
    file = folder / "samples.jsonl"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    encoded = encode(model, samples)
    save_file({name: encoded[name].contiguous() for name in _INPUTS}, file.with_suffix(".safetensors"))
    return file


def _questions(lengths: list[int], side: int) -> Iterator[Sample]:
    rng = np.random.default_rng(0)
    choose = random.Random(0)
    for number, length in enumerate(lengths):
        picture = BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(picture, "PNG")
        yield Sample(str(number), "".join(choose.choices("0123456789", k=length)), (picture.getvalue(),))
