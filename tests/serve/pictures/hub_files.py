"""Folders as the hub has them: the JSON files of eight well-known models with the keys that they hold there, at their
real sizes, beside a small tokenizer with their control tokens.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from families import GEMMA_TEMPLATE, QWEN_TEMPLATE, make_tokenizer
from tiny import CHAT_TEMPLATE

CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
ALWAYS = {"do_normalize": True, "do_rescale": True, "do_resize": True, "rescale_factor": 0.00392156862745098}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
CLIP_336 = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
PLACES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]


@dataclass(frozen=True)
class HubModel:
    """What differs between folders.

    more, named: control tokens, without and with a name. tokens: those that config.json gives by id.
    """

    config: dict[str, Any]
    preprocessor: dict[str, Any]
    processor: dict[str, Any]
    tokens: dict[str, str]
    more: tuple[str, ...] = ()
    named: tuple[tuple[str, str], ...] = ()
    template: str | None = CHAT_TEMPLATE


def short(value: Any) -> str:
    """Names a case."""
    return str(value.config["model_type"] if isinstance(value, HubModel) else value)


def write_hub_model(model: HubModel, folder: Path) -> Path:
    tokenizer = make_tokenizer(*model.more, **dict(model.named))
    tokenizer.save_pretrained(folder)
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in model.tokens.items()}
    files = {
        "config.json": {"text_config": {"max_position_embeddings": 4096}} | model.config | ids,
        "generation_config.json": {"eos_token_id": 2},
        "preprocessor_config.json": model.preprocessor,
        "processor_config.json": model.processor,
        "chat_template.json": {"chat_template": model.template} if model.template else {},
    }
    for name, values in files.items():
        if values:
            (folder / name).write_text(json.dumps(values))
    return folder


def _llava_processor(name: str) -> dict[str, Any]:
    return {
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": 14,
        "processor_class": name,
        "vision_feature_select_strategy": "default",
    }


IMAGE = {"tokens": {"image_token_index": "<image>"}, "named": (("image_token", "<image>"),)}
LLAVA = HubModel(
    {"model_type": "llava", "vision_config": CLIP_336, "vision_feature_select_strategy": "default"},
    CLIP
    | ALWAYS
    | {
        "crop_size": {"height": 336, "width": 336},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "size": {"shortest_edge": 336},
    },
    _llava_processor("LlavaProcessor"),
    **IMAGE,
)
LLAVA_NEXT = HubModel(
    {
        "model_type": "llava_next",
        "image_grid_pinpoints": PINPOINTS,
        "vision_config": CLIP_336,
        "vision_feature_select_strategy": "default",
    },
    LLAVA.preprocessor
    | {
        "aspect_ratio_setting": "anyres",
        "do_pad": True,
        "image_grid_pinpoints": PINPOINTS,
        "image_processor_type": "LlavaNextImageProcessor",
        "processor_class": "LlavaNextProcessor",
    },
    _llava_processor("LlavaNextProcessor"),
    **IMAGE,
)
SMOLVLM = HubModel(
    {"model_type": "idefics3", "scale_factor": 3, "vision_config": {"image_size": 384, "patch_size": 14}},
    HALF
    | ALWAYS
    | {
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_pad": True,
        "image_processor_type": "Idefics3ImageProcessor",
        "max_image_size": {"longest_edge": 384},
        "processor_class": "Idefics3Processor",
        "resample": 1,
        "size": {"longest_edge": 1536},
    },
    {"image_seq_len": 81, "processor_class": "Idefics3Processor"},
    {"image_token_id": "<image>"},
    more=("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *PLACES),
)
SMOLVLM2 = HubModel(
    {"model_type": "smolvlm", "scale_factor": 4, "vision_config": {"image_size": 512, "patch_size": 16}},
    SMOLVLM.preprocessor
    | {
        "image_processor_type": "SmolVLMImageProcessor",
        "max_image_size": {"longest_edge": 512},
        "processor_class": "SmolVLMProcessor",
        "size": {"longest_edge": 2048},
        "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}},
    },
    {"image_seq_len": 64, "processor_class": "SmolVLMProcessor"},
    {"image_token_id": "<image>"},
    more=tuple(PLACES),
    named=(
        ("image_token", "<image>"),
        ("fake_image_token", "<fake_token_around_image>"),
        ("global_image_token", "<global-img>"),
        ("end_of_utterance_token", "<end_of_utterance>"),
    ),
)
QWEN = {
    "tokens": {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"},
    "more": ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "template": QWEN_TEMPLATE,
}
QWEN2_5 = HubModel(
    {
        "model_type": "qwen2_5_vl",
        "max_position_embeddings": 128_000,
        "vision_config": {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112},
    },
    CLIP
    | {
        "image_processor_type": "Qwen2VLImageProcessor",
        "max_pixels": 12_845_056,
        "merge_size": 2,
        "min_pixels": 3136,
        "patch_size": 14,
        "processor_class": "Qwen2_5_VLProcessor",
        "temporal_patch_size": 2,
    },
    {},
    **QWEN,
)
QWEN3 = HubModel(
    {
        "model_type": "qwen3_vl",
        "vision_config": {"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2},
    },
    HALF
    | {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "merge_size": 2,
        "patch_size": 16,
        "processor_class": "Qwen3VLProcessor",
        "size": {"longest_edge": 16_777_216, "shortest_edge": 65_536},
        "temporal_patch_size": 2,
    },
    {},
    **QWEN,
)
PALIGEMMA = HubModel(
    {"model_type": "paligemma", "vision_config": {"model_type": "siglip_vision_model", "patch_size": 14}},
    HALF
    | ALWAYS
    | {
        "do_convert_rgb": None,
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": 256,
        "processor_class": "PaliGemmaProcessor",
        "resample": 3,
        "size": {"height": 224, "width": 224},
    },
    {},
    **IMAGE,
    template=None,
)
GEMMA3 = HubModel(
    {
        "model_type": "gemma3",
        "mm_tokens_per_image": 256,
        "vision_config": {"model_type": "siglip_vision_model", "image_size": 896, "patch_size": 14},
    },
    HALF
    | ALWAYS
    | {
        "do_convert_rgb": None,
        "do_pan_and_scan": None,
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": 256,
        "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_crop_size": None,
        "pan_and_scan_min_ratio_to_activate": None,
        "processor_class": "Gemma3Processor",
        "resample": 2,
        "size": {"height": 896, "width": 896},
    },
    {"image_seq_length": 256, "processor_class": "Gemma3Processor"},
    {
        "boi_token_index": "<start_of_image>",
        "eoi_token_index": "<end_of_image>",
        "image_token_index": "<image_soft_token>",
    },
    more=("<start_of_turn>", "<end_of_turn>"),
    named=(
        ("boi_token", "<start_of_image>"),
        ("eoi_token", "<end_of_image>"),
        ("image_token", "<image_soft_token>"),
    ),
    template=GEMMA_TEMPLATE,
)
HUB_MODELS = {
    "llava-1.5-7b-hf": LLAVA,
    "llava-v1.6-mistral-7b-hf": LLAVA_NEXT,
    "SmolVLM-Instruct": SMOLVLM,
    "SmolVLM2-2.2B-Instruct": SMOLVLM2,
    "Qwen2.5-VL-3B-Instruct": QWEN2_5,
    "Qwen3-VL-2B-Instruct": QWEN3,
    "paligemma-3b-mix-224": PALIGEMMA,
    "gemma-3-4b-it": GEMMA3,
}
