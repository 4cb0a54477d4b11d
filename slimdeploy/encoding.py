"""Samples become inputs of a model: its chat template or its family's prompt, its processor, labels and positions.

Knows nothing of checkpoints and weights.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from .archs.asking import Ask
from .errors import DataError, ModelError
from .images import load_image
from .samples import Sample
from .sounds import load_sound

if TYPE_CHECKING:
    from .model import Model

IGNORED_LABEL = -100
"""Marks the tokens that no loss is taken on, as in transformers."""


def encode(model: "Model", samples: Sequence[Sample], answers: bool = False) -> BatchFeature:
    """Inputs for a batch of samples, on the model's device: pictures or sounds, then the question, padded on the left.

    input_ids, attention_mask: (samples, tokens). position_ids: the same shape, unless the model counts itself. What
    else there is depends on the family; pixel_values are (pictures, 3, height, width) in LLaVA-1.5.
    answers: appends each sample's first answer and adds `labels`, -100 everywhere but on the answer's tokens.
    Raises DataError that names the sample for pictures and sounds that cannot be decoded or that the family does not
    take, and for control tokens in its texts.
    """
    arch = model.arch
    refuse_control_tokens(model, samples)
    _check_media(model, samples)
    prompts = [_render(model, sample) for sample in samples]
    endings = [_ending(model, sample, prompt, answers) for sample, prompt in zip(samples, prompts, strict=True)]
    ask = Ask(prompts, endings, [_pictures(sample) for sample in samples], [_sounds(model, s) for s in samples])
    batch: BatchFeature = arch.ask(model.processor, ask)
    mask: Tensor = batch["attention_mask"]
    if arch.first_position is not None:
        batch["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0) + arch.first_position
    if answers:
        from_end = mask.shape[1] - torch.arange(mask.shape[1])
        is_answer = from_end <= torch.tensor(arch.answer_lengths(model.processor, ask))[:, None]
        batch["labels"] = torch.where(is_answer, batch["input_ids"], IGNORED_LABEL)
    dtype = next(model.module.parameters()).dtype
    for name, tensor in batch.items():
        if torch.is_floating_point(tensor):
            batch[name] = tensor.to(dtype)
    return batch.to(model.device)


def refuse_control_tokens(model: "Model", samples: Sequence[Sample]) -> None:
    """Raises DataError that names the first sample whose question or first answer spells a control token.

    The server takes such a text for plain characters and the tokenizer here does not: answers would differ.
    """
    tokenizer = model.processor.tokenizer
    controls = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    controls |= {*tokenizer.all_special_tokens}
    controls |= {str(getattr(model.processor, name, None) or "") for name in ("image_token", "audio_token")}
    longest_first = re.compile("|".join(map(re.escape, sorted(controls - {""}, key=len, reverse=True))))
    for sample in samples:
        if found := longest_first.search("\0".join((sample.question, *sample.answers[:1]))):
            raise DataError(
                f"sample '{sample.id}' holds '{found.group()}' in its question or answer, which is a control token of "
                f"{model.name}; take it out of the text"
            )


def _check_media(model: "Model", samples: Sequence[Sample]) -> None:
    """Raises DataError that names the first sample with media that the family does not take, or with too few."""
    arch = model.arch
    for sample in samples:
        counts = {"pictures": len(sample.images), "sounds": len(sample.sounds)}
        for media, count in counts.items():
            if count and media != arch.media:
                raise DataError(
                    f"sample '{sample.id}' has {media}, but {model.name} is of the family '{arch.model_type}', which "
                    f"takes {arch.media}; take them out, or use another model"
                )
        count = counts[arch.media]
        if count < arch.fewest or (arch.most is not None and count > arch.most):
            wanted = f"at least {arch.fewest}" if arch.most is None else f"{arch.fewest}"
            raise DataError(
                f"sample '{sample.id}' has {count} {arch.media}, but the family '{arch.model_type}' of {model.name} "
                f"takes {wanted} beside a question; take the sample out"
            )


def _pictures(sample: Sample) -> list[Image.Image]:
    try:
        return [load_image(image) for image in sample.images]
    except DataError as error:
        raise DataError(f"sample '{sample.id}': {error}") from None


def _sounds(model: "Model", sample: Sample) -> list[NDArray[np.float32]]:
    if not sample.sounds:
        return []
    hears = model.processor.feature_extractor
    try:
        return [load_sound(sound, hears.sampling_rate, longest=hears.n_samples) for sound in sample.sounds]
    except DataError as error:
        raise DataError(f"sample '{sample.id}': {error}") from None


def _render(model: "Model", sample: Sample) -> str:
    if model.arch.prompt is not None:
        return model.arch.prompt(sample.question, len(sample.images))
    turns = [_user_turn(sample)]
    return str(model.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def _ending(model: "Model", sample: Sample, prompt: str, answered: bool) -> str:
    """What follows the prompt: the answer, ended as the model ends one; nothing where no answer is wanted or known."""
    if not answered or not sample.answers:
        return ""
    if model.arch.prompt is not None:
        return f"{sample.answers[0]}{model.processor.tokenizer.eos_token}"
    turn = {"role": "assistant", "content": [{"type": "text", "text": sample.answers[0]}]}
    turns = [_user_turn(sample), turn]
    text = str(model.processor.apply_chat_template(turns, tokenize=False)).rstrip()
    if not text.startswith(prompt):
        raise ModelError(
            f"{model.source}: its chat template renders an answered question otherwise than the question alone, "
            "so the model cannot be trained on answers; make the one start with the other"
        )
    ends = model.end_tokens()
    return (text if text.endswith(ends) else text + ends[0]).removeprefix(prompt)


def _user_turn(sample: Sample) -> dict[str, Any]:
    # Some templates look for the key that names the sound's address, and read nothing from it.
    media = [{"type": "image"} for _ in sample.images] + [{"type": "audio", "audio_url": ""} for _ in sample.sounds]
    return {"role": "user", "content": [*media, {"type": "text", "text": sample.question}]}
