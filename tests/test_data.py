"""Samples from disk: each format is read, each flaw is named with its place, and splits never overlap."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from slimdeploy.config import DataConfig
from slimdeploy.data import draw_splits, fitting_counts, load_samples
from slimdeploy.errors import DataError
from slimdeploy.records import Located, read_records
from slimdeploy.samples import SPLITS, Sample, Split

FIVE_ONES = dict.fromkeys(SPLITS, 1)


def picture(file: Path, colour: str = "red") -> bytes:
    Image.new("RGB", (4, 4), colour).save(file)
    return file.read_bytes()


def lines(file: Path, *entries: Any) -> Path:
    file.write_text("".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries))
    return file


def read(file: Path) -> list[Sample]:
    return [item.sample for item in read_records(file, file.parent)]


def config(source: Path, **counts: int) -> DataConfig:
    return DataConfig.model_validate({"source": str(source), **FIVE_ONES, **counts})


def question(number: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "question": f"What is {number}?", "answer": str(number), **more}


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
        ]
        found = [sample.metric for sample in read(lines(tmp_path / "x.jsonl", *entries))]
        assert found == ["relaxed", "vqa", "vqa", "exact_match", "letter"]

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

    def test_a_source_that_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nothing.jsonl does not exist"):
            load_samples(config(tmp_path / "nothing.jsonl"), ["test"])

    def test_a_picture_that_is_missing_or_none_names_sample_and_line(self, tmp_path: Path) -> None:
        good = [question(number) for number in range(4)]
        file = lines(tmp_path / "x.jsonl", *good, question(4, image="gone.png"))
        with pytest.raises(DataError, match=r"x.jsonl:5: sample '4': .*gone.png does not exist"):
            load_samples(config(file), ["test"])
        (tmp_path / "gone.png").write_text("no picture")
        with pytest.raises(DataError, match=r"sample '4': .*gone.png is truncated, damaged or not a PNG"):
            load_samples(config(file), ["test"])

    @pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF"])
    def test_a_picture_that_was_cut_off_is_found_before_anything_is_computed(
        self, tmp_path: Path, format_: str
    ) -> None:
        Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "cut", format_)
        encoded = (tmp_path / "cut").read_bytes()
        file = lines(tmp_path / "x.jsonl", *(question(number) for number in range(4)), question(4, image="cut"))
        assert load_samples(config(file), ["test"])
        (tmp_path / "cut").write_bytes(encoded[: len(encoded) * 2 // 3])
        with pytest.raises(DataError, match=r"x.jsonl:5: sample '4': .*cut is truncated"):
            load_samples(config(file), ["test"])


class TestSplits:
    def test_each_split_has_the_number_asked_for_whatever_else_is_asked(self, tmp_path: Path) -> None:
        file = lines(tmp_path / "x.jsonl", *(question(number) for number in range(30)))
        settings = config(file, test=10, train=12, validation=3)
        splits = load_samples(settings, SPLITS)
        assert {split: len(samples) for split, samples in splits.items()} == {
            "calibration": 1, "search": 1, "train": 12, "validation": 3, "test": 10,
        }  # fmt: skip
        assert load_samples(settings, ["train"])["train"] == splits["train"]

    def test_the_order_in_the_file_does_not_matter(self, tmp_path: Path) -> None:
        entries = [question(number) for number in range(12)]
        forward = load_samples(config(lines(tmp_path / "a.jsonl", *entries), test=5), SPLITS)
        assert load_samples(config(lines(tmp_path / "b.jsonl", *entries[::-1]), test=5), SPLITS) == forward

    def test_more_samples_move_few(self, tmp_path: Path) -> None:
        entries = [question(number) for number in range(420)]
        before = load_samples(config(lines(tmp_path / "a.jsonl", *entries[:400]), test=200, train=190), SPLITS)
        after = load_samples(config(lines(tmp_path / "b.jsonl", *entries), test=200, train=190), SPLITS)
        assert len({s.id for s in before["test"]} & {s.id for s in after["test"]}) > 180

    def test_too_few_samples_name_counts_that_work(self, tmp_path: Path) -> None:
        file = lines(tmp_path / "x.jsonl", *(question(number) for number in range(500)))
        with pytest.raises(DataError) as caught:
            load_samples(DataConfig(source=str(file)), ["test"])
        assert "holds 500 different samples, but [data] asks for 64 + 64 + 4000 + 256 + 2000 = 6384" in str(
            caught.value
        )
        settings = str(caught.value).split("for instance ")[1].split(", ")
        counts = {name: int(count) for name, count in (setting.split(" = ") for setting in settings)}
        assert counts == {"calibration": 64, "search": 64, "train": 124, "validation": 124, "test": 124}
        assert len(load_samples(config(file, **counts), ["test"])["test"]) == 124

    def test_fewer_than_five_samples_are_too_few(self, tmp_path: Path) -> None:
        file = lines(tmp_path / "x.jsonl", *(question(number) for number in range(4)))
        with pytest.raises(DataError, match=r"holds 4 different samples; each of calibration, .*, test needs"):
            load_samples(config(file), ["test"])

    def test_equal_pictures_under_two_names_share_a_split(self, tmp_path: Path) -> None:
        for name in ("a.png", "b.png"):
            picture(tmp_path / name)
        twins = [{"id": name, "image": name, "question": "Which?"} for name in ("a.png", "b.png")]
        file = lines(tmp_path / "x.jsonl", *twins, *(question(number) for number in range(20)))
        splits = load_samples(config(file, test=4, train=6, validation=5), SPLITS)
        homes = [split for split, samples in splits.items() if {"a.png", "b.png"} & {sample.id for sample in samples}]
        assert len(homes) <= 1

    @given(
        contents=st.lists(st.integers(0, 15), min_size=1, max_size=40),
        counts=st.fixed_dictionaries({split: st.integers(1, 6) for split in SPLITS}),
    )
    def test_splits_are_disjoint_by_content_and_exactly_filled(
        self, contents: list[int], counts: dict[Split, int]
    ) -> None:
        located = [
            Located(Sample(f"s{place}", f"question {content}"), f"x:{place}") for place, content in enumerate(contents)
        ]
        try:
            splits = draw_splits(located, counts, "x")
        except DataError:
            assert len(set(contents)) < sum(counts.values())
            return
        hashes = [{sample.content_hash() for sample in samples} for samples in splits.values()]
        assert sum(map(len, hashes)) == len(set().union(*hashes))
        assert {split: len(samples) for split, samples in splits.items()} == counts

    @given(
        counts=st.fixed_dictionaries({split: st.integers(1, 3000) for split in SPLITS}), available=st.integers(5, 9000)
    )
    def test_suggested_counts_fit_and_leave_no_split_empty(self, counts: dict[Split, int], available: int) -> None:
        fitting = fitting_counts(counts, available)
        assert sum(fitting.values()) == min(available, sum(counts.values()))
        assert all(1 <= fitting[split] <= counts[split] for split in SPLITS)


class TestFolder:
    def folder(self, tmp_path: Path) -> Path:
        for place, split in enumerate(SPLITS):
            lines(tmp_path / f"{split}.jsonl", *(question(10 * place + number) for number in range(3)))
        return tmp_path

    def test_each_split_is_its_file_up_to_the_count(self, tmp_path: Path) -> None:
        splits = load_samples(config(self.folder(tmp_path), search=2, test=99), SPLITS)
        assert [sample.id for sample in splits["search"]] == ["10", "11"]
        assert len(splits["test"]) == 3

    def test_a_missing_file_is_named_when_its_split_is_asked_for(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path)
        (folder / "train.jsonl").unlink()
        assert load_samples(config(folder), ["test"])["test"]
        with pytest.raises(DataError, match=r"has no train.jsonl"):
            load_samples(config(folder), ["test", "train"])

    def test_an_overlap_names_both_samples(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path)
        lines(folder / "test.jsonl", question(20) | {"id": "copy"})
        with pytest.raises(
            DataError, match=r"sample 'copy' has the pictures and question of sample '20'.*train and test"
        ):
            load_samples(config(folder), ["test"])
