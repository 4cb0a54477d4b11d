"""Samples become inputs whose labels stand exactly on the answers' tokens, and padding changes nothing."""

from dataclasses import replace

import pytest
import torch
from tiny import make_samples

from slimdeploy.errors import DataError, ModelError
from slimdeploy.losses import text_batch, text_logits
from slimdeploy.model import IGNORED_LABEL, Model, encode


def test_labels_are_the_answer_and_the_end_of_the_turn(tiny_model: Model) -> None:
    samples = make_samples(3)
    batch = encode(tiny_model, samples, answers=True)
    for sample, labels in zip(samples, batch["labels"], strict=True):
        text = tiny_model.processor.tokenizer.decode(labels[labels != IGNORED_LABEL])
        assert text == f" {sample.answers[0]}</s>"


def test_a_sample_without_an_answer_has_no_labels(tiny_model: Model) -> None:
    known, unknown = make_samples(1)[0], make_samples(1, answered=False)[0]
    labels = encode(tiny_model, [known, unknown], answers=True)["labels"]
    assert (labels[0] != IGNORED_LABEL).any()
    assert (labels[1] == IGNORED_LABEL).all()


def test_padding_does_not_change_logits(tiny_model: Model) -> None:
    samples = make_samples(4)
    with torch.inference_mode():
        together = tiny_model.module(**encode(tiny_model, samples)).logits[:, -1]
        alone = torch.cat([tiny_model.module(**encode(tiny_model, [sample])).logits[:, -1] for sample in samples])
    assert torch.allclose(together, alone, atol=1e-4)


def test_a_question_without_a_picture_is_encoded(tiny_model: Model) -> None:
    batch = encode(tiny_model, [replace(make_samples(1)[0], images=())])
    assert "pixel_values" not in batch


@pytest.mark.parametrize(("token", "text"), [("</s>", "Why</s>?"), ("<image>", "<image> Why?")])
def test_a_control_token_in_a_text_is_refused_with_the_samples_name(tiny_model: Model, token: str, text: str) -> None:
    good = make_samples(1)[0]
    for bad in (replace(good, id="bad", question=text), replace(good, id="bad", answers=(text,))):
        with pytest.raises(DataError, match=rf"sample 'bad' holds '{token}'.*take it out"):
            encode(tiny_model, [good, bad])


def test_a_picture_that_cannot_be_decoded_is_told_with_the_samples_name(tiny_model: Model) -> None:
    good = make_samples(1)[0]
    (picture,) = good.images
    assert isinstance(picture, bytes)
    with pytest.raises(DataError, match="sample 'cut': image is truncated"):
        encode(tiny_model, [good, replace(good, id="cut", images=(picture[:-60],))])


def test_only_text_behind_the_pictures_counts(tiny_model: Model) -> None:
    batch = text_batch(tiny_model, make_samples(4))
    image = (batch.inputs["input_ids"] == tiny_model.config.image_token_id)[:, -batch.tail :]
    assert not (image.bool() & (batch.weight > 0)).any()
    assert (batch.weight[batch.is_answer] == 1).all()
    assert (batch.weight[:, -1] == 0).all(), "what follows an answer's end is never asked for"
    assert text_logits(tiny_model, batch).shape[:2] == batch.weight.shape


def test_a_template_that_rewrites_the_question_is_refused(tiny_model: Model) -> None:
    tiny_model.processor.chat_template = "{{ messages | length }}{{ messages[0]['content'][-1]['text'] }}"
    with pytest.raises(ModelError, match="chat template"):
        encode(tiny_model, [replace(make_samples(1)[0], images=())], answers=True)
