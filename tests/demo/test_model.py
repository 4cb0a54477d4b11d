"""The demo model's tokenizer, chat template and training attention."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.demo import digit_scans, picture_rng
from slimdeploy.demo.attention import Layout, use_training_attention
from slimdeploy.demo.curriculum import SMOKE_RECIPE, BatchMaker
from slimdeploy.demo.model import make_model, make_processor, make_tokenizer
from slimdeploy.demo.optimizer import orthogonalized
from slimdeploy.demo.questions import CORNERS, DIGITS, DIRECTIONS
from slimdeploy.demo.scenes import COLORS, SHAPES, make_picture

TOKENIZER = make_tokenizer()
PROCESSOR = make_processor()


def render(messages: list[dict[str, Any]], *, prompt: bool = True) -> str:
    text: str = PROCESSOR.apply_chat_template(messages, add_generation_prompt=prompt)
    return text


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert TOKENIZER.decode(ids) == text


@pytest.mark.parametrize("answer", [*COLORS, *SHAPES, *DIRECTIONS, *CORNERS, *DIGITS, "yes", "no"])
def test_every_answer_is_one_token(answer: str) -> None:
    assert len(TOKENIZER(f" {answer}", add_special_tokens=False)["input_ids"]) == 1


def test_pictures_come_first_wherever_they_stand() -> None:
    picture, text = {"type": "image"}, {"type": "text", "text": "Which digit is this?"}
    for parts in ([picture, text], [text, picture]):
        messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        assert render(messages) == "<s>USER: <image>\nWhich digit is this? ASSISTANT:"


def test_plain_strings_system_messages_and_several_turns_are_rendered() -> None:
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
    ]
    assert render(turns) == "<s>Be brief.\nUSER: How many? ASSISTANT: 3</s>USER: And now? ASSISTANT:"
    assert render(turns[:3], prompt=False) == "<s>Be brief.\nUSER: How many? ASSISTANT: 3</s>"


def test_training_tokens_are_those_of_the_chat_template() -> None:
    maker = BatchMaker(PROCESSOR, seed=0)
    question, answer = maker.turn("Is there a red ring?", "yes", first=True)
    more_asked, more_answered = maker.turn("Which digit is this?", "7", first=False)
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a red ring?"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "Which digit is this?"},
        {"role": "assistant", "content": "7"},
    ]
    picture = np.zeros((48, 48, 3), dtype=np.uint8)
    rendered = PROCESSOR(images=[picture], text=[render(messages, prompt=False)], return_tensors="pt")
    assert rendered["input_ids"][0].tolist() == maker.prefix + question + answer + more_asked + more_answered


def test_training_pixels_are_those_of_the_processor() -> None:
    maker = BatchMaker(PROCESSOR, seed=0)
    drawn = [make_picture(picture_rng("train", index), digit_scans("train")) for index in range(3)]
    processed = PROCESSOR.image_processor([picture.pixels for picture in drawn], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(maker.normalized(drawn), processed)


def test_a_segment_is_attended_as_if_it_stood_alone() -> None:
    layout = Layout(prefix=5, segments=3, segment=4)
    model = make_model(TOKENIZER, seed=0).eval()
    language_model = model.model.language_model
    ids = torch.randint(4, 200, (2, layout.length), generator=torch.Generator().manual_seed(0))
    alone = []
    with torch.no_grad():
        for number in range(layout.segments):
            start = layout.prefix + number * layout.segment
            sequence = torch.cat([ids[:, : layout.prefix], ids[:, start : start + layout.segment]], dim=1)
            alone.append(language_model(sequence, use_cache=False).last_hidden_state[:, layout.prefix :])
        use_training_attention(model, layout)
        together = language_model(ids, position_ids=layout.positions(), use_cache=False).last_hidden_state
    torch.testing.assert_close(together[:, layout.prefix :], torch.cat(alone, dim=1), atol=1e-4, rtol=1e-4)


def test_targets_are_the_answers_and_the_end_of_each() -> None:
    maker = BatchMaker(PROCESSOR, seed=0)
    batch = maker.language(SMOKE_RECIPE[1], step=0)
    following = batch.ids.flatten()[batch.predicting + 1]
    assert torch.equal(following, batch.answers)
    first_asked = batch.ids[0, maker.layout.prefix :].tolist()
    assert first_asked[0] == maker.encode("List")[0]


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 128, 64, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalized(matrices))
    assert singular.min() > 0.4
    assert singular.max() < 1.4
