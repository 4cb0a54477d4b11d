"""Samples in splits: each has the number asked for, no two share content, and what cannot be used is named."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sample_files import lines, picture, question

from slimdeploy.config import DataConfig
from slimdeploy.config_file import parse_config
from slimdeploy.data import draw_published, draw_splits, fitting_counts, load_samples
from slimdeploy.errors import ConfigError, DataError
from slimdeploy.published import Part, Published
from slimdeploy.records import Located
from slimdeploy.samples import SPLITS, Sample, Split

FIVE_ONES = dict.fromkeys(SPLITS, 1)


def config(source: Path, **counts: int) -> DataConfig:
    return DataConfig.model_validate({"source": str(source), **FIVE_ONES, **counts})


class TestFlaws:
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
        train=st.lists(st.integers(0, 15), min_size=1, max_size=30),
        test=st.lists(st.integers(0, 15), min_size=1, max_size=10),
        counts=st.fixed_dictionaries({split: st.integers(1, 4) for split in SPLITS}),
    )
    def test_no_other_split_of_a_published_set_holds_what_its_test_split_holds(
        self, train: list[int], test: list[int], counts: dict[Split, int]
    ) -> None:
        def part(name: str, contents: list[int]) -> Part:
            samples = (Sample(f"{name}{place}", f"question {content}") for place, content in enumerate(contents))
            return Part(name, (Located(sample, sample.id) for sample in samples))

        try:
            splits = draw_published(Published(part("train", train), part("test", test)), counts)
        except DataError:
            few = len(set(test)) < counts["test"]
            assert few or len(set(train) - set(test)) < sum(counts.values()) - counts["test"]
            return
        hashes = [{sample.content_hash() for sample in samples} for samples in splits.values()]
        assert sum(map(len, hashes)) == len(set().union(*hashes))
        assert {split: len(samples) for split, samples in splits.items()} == counts
        assert all(sample.id.startswith("test") == (split == "test") for split in splits for sample in splits[split])

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

    @pytest.mark.parametrize("split", SPLITS)
    def test_a_split_without_samples_is_an_error_that_names_its_file(self, tmp_path: Path, split: Split) -> None:
        lines(self.folder(tmp_path) / f"{split}.jsonl")
        with pytest.raises(DataError, match=rf"{split}.jsonl holds no sample"):
            load_samples(config(tmp_path), [split])

    @pytest.mark.parametrize("split", SPLITS)
    def test_no_split_can_be_asked_to_be_empty(self, split: Split) -> None:
        with pytest.raises(ConfigError, match=rf"data.{split} = 0 should be greater than 0"):
            parse_config({"data": {split: 0}})

    def test_a_picture_that_cannot_be_read_names_sample_and_line(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path)
        (folder / "bad.png").write_bytes(picture(tmp_path / "good.png")[:40])
        lines(folder / "calibration.jsonl", question(0), question(1, image="bad.png"))
        with pytest.raises(DataError, match=r"calibration.jsonl:2: sample '1': .*bad.png is truncated"):
            load_samples(config(folder, calibration=2), ["calibration"])

    def test_one_picture_under_two_names_is_an_overlap(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path)
        for name, split in (("a.png", "calibration"), ("b.png", "search")):
            picture(folder / name)
            lines(folder / f"{split}.jsonl", {"id": name, "image": name, "question": "Which?"})
        with pytest.raises(DataError, match=r"'b.png' .* of sample 'a.png'.*; the splits calibration and search must"):
            load_samples(config(folder), ["test"])

    def test_an_overlap_names_both_samples(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path)
        lines(folder / "test.jsonl", question(20) | {"id": "copy"})
        with pytest.raises(
            DataError, match=r"sample 'copy' has the pictures and question of sample '20'.*train and test"
        ):
            load_samples(config(folder), ["test"])
