"""A tiny random LLaVA checkpoint: every part of the real family (CLIP tower, two-layer projector, Llama with
grouped-query attention, tokenizer, image processor, chat template) at sizes that a test can afford.
"""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from slimdeploy.config import Criterion, PruneConfig
from slimdeploy.model import Model
from slimdeploy.policy import Policy
from slimdeploy.prune import Masks, Stats, apply_masks, make_masks, set_weights
from slimdeploy.samples import Sample

IMAGE_SIZE = 24
PATCH_SIZE = 12
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
IMAGE_TOKEN = "<image>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}ASSISTANT: {{ message['content'][0]['text'] }}{{ eos_token }}"
    "{% else %}USER: "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def make_tiny_llava(folder: Path, seed: int = 0, hub_layout: bool = False) -> Path:
    """Write the checkpoint to `folder` and return it.

    hub_layout: weight names and processor files as in llava-hf/llava-1.5-7b-hf on the hub.
    """
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(_config()).eval()
    with torch.no_grad():
        # Fresh biases are zeros, and a bias that is lost would go unnoticed.
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        ),
        tokenizer=_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if hub_layout:
        _rename_weights(folder / "model.safetensors")
        _split_processor(folder)
    return folder


def _config() -> LlavaConfig:
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        ),
        text_config=LlamaConfig(
            vocab_size=320,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            # Larger than usual, so that a random model's answers depend on its input.
            initializer_range=0.2,
            **tokens,
        ),
        image_token_id=4,
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        **tokens,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level: every text has tokens, none is unknown. Ids 0 to 4 are special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [*SPECIAL_TOKENS.values(), IMAGE_TOKEN]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*special, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        model_max_length=256,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        **SPECIAL_TOKENS,
    )


def _rename_weights(file: Path) -> None:
    """From the names that transformers 5 saves to the hub's."""
    renamed = {}
    for name, tensor in load_file(file).items():
        hub_name = name.removeprefix("model.")
        if hub_name.startswith("vision_tower.") and not hub_name.startswith("vision_tower.vision_model."):
            hub_name = hub_name.replace("vision_tower.", "vision_tower.vision_model.", 1)
        elif hub_name.startswith("lm_head."):
            hub_name = f"language_model.{hub_name}"
        elif hub_name.startswith("language_model.") and not hub_name.startswith(
            ("language_model.model.", "language_model.lm_head.")
        ):
            hub_name = hub_name.replace("language_model.", "language_model.model.", 1)
        renamed[hub_name] = tensor
    save_file(renamed, file, metadata={"format": "pt"})


def _split_processor(folder: Path) -> None:
    """Image processor and chat template get files of their own."""
    values = json.loads((folder / "processor_config.json").read_text())
    image_processor: dict[str, Any] = values.pop("image_processor")
    image_processor |= {"image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor"}
    _write_json(folder / "preprocessor_config.json", image_processor)
    _write_json(folder / "processor_config.json", values)
    template = folder / "chat_template.jinja"
    _write_json(folder / "chat_template.json", {"chat_template": template.read_text()})
    template.unlink()
    _write_json(folder / "special_tokens_map.json", SPECIAL_TOKENS)
    _write_json(folder / "added_tokens.json", {IMAGE_TOKEN: 4, "<pad>": 0})
    config = json.loads((folder / "config.json").read_text())
    config["image_token_index"] = config.pop("image_token_id", config.get("image_token_index"))
    config["torch_dtype"] = config.pop("dtype")
    _write_json(folder / "config.json", config)


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2))


def make_samples(count: int, seed: int = 0, answered: bool = True) -> list[Sample]:
    """Questions of different lengths about pictures of random noise, with answers of different lengths."""
    rng = np.random.default_rng(seed)
    return [
        Sample(
            id=f"{seed}-{index}",
            question="What is " + "it " * int(rng.integers(1, 6)) + "then?",
            images=(_noise_png(rng),),
            answers=("red", "blue", "three")[index % 3 :][:1] if answered else (),
            kind=("colour", "count")[index % 2],
        )
        for index in range(count)
    ]


def masks_of(model: Model, policy: Policy, criterion: Criterion, stats: Stats) -> Masks:
    return make_masks(model, policy, PruneConfig(criterion=criterion), stats)


@contextmanager
def masked(model: Model, masks: Masks) -> Iterator[None]:
    """The pruned model while the body runs, the dense one afterwards."""
    dense = {name: model.linear(name).weight.detach().clone() for name in masks}
    apply_masks(model, masks)
    yield
    set_weights(model, dense)


def _noise_png(rng: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()
