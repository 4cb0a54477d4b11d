"""Prompts with pictures have the text and the ids that transformers' processors give; what is forged stays text."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from odd_pictures import noise
from PIL import Image
from tiny_models import Described
from tokenizers import Tokenizer, processors

from slimdeploy.serve.engine import Message, RequestError
from slimdeploy.serve.positions import positions, token_kinds

SQUARE, WIDE, TALL = noise(24, 24), noise(96, 40), noise(30, 70)
Conversation = tuple[Message, ...]
CONVERSATIONS: dict[str, Conversation] = {
    "no picture": (Message("user", ("Hello",)),),
    "one picture": (Message("user", (WIDE, "What is this?")),),
    "a picture behind the text": (Message("user", ("What is this?", TALL)),),
    "several pictures": (Message("user", (SQUARE, "What", WIDE, "are", TALL, "these?")),),
    "pictures side by side": (Message("user", (SQUARE, WIDE, TALL, "é <b>&'\"\n x ")),),
    "a system message": (Message("system", ("Be brief.",)), Message("user", (WIDE, "What?"))),
    "several turns": (
        Message("user", (SQUARE, "Hi")),
        Message("assistant", ("Ho",)),
        Message("user", ("  and \n\n now ", TALL)),
    ),
    "a turn before the picture": (
        Message("user", ("Hi",)),
        Message("assistant", ("Ho",)),
        Message("user", (SQUARE, "?")),
    ),
}
QUESTIONS: dict[str, Conversation] = {
    "one picture": CONVERSATIONS["one picture"],
    "pictures side by side": CONVERSATIONS["pictures side by side"],
    "no question": (Message("user", (WIDE,)),),
}


def pictures_of(conversation: Conversation) -> list[Image.Image]:
    return [part for message in conversation for part in message.parts if isinstance(part, Image.Image)]


def theirs(described: Described, conversation: Conversation) -> tuple[str, list[int]]:
    """Prompt and ids, by transformers."""
    processor, images = described.processor, pictures_of(conversation)
    if described.facts.family == "paligemma":
        question = "".join(part for part in conversation[0].parts if isinstance(part, str))
        prompt = "<image>" * len(images) + question
        return prompt, list(processor(text=[prompt], images=[images])["input_ids"][0])
    turns: list[dict[str, Any]] = [
        {
            "role": m.role,
            "content": [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in m.parts],
        }
        for m in conversation
    ]
    prompt = processor.apply_chat_template(turns, add_generation_prompt=True)
    special = not prompt.startswith(processor.tokenizer.bos_token)
    return prompt, list(processor(text=prompt, images=images or None, add_special_tokens=special)["input_ids"][0])


def our_ids(described: Described, conversation: Sequence[Message]) -> list[int]:
    prompt = described.prompts.render(conversation)
    return described.prompts.ids(prompt, described.pictures.prepare_all(pictures_of(tuple(conversation))))


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompts_and_ids_equal_transformers(conversing: Described, name: str) -> None:
    prompt, ids = theirs(conversing, CONVERSATIONS[name])
    assert conversing.prompts.render(CONVERSATIONS[name]) == prompt
    assert our_ids(conversing, CONVERSATIONS[name]) == ids


@pytest.mark.parametrize("name", QUESTIONS)
def test_paligemma_has_pictures_then_the_question(paligemma: Described, name: str) -> None:
    assert our_ids(paligemma, QUESTIONS[name]) == theirs(paligemma, QUESTIONS[name])[1]


def test_ids_hold_as_many_image_tokens_as_the_pictures_have(described: Described) -> None:
    conversation = CONVERSATIONS["pictures side by side"]
    pictures = described.pictures.prepare_all(pictures_of(conversation))
    ids = our_ids(described, conversation)
    assert ids.count(described.facts.image_token) == sum(picture.tokens for picture in pictures)
    assert len(described.prompts.ids(described.prompts.render(conversation))) < len(ids)


def test_paligemma_begins_its_question_with_the_one_token_of_a_beginning(paligemma: Described, tmp_path: Path) -> None:
    folder = shutil.copytree(paligemma.folder, tmp_path / "copy")
    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(file)
    conversation = QUESTIONS["one picture"]
    assert our_ids(Described(folder), conversation) == our_ids(paligemma, conversation)


def test_kinds_and_positions_equal_transformers(described: Described) -> None:
    conversation = CONVERSATIONS["one picture"]
    ids = our_ids(described, conversation)
    pictures = described.pictures.prepare_all(pictures_of(conversation))
    kinds, found = token_kinds(described.facts, ids), positions(described.facts, ids, pictures)
    assert found.ids.shape[-1] == len(ids)
    if kinds is not None:
        prompt, images = theirs(described, conversation)[0], pictures_of(conversation)
        expected = described.processor(text=prompt, images=images, add_special_tokens=False)["token_type_ids"][0]
        # PaliGemma's processor marks what sees only what is before it: the answers.
        sees_both_ways = [kind == (described.facts.family != "paligemma") for kind in expected]
        assert kinds.tolist() == sees_both_ways


def test_control_tokens_in_a_message_stay_plain_text(described: Described) -> None:
    forged = [f" {token} " for token in described.processor.tokenizer.all_special_tokens]
    text = "a" + "".join(forged) + described.pictures.marker + "z"
    honest = (Message("user", (WIDE, "az")),)
    ids = our_ids(described, (Message("user", (WIDE, text)),))
    special = set(described.processor.tokenizer.all_special_ids)
    assert [i for i in ids if i in special] == [i for i in our_ids(described, honest) if i in special]
    assert text in described.processor.tokenizer.decode(ids)


def test_a_marker_that_is_cut_in_two_claims_no_picture(described: Described) -> None:
    marker = described.pictures.marker
    ids = our_ids(described, (Message("user", (WIDE, "x" + marker[:4], marker[4:] + "x")),))
    honest = our_ids(described, (Message("user", (WIDE, "xx")),))
    assert ids.count(described.facts.image_token) == honest.count(described.facts.image_token)


def test_pictures_without_a_place_are_refused(conversing: Described) -> None:
    conversation = (Message("assistant", ("a", WIDE)), Message("user", ("b",)))
    if "message['role'] == 'assistant' %}ASSISTANT" in conversing.processor.chat_template:
        with pytest.raises(RequestError, match="of 1 images the model's chat template has places for 0"):
            conversing.prompts.render(conversation)
    else:
        assert our_ids(conversing, conversation) == theirs(conversing, conversation)[1]


@pytest.mark.parametrize("name", ["a system message", "several turns", "a turn before the picture"])
def test_paligemma_refuses_more_than_one_question(paligemma: Described, name: str) -> None:
    with pytest.raises(RequestError, match="holds no conversation") as caught:
        paligemma.prompts.render(CONVERSATIONS[name])
    assert caught.value.param == "messages"


def test_paligemma_refuses_a_question_without_a_picture(paligemma: Described) -> None:
    with pytest.raises(RequestError, match="add an image"):
        paligemma.prompts.render(CONVERSATIONS["no picture"])
