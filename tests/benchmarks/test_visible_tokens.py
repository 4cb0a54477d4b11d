"""Models of random weights whose every greedy token is a word that a client sees."""

from pathlib import Path

import torch

from slimdeploy.model import load_model


def test_tokens_behind_the_bytes_are_words_and_texts_come_back_whole() -> None:
    from visible_tokens import BEFORE_WORDS, visible_tokens

    tokenizer = visible_tokens(2000)
    assert tokenizer.get_vocab_size() == 2000
    words = [tokenizer.decode([token]) for token in range(BEFORE_WORDS, 2000)]
    assert len(set(words)) == len(words)
    assert all(word.strip().isascii() and word.strip() for word in words)
    text = "What is there? (00017)\nÄ → 猫"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_greedy_answer_has_words_alone_and_never_ends(tmp_path: Path) -> None:
    from onnx_exports import TINY
    from random_llava import write_checkpoint
    from visible_tokens import BEFORE_WORDS

    model = load_model(str(write_checkpoint(tmp_path / "dense", TINY, visible=True)))
    prompt = torch.arange(BEFORE_WORDS, BEFORE_WORDS + 8)[None]
    made = model.pretrained.generate(prompt, max_new_tokens=64, do_sample=False)[0, 8:]
    assert len(made) == 64
    assert made.min() >= BEFORE_WORDS
