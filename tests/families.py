"""A tiny random checkpoint of every family: real configurations, processors and tokenizers at sizes that a test can
afford, made offline from a seed.
"""

import io
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tiny import CHAT_TEMPLATE, SPECIAL_TOKENS, make_samples
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from slimdeploy.archs.qwen2_5_vl import QWEN2_5_VL
from slimdeploy.archs.qwen3_vl import QWEN3_VL
from slimdeploy.archs.smolvlm import SMOLVLM
from slimdeploy.model import Model
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


QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Turns end with a token that is not followed by another end."""
    starts = "<|im_start|>", "<|vision_start|>", "<|vision_end|>"
    tokenizer = make_tokenizer(*starts, image_token="<|image_pad|>", video_token="<|video_pad|>", end="<|im_end|>")
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


def qwen2_5_vl() -> tuple[PreTrainedModel, Any]:
    tokenizer = qwen_tokenizer()
    vision = vision_settings(
        num_hidden_layers=3, num_heads=4, out_hidden_size=32, patch_size=4, window_size=16, fullatt_block_indexes=[1]
    )
    rotation = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text_settings(rope_parameters=rotation, eos_token_id=tokenizer.eos_token_id),
        **qwen_tokens(tokenizer),
    )
    processor = QWEN2_5_VL.processor()(
        transformers.Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 4096}),
        tokenizer,
        chat_template=QWEN_TEMPLATE,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[PreTrainedModel, Any]:
    tokenizer = qwen_tokenizer()
    vision = vision_settings(
        num_hidden_layers=3, num_heads=4, out_hidden_size=32, patch_size=4, num_position_embeddings=16,
        deepstack_visual_indexes=[0, 1],
    )  # fmt: skip
    rotation = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = text_settings(rope_parameters=rotation, eos_token_id=tokenizer.eos_token_id, num_hidden_layers=3, head_dim=8)
    config = transformers.Qwen3VLConfig(vision_config=vision, text_config=text, **qwen_tokens(tokenizer))
    processor = QWEN3_VL.processor()(
        transformers.Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 4096}),
        tokenizer,
        chat_template=QWEN_TEMPLATE,
    )
    return transformers.Qwen3VLForConditionalGeneration(config), processor


def qwen_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    return ids | TOKENS | {"eos_token_id": tokenizer.eos_token_id, "tie_word_embeddings": False}


def paligemma() -> tuple[PreTrainedModel, Any]:
    processor = transformers.PaliGemmaProcessor(
        image_processor=siglip_pictures(image_seq_length=4), tokenizer=make_tokenizer(image_token="<image>")
    )
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**vision_settings(vision_use_head=False, projection_dim=32)),
        text_config=transformers.GemmaConfig(**text_settings(vocab_size=len(processor.tokenizer), head_dim=8)),
        image_token_id=4,
        projection_dim=32,
        tie_word_embeddings=False,  # tied, a random one would repeat the newline before the answer
        **TOKENS,
    )
    return transformers.PaliGemmaForConditionalGeneration(config), processor


GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def gemma3() -> tuple[PreTrainedModel, Any]:
    tokenizer = make_tokenizer(
        "<start_of_turn>",
        end_of_turn="<end_of_turn>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessorPil(size={"height": SIZE, "width": SIZE}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=GEMMA_TEMPLATE,
    )
    text = text_settings(
        head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=True
    )
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(**vision_settings(patch_size=6, vision_use_head=False)),
        text_config=transformers.Gemma3TextConfig(**text),
        mm_tokens_per_image=4,
        image_token_id=tokenizer.image_token_id,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        **TOKENS,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = [TOKENS["eos_token_id"], tokenizer.end_of_turn_id]
    return model, processor


def siglip_pictures(**more: Any) -> Any:
    processor = transformers.SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE})
    for name, value in more.items():
        setattr(processor, name, value)
    return processor


def instructblip() -> tuple[PreTrainedModel, Any]:
    tokenizer = make_tokenizer()
    processor = transformers.InstructBlipProcessor(
        image_processor=transformers.BlipImageProcessorPil(size={"height": SIZE, "width": SIZE}),
        tokenizer=tokenizer,
        qformer_tokenizer=make_tokenizer(),
        num_query_tokens=3,
    )
    qformer = {
        "vocab_size": 320,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "encoder_hidden_size": 32,
        "initializer_range": 0.2,
    }
    config = transformers.InstructBlipConfig(
        vision_config=vision_settings(),
        qformer_config=qformer,
        text_config=transformers.LlamaConfig(**text_settings()).to_dict(),
        num_query_tokens=3,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        **TOKENS,
    )
    model = transformers.InstructBlipForConditionalGeneration(config)
    return model, processor


def qwen2_audio() -> tuple[PreTrainedModel, Any]:
    """Hears one second."""
    audio = "<|AUDIO|>"
    tokenizer = make_tokenizer("<|im_start|>", "<|audio_bos|>", "<|audio_eos|>", audio, "<|im_end|>")
    tokenizer.eos_token = "<|im_end|>"
    config = transformers.Qwen2AudioConfig(
        audio_config=transformers.Qwen2AudioEncoderConfig(
            num_mel_bins=16,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=48,
            d_model=32,
            max_source_positions=50,
            initializer_range=0.2,
        ),
        text_config=transformers.Qwen2Config(**text_settings(eos_token_id=tokenizer.eos_token_id)),
        audio_token_id=tokenizer.convert_tokens_to_ids(audio),
        **TOKENS | {"eos_token_id": tokenizer.eos_token_id},
    )
    processor = transformers.Qwen2AudioProcessor(
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1),
        tokenizer=tokenizer,
    )
    return transformers.Qwen2AudioForConditionalGeneration(config), processor


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
QWEN2_5 = {
    "model.visual.blocks.0.mlp.up_proj": "visual.blocks.0.mlp.up_proj",
    "model.visual.merger.mlp.0": "visual.merger.mlp.0",
    "model.language_model.layers.1.mlp.up_proj": "model.layers.1.mlp.up_proj",
}
QWEN3 = {
    name: name
    for name in (
        "model.visual.blocks.0.mlp.linear_fc1",
        "model.visual.deepstack_merger_list.1.linear_fc1",
        "model.language_model.layers.1.mlp.up_proj",
    )
}
SIGLIP_TO_GEMMA = {
    "model.vision_tower.encoder.layers.0.mlp.fc1": "vision_tower.vision_model.encoder.layers.0.mlp.fc1",
    "model.language_model.layers.1.mlp.up_proj": "language_model.model.layers.1.mlp.up_proj",
}
INSTRUCTBLIP = {
    name: name
    for name in (
        "vision_model.encoder.layers.0.mlp.fc1",
        "qformer.encoder.layer.0.crossattention.attention.key",
        "language_projection",
        "language_model.model.layers.1.mlp.up_proj",
    )
}
QWEN2_AUDIO = {
    "model.audio_tower.layers.0.fc1": "audio_tower.layers.0.fc1",
    "model.multi_modal_projector.linear": "multi_modal_projector.linear",
    "model.language_model.layers.1.mlp.up_proj": "language_model.model.layers.1.mlp.up_proj",
}

FAMILIES: dict[str, Family] = {
    "llava_next": Family(llava_next, (2 * 6, 2, 2 * 7), CLIP_TO_LLAMA),
    "idefics3": Family(idefics3, (2 * 6, 1, 2 * 7), IDEFICS),
    "smolvlm": Family(smolvlm, (2 * 6, 1, 2 * 7), IDEFICS),
    "qwen2_5_vl": Family(qwen2_5_vl, (3 * 5, 2, 2 * 7), QWEN2_5),
    "qwen3_vl": Family(qwen3_vl, (3 * 4, 3 * 2, 3 * 7), QWEN3),
    "paligemma": Family(
        paligemma,
        (2 * 6, 1, 2 * 7),
        SIGLIP_TO_GEMMA | {"model.multi_modal_projector.linear": "multi_modal_projector.linear"},
    ),
    "gemma3": Family(gemma3, (2 * 6, 0, 2 * 7), SIGLIP_TO_GEMMA),
    "instructblip": Family(instructblip, (2 * 4, 4 + 4 + 4 + 4 + 2 + 1, 2 * 7), INSTRUCTBLIP),
    "qwen2_audio": Family(qwen2_audio, (2 * 6, 1, 2 * 7), QWEN2_AUDIO),
}


def samples_for(model: Model, count: int, seed: int = 0, seconds: Sequence[float] = (0.3, 0.7, 0.4)) -> list[Sample]:
    """Questions about noise that the model sees in pictures of several shapes, or hears for that long."""
    samples = make_samples(count, seed)
    rng = np.random.default_rng(seed)
    if model.arch.media == "pictures":
        shapes = ((SIZE, SIZE), (SIZE, 2 * SIZE), (2 * SIZE, SIZE + 8))
        return [replace(sample, images=(noise_png(rng, shapes[i % 3]),)) for i, sample in enumerate(samples)]
    sounds = [noise_wav(rng, seconds[i % len(seconds)]) for i in range(count)]
    return [replace(sample, images=(), sounds=(sound,)) for sample, sound in zip(samples, sounds, strict=True)]


def noise_png(rng: np.random.Generator, shape: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def noise_wav(rng: np.random.Generator, seconds: float, rate: int = 16_000) -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(rng.integers(-(2**15), 2**15, int(seconds * rate), dtype=np.int16).tobytes())
    return stream.getvalue()
