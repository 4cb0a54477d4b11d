"""Qwen2-Audio: an encoder of sounds after Whisper's, one linear layer, a Qwen2. The tower "vision" hears here."""

from collections.abc import Mapping
from typing import Any

import torch

from . import Arch
from .asking import Ask, in_batch


def _ask(processor: Any, ask: Ask) -> Any:
    sounds = [sound for own in ask.sounds for sound in own] or None
    rate = processor.feature_extractor.sampling_rate
    return processor(text=ask.texts, audio=sounds, sampling_rate=rate, **in_batch(processor, ask))


def _padding(_: str, batch: Mapping[str, Any]) -> Any:
    """Two frames become one in a convolution, and two of those one by their mean."""
    frames = batch["feature_attention_mask"].sum(-1)
    lengths = ((frames - 1) // 2 + 1 - 2) // 2 + 1
    tokens = batch["feature_attention_mask"].shape[-1] // 4
    return torch.arange(tokens, device=lengths.device) < lengths[:, None]


QWEN2_AUDIO = Arch(
    model_type="qwen2_audio",
    vision_tower="model.audio_tower",
    vision_blocks="model.audio_tower.layers",
    projector=("model.multi_modal_projector",),
    language_model="model.language_model",
    language_blocks="model.language_model.layers",
    lm_head="lm_head",
    hub_prefixes=(
        ("model.audio_tower.", "audio_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ),
    projector_padding=_padding,
    media="sounds",
    media_token="audio_token_id",
    ask=_ask,
)
