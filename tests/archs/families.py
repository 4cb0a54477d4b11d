"""A tiny random checkpoint of every family: real configurations, processors and tokenizers at sizes that a test can
afford, made offline from a seed.
"""

import io
import wave
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tiny import CHAT_TEMPLATE, SPECIAL_TOKENS, make_samples
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from slimdeploy.archs.smolvlm import SMOLVLM
from slimdeploy.samples import Sample

SIZE, PATCH = 24, 12
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Family:
    """make: model and processor. layers: prunable matrices by tower. names: one of each tower, as transformers 5 has it
    and as published checkpoints do; "" where a tower has none.
    """

    make: Callable[[], tuple[PreTrainedModel, Any]]
    layers: tuple[int, int, int]
    names: dict[str, str]


def make_checkpoint(family: Family, folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model, processor = family.make()
    with torch.no_grad():
        # Fresh biases are zeros, and a bias that is lost would go unnoticed; fresh queries of a Q-Former are as well.
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or not parameter.any():
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_tokenizer(*more: str, **named: str) -> PreTrainedTokenizerFast:
    """Byte-level. more: control tokens; named: those that a processor asks the tokenizer for by name."""
    special = [*SPECIAL_TOKENS.values(), *more, *named.values()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*special, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        model_max_length=512,
        extra_special_tokens=named or None,
        **SPECIAL_TOKENS,
    )


def text_settings(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        # Larger than usual, so that a random model's answers depend on its input.
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        **TOKENS,
        **more,
    }


def vision_settings(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
        "initializer_range": 0.2,
        **more,
    }


def llava_next() -> tuple[PreTrainedModel, Any]:
    tiles = [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE]]
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**vision_settings(num_hidden_layers=3)),
        text_config=transformers.MistralConfig(**text_settings(sliding_window=None)),
        image_grid_pinpoints=tiles,
        image_token_id=4,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
        **TOKENS,
    )
    processor = transformers.LlavaNextProcessor(
        image_processor=transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_grid_pinpoints=tiles
        ),
        tokenizer=make_tokenizer(image_token="<image>"),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return transformers.LlavaNextForConditionalGeneration(config), processor


def idefics3() -> tuple[PreTrainedModel, Any]:
    config = transformers.Idefics3Config(
        vision_config=vision_settings(patch_size=6),
        text_config=transformers.LlamaConfig(**text_settings()),
        image_token_id=4,
        scale_factor=2,
        tie_word_embeddings=False,
        **TOKENS,
    )
    processor = transformers.Idefics3Processor(
        image_processor=transformers.Idefics3ImageProcessorPil(
            size={"longest_edge": 2 * SIZE}, max_image_size={"longest_edge": SIZE}
        ),
        tokenizer=make_tokenizer("<image>", "<fake_token_around_image>", "<end_of_utterance>"),
        image_seq_len=4,
        chat_template=CHAT_TEMPLATE,
    )
    return transformers.Idefics3ForConditionalGeneration(config), processor


def smolvlm() -> tuple[PreTrainedModel, Any]:
    config = transformers.SmolVLMConfig(
        vision_config=vision_settings(patch_size=6),
        text_config=transformers.LlamaConfig(**text_settings()),
        image_token_id=4,
        scale_factor=2,
        tie_word_embeddings=False,
        **TOKENS,
    )
    processor = SMOLVLM.processor()(
        transformers.SmolVLMImageProcessorPil(size={"longest_edge": 2 * SIZE}, max_image_size={"longest_edge": SIZE}),
        make_tokenizer("<image>", "<fake_token_around_image>", "<end_of_utterance>"),
        image_seq_len=4,
        chat_template=CHAT_TEMPLATE,
    )
    return transformers.SmolVLMForConditionalGeneration(config), processor


CLIP_TO_LLAMA = {
    "model.vision_tower.encoder.layers.0.mlp.fc1": "vision_tower.vision_model.encoder.layers.0.mlp.fc1",
    "model.multi_modal_projector.linear_1": "multi_modal_projector.linear_1",
    "model.language_model.layers.1.mlp.up_proj": "language_model.model.layers.1.mlp.up_proj",
}

IDEFICS = {
    name: name
    for name in (
        "model.vision_model.encoder.layers.0.mlp.fc1",
        "model.connector.modality_projection.proj",
        "model.text_model.layers.1.mlp.up_proj",
    )
}

FAMILIES: dict[str, Family] = {
    "llava_next": Family(llava_next, (2 * 6, 2, 2 * 7), CLIP_TO_LLAMA),
    "idefics3": Family(idefics3, (2 * 6, 1, 2 * 7), IDEFICS),
    "smolvlm": Family(smolvlm, (2 * 6, 1, 2 * 7), IDEFICS),
}


def samples_for(model: Any, count: int, seed: int = 0) -> list[Sample]:
    """Questions about noise that the model sees or hears."""
    samples = make_samples(count, seed)
    if model.arch.media == "pictures":
        return samples
    rng = np.random.default_rng(seed)
    return [replace(sample, images=(), sounds=(noise_wav(rng),)) for sample in samples]


def noise_wav(rng: np.random.Generator, seconds: float = 1.0, rate: int = 16_000) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(rng.integers(-(2**15), 2**15, int(seconds * rate), dtype=np.int16).tobytes())
    return stream.getvalue()
