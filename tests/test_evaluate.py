"""Greedy answers are what the model's highest logits spell, whatever the batches."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny import make_samples

from slimdeploy.config import Config, DataConfig, ModelConfig
from slimdeploy.evaluate import greedy_answers
from slimdeploy.inspection import evaluate
from slimdeploy.model import Model, encode
from slimdeploy.progress import Progress
from slimdeploy.samples import Sample


def test_answers_are_the_highest_logits_token_by_token(tiny_model: Model) -> None:
    (sample,) = make_samples(1)
    batch = dict(encode(tiny_model, [sample]))
    del batch["position_ids"]
    tokens: list[int] = []
    for _ in range(6):
        with torch.inference_mode():
            tokens.append(int(tiny_model.module(**batch).logits[0, -1].argmax()))
        if tokens[-1] == tiny_model.processor.tokenizer.eos_token_id:
            break
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([[tokens[-1]]])], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    expected = tiny_model.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert greedy_answers(tiny_model, [sample], 6, 1, Progress.silent()) == [expected]


def test_a_generation_config_with_penalties_changes_nothing(tiny_model: Model) -> None:
    samples = make_samples(3)
    plain = greedy_answers(tiny_model, samples, 8, 3, Progress.silent())
    own = tiny_model.pretrained.generation_config
    own.update(repetition_penalty=50.0, no_repeat_ngram_size=1, num_beams=4, do_sample=True, temperature=9.0)
    assert greedy_answers(tiny_model, samples, 8, 3, Progress.silent()) == plain
    assert tiny_model.pretrained.generation_config is own


def test_batches_change_nothing_and_order_is_kept(tiny_model: Model) -> None:
    samples = make_samples(7)
    alone = greedy_answers(tiny_model, samples, 4, 1, Progress.silent())
    assert greedy_answers(tiny_model, samples, 4, 3, Progress.silent()) == alone
    assert len(set(alone)) > 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_is_held_in_the_type_that_the_settings_name(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    held = []

    def answers(model: Model, samples: Sequence[Sample], *_: object) -> list[str]:
        held.append(model.module.dtype)
        return [""] * len(samples)

    monkeypatch.setattr("slimdeploy.evaluate.greedy_answers", answers)
    config = Config(data=DataConfig(test=2), model=ModelConfig(dtype=dtype))  # type: ignore[arg-type]
    evaluate(str(tiny_checkpoint), config, Progress.silent())
    assert held == [getattr(torch, dtype)]
