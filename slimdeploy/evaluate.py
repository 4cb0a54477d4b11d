"""The model's own answers, greedily decoded. Scoring them is `slimdeploy.scoring`'s work."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from .model import Model, encode
from .progress import Progress
from .samples import Sample


def greedy_answers(
    model: Model, samples: Sequence[Sample], max_tokens: int, batch_size: int, progress: Progress
) -> list[str]:
    """One text per sample, in order: what the highest logits spell, without special tokens and outer spaces.

    What the checkpoint says of generation (a repetition penalty, say) does not count, as in our server.
    """
    tokenizer = model.processor.tokenizer
    # Batches of prompts of similar length: padding is work for nothing.
    order = sorted(range(len(samples)), key=lambda index: len(samples[index].question))
    answers = [""] * len(samples)
    bar = progress.bar("answers", total=len(samples))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = encode(model, [samples[index] for index in indices])
        inputs = {name: tensor for name, tensor in batch.items() if name != "position_ids"}  # generate makes its own
        with torch.inference_mode(), plain_generation(model):
            tokens = model.pretrained.generate(**inputs, max_new_tokens=max_tokens)
        texts = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(indices, texts, strict=True):
            # A character whose last bytes never came is left out, as a server that streams leaves it out.
            answers[index] = text.rstrip("\ufffd").strip()
        bar.advance(count=len(indices))
    return answers


@contextmanager
def plain_generation(model: Model) -> Iterator[None]:
    """Nothing of the checkpoint's generation config but the tokens that it ends with.

    A config given to `generate` is filled up from the model's own, which is why that one has to go for a while. Where
    the language model generates on its own, it has one of its own.
    """
    generating: list[Any] = [part for part in model.module.modules() if getattr(part, "generation_config", None)]
    before = [(module, module.generation_config) for module in generating]
    for module, own in before:
        module.generation_config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            bos_token_id=own.bos_token_id,
            eos_token_id=own.eos_token_id,
            pad_token_id=model.processor.tokenizer.pad_token_id,
        )
    try:
        yield
    finally:
        for module, own in before:
            module.generation_config = own
