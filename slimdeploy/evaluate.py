"""The model's own answers, greedily decoded. Scoring them is `slimdeploy.scoring`'s work."""

from collections.abc import Sequence

import torch

from .model import Model, encode
from .progress import Progress
from .samples import Sample


def greedy_answers(
    model: Model, samples: Sequence[Sample], max_tokens: int, batch_size: int, progress: Progress
) -> list[str]:
    """One text per sample, in order: what the model says at temperature 0, without special tokens and outer spaces."""
    tokenizer = model.processor.tokenizer
    # Batches of prompts of similar length: padding is work for nothing.
    order = sorted(range(len(samples)), key=lambda index: len(samples[index].question))
    answers = [""] * len(samples)
    bar = progress.bar("answers", total=-(-len(samples) // batch_size))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = encode(model, [samples[index] for index in indices])
        inputs = {name: tensor for name, tensor in batch.items() if name != "position_ids"}  # generate makes its own
        with torch.inference_mode():
            tokens = model.pretrained.generate(
                **inputs,
                max_new_tokens=max_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=tokenizer.pad_token_id,
            )
        texts = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for index, text in zip(indices, texts, strict=True):
            # A character whose last bytes never came is left out, as a server that streams leaves it out.
            answers[index] = text.rstrip("\ufffd").strip()
        bar.advance()
    return answers
