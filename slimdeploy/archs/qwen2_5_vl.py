"""Qwen2.5-VL: a tower of windows and full attention over pictures of any size, a merger of neighbouring patches, and a
Qwen2 whose positions count time, height and width.
"""

from typing import Any

from . import Arch
from .asking import Ask, ask_processor
from .pictures_only import without_videos


def _processor() -> Any:
    from transformers import Qwen2_5_VLProcessor

    return without_videos(Qwen2_5_VLProcessor)


def ask_for_kinds(processor: Any, ask: Ask) -> Any:
    """With the kind of every token (text or picture), from which the model counts its positions."""
    return ask_processor(processor, ask, return_mm_token_type_ids=True)


QWEN2_5_VL = Arch(
    model_type="qwen2_5_vl",
    vision_tower="model.visual",
    vision_blocks="model.visual.blocks",
    projector=("model.visual.merger",),
    language_model="model.language_model",
    language_blocks="model.language_model.layers",
    lm_head="lm_head",
    hub_prefixes=(
        ("model.visual.", "visual."),
        ("model.language_model.", "model."),
        ("lm_head.", "lm_head."),
    ),
    first_position=None,
    processor=_processor,
    ask=ask_for_kinds,
)
