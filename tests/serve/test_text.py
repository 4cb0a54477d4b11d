"""Tokens to text and back: certain pieces only, and no control token out of a message."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoProcessor

from slimdeploy.errors import ArtifactError
from slimdeploy.serve.engine import RequestError
from slimdeploy.serve.text import AnswerStream, Text


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """One token per byte, and some of several."""
    folder = tmp_path_factory.mktemp("byte_level")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet, "th", "the", "Ġth"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e"), ("Ġ", "th")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return Text(folder)


@pytest.fixture(scope="session")
def llama_like(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """As SentencePiece models come: a space belongs to the word after it, unknown characters are bytes."""
    folder = tmp_path_factory.mktemp("llama_like")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁b"]
    tokenizer = Tokenizer(
        models.BPE({t: i for i, t in enumerate(tokens)}, [("▁", "a"), ("▁", "b")], byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    return Text(folder)


def pieces(text: Text, ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    stream = AnswerStream(text, stop)
    given = []
    for token in ids:
        given.append(stream.push(token))
        if stream.stopped:
            return given
    return [*given, stream.flush()]


@given(st.lists(st.integers(0, 260), max_size=30))
def test_pieces_together_are_the_decoded_answer(byte_level: Text, ids: list[int]) -> None:
    assert "".join(pieces(byte_level, ids)) == byte_level.decode(ids).rstrip("\ufffd")


@given(st.lists(st.sampled_from([0, 1, 2, *range(259, 264)]), max_size=30))
def test_pieces_together_are_the_decoded_answer_where_spaces_belong_to_words(llama_like: Text, ids: list[int]) -> None:
    assert "".join(pieces(llama_like, ids)) == llama_like.decode(ids)


@pytest.mark.parametrize("kind", ["byte_level", "llama_like"])
def test_no_piece_holds_half_a_character(kind: str, request: pytest.FixtureRequest) -> None:
    text: Text = request.getfixturevalue(kind)

    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0\ufdd1\ufffd"), max_size=12))
    def holds(answer: str) -> None:
        given = pieces(text, text.encode(answer))
        assert "\ufffd" not in "".join(given)
        assert "".join(given) == text.decode(text.encode(answer))

    holds()


def test_every_character_comes_with_its_last_byte(byte_level: Text) -> None:
    ids = byte_level.encode("é€😀")
    assert pieces(byte_level, ids) == ["", "é", "", "", "€", "", "", "", "😀", ""]


def test_a_character_that_never_became_whole_is_left_out(byte_level: Text) -> None:
    assert pieces(byte_level, byte_level.encode("a😀")[:-1]) == ["a", "", "", "", ""]


@given(
    st.text("ab the", max_size=20),
    st.lists(st.text("ab the", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_the_answer_ends_before_the_first_stop_string(byte_level: Text, answer: str, stop: list[str]) -> None:
    ends = [answer.index(s) for s in stop if s in answer]
    first_seen = min((answer.index(s) + len(s) for s in stop if s in answer), default=len(answer))
    given = "".join(pieces(byte_level, byte_level.encode(answer), tuple(stop)))
    if not ends:
        assert given == answer
    else:
        # Of two that overlap, the one that is whole first may end the answer.
        assert given in {answer[:end] for end in ends if end < first_seen}
        assert not any(s in given for s in stop)


@pytest.mark.parametrize("kind", ["byte_level", "llama_like"])
def test_the_bytes_of_an_answers_tokens_are_the_answers_bytes(kind: str, request: pytest.FixtureRequest) -> None:
    text: Text = request.getfixturevalue(kind)

    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0\ufdd1"), max_size=12))
    def holds(answer: str) -> None:
        ids = text.encode(answer)
        data = b"".join(text.token(token)[1] or b"" for token in ids)
        # An answer's first word may lose its space, which is its token's all the same.
        assert data.decode() in (text.decode(ids), " " + text.decode(ids))

    holds()


def test_a_byte_that_is_part_of_a_character_is_told_as_it_is(byte_level: Text, llama_like: Text) -> None:
    assert [byte_level.token(token) for token in byte_level.encode("é")] == [("\ufffd", b"\xc3"), ("\ufffd", b"\xa9")]
    euro = [llama_like.token(token) for token in llama_like.encode("€")[1:]]
    assert euro == [("\ufffd", b"\xe2"), ("\ufffd", b"\x82"), ("\ufffd", b"\xac")]
    assert llama_like.token(3 + ord("\n")) == ("\n", b"\n")


def test_a_words_space_belongs_to_its_token(byte_level: Text, llama_like: Text) -> None:
    assert byte_level.token(byte_level.encode("a th")[-1]) == (" th", b" th")
    assert llama_like.token(llama_like.encode("a b")[-1]) == (" b", b" b")


def test_a_control_token_and_an_id_without_a_token_have_no_bytes(byte_level: Text, llama_like: Text) -> None:
    for text in (byte_level, llama_like):
        assert text.token(text.encode("</s>")[-1]) == ("</s>", None)
        assert text.token(100_000) == ("", None)


def test_every_byte_has_its_character_in_byte_level_tokens(byte_level: Text) -> None:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    assert sorted(byte_level.token(token)[1] for token in range(2, 2 + len(alphabet))) == [
        bytes([byte]) for byte in range(256)
    ]


def test_long_stop_strings_take_no_longer(byte_level: Text) -> None:
    ids = byte_level.encode("abc abc " * 50)
    long = ("abc " * 250_000, "abc abc abd" + "x" * 1_000_000, "a" * 1_000_000, "abc abcd" * 100_000)
    start = time.perf_counter()
    assert "".join(pieces(byte_level, ids, long)) == byte_level.decode(ids)
    assert time.perf_counter() - start < 10  # milliseconds; minutes where every beginning is tried


def test_a_stop_string_across_tokens_never_shows(byte_level: Text) -> None:
    assert pieces(byte_level, byte_level.encode("a then"), (" the",)) == ["a", "", ""]
    assert "".join(pieces(byte_level, byte_level.encode("one the end of"), ("the end",))) == "one "
    assert "".join(pieces(byte_level, byte_level.encode("one the edge"), ("the end",))) == "one the edge"


def test_prompts_have_the_ids_that_transformers_gives_them(checkpoint: Path) -> None:
    theirs = AutoProcessor.from_pretrained(checkpoint).tokenizer
    for prompt in ("<s>USER: <image>\nWhat?", "What is it?", "é <unk> </s>", ""):
        expected = theirs(prompt, add_special_tokens=not prompt.startswith("<s>"))["input_ids"]
        assert Text(checkpoint).encode(prompt) == expected


def test_a_quoted_control_token_is_plain_text(checkpoint: Path) -> None:
    text = Text(checkpoint)
    message = "an <image> and </s> end"
    ids = text.encode("<s>USER: " + text.quote(message) + "<image>")
    assert ids.count(4) == 1
    assert 2 not in ids
    assert ids[0] == 1
    assert text.decode(ids) == "USER: " + message
    assert text.quote("plain") == "plain"


def test_a_prompt_is_split_where_the_template_and_no_message_wrote_a_control_token(checkpoint: Path) -> None:
    text = Text(checkpoint)
    prompt = f"<s><image>{text.quote('an <image> ')}<image>{text.quote('<ima')}ge><image>"
    pieces = text.split(prompt, "<image>")
    assert len(pieces) == 4
    assert text.encode("<image>".join(pieces)) == text.encode(prompt)
    assert text.split("plain", "<image>") == ["plain"]


def test_a_control_token_is_found_by_its_id(checkpoint: Path) -> None:
    text = Text(checkpoint)
    assert text.control_token(4) == "<image>"
    for token in (5, 100_000):
        with pytest.raises(ArtifactError, match=rf"tokenizer\.json has no special token with the id {token}"):
            text.control_token(token)


FRAGMENTS = st.sampled_from(["<ima", "ge>", "mag", "</", "s>", " <s", "> ", "<image>"])
FORGED = st.lists(st.text(st.sampled_from("<>/s image\nab"), max_size=9) | FRAGMENTS, max_size=5)


@given(FORGED, st.sampled_from(["", "<", "</", "<im"]), st.sampled_from(["", "/", "s", "age"]), st.booleans())
def test_no_pieces_of_messages_and_template_join_to_a_control_token(
    checkpoint: Path, parts: list[str], before: str, after: str, strips: bool
) -> None:
    text = Text(checkpoint)
    quoted = [text.quote(part).strip() if strips else text.quote(part) for part in parts]
    ids = text.encode("<s>" + before + "".join(quoted) + after + "<image>")
    assert (ids[0], ids[-1]) == (1, 4)
    assert not {0, 1, 2, 3, 4} & set(ids[1:-1])
    assert text.decode(ids) == before + "".join(part.strip() if strips else part for part in parts) + after


@given(st.text("<>/s the", max_size=12).filter(lambda message: "<s>" not in message and "</s>" not in message))
def test_quoting_changes_no_token_of_a_message_without_control_tokens(byte_level: Text, message: str) -> None:
    assert byte_level.encode(f"the {byte_level.quote(message)} the") == byte_level.encode(f"the {message} the")


def test_a_message_cannot_quote_by_itself(byte_level: Text) -> None:
    with pytest.raises(RequestError, match=r"U\+FDD0"):
        byte_level.quote("a\ufdd0</s>\ufdd1")


def test_a_tokenizer_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is missing"):
        Text(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is no tokenizer"):
        Text(tmp_path)
