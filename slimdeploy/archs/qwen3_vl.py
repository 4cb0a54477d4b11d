"""Qwen3-VL: Qwen2.5-VL's parts, with features from inside the tower that are merged too and added to what the first
language blocks put out (DeepStack).
"""

from typing import Any

from . import Arch
from .pictures_only import without_videos
from .qwen2_5_vl import ask_for_kinds


def _processor() -> Any:
    from transformers import Qwen3VLProcessor

    return without_videos(Qwen3VLProcessor)


QWEN3_VL = Arch(
    model_type="qwen3_vl",
    vision_tower="model.visual",
    vision_blocks="model.visual.blocks",
    projector=("model.visual.merger", "model.visual.deepstack_merger_list"),
    language_model="model.language_model",
    language_blocks="model.language_model.layers",
    lm_head="lm_head",
    hub_prefixes=(("", ""),),
    first_position=None,
    processor=_processor,
    ask=ask_for_kinds,
)
