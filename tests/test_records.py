"""Samples entry by entry: each format is read, each flaw is named with its place."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from sample_files import lines, picture, question

from slimdeploy.errors import DataError
from slimdeploy.records import read_records
from slimdeploy.samples import Sample


def read(file: Path) -> list[Sample]:
    return [item.sample for item in read_records(file, file.parent)]


class TestFormats:
    def test_plain_lines(self, tmp_path: Path) -> None:
        entry = {
            "id": 7,
            "image": "a.png",
            "question": "Which?",
            "answers": ["red", "crimson"],
            "choices": ["red", "blue", "crimson"],
        }
        samples = read(lines(tmp_path / "any.name", entry | {"type": "colour"}))
        image = tmp_path / "a.png"
        assert samples == [Sample("7", "Which?", (image,), ("red", "crimson"), ("red", "blue", "crimson"), "colour")]

    def test_several_images_and_a_number_as_answer(self, tmp_path: Path) -> None:
        entry = {"id": "x", "images": ["a.png", "sub/b.png"], "question": "How many?", "answer": 2, "kind": "count"}
        (sample,) = read(lines(tmp_path / "x.jsonl", entry))
        assert sample.images == (tmp_path / "a.png", tmp_path / "sub/b.png")
        assert (sample.answers, sample.kind) == (("2",), "count")

    def test_the_metric_is_the_samples_own_in_every_format(self, tmp_path: Path) -> None:
        entries = [
            question(0, metric="relaxed"),
            {"id": "1", "conversations": [{"from": "human", "value": "Which?"}], "metric": "vqa"},
            {"id": "2", "messages": [{"role": "user", "content": "Which?"}], "metric": "vqa"},
            question(3),
            {"question": "Which?", "choices": ["red", "blue"], "answer": "B", "metric": "letter"},
            {
                "conversations": [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "(B)"}],
                "choices": ["red", "blue"],
                "metric": "letter",
            },
        ]
        found = [(sample.metric, sample.choices) for sample in read(lines(tmp_path / "x.jsonl", *entries))]
        metrics = ["relaxed", "vqa", "vqa", "exact_match", "letter", "letter"]
        assert found == list(zip(metrics, [()] * 4 + [("red", "blue")] * 2, strict=True))

    def test_a_sample_may_lack_id_image_and_answer(self, tmp_path: Path) -> None:
        file = lines(tmp_path / "x.jsonl", "", {"question": "Why?"})
        assert read(file) == [Sample(f"{file}:2", "Why?")]

    def test_llava_conversations_give_the_first_question(self, tmp_path: Path) -> None:
        turns = [("human", "<image>\nWhich colour?"), ("gpt", "Red."), ("human", "And the shape?"), ("gpt", "Round.")]
        entry = {"id": "1", "image": "a.png", "conversations": [{"from": who, "value": text} for who, text in turns]}
        file = tmp_path / "llava.txt"
        file.write_text(json.dumps([entry], indent=1))
        assert read(file) == [Sample("1", "Which colour?", (tmp_path / "a.png",), ("Red.",))]

    def test_openai_messages_with_data_urls_paths_and_a_system_message(self, tmp_path: Path) -> None:
        encoded = picture(tmp_path / "a.png")
        url = "data:image/png;base64," + base64.b64encode(encoded).decode()
        parts = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "Which colour?"},
            {"type": "image_url", "image_url": {"url": "a.png"}},
        ]
        messages = [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "red"},
            {"role": "user", "content": "Sure?"},
        ]
        (sample,) = read(lines(tmp_path / "x.jsonl", {"messages": messages}))
        assert sample.question == "Be short.\nWhich colour?"
        assert sample.images == (encoded, tmp_path / "a.png")
        assert sample.answers == ("red",)

    @pytest.mark.parametrize(
        "entry",
        [
            {"question": "<image>\nWhich?"},
            {"messages": [{"role": "user", "content": "<image>Which?"}]},
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "<image>"}, {"type": "text", "text": "Which?"}],
                    }
                ]
            },
            {"conversations": [{"from": "human", "value": "Which?\n<image>"}]},
        ],
    )
    def test_a_mark_for_the_picture_is_no_part_of_the_question(self, tmp_path: Path, entry: dict[str, Any]) -> None:
        assert read(lines(tmp_path / "x.jsonl", entry))[0].question == "Which?"

    @pytest.mark.parametrize(
        ("given", "answers"), [({"answer": ""}, ()), ({"answers": [" ", "red"]}, ("red",)), ({"answer": 0}, ("0",))]
    )
    def test_a_blank_answer_is_none(self, tmp_path: Path, given: dict[str, Any], answers: tuple[str, ...]) -> None:
        assert read(lines(tmp_path / "x.jsonl", {"question": "Why?", **given}))[0].answers == answers

    def test_a_character_of_two_units_is_read(self, tmp_path: Path) -> None:
        assert read(lines(tmp_path / "x.jsonl", r'{"question": "\ud83d\ude00?"}'))[0].question == "\U0001f600?"

    def test_a_byte_order_mark_does_no_harm(self, tmp_path: Path) -> None:
        file = tmp_path / "x.jsonl"
        file.write_bytes(b"\xef\xbb\xbf" + json.dumps(question(1)).encode())
        assert read(file)[0].id == "1"


class TestFlaws:
    @pytest.mark.parametrize(
        ("entry", "said"),
        [
            ("{broken", "x.jsonl:2 is not JSON"),
            ("[" * 100_000, "x.jsonl:2 is not JSON"),
            ([1], "x.jsonl:2: is no sample"),
            ({"id": 1}, "x.jsonl:2: is no sample: it needs a 'question'"),
            ({"question": "  "}, "is no sample"),
            ({"question": "<image>"}, "is no sample"),
            ({"question": "\ud800"}, r"x.jsonl:2: '\\ud800' holds half of a surrogate pair"),
            ({"question": "q", "answer": "\udc00"}, "x.jsonl:2: .* half of a surrogate pair"),
            ({"question": "q", "image": "\ud800.png"}, "x.jsonl:2: .* half of a surrogate pair"),
            ({"question": "q", "id": "\ud800"}, "x.jsonl:2: .* half of a surrogate pair"),
            ({"question": "q", "image": ""}, "a picture's path is empty; leave 'image' out"),
            ({"question": "q", "images": ["a.png", " "]}, "a picture's path is empty"),
            ({"question": "q", "id": ["a"]}, "'id' is \\['a'\\]"),
            ({"question": "q", "answer": {"a": 1}}, "'answer' is"),
            ({"question": "q", "choices": [None]}, "'choices' is"),
            ({"question": "q", "kind": 3}, "'kind' is 3"),
            ({"question": "q", "metric": "bleu"}, "'metric' is 'bleu', not one of exact_match, letter"),
            ({"question": "q", "metric": ["vqa"]}, "'metric' is \\['vqa'\\]"),
            ({"question": "q", "metric": "letter", "answer": "A"}, "the metric 'letter' needs 'choices'"),
            (
                {"question": "q", "choices": ["red", "blue"], "answer": "C"},
                "answer 'C' is not among the choices red, blue",
            ),
            ({"question": "q", "image": "https://a.b/c.png"}, "is a web address; nothing is downloaded"),
            ({"question": "q", "image": "data:image/png;base64,%%%"}, "data: URL is not of the form"),
            ({"question": "q", "image": "data:image/png,abc"}, "data: URL is not of the form"),
            ({"conversations": []}, "holds no question from 'human'"),
            ({"conversations": [{"value": "x"}]}, "each of 'conversations' needs 'from'"),
            ({"messages": []}, "holds no question from 'user'"),
            ({"messages": [{"role": "robot", "content": "x"}]}, "each of 'messages' needs 'role'"),
            ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "is a text or an image_url"),
            ({"messages": [{"role": "user", "content": 3}]}, "is a text or an image_url"),
            (question(0), "x.jsonl:2: the id '0' stands at .*x.jsonl:1 already"),
        ],
    )
    def test_each_is_named_with_its_line(self, tmp_path: Path, entry: Any, said: str) -> None:
        with pytest.raises(DataError, match=said):
            read(lines(tmp_path / "x.jsonl", question(0), entry))

    def test_a_broken_array(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="is not valid JSON"):
            read(lines(tmp_path / "x.json", "[{}"))

    def test_an_empty_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="holds no sample"):
            read(lines(tmp_path / "x.jsonl"))

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "x.jsonl").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path / "x.jsonl")
